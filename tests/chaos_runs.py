"""
Lives of observed programs, as forked processes: `chaos_runs.py LIVES AT_ONCE`.

LIVES is a file of JSON, a list of `Life`. Everything is imported once and then forked, so
that hundreds of lives fit into a minute. Exit status 1, and a traceback, if anything raised
that should not have.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

BUDGET_S = 6.0
"""For each publication; a request that hangs costs so much."""

MOST_RECOVERIES = 24
"""More than a life has faults."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """
    One observed process. It ends by os._exit: nothing runs that publishes what is left.

    Attributes:
        number: Among all programs. The n-th collection has the watts of `agent_server.watts`.
        part_after: Collections after which a part is published.
        in_threads: Parts are published while the program goes on.
        budgets_ms: One shutdown for each; without any the run is abandoned.
        late: Exports after the first shutdown, while it may still be publishing.
    """

    number: int
    to: str
    run_id: str
    log: str
    collections: int
    part_after: tuple[int, ...] = ()
    in_threads: bool = False
    budgets_ms: tuple[int, ...] = ()
    late: int = 0
    points: str = "other"


@dataclass(frozen=True, kw_only=True)
class Life:
    """
    Programs that share a journal directory, and the recoveries until it is empty.

    Attributes:
        programs: Run at once.
        beside: A recovery begins while the programs still publish.
        at_once: How many recoveries begin together then, one number for each time.
    """

    number: int
    journal_dir: str
    log: str
    programs: tuple[Program, ...]
    beside: bool
    at_once: tuple[int, ...]


def write_lives(path: Path, lives: Iterable[Life]) -> None:
    path.write_text(json.dumps([asdict(life) for life in lives]))


def _read_lives(path: Path) -> list[Life]:
    return [
        Life(**{**life, "programs": tuple(Program(**program) for program in life["programs"])})
        for life in json.loads(path.read_text())
    ]


def _main() -> int:
    lives, at_once = _read_lives(Path(sys.argv[1])), int(sys.argv[2])
    _prepare()
    failed, running = 0, 0
    for life in lives:
        if running == at_once:
            failed, running = failed + bool(os.wait()[1]), running - 1
        _fork(lambda life=life: _live(life))
        running += 1
    for _ in range(running):
        failed += bool(os.wait()[1])
    return min(failed, 1)


def _prepare() -> None:
    """Import what agents and recoveries import late; shorter pauses; unexpected errors show."""
    import pyarrow.parquet  # noqa: F401

    import hubmeter.flattening
    import hubmeter.hub
    import hubmeter.pipeline
    import hubmeter.recovery
    import hubmeter.sealed
    import hubmeter.sinks.hub_dataset
    import hubmeter.tables
    import observed  # noqa: F401
    import watched_hub  # noqa: F401
    from hubmeter.hub import asking

    hubmeter.hub.load()
    asking.FIRST_PAUSE_S, asking.LONGEST_PAUSE_S = 0.02, 0.2
    hubmeter.pipeline.LONGEST_PUBLISH_S = hubmeter.pipeline.PART_PUBLISH_S = BUDGET_S
    shown = logging.StreamHandler()
    shown.addFilter(lambda record: bool(record.exc_info))
    log = logging.getLogger("hubmeter")
    log.addHandler(shown)
    log.propagate = False


def _fork(act: Callable[[], None]) -> int:
    """A process that does *act* and ends as if it were killed."""
    pid = os.fork()
    if pid == 0:
        _end(act)
    return pid


def _end(act: Callable[[], None]) -> NoReturn:
    status = 1
    try:
        act()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _live(life: Life) -> None:
    ready, ready_end = os.pipe()
    pids = [_fork(lambda p=p: _run(life, p, ready_end)) for p in life.programs]
    os.close(ready_end)
    if life.beside:
        pids.append(_fork(lambda: _recover_beside(life, ready)))
    _wait(pids)
    for number in range(MOST_RECOVERIES):
        if not list(Path(life.journal_dir).glob("*.journal")):
            return
        at_once = life.at_once[number % len(life.at_once)]
        _wait([_fork(lambda: _recover(life)) for _ in range(at_once)])
    raise AssertionError(f"life {life.number} is not published by {MOST_RECOVERIES} recoveries")


def _wait(pids: list[int]) -> None:
    statuses = [os.waitpid(pid, 0)[1] for pid in pids]
    assert not any(statuses), f"a process ended with {statuses}"


def _run(life: Life, program: Program, ready: int) -> None:
    """The observed program. Says in its log what it did, and by *ready* that it shut down."""
    from opentelemetry.sdk.metrics.export import MetricExportResult

    from agent_server import watts
    from hubmeter import HubMetricExporter
    from observed import Machine
    from watched_hub import introduce

    introduce(life.number, os.getpid())
    machine = Machine(**{"run.id": program.run_id})
    exporter = HubMetricExporter(
        program.to,
        journal_dir=life.journal_dir,
        run_id=program.run_id,
        points=program.points,
        signals=False,
    )

    def export(numbers: Iterable[int]) -> None:
        for n in numbers:
            data = machine.collect(watts(program.number, n))
            _note(program.log, f"? {n}")
            if exporter.export(data) is MetricExportResult.SUCCESS:
                _note(program.log, f"+ {n}")
            if n in program.part_after:
                _note(program.log, "flush")
                part = threading.Thread(target=exporter._pipeline.publish_part, daemon=True)
                part.start()
                if not program.in_threads:
                    part.join()

    export(range(program.collections))
    for number, budget_ms in enumerate(program.budgets_ms):
        _note(program.log, "flush")
        exporter.shutdown(timeout_millis=budget_ms)
        if number == 0:
            os.write(ready, b".")
            export(range(program.collections, program.collections + program.late))


def _recover_beside(life: Life, ready: int) -> None:
    os.read(ready, 1)
    _recover(life)


def _recover(life: Life) -> None:
    from hubmeter.recovery import recover
    from watched_hub import introduce

    introduce(life.number, os.getpid())
    result = recover(Path(life.journal_dir), budget_s=BUDGET_S, say=lambda _: None)
    assert (result.left, result.damage) == ([], [])
    _note(life.log, f"recovery {len(result.published)}")


def _note(path: str, line: str) -> None:
    with Path(path).open("a") as log:
        log.write(line + "\n")


if __name__ == "__main__":
    sys.exit(_main())
