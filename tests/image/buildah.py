"""
The little that tests need of Debian's `buildah`, which makes and runs images without a daemon.

Processes run in the image's tree, with its environment, as its user, without capabilities, as
process 1 of a PID namespace of their own. Network and kernel are those of this machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hubmeter-tests"
STORE = (
    f"--root={CACHE / 'images'}",
    f"--runroot={CACHE / 'images-run'}",
    "--storage-driver=vfs",
)
PID_NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


class Failed(Exception):
    """What buildah or debootstrap said when it failed."""


def buildah(*arguments: str | Path, log: Path | None = None) -> str:
    """
    Run ``buildah`` with a store of its own; returns its stdout.

    Args:
        log: What it says goes there.

    Raises:
        Failed: With the end of what it said.
    """
    return command("buildah", *STORE, *arguments, log=log)


def command(*arguments: str | Path, log: Path | None = None) -> str:
    """Likewise, any command."""
    done = subprocess.run(
        arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if log is not None:
        log.write_text(done.stdout + done.stderr)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise Failed(f"{arguments[0]} ended with {done.returncode}: {said}")
    return done.stdout.strip()


def config(image: str) -> dict[str, Any]:
    """What the image says of its containers: Entrypoint, Cmd, User, Env, ..."""
    found: dict[str, Any] = json.loads(buildah("inspect", "--type=image", image))
    return found["Docker"]["config"]


class Container:
    """
    A tree made of *image*, in which processes run.

    Args:
        image: Its name.
        volume: What each process has at */var/lib/hubmeter*.
    """

    def __init__(self, image: str, volume: Path) -> None:
        self.config = config(image)
        self.volume = volume
        self._name = buildah("from", image)

    def remove(self) -> None:
        buildah("rm", self._name)

    def empty_volume(self) -> None:
        """As an engine makes a new one: with the folders that the image has there, and theirs."""
        command("rm", "-rf", self.volume)
        for folder in (self.volume, self.volume / "journal", self.volume / "data"):
            folder.mkdir()
            os.chown(folder, *self._user())

    @contextmanager
    def running(
        self, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> Iterator[Process]:
        """The image's entry point with *arguments*, or its default ones; killed at the end."""
        wanted = list(arguments) or self.config["Cmd"]
        process = self.started([*self.config["Entrypoint"], *wanted], environment or {})
        try:
            yield process
        finally:
            process.kill()

    def started(self, line: Sequence[str], environment: Mapping[str, str]) -> Process:
        """A command line as process 1."""
        user, group = self._user()
        variables = {"HOME": "/home/hubmeter", **environment}
        own = [f"--env={name}={value}" for name, value in variables.items()]
        # Root makes the namespace, and is the user before the first of our programs starts.
        root = ["--isolation=chroot", "--user=0:0", "--cap-add=CAP_SYS_ADMIN"]
        volume = f"--volume={self.volume}:/var/lib/hubmeter"
        become = [*PID_NAMESPACE, f"--setgid={group}", f"--setuid={user}"]
        run = ["buildah", *STORE, "run", *root, *own, volume, self._name, "--", *become, "--"]
        return Process([*run, *line])

    def asked(self, line: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
        """Exit code and output of a command line that ends."""
        process = self.started(line, environment)
        return process.ended(60), process.output()

    def plain(self, *line: str, user: str = "") -> str:
        """Output of a command as buildah itself starts it: as *user*, or whom the image names."""
        given = [f"--user={user}"] if user else []
        return buildah("run", "--isolation=chroot", *given, self._name, "--", *line)

    def _user(self) -> tuple[int, int]:
        user, _, group = self.config["User"].partition(":")
        return int(user), int(group)


class Process:
    """A container that runs; *pid* on this machine is its process 1."""

    def __init__(self, line: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._said = ""

    def ended(self, timeout_s: float) -> int:
        """Its exit code."""
        self._said += self._process.communicate(timeout=timeout_s)[0] or ""
        return self._process.returncode

    def output(self) -> str:
        """All that it said; after :meth:`ended`."""
        return self._said

    def line_with(self, text: str) -> str:
        """The next line of its output with *text* in it."""
        assert self._process.stdout
        for line in self._process.stdout:
            self._said += line
            if text in line:
                return line
        raise AssertionError(f"ended without saying {text!r}:\n{self._said}")

    def send(self, number: signal.Signals) -> None:
        """To process 1, as an engine does."""
        os.kill(self.process_1(), number)

    def kill(self) -> None:
        """Whatever is left of it."""
        if self._process.poll() is None:
            for pid in reversed([self._process.pid, *_descendants(self._process.pid)]):
                _kill(pid)
        self._process.communicate()

    def process_1(self) -> int:
        """Its pid here."""
        until = time.monotonic() + 30
        while time.monotonic() < until:
            for pid in _descendants(self._process.pid):
                if _pids_inside(pid)[1:] == ["1"]:
                    return pid
            time.sleep(0.05)
        raise AssertionError("it has no process 1")


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> Iterator[int]:
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in _words(listed):
            yield int(child)
            yield from _descendants(int(child))


def _pids_inside(pid: int) -> list[str]:
    """Its pid in each namespace that it is in, ours first."""
    for line in _text(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith("NSpid:"):
            return line.split()[1:]
    return []


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
