"""Whole runs against a Hub in trouble: what was acknowledged is in the dataset, once."""

from __future__ import annotations

import email.utils
import io
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from agent_server import read_log, watts
from chaos_runs import Life, Program, write_lives
from loopback_hub import Commit, Fault, LoopbackHub, Repo, RequestInfo
from loopback_hub.cards import card_data
from orphans import received
from watched_hub import NOBODY, WatchedHub, asker_of

SOAK = int(os.environ.get("SOAK", "1"))
SEED = int(os.environ.get("SOAK_SEED", "20261123"))
TROUBLED = 300 * SOAK
LIVES = 350 * SOAK
QUIET_EVERY = 16
"""Lives; nothing happens in these, and some end before their faults could befall them."""
AT_ONCE = 12
SHARED = ("me/chaos-a", "me/chaos-b", "me/chaos-c")

STEPS = ("create", "info", "resolve", "preupload", "batch", "put", "verify", "commit", "commit")
"""Requests that are hit equally often; a commit twice as often."""

HTML = b"<html><body><h1>Bad Gateway</h1></body></html>"
BUSY = "Another conflicting operation is in progress. Please retry."
DATED = "429 Retry-After: date"

FAULTS: Mapping[str, tuple[int, Fault]] = {
    **{str(status): (3, Fault(status=status)) for status in (408, 409, 412, 425, 429)},
    **{str(status): (3, Fault(status=status)) for status in (500, 502, 503, 504)},
    "409 busy": (3, Fault(status=409, error=BUSY)),
    "429 Retry-After: 0": (2, Fault(status=429, headers={"Retry-After": "0"})),
    "429 Retry-After: 1": (2, Fault(status=429, headers={"Retry-After": "1"})),
    DATED: (1, Fault(status=429)),
    "429 Retry-After: 3600": (1, Fault(status=429, headers={"Retry-After": "3600"})),
    "429 RateLimit": (2, Fault(status=429, headers={"RateLimit": '"api";r=0;t=1'})),
    "503 Retry-After: 1": (1, Fault(status=503, headers={"Retry-After": "1"})),
    "502 HTML": (3, Fault(status=502, body=HTML)),
    "504 HTML": (3, Fault(status=504, body=HTML)),
    "200 HTML": (1, Fault(status=200, body=HTML)),
    "delay": (4, Fault(delay_s=0.1)),
    "hang": (1, Fault(hang=True)),
    "drop before": (6, Fault(drop_before=True)),
    "drop after": (12, Fault(drop_after=True)),
    "slow body": (4, Fault(slow_body_bytes_per_s=2_000)),
    "endless body": (1, Fault(slow_body_bytes_per_s=2)),
    **{str(status): (1, Fault(status=status)) for status in (401, 403, 404, 413, 422)},
}
"""Name to how often, and what."""


@pytest.mark.timeout(360 * SOAK)
def test_every_acknowledged_point_survives_a_hub_in_trouble_once(
    tmp_path: Path, report_counts
) -> None:
    """Parts, short deadlines, late exports, abandoned runs and recoveries at once, seeded."""
    dice = random.Random(SEED)
    lives = [_random_life(number, tmp_path, dice) for number in range(LIVES)]
    trouble = Trouble({life.number: _random_faults(life.number, dice) for life in lives})
    started = time.monotonic()
    with WatchedHub() as hub:
        hub.fault_plan = trouble
        ended = _run(lives, hub, tmp_path)
        seen = Published.on(hub)
        requests, errors = len(hub.requests), hub.errors
    lasted_s = time.monotonic() - started
    report_counts(f"{_counts(lives, trouble, seen, requests)} {lasted_s:.0f} s")

    assert (ended.returncode, ended.stderr) == (0, "")
    assert errors == []
    _check_points(lives, seen)
    _check_accounts(lives, seen)
    _check_journals(lives, seen)
    _check_commits(lives, seen)
    assert len(trouble.lives) >= TROUBLED
    assert len(trouble.befallen) == len(FAULTS)
    assert {step for _, step in trouble.befallen_at} >= set(STEPS) | {"whoami"}


