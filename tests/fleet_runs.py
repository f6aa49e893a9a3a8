"""Fleets in this process, what they are fed with, and a way to publish at once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from hubmeter import fleet as fleet_module
from hubmeter.deadline import Deadline
from hubmeter.decode.otlp_json import JsonDecoder
from hubmeter.fleet import Fleet
from hubmeter.recovery import recover
from hubmeter.settings import load_settings
from makers import POWER, SECOND, T0, gauge, point, resource_metrics
from orphans import journals

SOON_S = 30.0


def fleet_in(folder: Path, **options: Any) -> Fleet:
    """A fleet whose journal and data are in *folder*; settings and arguments by name."""
    arguments = {k: options.pop(k) for k in ("silence_s", "most_runs", "say") if k in options}
    chosen = {"to": str(folder / "data"), "journal_dir": str(folder / "journal"), **options}
    return Fleet(load_settings(**chosen), **{"say": lambda _: None, **arguments})


def power(value: float, second: float, **resource_: Any) -> dict[str, Any]:
    """One reading of one GPU; ``run_id`` is ``run.id``, other keywords are the resource's."""
    named = {key.replace("_", "."): text for key, text in resource_.items()}
    time_ = T0 + int(second * SECOND)
    return resource_metrics(gauge(POWER, "W", point(value, time_, gpu=0)), resource=named)


class Feeder:
    """Hands requests to a fleet, as a receiver does."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._decoder = JsonDecoder()

    def __call__(self, *parts: dict[str, Any]) -> None:
        self.fleet.deliver(self._decoder.decode({"resourceMetrics": list(parts)}))

    def each(self, requests: Iterable[Any]) -> None:
        for one in requests:
            self.fleet.deliver(self._decoder.decode(one))


def until(fleet: Fleet, condition: Callable[[], Any]) -> None:
    """Tick until *condition*."""
    deadline = Deadline.after(SOON_S)
    while not condition():
        assert not deadline.is_over(), fleet.status()
        fleet.tick()
        time.sleep(0.02)


def published(fleet: Fleet) -> Callable[[], bool]:
    """Whether nothing is open, and nothing waits."""
    return lambda: (
        not (
            fleet.status()["runs_open"]
            or fleet.status()["segments_waiting"]
            or fleet.status()["is_publishing"]
        )
    )


def publish(folder: Path) -> None:
    """What the child does, in this process, which is quicker."""
    result = recover(folder / "journal", only_received=True, say=lambda _: None)
    assert (result.failures, result.left, result.damage) == ([], [], [])


def end_all(fleet: Fleet, *, is_final: bool = True) -> None:
    """As :meth:`Fleet.close`, but nobody publishes."""
    with fleet._lock:
        for key in list(fleet._open):
            fleet._end(key, is_final=is_final)


def quiet_end(fleet: Fleet) -> None:
    """Nothing is published; what is on disk stays there, and is nobody's."""
    for run_log in fleet._open.values():
        run_log.release()


def cut_all(fleet: Fleet) -> None:
    with fleet._lock:
        for run_log in fleet._open.values():
            fleet._retire(run_log.cut())


def visible(folder: Path) -> list[str]:
    """Names of what waits in *folder*."""
    return [path.name for path in journals(folder) if not path.name.startswith(".")]


WIDE = 300


def wide(run_id: str, second: int, points: int = WIDE) -> dict[str, Any]:
    """Points of many series, which need some 60 kB in the journal."""
    dice = random.Random(second)
    rows = [
        point(float(n), T0 + second * SECOND, gpu=0, which=dice.randbytes(100).hex())
        for n in range(points)
    ]
    return resource_metrics(gauge("my.gauge", "1", *rows), resource={"run.id": run_id})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody wants to wait for the next publication."""
    monkeypatch.setattr(fleet_module, "FOLDER_EVERY_S", 0.05)
    monkeypatch.setattr(fleet_module, "HUB_EVERY_S", 0.05)
