"""
Starts observed agents fast: a process that has imported everything and forks on demand.

Reads one JSON object per line (see `Plan`), answers with the agent's process id. Agents
are forked before any exporter exists, so each is a process of its own for hubmeter.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Plan:
    """
    What one agent does.

    Attributes:
        acknowledged: File that gets one line per export that said SUCCESS, and before each
            export one that says which is in flight.
        number: Of the run. The n-th collection has the watts ``number * 10_000 + n``.
        part_after: Collections after which parts are published.
        late: Exports after the shutdown.
        gate: Folder of a `Gate` to wait at before the shutdown.
    """

    to: str
    journal_dir: str
    acknowledged: str
    number: int
    collections: int
    part_after: tuple[int, ...] = ()
    late: int = 0
    ends_by: str = "shutdown"
    seed: int = 0
    settings: dict | None = None
    gate: str = ""

    @property
    def run_id(self) -> str:
        return f"run-{self.number:05d}"


def watts(number: int, collection: int) -> float:
    return float(number * 10_000 + collection)


class Gate:
    """Where agents wait for one another. A context manager; whoever comes late passes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("here", "open"):
            os.mkfifo(folder / name)
        self._here = os.open(folder / "here", os.O_RDWR)
        self._open: list[int] = []

    def __enter__(self) -> Gate:  # noqa: PYI034 - typing has Self since 3.11
        return self

    def __exit__(self, *exc: object) -> None:
        for fd in (self._here, *self._open):
            os.close(fd)

    def open_for(self, agents: int) -> None:
        """Wait until so many have come, then let them pass together."""
        come = 0
        while come < agents:
            come += len(os.read(self._here, agents - come))
        # Each agent waits for somebody to open the other end.
        self._open.append(os.open(self.folder / "open", os.O_RDWR))


def _pass(gate: Path) -> None:
    here = os.open(gate / "here", os.O_WRONLY)
    os.write(here, b".")
    os.close(here)
    os.close(os.open(gate / "open", os.O_RDONLY))


class AgentServer:
    """Talks to the process that forks. A context manager."""

    def __init__(self, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
            text=True,
        )
        assert self._read() == "ready"

    def __enter__(self) -> AgentServer:  # noqa: PYI034 - typing has Self since 3.11
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.communicate(timeout=60)

    def start(self, plan: Plan) -> int:
        """Start an agent; returns its process id."""
        return int(self._ask({"do": "start", "plan": asdict(plan)}))

    def wait(self, pid: int) -> int:
        """Wait for the end of an agent; returns what ``os.waitstatus_to_exitcode`` says."""
        return int(self._ask({"do": "wait", "pid": pid}))

    def _ask(self, question: dict) -> str:
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        return self._process.stdout.readline().strip()


def _serve() -> None:
    import huggingface_hub
    import pyarrow.parquet

    import hubmeter.card
    import hubmeter.flattening
    import hubmeter.sealed
    import hubmeter.sinks.hub_dataset
    import hubmeter.tables
    import observed
    import watched_hub
    from hubmeter import HubMetricExporter

    _say("ready")
    for line in sys.stdin:
        question = json.loads(line)
        if question["do"] == "wait":
            _, status = os.waitpid(question["pid"], 0)
            _say(str(os.waitstatus_to_exitcode(status)))
            continue
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(2, 1)
            _run(Plan(**question["plan"]))
        _say(str(pid))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _run(plan: Plan) -> None:
    """The agent. Ends the process."""
    from opentelemetry.sdk.metrics.export import MetricExportResult

    from hubmeter import HubMetricExporter
    from observed import Machine
    from watched_hub import introduce

    introduce(plan.number, os.getpid())
    logging.getLogger("hubmeter").setLevel(logging.ERROR)
    log = os.open(plan.acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    machine = Machine(**{"run.id": plan.run_id})
    exporter = HubMetricExporter(
        plan.to, journal_dir=plan.journal_dir, signals=False, **(plan.settings or {})
    )

    def export(collection: int) -> None:
        data = machine.collect(watts(plan.number, collection))
        os.write(log, f"? {collection}\n".encode())
        if exporter.export(data) is MetricExportResult.SUCCESS:
            os.write(log, f"+ {collection}\n".encode())

    for collection in range(plan.collections):
        export(collection)
        if collection in plan.part_after:
            exporter._pipeline.publish_part()
    if plan.gate:
        _pass(Path(plan.gate))
    exporter.shutdown()
    for collection in range(plan.collections, plan.collections + plan.late):
        export(collection)
    if plan.late:
        exporter.shutdown()
    with contextlib.suppress(OSError):
        os.write(log, b"done\n")
    os._exit(0)


@dataclass(frozen=True)
class Log:
    """What an agent noted: collections that were acknowledged, and one in flight at its end."""

    acknowledged: frozenset[int]
    in_flight: frozenset[int]
    is_done: bool


def read_log(path: Path) -> Log:
    lines = path.read_text().splitlines() if path.exists() else []
    sent = [int(line[2:]) for line in lines if line.startswith("? ")]
    acknowledged = {int(line[2:]) for line in lines if line.startswith("+ ")}
    in_flight = set(sent[-1:]) - acknowledged
    return Log(frozenset(acknowledged), frozenset(in_flight), "done" in lines)


def random_plans(count: int, seed: int, folder: Path, destinations: list[str]) -> Iterator[Plan]:
    """Runs of all shapes."""
    dice = random.Random(seed)
    for number in range(count):
        collections = dice.randrange(1, 30)
        yield Plan(
            to=dice.choice(destinations),
            journal_dir=str(folder / "journal"),
            acknowledged=str(folder / f"{number}.log"),
            number=number,
            collections=collections,
            part_after=tuple(n for n in range(collections) if dice.random() < 0.05),
            late=dice.choice([0, 0, 1, 3]),
        )


# What agents import late is imported before they are forked.
# ruff: noqa: F401

if __name__ == "__main__":
    _serve()