def _run(lives: list[Life], hub: LoopbackHub, folder: Path) -> subprocess.CompletedProcess[str]:
    write_lives(folder / "lives.json", lives)
    program = Path(__file__).with_name("chaos_runs.py")
    return subprocess.run(
        [sys.executable, program, folder / "lives.json", str(AT_ONCE)],
        env={**os.environ, **hub.environment(folder / "home")},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


# What happens


def _random_life(number: int, folder: Path, dice: random.Random) -> Life:
    to = _random_destination(number, dice)
    log = str(folder / f"{number}")
    return Life(
        number=number,
        journal_dir=f"{log}.journal",
        log=f"{log}.log",
        programs=tuple(
            _random_program(2 * number + which, to, f"{log}-{which}.log", dice)
            for which in range(dice.choice([1, 1, 1, 2]))
        ),
        beside=dice.random() < 0.3,
        at_once=tuple(dice.choice([1, 1, 2]) for _ in range(4)),
    )


def _random_destination(number: int, dice: random.Random) -> str:
    own = f"chaos-{number}"
    return dice.choice(
        [f"me/{own}", f"hf://datasets/me/{own}", f"{{user}}/{own}", "me/{run_id}",
         f"me/{own}", f"me/{own}", f"me/{own}", dice.choice(SHARED)]
    )  # fmt: skip


def _random_program(number: int, to: str, log: str, dice: random.Random) -> Program:
    collections = dice.randrange(13)
    budgets_ms = dice.choice(
        [(), (20,), (300,), (30_000,), (30_000,), (20, 30_000), (300, 30_000), (30_000, 30_000)]
    )
    return Program(
        number=number,
        to=to,
        run_id=f"chaos-{number // 2}",
        log=log,
        collections=collections,
        part_after=tuple(n for n in range(collections) if dice.random() < 0.1),
        in_threads=dice.random() < 0.3,
        budgets_ms=budgets_ms,
        late=dice.choice([0, 0, 1, 3]) if budgets_ms else 0,
        points=dice.choice(["other", "other", "all"]),
    )


def _random_faults(number: int, dice: random.Random) -> list[tuple[str, Fault]]:
    """From one to many, some in a row, in nearly every life; each has its name."""
    count = dice.choice([1, 1, 2, 2, 3, 4, 8]) if number % QUIET_EVERY else 0
    weights = [weight for weight, _ in FAULTS.values()]
    faults = []
    for name in dice.choices(list(FAULTS), weights, k=count):
        on = dice.choice([*STEPS, "any"])
        if name == "200 HTML" and on == "resolve":  # that would be a card
            on = "commit"
        times = dice.choice([1, 1, 1, 2, 3]) if name not in ("hang", "endless body") else 1
        faults += [(name, replace(FAULTS[name][1], on=on))] * times
    return faults


class Trouble:
    """
    The faults of each life, each of which befalls one request.

    Attributes:
        befallen: Name of a fault to how often it befell a request.
        befallen_at: Likewise, by name and kind of request.
        lives: Those that a fault befell.
    """

    def __init__(self, faults: dict[int, list[tuple[str, Fault]]]) -> None:
        self.befallen: Counter[str] = Counter()
        self.befallen_at: Counter[tuple[str, str]] = Counter()
        self.lives: set[int] = set()
        self._faults = faults
        self._lock = threading.Lock()

    def __call__(self, request: RequestInfo) -> Fault | None:
        with self._lock:
            life = _life_of(request)
            pending = self._faults.get(life, [])
            for place, (name, fault) in enumerate(pending):
                if fault.concerns(request):
                    del pending[place]
                    self.befallen[name] += 1
                    self.befallen_at[name, request.kind] += 1
                    self.lives.add(life)
                    return _dated(fault) if name == DATED else fault
        return None


def _dated(fault: Fault) -> Fault:
    """In a second from now."""
    date = email.utils.formatdate(time.time() + 1, usegmt=True)
    return replace(fault, headers={"Retry-After": date})


def _life_of(request: RequestInfo) -> int:
    """Whose request it is, by its sender or by a repository that only one life has."""
    group = asker_of(request).group
    own = re.fullmatch(r"me/chaos-(\d+)", request.repo_id or "")
    return int(own[1]) if own and group == NOBODY else group


# What is there in the end


@dataclass(frozen=True)
class Published:
    """
    Everything on the Hub.

    Attributes:
        watts: Of config ``default``, by run id; None in the row of a run without points.
        values: Of config ``points``, by run id.
    """

    repos: dict[str, Repo]
    watts: dict[str, list[float | None]]
    values: dict[str, list[float]]

    @classmethod
    def on(cls, hub: LoopbackHub) -> Published:
        names = {request.path.split("/api/datasets/")[-1] for request in hub.requests}
        found = {"/".join(name.split("/")[:2]) for name in names}
        repos = {name: repo for name in found if (repo := hub.repo(name)) is not None}
        rows, points = defaultdict(list), defaultdict(list)
        for repo in repos.values():
            for path, content in repo.files.items():
                if path.startswith("data/default/"):
                    _read(content, "gpu_power_watts", rows)
                elif path.startswith("data/points/"):
                    _read(content, "value", points)
        return cls(repos, rows, points)

    @property
    def commits(self) -> list[Commit]:
        return [commit for repo in self.repos.values() for commit in repo.commits]

    @property
    def shards(self) -> set[str]:
        return {Path(p).name for repo in self.repos.values() for p in _parquet(repo.files)}


def _read(content: bytes, column: str, values: dict[str, list]) -> None:
    table = pq.read_table(io.BytesIO(content))
    for run_id, value in zip(table["run_id"].to_pylist(), table[column].to_pylist(), strict=True):
        values[run_id].append(value)


def _parquet(paths) -> list[str]:
    return [path for path in paths if path.endswith(".parquet")]


def _acknowledged(program: Program) -> set[float]:
    return {watts(program.number, n) for n in read_log(Path(program.log)).acknowledged}


def _check_points(lives: list[Life], seen: Published) -> None:
    """Every point that was acknowledged, once, under its run, and nothing else."""
    assert set(seen.watts) | set(seen.values) <= {f"chaos-{life.number}" for life in lives}
    for life in lives:
        rows = seen.watts.get(f"chaos-{life.number}", [])
        expected = [value for p in life.programs for value in _acknowledged(p)]
        assert sorted(v for v in rows if v is not None) == sorted(expected), life
        empty = [p for p in life.programs if not p.collections and p.budgets_ms]
        assert rows.count(None) == len(empty), life
        complete = [p for p in life.programs if p.points == "all"]
        expected = [value for p in complete for value in _acknowledged(p)]
        assert sorted(seen.values.get(f"chaos-{life.number}", [])) == sorted(expected), life


def _check_accounts(lives: list[Life], seen: Published) -> None:
    """Shards add up by what they say themselves, and together have all that was acknowledged."""
    acknowledged = [_acknowledged(program) for life in lives for program in life.programs]
    total = sum(received(repo.files) for repo in seen.repos.values())
    assert total >= sum(map(len, acknowledged))


def _check_journals(lives: list[Life], seen: Published) -> None:
    """Nothing waits, and there is one receipt for each shard."""
    receipts = 0
    for life in lives:
        folder = Path(life.journal_dir)
        assert [path.name for path in folder.glob("*") if path.is_file()] == [], life
        receipts += len(list(folder.glob("done/*.json")))
    assert receipts == len(seen.shards)


def _check_commits(lives: list[Life], seen: Published) -> None:
    """Each commit brings something new, and no file twice; the card declares what is there."""
    for repo in seen.repos.values():
        assert repo.private
        named = [_parquet(commit.paths) for commit in repo.commits]
        assert [] not in named, repo.id
        assert Counter(path for paths in named for path in paths) == Counter(_parquet(repo.files))
        declared = card_data(repo.head).get("configs", [])
        configs = {path.split("/")[1] for path in _parquet(repo.files)}
        assert {config["config_name"] for config in declared} >= configs, repo.id
    assert len(seen.commits) <= _flushes(lives)


def _flushes(lives: list[Life]) -> int:
    """How often something was to be published: parts, shutdowns, recoveries."""
    flushes = sum(
        line == "flush" for life in lives for p in life.programs for line in _lines(p.log)
    )
    return flushes + sum(len(_recoveries(life)) for life in lives)


def _recoveries(life: Life) -> list[int]:
    """How many segments each recovery published."""
    return [int(line.split()[1]) for line in _lines(life.log)]


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _counts(lives: list[Life], trouble: Trouble, seen: Published, requests: int) -> str:
    programs = [program for life in lives for program in life.programs]
    recoveries = [_recoveries(life) for life in lives]
    points = sum(len(_acknowledged(program)) for program in programs)
    found = sum(len(values) - values.count(None) for values in seen.watts.values())
    faults = ", ".join(f"{name} x {n}" for name, n in sorted(trouble.befallen.items()))
    return (
        f"chaos: {len(lives)} runs of {len(programs)} processes, {requests} requests, "
        f"{sum(trouble.befallen.values())} faults in {len(trouble.lives)} of them, "
        f"{_flushes(lives)} flushes, "
        f"{len(seen.commits)} commits of {len(seen.shards)} shards to {len(seen.repos)} repos, "
        f"{sum(map(len, recoveries))} recoveries, {sum(map(bool, recoveries))} runs needed one; "
        f"{points} points acknowledged, {found} published\nfaults: {faults};"
    )
