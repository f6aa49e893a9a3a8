"""
The Pythons and the versions of huggingface_hub that programs are tested on.

`make` runs this file as a program before the tests. It makes what is missing, beside the
environment that it runs in::

    .venv/pythons/3.12    hubmeter and its dependencies, one per other Python of the machine
    .venv/hub2            the major version of huggingface_hub that .venv itself does not have

Tests ask `found`, `environment` and `hub_overlays`. Only released CPythons count.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

MINORS = ("3.10", "3.11", "3.12", "3.13")
OWN_MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
PROJECT = Path(__file__).parents[1]
VENV = Path(sys.prefix)
ARE_REQUIRED = os.environ.get("PYTHONS_ARE_REQUIRED") == "1"
"""Whether a Python that hubmeter cannot be installed on is a failure, and not only a warning."""

DESCRIBE = """
import json, sys
executable = getattr(sys, "_base_executable", sys.executable)
plain = (sys.implementation.name, sys.version_info.releaselevel, sys.abiflags)
print(json.dumps([executable, sys.version_info[:3], plain == ("cpython", "final", "")]))
"""
# What programs load, so that no test pays for its compilation.
WARM_UP = """
import datasets, google.protobuf, huggingface_hub.hf_api, pyarrow.parquet
import opentelemetry.sdk.metrics.export, hubmeter.cli
"""
NOTE = ".made-of"


def found() -> dict[str, Path]:
    """
    The interpreters of this machine by minor version, each the newest patch that runs.

    The minor version of this process is among them, with the interpreter of this process.
    """
    return dict(_found())


@functools.cache
def _found() -> tuple[tuple[str, Path], ...]:
    with ThreadPoolExecutor() as pool:
        described = [one for one in pool.map(_describe, _candidates()) if one]
    newest = {".".join(map(str, version[:2])): path for version, path in sorted(described)}
    own = {OWN_MINOR: Path(getattr(sys, "_base_executable", sys.executable))}
    newest |= own
    return tuple((minor, newest[minor]) for minor in MINORS if minor in newest)


def _candidates() -> list[Path]:
    homes = {Path.home() / ".pyenv", Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")}
    folders = [folder for home in homes for folder in home.glob("versions/*/bin")]
    # Shims stand for the versions that were just found, and take ten times as long.
    folders += [Path(name) for name in os.get_exec_path() if Path(name).name != "shims"]
    names = {(folder / f"python{minor}").resolve() for folder in folders for minor in MINORS}
    return sorted(name for name in names if name.is_file())


def _describe(executable: Path) -> tuple[tuple[int, ...], Path] | None:
    """Version and true path of an interpreter, if it runs and is a released CPython."""
    command = [executable, "-I", "-S", "-c", DESCRIBE]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=30, check=True).stdout
        path, version, is_plain = json.loads(answer)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return (tuple(version), Path(path)) if is_plain else None


def environment(minor: str) -> Path:
    """
    The Python of an environment with hubmeter and its dependencies; for tests.

    If `make` could not prepare it, the test is skipped, or fails where Pythons are required.
    """
    import pytest

    if minor == OWN_MINOR:
        return Path(sys.executable)
    if _is_made(VENV / "pythons" / minor, _recipe(found()[minor])):
        return VENV / "pythons" / minor / "bin/python"
    reason = f"no hubmeter for Python {minor}: `make pythons` says why"
    return pytest.fail(reason) if ARE_REQUIRED else pytest.skip(reason)


def hub_overlays() -> list[tuple[str, dict[str, str]]]:
    """
    Versions of huggingface_hub for programs of `sys.executable`, with what selects them.

    Both majors, oldest first: the version that is installed, which nothing has to be added
    for, and one that ``PYTHONPATH`` puts before it. One only if `make` did not prepare the
    other. Other Pythons have the newest version that their dependencies allow.
    """
    overlays: list[tuple[str, dict[str, str]]] = [(metadata.version("huggingface-hub"), {})]
    folder = str(VENV / f"hub{_other_major()}")
    others = metadata.distributions(name="huggingface-hub", path=[folder])
    overlays += [(other.version, {"PYTHONPATH": folder}) for other in others]
    return sorted(overlays, key=lambda overlay: int(overlay[0].split(".")[0]))


def _other_major() -> int:
    return 1 if metadata.version("huggingface-hub").startswith("2.") else 2


def main() -> int:
    """Make what is missing, side by side; 1 if something that is required could not be made."""
    jobs = dict(_missing())
    if not jobs:
        return 0
    _say(f"preparing {', '.join(jobs)} (about a minute)")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = list(pool.map(_attempt, jobs.values()))
    for what, problem in zip(jobs, problems, strict=True):
        if problem:
            _say(f"WARNING: tests will do without {what}:\n{problem}")
    return 1 if ARE_REQUIRED and any(problems) else 0


def _missing() -> Iterator[tuple[str, Callable[[], None]]]:
    for minor, executable in found().items():
        folder, recipe = VENV / "pythons" / minor, _recipe(executable)
        if minor != OWN_MINOR and not _is_made(folder, recipe):
            yield f"Python {minor}", functools.partial(_make_python, executable, folder, recipe)
    major = _other_major()
    folder, pins = VENV / f"hub{major}", _pins()
    if not _is_made(folder, pins):
        yield f"huggingface_hub {major}", functools.partial(_make_hub, major, folder, pins)


def _attempt(make: Callable[[], None]) -> str:
    """Why *make* failed; empty if it did not."""
    try:
        make()
    except subprocess.CalledProcessError as error:
        return f"{' '.join(map(str, error.cmd))}\n{error.stdout}"
    except OSError as error:
        return str(error)
    return ""


def _make_python(executable: Path, folder: Path, recipe: str) -> None:
    """An environment without pip, which .venv has, and without byte code that nobody runs."""
    _run(executable, "-m", "venv", "--clear", "--without-pip", folder)
    python = folder / "bin/python"
    _pip("--python", python, "install", "--no-compile", "--editable", PROJECT)
    _run(python, "-c", WARM_UP)
    (folder / NOTE).write_text(recipe)


def _make_hub(major: int, folder: Path, pins: str) -> None:
    """huggingface_hub and its dependencies, the latter as in .venv where that has them."""
    new, constraints = folder.with_suffix(".new"), folder.with_suffix(".pins")
    shutil.rmtree(new, ignore_errors=True)
    constraints.write_text(pins)
    wanted = f"huggingface-hub>={major},<{major + 1}"
    _pip("install", "--target", new, "--constraint", constraints, wanted)
    constraints.unlink()
    (new / NOTE).write_text(pins)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def _is_made(folder: Path, recipe: str) -> bool:
    note = folder / NOTE
    return note.is_file() and note.read_text() == recipe


def _recipe(executable: Path) -> str:
    """What an environment is made of: the interpreter, and what pyproject.toml installs."""
    installed = PROJECT.joinpath("pyproject.toml").read_text().partition("[dependency-groups]")[0]
    return f"{executable}\n{installed}"


def _pins() -> str:
    """Versions of everything that is installed, but of what is to differ."""
    pins = {f"{_plain(one.name)}=={one.version}" for one in metadata.distributions()}
    ours = ("huggingface-hub==", "hubmeter==")
    return "\n".join(sorted(pin for pin in pins if not pin.startswith(ours)))


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pip(*arguments: str | Path) -> None:
    _run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments)


def _run(*command: str | Path) -> None:
    """Run *command*, whose byte code is kept whatever this machine likes, or raise its output."""
    subprocess.run(
        command,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
