"""Processes that are killed at random moments: what was acknowledged is published, once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import pytest

from agent_server import AgentServer, Plan, random_plans, read_log, watts
from loopback_hub import LoopbackHub
from orphans import contents, received, rows

SOAK = int(os.environ.get("SOAK", "1"))
SEED = int(os.environ.get("SOAK_SEED", "20261123"))
KILLS = 200 * SOAK
MOST_PROCESSES = 3 * KILLS
FIRST_LIFE_S, LONGEST_LIFE_S = 0.5, 1.0
AT_ONCE = 4


@pytest.mark.timeout(240 * SOAK)
def test_every_acknowledged_point_survives_sigkill_once(tmp_path: Path, report_counts) -> None:
    """Whatever moment the kill hits: collecting, publishing a part, closing, or after it."""
    with LoopbackHub() as hub:
        environment = hub.environment(tmp_path / "home")
        folder = tmp_path / "data"
        destinations = [str(folder), str(folder), "me/crash"]
        plans = random_plans(MOST_PROCESSES, SEED, tmp_path, destinations)
        ran, killed = _run_until_killed(plans, environment)
        _recover(tmp_path / "journal", environment)
        repo = hub.repo("me/crash")
        files = {**contents(folder), **(repo.files if repo else {})}

    found = Counter(_watts(files))
    acknowledged, allowed = _expected(ran)
    done = sum(read_log(Path(plan.acknowledged)).is_done for plan in ran)
    report_counts(
        f"crash: {len(ran)} processes, {killed} killed in mid-air, {done} had finished; "
        f"{len(acknowledged)} points acknowledged, {len(found)} published "
        f"({len(set(found) - acknowledged)} in flight when the kill came)"
    )

    assert killed >= KILLS
    assert acknowledged - set(found) == set()
    assert set(found) - allowed == set()
    assert [value for value, count in found.items() if count > 1] == []
    assert received(files) >= len(acknowledged)
    assert list((tmp_path / "journal").glob("*.journal")) == []
    assert list((tmp_path / "journal").glob("*.sealed")) == []


def _run_until_killed(plans: Iterator[Plan], environment: dict[str, str]) -> tuple[list[Plan], int]:
    """
    Run a few at a time, each killed after a random time, until enough were alive then.

    A life is as long as this machine needs just now: about one in five ends before it.
    """
    dice = random.Random(SEED)
    ran: list[Plan] = []
    killed, life_s = 0, FIRST_LIFE_S
    with AgentServer(**environment) as server:
        while killed < KILLS and (some := list(islice(plans, AT_ONCE))):
            pids = [server.start(plan) for plan in some]
            for pid in pids:
                time.sleep(life_s / AT_ONCE * dice.random())
                os.kill(pid, signal.SIGKILL)
            hit = sum(server.wait(pid) == -signal.SIGKILL for pid in pids)
            life_s = min(LONGEST_LIFE_S, life_s * 1.02**hit * 0.92 ** (len(some) - hit))
            ran, killed = ran + some, killed + hit
    return ran, killed


def _recover(journal: Path, environment: dict[str, str]) -> None:
    """Two recoveries at once, then one more, which finds nothing to do."""
    command = [sys.executable, "-m", "hubmeter", "recover", str(journal)]
    both = [
        subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in both:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr.decode()
    last = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    assert "nothing waits" in last.stdout


def _expected(plans: list[Plan]) -> tuple[set[float], set[float]]:
    """What must be there, and what may be there."""
    acknowledged, allowed = set(), set()
    for plan in plans:
        log = read_log(Path(plan.acknowledged))
        acknowledged |= {watts(plan.number, n) for n in log.acknowledged}
        allowed |= {watts(plan.number, n) for n in log.acknowledged | log.in_flight}
    return acknowledged, allowed


def _watts(files: Mapping[str, bytes]) -> list[float]:
    """The points, each of which is identified by its value; rows of empty runs have none."""
    found = [row for row in rows(files) if row["gpu_power_watts"] is not None]
    for row in found:
        assert row["run_id"] == f"run-{int(row['gpu_power_watts']) // 10_000:05d}"
    return [row["gpu_power_watts"] for row in found]
