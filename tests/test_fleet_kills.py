"""Receivers that are killed at random moments: what was acknowledged is published, once."""

from __future__ import annotations

import os
import random
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet_server import FleetServer
from makers import POWER, SECOND, T0, gauge, point, resource_metrics
from orphans import contents, hubmeter, journals, received, rows

KILLS = 25 * int(os.environ.get("SOAK", "1"))
SEED = int(os.environ.get("SOAK_SEED", "20261124"))
LONGEST_LIFE_S = 0.3
IN_FLIGHT = 4
SOURCES: list[dict[str, str]] = [
    *({"run.id": f"run-{n}", "service.name": f"s{n}"} for n in range(5)),
    *({"service.name": f"s{n}"} for n in range(5, 9)),
]
OPTIONS: dict[str, Any] = {
    "settings": {},
    "fleet": {"silence_s": 0.5, "most_runs": 20},
    "constants": {"CUT_BYTES": 4000, "FOLDER_EVERY_S": 0.3},
    "tick_s": 0.03,
}


class Sender:
    """Sends again what nobody acknowledged, in the order in which it was sent first."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.sent: dict[float, str] = {}
        self.again = 0
        self._unanswered: deque[tuple[int, Any]] = deque()
        self._requests = self._made()

    def work(self, server: FleetServer, seconds: float) -> None:
        """Send for so long, with some requests in flight at the end."""
        self.again += len(self._unanswered)
        for number, request in self._unanswered:
            server.send(number, request)
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            if len(self._unanswered) >= IN_FLIGHT:
                self.heard(server.answer())
            else:
                time.sleep(self.dice.choice([0, 0, 0.01]))
                self._unanswered.append(next(self._requests))
                server.send(*self._unanswered[-1])

    def heard(self, answer: str) -> None:
        number, _ = self._unanswered.popleft()
        assert answer == f"+ {number}"

    def settle(self, server: FleetServer) -> None:
        while self._unanswered:
            self.heard(server.answer())

    def _made(self) -> Iterator[tuple[int, Any]]:
        value = number = 0
        while True:
            parts = []
            for source in self.dice.sample(SOURCES, self.dice.choice([1, 1, 2, 5])):
                value += 1
                self.sent[float(value)] = source["service.name"]
                power = gauge(POWER, "W", point(float(value), T0 + value * SECOND, gpu=0))
                parts.append(resource_metrics(power, resource=source))
            number += 1
            yield number, {"resourceMetrics": parts}


@pytest.mark.timeout(120 * int(os.environ.get("SOAK", "1")))
def test_every_acknowledged_point_survives_sigkill_once(tmp_path: Path, report_counts: Any) -> None:
    """Also if the kill hits while it starts, cuts a part, or publishes one in a child."""
    sender = Sender(SEED)
    for _ in range(KILLS):
        if sender.dice.random() < 0.2:
            starting = FleetServer(tmp_path, **OPTIONS)
            time.sleep(sender.dice.uniform(0.0, 0.4))
            starting.kill()
        server = FleetServer.start(tmp_path, **OPTIONS)
        sender.work(server, sender.dice.uniform(0, LONGEST_LIFE_S))
        answers = server.kill()
        for answer in answers[: sender.dice.randint(0, len(answers))]:  # others are lost, too
            sender.heard(answer)
    server = FleetServer.start(tmp_path, **OPTIONS)
    sender.work(server, 0.1)
    sender.settle(server)
    last = server.close()
    done = hubmeter("recover", "journal", folder=tmp_path)
    report_counts(
        f"fleet: {KILLS} kills, {len(sender.sent)} points, {sender.again} requests sent "
        f"again, {len(contents(tmp_path / 'data'))} shards"
    )

    found = rows(contents(tmp_path / "data"))
    assert (last, done.returncode) == ("closed True", 0), done.stdout + done.stderr
    assert {row["gpu_power_watts"]: row["service_name"] for row in found} == sender.sent
    assert [n for n in Counter(row["gpu_power_watts"] for row in found).values() if n > 1] == []
    assert received(contents(tmp_path / "data")) >= len(sender.sent)
    assert {row["run_id"] for row in found if row["service_name"] in {"s0", "s4"}} == {
        "run-0", "run-4",
    }  # fmt: skip
    assert [path for path in journals(tmp_path) if not path.name.startswith(".")] == []
    assert not (tmp_path / "journal/damaged").exists()
