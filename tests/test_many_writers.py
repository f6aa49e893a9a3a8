"""A hundred processes publish to one new repository at once: all shards, all rows, each once."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from agent_server import AgentServer, Gate, Plan, watts
from hubmeter.pipeline import LONGEST_PUBLISH_S
from loopback_hub import LoopbackHub, Repo, RequestInfo
from loopback_hub.cards import card_data
from watched_hub import Asker, WatchedHub, asker_of

WRITERS = 100
SOAK = int(os.environ.get("SOAK", "1"))
COLLECTIONS = 3
REPO = "me/many-writers"

FULL = 98
"""Files after which a recovery begins another commit, at the earliest."""


@pytest.mark.timeout(150)
@pytest.mark.parametrize("is_busy_409", [False, True], ids=["commits queue", "409 while busy"])
@pytest.mark.parametrize("_round", range(SOAK))
def test_a_hundred_writers_publish_to_one_repository(
    _round: int, is_busy_409: bool, tmp_path: Path, report_counts
) -> None:
    """One commit each; who had no time leaves a journal, and one recovery brings those."""
    with PatientHub() as hub:
        hub.busy_commit_s, hub.is_busy_409 = 0.02, is_busy_409
        lasted_s = _publish_at_once(_plans(tmp_path), hub, tmp_path)
        hub.settle()
        repo = hub.repo(REPO)
        waiting = {path.stem.split("-")[1] for path in (tmp_path / "journal").glob("*.journal")}
        commits, shards = len(repo.commits), len(_shards(repo))
        _recover(hub, tmp_path)
        report_counts(_counts(hub, repo, lasted_s, len(waiting), commits))

        assert hub.errors == []
        assert shards >= WRITERS - len(waiting)
        assert commits == shards
        assert not waiting or lasted_s >= LONGEST_PUBLISH_S  # nobody gives up before that
        assert hub.came_back or not hub.sent_away
        assert len(repo.commits) - commits in _commits_needed(repo, waiting, shards)
        _check(repo)
    assert [p for p in (tmp_path / "journal").glob("*") if p.is_file()] == []


class PatientHub(WatchedHub):
    """Notes whom it sent away with a 409, and who of them came back."""

    def __init__(self) -> None:
        self.sent_away: set[Asker] = set()
        self.came_back: set[Asker] = set()
        super().__init__()

    def record(self, request: RequestInfo, status: int | None) -> None:
        asker = asker_of(request)
        if asker in self.sent_away:
            self.came_back.add(asker)
        if request.kind == "commit" and status == 409:
            self.sent_away.add(asker)
        super().record(request, status)


def _plans(folder: Path) -> list[Plan]:
    """Every other writer also has complete points."""
    return [
        Plan(
            to=REPO,
            journal_dir=str(folder / "journal"),
            acknowledged=str(folder / f"{number}.log"),
            number=number,
            collections=COLLECTIONS,
            settings={"points": "all"} if number % 2 else {},
            gate=str(folder / "gate"),
        )
        for number in range(WRITERS)
    ]


def _publish_at_once(plans: list[Plan], hub: LoopbackHub, folder: Path) -> float:
    """How many seconds passed from the moment when all began until the last had ended."""
    environment = hub.environment(folder / "home")
    with Gate(folder / "gate") as gate, AgentServer(**environment) as server:
        pids = [server.start(plan) for plan in plans]
        gate.open_for(len(plans))
        started = time.monotonic()
        assert [server.wait(pid) for pid in pids] == [0] * len(pids)
        return time.monotonic() - started


def _recover(hub: LoopbackHub, folder: Path) -> None:
    """Publish what is left; there may be nothing."""
    recovered = subprocess.run(
        [sys.executable, "-m", "hubmeter", "recover", str(folder / "journal")],
        env={**os.environ, **hub.environment(folder / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert recovered.returncode == 0, recovered.stdout + recovered.stderr


def _commits_needed(repo: Repo, waiting: set[str], shards: int) -> range:
    """Of a recovery: none if all had arrived, else as few as the limit of files allows."""
    files = [path for path in _files(repo) if Path(path).stem.split("-")[2] in waiting]
    return range(1, math.ceil(len(files) / FULL) + 1) if shards < WRITERS else range(1)


def _check(repo: Repo) -> None:
    """All rows, once; no file committed twice; a card that declares both configs, written once."""
    assert repo.private
    assert len(_shards(repo)) == WRITERS
    named = Counter(path for commit in repo.commits for path in commit.paths)
    assert {path: named[path] for path in named if path.endswith(".parquet")} == dict.fromkeys(
        _files(repo), 1
    )
    assert named["README.md"] <= 2  # one for each config
    assert [commit.wanted_parent for commit in repo.commits] == [
        commit.parent if "README.md" in commit.paths else None for commit in repo.commits
    ]
    declared = card_data(repo.head)["configs"]
    assert [config["config_name"] for config in declared] == ["default", "points"]
    everyone = range(WRITERS)
    assert _values(repo, "default", "gpu_power_watts") == _expected(everyone)
    assert _values(repo, "points", "value") == _expected(n for n in everyone if n % 2)


def _files(repo: Repo) -> list[str]:
    return [path for path in repo.files if path.endswith(".parquet")]


def _shards(repo: Repo) -> set[str]:
    return {Path(path).name for path in _files(repo)}


def _values(repo: Repo, config: str, column: str) -> list[tuple[str, float]]:
    """Run id and value of each row."""
    return sorted(
        (row["run_id"], row[column])
        for path in _files(repo)
        if path.startswith(f"data/{config}/")
        for row in pq.read_table(io.BytesIO(repo.files[path])).to_pylist()
    )


def _expected(writers) -> list[tuple[str, float]]:
    return sorted((f"run-{w:05d}", watts(w, n)) for w in writers for n in range(COLLECTIONS))


def _counts(hub: LoopbackHub, repo: Repo, lasted_s: float, waiting: int, commits: int) -> str:
    statuses = Counter(request.status for request in hub.requests if request.kind == "commit")
    return (
        f"many writers ({'409 while busy' if hub.is_busy_409 else 'commits queue'}): "
        f"{WRITERS} processes, {len(_shards(repo))} shards, {len(hub.requests)} requests, "
        f"{commits} commits of writers ({statuses[409]} x 409, {statuses[412]} x 412), "
        f"the last was done after {lasted_s:.1f} s; {waiting} left to one recovery, "
        f"{len(repo.commits) - commits} commits"
    )
