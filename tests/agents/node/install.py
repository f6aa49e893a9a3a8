"""
The packages of the Node agent, in a cache outside of the tree.

`make` runs this file as a program before the tests: it calls ``npm ci`` once for each content
of ``package-lock.json``. Tests ask `modules`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
FILES = ("package.json", "package-lock.json")
IS_REQUIRED = os.environ.get("NODE_IS_REQUIRED") == "1"
"""Whether it is a failure that there is no Node, or no package, and not only a warning."""


def modules() -> Path:
    """
    The folder ``node_modules``; for tests.

    If it could not be prepared, the test is skipped, or fails where Node is required.
    """
    import pytest

    if shutil.which("node") and _folder().is_dir():
        return _folder() / "node_modules"
    reason = "NO NODE AGENT IS TESTED: python tests/agents/node/install.py says why"
    return pytest.fail(reason) if IS_REQUIRED else pytest.skip(reason)


def main() -> int:
    """Install what is missing; 1 if it is required and cannot be installed."""
    if _folder().is_dir():
        return 0
    problem = _install(_folder())
    if problem:
        print(f"WARNING: tests will do without Node:\n{problem}", file=sys.stderr)
    return 1 if problem and IS_REQUIRED else 0


def _folder() -> Path:
    content = b"".join(HERE.joinpath(name).read_bytes() for name in FILES)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "hubmeter-tests" / f"node-{hashlib.sha256(content).hexdigest()[:12]}"


def _install(folder: Path) -> str:
    """Why *folder* could not be made; empty if it was. It appears whole or not at all."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        return "node or npm is not installed"
    new = folder.with_name(f"{folder.name}.{os.getpid()}")
    new.mkdir(parents=True)
    try:
        for name in FILES:
            shutil.copy(HERE / name, new)
        ended = subprocess.run(
            [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=new,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if ended.returncode == 0 and not folder.is_dir():
            new.rename(folder)
        return "" if ended.returncode == 0 else ended.stdout
    finally:
        shutil.rmtree(new, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
