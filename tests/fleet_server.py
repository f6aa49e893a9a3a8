"""
A receiver without a network: a `Fleet` in a process of its own, which can be killed at any moment.

Reads one JSON object per line from stdin: `{"id": ..., "request": OTLP/JSON}`; answers with
`+ id` as soon as the points are kept, or `- id why`. At the end of stdin it closes the fleet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class FleetServer:
    """Talks to the process. *options* are in :func:`_serve`; ready after :meth:`answer`."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            text=True,
            env={**os.environ, **options.get("environment", {})},
        )
        assert self.process.stdout is not None
        assert self.process.stdin is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout

    @classmethod
    def start(cls, folder: Path, **options: Any) -> FleetServer:
        server = cls(folder, **options)
        assert server.answer() == "ready"
        return server

    def send(self, number: int, request: Any) -> None:
        """Without waiting for the answer."""
        self._stdin.write(json.dumps({"id": number, "request": request}) + "\n")
        self._stdin.flush()

    def answer(self) -> str:
        """The next one; empty if the process has ended."""
        return self._stdout.readline().strip()

    def ask(self, number: int, request: Any) -> str:
        self.send(number, request)
        return self.answer()

    def do(self, what: str) -> Any:
        """The value of the Python expression *what*, or its error; it may speak of ``fleet``."""
        self._stdin.write(json.dumps({"do": what}) + "\n")
        self._stdin.flush()
        return json.loads(self.answer())

    def kill(self) -> list[str]:
        """SIGKILL; what it had answered before."""
        self.process.kill()
        if self._stdout.closed:
            return []
        left = [line.strip() for line in self._stdout if line.endswith("\n")]
        self._end()
        return left

    def close(self) -> str:
        """Close the fleet: its last words."""
        self._stdin.close()
        last = self.answer()
        self._end()
        return last

    def _end(self) -> None:
        self._stdout.close()
        with suppress(BrokenPipeError):
            self._stdin.close()
        self.process.wait()


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[FleetServer]:
    """A server that is killed if a test fails."""
    server = FleetServer.start(folder, **options)
    try:
        yield server
    finally:
        server.kill()


def _serve(options: dict[str, Any]) -> None:
    """
    *options*: ``settings`` and ``fleet`` are arguments, ``constants`` are for the module
    `hubmeter.fleet`, ``tick_s`` is the time between two ticks, 0 for none.
    """
    from hubmeter import fleet as module
    from hubmeter.deadline import Deadline
    from hubmeter.decode.otlp_json import JsonDecoder
    from hubmeter.settings import load_settings

    for name, value in options.get("constants", {}).items():
        setattr(module, name, value)
    settings = load_settings(**{"to": "./data", "journal_dir": "journal", **options["settings"]})
    fleet = module.Fleet(settings, **options.get("fleet", {}))
    ended = threading.Event()
    ticker = threading.Thread(target=_tick, args=(fleet, ended, options.get("tick_s", 0.1)))
    ticker.start()
    _say("ready")
    decoder = JsonDecoder()
    for line in sys.stdin:
        question = json.loads(line)
        if "do" in question:
            _say(json.dumps(_value(question["do"], fleet)))
            continue
        try:
            fleet.deliver(decoder.decode(question["request"]))
        except OSError as error:
            _say(f"- {question['id']} {error}")
        else:
            _say(f"+ {question['id']}")
    ended.set()
    ticker.join()
    _say(f"closed {fleet.close(Deadline.after(options.get('close_s', 20.0)))}")


def _value(expression: str, fleet: Any) -> Any:
    try:
        return eval(expression, {"fleet": fleet})
    except OSError as error:
        return str(error)


def _tick(fleet: Any, ended: threading.Event, every_s: float) -> None:
    while every_s and not ended.wait(every_s):
        fleet.tick()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
