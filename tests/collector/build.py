"""
Builds the OpenTelemetry Collector that tests run, with the OpenTelemetry Collector Builder.

`make` runs this file as a program before the tests. It needs Go and a Go module proxy, and
makes, once for each manifest, version of Go and platform::

    ~/.cache/hubmeter-tests/collector-<digest>/otelcol-hubmeter
    ~/.cache/hubmeter-tests/collector-<digest>/build.log

Its output is the path of the Collector. Tests ask `binary`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NoReturn

MANIFEST = Path(__file__).with_name("manifest.yaml")
TESTS = Path(__file__).parents[1]
NAME = "otelcol-hubmeter"
BUILDER = "go.opentelemetry.io/collector/cmd/builder"
PLACES_OF_GO = (Path("/usr/local/go/bin"),)
"""Where Go may be besides ``PATH``."""
IS_REQUIRED = os.environ.get("COLLECTOR_IS_REQUIRED") == "1"
"""Whether a Collector that cannot be built is a failure, and not only a warning."""


class NotBuilt(Exception):
    """There is no Collector; the message says why and what to do."""


def binary() -> Path | None:
    """The Collector, if it is built."""
    go = find_go()
    path = go and _path(go)
    return path if path and path.is_file() else None


def find_go() -> Path | None:
    """The Go of this machine."""
    folders = [*os.get_exec_path(), *map(str, PLACES_OF_GO)]
    found = shutil.which("go", path=os.pathsep.join(folders))
    return Path(found) if found else None


def main() -> int:
    """Build what is missing; 1 if it is required and could not be built."""
    signal.signal(signal.SIGTERM, _end)
    try:
        print(_built())
    except NotBuilt as reason:
        _say(f"WARNING: tests will do without an OpenTelemetry Collector: {reason}")
        _say(f"WARNING: tests of {', '.join(_who_needs_it())} are LEFT OUT until `make collector`")
        return 1 if IS_REQUIRED else 0
    except KeyboardInterrupt:
        return 130
    return 0


def _built() -> Path:
    go = find_go()
    if go is None:
        raise NotBuilt("Go is missing; install Go 1.26 or newer (https://go.dev/dl)")
    path = _path(go)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.parent.with_suffix(".lock")) as lock:
            if not path.is_file():  # nobody built it while we waited
                _build(go, path, lock)
    return path


def _path(go: Path) -> Path:
    """Where the Collector is, or will be."""
    version = subprocess.check_output([go, "version"], cwd=MANIFEST.parent)
    digest = hashlib.sha256(MANIFEST.read_bytes() + version).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "hubmeter-tests" / f"collector-{digest}" / NAME


def _build(go: Path, path: Path, lock: IO[str]) -> None:
    """Build in a folder beside, so that *path* is a whole Collector or none."""
    _say("building the OpenTelemetry Collector, some minutes the first time")
    began = time.monotonic()
    folder = path.parent.with_suffix(".building")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        with path.with_name("build.log").open("w") as log:
            for command in (
                [go, "install", f"{BUILDER}@v{_release()}"],
                [folder / "builder", f"--config={MANIFEST}", "--verbose"],
            ):
                _run(command, go=go, folder=folder, log=log, lock=lock)
        (folder / "source" / NAME).replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _say(f"built the OpenTelemetry Collector in {time.monotonic() - began:.0f} s")


def _release() -> str:
    """The release that the manifest names, which is the builder's too."""
    said = re.search(r"^  version: (\S+)$", MANIFEST.read_text(), re.MULTILINE)
    assert said
    return said[1]


def _run(command: list[str | Path], *, go: Path, folder: Path, log: IO[str], lock: IO[str]) -> None:
    """
    Run *command*, and end all its processes with us.

    They hold the lock as we do: should we be killed, the next build waits for them.
    """
    log.write(f"$ {' '.join(map(str, command))}\n")
    log.flush()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=_environment(go, folder),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=[lock.fileno()],
    )
    try:
        status = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if status:
        raise NotBuilt(f"the build failed, see {log.name}, which ends\n{_end_of(Path(log.name))}")


def _environment(go: Path, folder: Path) -> dict[str, str]:
    """What the caller set, ``GOFLAGS`` and ``GOPROXY`` among it; the builder asks PATH for Go."""
    path = f"{go.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    ours = {"PATH": path, "GOBIN": str(folder), "GOWORK": "off", "CGO_ENABLED": "0"}
    return {**os.environ, **ours}


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[IO[str]]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("waiting for another build of the OpenTelemetry Collector")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def _who_needs_it() -> list[str]:
    files = TESTS.glob("test_*.py")
    return sorted(file.name for file in files if "needs_collector" in file.read_text())


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def _end(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
