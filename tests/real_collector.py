"""
A real OpenTelemetry Collector for tests: a process that `make collector` has built.

Tests that start one are marked with `needs_collector`.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import Self

from collector import build

READY = "Everything is ready. Begin running and processing data."
# Every Collector would serve metrics of its own on one port, 8888.
QUIET = "yaml:service::telemetry::metrics::level: none"
Config = Mapping[str, Any] | str | Path


@functools.cache
def collector_binary() -> Path | None:
    """The Collector, if it was built when tests began, whatever a test makes of HOME."""
    return build.binary()


def _why_missing() -> str:
    lack = "it is not built" if build.find_go() else "Go is missing"
    return f"no Collector: {lack}; make collector"


needs_collector = pytest.mark.skipif(
    collector_binary() is None and not build.IS_REQUIRED,
    reason=f"NOTHING ABOUT REAL COLLECTORS IS TESTED HERE: {_why_missing()}",
)
"""Skips a test without a Collector; where one is required, the test fails when it starts it."""


class Collector:
    """
    One Collector process at a time, which ends with the ``with`` block.

    Args:
        config: What a configuration says, as a mapping or as text, or the path of one.
        folder: Where it runs, and where its log and its configuration are kept.
        ports:
            Names of environment variables, each of which gets a free port. The
            configuration writes ``${env:NAME}``, the test reads `port`.
        environment: More variables.
        overrides:
            More configurations, each of which changes the one before, such as
            ``yaml:exporters::debug::verbosity: detailed``.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        *,
        ports: Iterable[str] = (),
        environment: Mapping[str, str] | None = None,
        overrides: Sequence[str] = (),
    ) -> None:
        binary = collector_binary()
        if binary is None:
            pytest.fail(_why_missing())
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._ports = _free_ports(list(ports))
        self._environment = {**os.environ, **self._ports, **(environment or {})}
        configs = [QUIET, str(_written(config, folder)), *overrides]
        self._arguments = [f"--config={one}" for one in configs]
        self._binary = binary
        self._log = folder / "collector.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def log(self) -> str:
        """What all its processes have written so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def port(self, name: str) -> int:
        """The port that a variable stands for."""
        return int(self._ports[name])

    def validate(self) -> str:
        """What the Collector has against its configuration; empty if nothing."""
        ended = subprocess.run(
            [self._binary, "validate", *self._arguments],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return ended.stderr if ended.returncode else ""

    def start(self, *, within_s: float = 60) -> None:
        """Start a process and wait until it receives."""
        assert not self.is_running
        before = len(self.log)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, *self._arguments],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._wait_until_ready(before, within_s)
        except BaseException:
            self.kill()
            raise

    def stop(self, *, within_s: float = 60) -> int:
        """Ask it to end, which empties its queues, and return its exit status."""
        assert self._process
        if self.is_running:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Stop it, and start another on the same ports and files."""
        self.stop()
        self.start()

    def _wait_until_ready(self, before: int, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while READY not in self.log[before:]:
            if not self.is_running:
                raise RuntimeError(f"the Collector has ended:\n{self.log[before:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no Collector after {within_s} s:\n{self.log[before:]}")
            time.sleep(0.02)


def _written(config: Config, folder: Path) -> Path:
    if isinstance(config, Path):
        return config.resolve()
    path = folder / "collector.yaml"
    # JSON is YAML.
    path.write_text(config if isinstance(config, str) else json.dumps(config, indent=1))
    return path.resolve()


def _free_ports(names: Sequence[str]) -> dict[str, str]:
    """Ports that nobody has, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    numbers = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return dict(zip(names, numbers, strict=True))
