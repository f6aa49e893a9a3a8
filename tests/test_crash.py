"""Processes that are killed at random moments: what was acknowledged is published, once."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from agent_server import AgentServer, Plan, random_plans, read_log, watts
from loopback_hub import LoopbackHub

KILLS = 220 * int(os.environ.get("SOAK", "1"))
SEED = int(os.environ.get("SOAK_SEED", "20261123"))
LONGEST_LIFE_S = 0.5
AT_ONCE = 4


@pytest.mark.timeout(170 * int(os.environ.get("SOAK", "1")))
def test_every_acknowledged_point_survives_sigkill_once(tmp_path: Path, report_counts) -> None:
    """Whatever moment the kill hits: collecting, publishing a part, closing, or after it."""
    with LoopbackHub() as hub:
        environment = hub.environment(tmp_path / "home")
        folder = tmp_path / "data"
        plans = list(random_plans(KILLS, SEED, tmp_path, [str(folder), str(folder), "me/crash"]))
        killed = _run_and_kill(plans, environment)
        _recover(tmp_path / "journal", environment)

        found = Counter(_local_watts(folder))
        if (repo := hub.repo("me/crash")) is not None:
            found += Counter(_watts_of(repo.files))
    acknowledged, allowed = _expected(plans)
    done = sum(read_log(Path(plan.acknowledged)).is_done for plan in plans)
    report_counts(
        f"crash: {len(plans)} processes, {killed} killed in mid-air, {done} had finished; "
        f"{len(acknowledged)} points acknowledged, {len(found)} published "
        f"({len(set(found) - acknowledged)} in flight when the kill came)"
    )

    assert killed >= KILLS / 2
    assert acknowledged - set(found) == set()
    assert set(found) - allowed == set()
    assert [value for value, count in found.items() if count > 1] == []
    assert list((tmp_path / "journal").glob("*.journal")) == []
    assert list((tmp_path / "journal").glob("*.sealed")) == []


def _run_and_kill(plans: list[Plan], environment: dict[str, str]) -> int:
    """Run all, a few at a time, each killed after a random time; how many that hit alive."""
    dice = random.Random(SEED)
    killed = 0
    with AgentServer(**environment) as server:
        for first in range(0, len(plans), AT_ONCE):
            pids = [server.start(plan) for plan in plans[first : first + AT_ONCE]]
            for pid in pids:
                time.sleep(LONGEST_LIFE_S / AT_ONCE * dice.random())
                os.kill(pid, signal.SIGKILL)
            killed += sum(server.wait(pid) == -signal.SIGKILL for pid in pids)
    return killed


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


def _local_watts(folder: Path) -> list[float]:
    return _watts_of({str(path): path.read_bytes() for path in folder.glob("data/default/*/*")})


def _watts_of(files: dict[str, bytes]) -> list[float]:
    """The points, each of which is identified by its value; rows of empty runs have none."""
    found = []
    for path, content in files.items():
        if path.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(content))
            for run_id, value in zip(
                table["run_id"].to_pylist(), table["gpu_power_watts"].to_pylist(), strict=True
            ):
                if value is not None:
                    assert run_id == f"run-{int(value) // 10_000:05d}"
                    found.append(value)
    return found
