"""Pushing what is a file already: datasets, single Parquet files, OTLP/JSON."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hubmeter.deadline import Deadline
from hubmeter.decode.otlp_json import JsonDecoder
from hubmeter.pipeline import Pipeline
from hubmeter.settings import load_settings
from hubmeter.tables import arrow_schema
from loopback_hub import Fault, LoopbackHub
from makers import POWER, SECOND, T0, gauge, point, request
from observed import undisturbed  # noqa: F401
from orphans import HUBMETER, contents, hubmeter, invoke, rows, watts

X = ("--to", "me/x")


@pytest.fixture(name="hub")
def _hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub
        assert hub.errors == []


@pytest.fixture(name="home")
def _home(hub: LoopbackHub, tmp_path: Path) -> dict[str, str]:
    """The environment of a program whose Hub is ours."""
    return hub.environment(tmp_path / "home")


def document(*values: float, run_id: str | None = "r1") -> str:
    """OTLP/JSON, a request per line."""
    points = (point(value, T0 + second * SECOND, gpu=0) for second, value in enumerate(values))
    named = {"resource": {"run.id": run_id}} if run_id else {}
    return "\n".join(json.dumps(request(gauge(POWER, "W", one), **named)) for one in points)


def dataset(folder: Path, *runs: str, **settings: str) -> Path:
    """A dataset folder with one shard for each of *runs*."""
    for number, run_id in enumerate(runs):
        pipeline = Pipeline(load_settings(to=str(folder), journal_dir="off", **settings))
        pipeline.consume(JsonDecoder().decode(json.loads(document(float(number), run_id=run_id))))
        pipeline.close(Deadline.after(30))
    return folder


def commits(hub: LoopbackHub, name: str = "me/x") -> int:
    """How many commits the repository has; 0 without one."""
    repo = hub.repo(name)
    return 0 if repo is None else len(repo.commits)


def test_a_dataset_folder_arrives_byte_for_byte(
    hub: LoopbackHub, home: dict[str, str], tmp_path: Path
) -> None:
    """One commit with its shards and a card; the same again is no commit."""
    data = dataset(tmp_path / "data", "r1", "r2", points="all")
    done = hubmeter("push", "data", *X, folder=tmp_path, **home)

    assert (done.returncode, done.stdout) == (
        0,
        "2 rows and 2 other points are in hf://datasets/me/x\n",
    ), done.stderr
    assert "publishing 2 shards to hf://datasets/me/x" in done.stderr
    repo = hub.repo("me/x")
    pushed = {path: data for path, data in repo.files.items() if path.endswith(".parquet")}
    assert pushed == contents(data)
    assert (repo.private, commits(hub)) == (True, 1)
    assert b"config_name: points" in repo.files["README.md"]

    assert hubmeter("push", "data", *X, folder=tmp_path, **home).returncode == 0
    assert commits(hub) == 1

    dataset(data, "r3")
    assert hubmeter("push", "data", *X, folder=tmp_path, **home).returncode == 0
    assert commits(hub) == 2
    assert [row["run_id"] for row in rows(repo.files)] == ["r1", "r2", "r3"]


def test_250_shards_are_three_commits(
    hub: LoopbackHub, home: dict[str, str], tmp_path: Path
) -> None:
    """A commit has at most 100 files, the card included; each is announced."""
    data = dataset(tmp_path / "data", "r")
    [first] = data.glob("data/default/*/*.parquet")
    for number in range(249):
        shutil.copy(first, first.with_name(f"copy-{number}.parquet"))
    done = hubmeter("push", "data", *X, folder=tmp_path, **home)

    assert done.returncode == 0, done.stderr
    assert commits(hub) == 3
    assert max(len(commit.paths) for commit in hub.repo("me/x").commits) <= 100
    assert len(rows(hub.repo("me/x").files)) == 250
    assert [line.split(",")[0] for line in done.stderr.splitlines()] == [
        f"publishing {number} shards to hf://datasets/me/x" for number in (99, 99, 52)
    ]
    assert done.stdout == "250 rows and 0 other points are in hf://datasets/me/x\n"


@pytest.mark.parametrize("config", ["default", "points"])
def test_a_parquet_file_gets_its_place(config: str, tmp_path: Path) -> None:
    """Of either config, from anywhere; the same bytes have the same name."""
    [path] = dataset(tmp_path / "data", "my run", points="all").glob(f"data/{config}/*/*.parquet")
    for name in ("a.parquet", "b.parquet"):
        shutil.copy(path, tmp_path / name)
        done = invoke("push", name, "--to", "./out")
        assert done.returncode == 0, done.stderr

    [(place, content)] = contents(tmp_path / "out").items()
    assert place.startswith(f"data/{config}/2025-10/my_run-")
    assert content == path.read_bytes()


@pytest.mark.parametrize("config", ["default", "points"])
def test_a_file_of_a_dataset_that_is_there_adds_nothing(
    config: str, hub: LoopbackHub, home: dict[str, str], tmp_path: Path
) -> None:
    """A shard of ours keeps its name, wherever it lies: neither a file nor a commit is made."""
    data = dataset(tmp_path / "data", "my run", "x" * 300, points="all")
    assert hubmeter("push", "data", *X, folder=tmp_path, **home).returncode == 0
    files = hub.repo("me/x").files
    for path in data.glob(f"data/{config}/*/*.parquet"):
        shutil.copy(path, tmp_path)
        for src, folder in ((str(path), tmp_path), (path.name, tmp_path), (path.name, path.parent)):
            done = hubmeter("push", src, *X, folder=folder, **home)
            assert done.returncode == 0, done.stderr
    assert (hub.repo("me/x").files, commits(hub)) == (files, 1)


def test_a_file_keeps_the_month_of_its_shard(tmp_path: Path) -> None:
    """Both files of a shard are in one month, also if one of them begins in the next."""
    [path] = dataset(tmp_path / "data", "r1").glob("data/default/*/*.parquet")
    path.parent.rename(path.parent.with_name("2025-09"))
    src = path.parent.with_name("2025-09") / path.name
    assert invoke("push", str(src), "--to", "./out").returncode == 0
    assert list(contents(tmp_path / "out")) == [f"data/default/2025-09/{path.name}"]


def test_a_foreign_file_is_named_by_what_is_in_it(tmp_path: Path) -> None:
    """Whatever it is called: only our own names are known to differ where files do."""
    name = "r-0123456789ab.parquet"
    _parquet(tmp_path, name, _first_row())
    assert invoke("push", name, "--to", "./out").returncode == 0
    [place] = contents(tmp_path / "out")
    assert place.startswith("data/default/2026-01/r-")
    assert not place.endswith(name)


def test_the_repository_is_named_and_one_is_one(
    hub: LoopbackHub, home: dict[str, str], tmp_path: Path
) -> None:
    """Where it was published is said with the user's name."""
    dataset(tmp_path / "data", "r1")
    done = hubmeter("push", "data", "--to", "{user}/x-{date}", folder=tmp_path, **home)

    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"1 row and 0 other points are in hf://datasets/me/x-\d{8}_\d{6}\n", done.stdout
    )
    assert hub.repo(done.stdout.split("datasets/")[1].strip()) is not None
    assert done.stderr.startswith("publishing 1 shard to hf://datasets/")


def test_otlp_json_is_flattened(hub: LoopbackHub, home: dict[str, str], tmp_path: Path) -> None:
    """From a file and from stdin it is the same shard, so one commit."""
    (tmp_path / "m.jsonl").write_text(text := document(1, 2, 3))
    assert hubmeter("push", "m.jsonl", *X, folder=tmp_path, **home).returncode == 0
    done = hubmeter("push", "-", *X, folder=tmp_path, stdin=text.encode(), **home)

    assert done.returncode == 0, done.stderr
    repo = hub.repo("me/x")
    assert (watts(repo.files), commits(hub)) == ([1, 2, 3], 1)
    [path] = [path for path in repo.files if path.endswith(".parquet")]
    assert path.startswith("data/default/2025-10/r1-")
    metadata = pq.read_metadata(io.BytesIO(repo.files[path])).metadata
    assert metadata[b"hubmeter.points_received"] == b"3"


def test_captures_are_one_shard(tmp_path: Path) -> None:
    """Rotated and compressed, in any order; it is named by the bytes that were read."""
    (tmp_path / "c").mkdir()
    text = document(1, 2, 3, 4).encode()
    backup, last = tmp_path / "c/m-2026-01-01T00-00-00.000-size.json", tmp_path / "c/m.json"
    backup.write_bytes(gzip.compress(text[:500], mtime=0))
    last.write_bytes(text[500:])
    for srcs in (["c"], ["c/m.json", f"c/{backup.name}"]):
        done = invoke("push", *srcs, "--to", "./out")
        assert done.returncode == 0, done.stderr
        assert "skipped" not in done.stderr
    [(path, content)] = contents(tmp_path / "out").items()
    assert watts({path: content}) == [1, 2, 3, 4]
    digest = hashlib.sha256(backup.read_bytes() + last.read_bytes()).hexdigest()
    assert Path(path).stem == f"r1-{digest[:12]}"


def test_what_is_not_published_is_said(tmp_path: Path) -> None:
    """A record that is cut off, and logs."""
    (tmp_path / "m.json").write_text(document(1, 2) + '\n{"resourceLogs":[]}\n{"resourceMe')
    done = invoke("push", "m.json", "--to", "./out")
    assert done.returncode == 0
    assert "passed over 1 record of logs\n" in done.stderr
    assert "skipped 1: the last record is cut off\n" in done.stderr


def test_data_without_a_run_is_named_by_what_it_is(tmp_path: Path) -> None:
    """No random names: again is again. `--run-id` gives it one."""
    (tmp_path / "m.json").write_text(document(1, run_id=None))
    for _ in range(2):
        assert invoke("push", "m.json", "--to", "./out").returncode == 0
    assert len(contents(tmp_path / "out")) == 1

    done = invoke("push", "m.json", "--to", "./named", "--run-id", "mine")
    assert done.returncode == 0
    assert [row["run_id"] for row in rows(contents(tmp_path / "named"))] == ["mine"]


def test_each_run_goes_to_its_own_destination(
    hub: LoopbackHub, home: dict[str, str], tmp_path: Path
) -> None:
    """Where the destination names the run, and who the token belongs to."""
    dataset(tmp_path / "data", "r1", "r2")
    done = hubmeter("push", "data", "--to", "{user}/x-{run_id}", folder=tmp_path, **home)

    assert done.returncode == 0, done.stderr
    assert [row["run_id"] for row in rows(hub.repo("me/x-r1").files)] == ["r1"]
    assert [row["run_id"] for row in rows(hub.repo("me/x-r2").files)] == ["r2"]
    assert len(done.stdout.splitlines()) == 2


def test_a_destination_may_have_the_date(home: dict[str, str], tmp_path: Path) -> None:
    """As with HUBMETER_TO, whichever says it; no folder of that odd name is made."""
    dataset(tmp_path / "data", "r1")
    for arguments, variable in ((("--to", "me/x-{date}"), ""), ((), "me/x-{date}")):
        done = hubmeter("push", "data", *arguments, folder=tmp_path, HUBMETER_TO=variable, **home)
        assert done.returncode == 0, done.stderr
        assert "hf://datasets/me/x-20" in done.stdout
    assert not (tmp_path / "me").exists()


def test_public_is_a_wish(hub: LoopbackHub, home: dict[str, str], tmp_path: Path) -> None:
    """A repository is made private, a public one is refused; unless public is said."""
    dataset(tmp_path / "data", "r1")
    hub.create("me/shown", private=False)
    done = hubmeter("push", "data", "--to", "me/shown", folder=tmp_path, **home)
    assert (done.returncode, done.stdout) == (1, "")
    assert "me/shown is public" in done.stderr.splitlines()[-1]
    assert commits(hub, "me/shown") == 0

    for name, more in (("me/shown", {}), ("me/new", {}), ("me/other", {"HUBMETER_PRIVATE": "0"})):
        flag = [] if more else ["--public"]
        done = hubmeter("push", "data", "--to", name, *flag, folder=tmp_path, **home, **more)
        assert done.returncode == 0, done.stderr
        assert not hub.repo(name).private
    hub.create("me/hidden", private=True)
    done = hubmeter("push", "data", "--to", "me/hidden", "--public", folder=tmp_path, **home)
    assert done.returncode == 0
    assert hub.repo("me/hidden").private


@pytest.mark.parametrize(
    ("token", "advice"), [("", "hf auth login"), ("hf_wrongwrongwrong", "HF_TOKEN")]
)
def test_no_token_is_said_with_what_to_do(
    token: str, advice: str, home: dict[str, str], tmp_path: Path
) -> None:
    """One line, exit code 1, no token in it."""
    dataset(tmp_path / "data", "r1")
    done = hubmeter("push", "data", *X, folder=tmp_path, **{**home, "HF_TOKEN": token})

    assert (done.returncode, done.stdout) == (1, "")
    line = done.stderr.splitlines()[-1]
    assert line.startswith("hubmeter: me/x: ")
    assert advice in line
    assert "hf_wrong" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_token_that_may_only_read_is_said(
    hub: LoopbackHub, home: dict[str, str], tmp_path: Path
) -> None:
    """With the page where tokens are made."""
    dataset(tmp_path / "data", "r1")
    done = hubmeter("push", "data", *X, folder=tmp_path, **{**home, "HF_TOKEN": hub.read_token})
    assert done.returncode == 1
    assert "write access" in done.stderr.splitlines()[-1]


def _parquet(folder: Path, name: str, table: pa.Table) -> None:
    pq.write_table(table, folder / name)


def _first_row(**changes: object) -> pa.Table:
    row = dict.fromkeys(arrow_schema("default").names) | {
        "run_id": "r", "timestamp": "2026-01-31T00:00:00.000000+00:00", **changes
    }  # fmt: skip
    return pa.Table.from_pylist([row], schema=arrow_schema("default"))


@pytest.mark.parametrize(
    ("src", "said"),
    [
        ("missing.json", "missing.json"),
        ("missing.parquet", "missing.parquet"),
        ("", "an empty name"),
        ("empty", "expected a dataset folder"),
        ("hollow", "no hubmeter dataset in hollow"),
        ("empty", "a Parquet file or OTLP/JSON"),
        ("text.txt", "no metric data point"),
        ("binary", ""),
        ("foreign.parquet", "no Parquet file with the columns"),
        ("broken.parquet", "no Parquet file with the columns"),
        ("no-rows.parquet", "has no rows"),
        ("no-time.parquet", "timestamp"),
        ("escaping.parquet", "timestamp"),
        ("untimed.json", "no data point has a time"),
        ("damaged", "is not a shard of hubmeter"),
        ("-", "the input is empty"),
    ],
)
def test_wrong_input_is_one_clear_line(src: str, said: str, tmp_path: Path) -> None:
    """Exit code 1, the reason, no traceback, nothing at the destination."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow/data").mkdir(parents=True)
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "binary").write_bytes(os.urandom(500))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and PAR1")
    _parquet(tmp_path, "foreign.parquet", pa.table({"a": [1]}))
    _parquet(tmp_path, "no-rows.parquet", arrow_schema("default").empty_table())
    _parquet(tmp_path, "no-time.parquet", _first_row(timestamp=None))
    _parquet(tmp_path, "escaping.parquet", _first_row(timestamp="../../../../x"))
    untimed = point(1.0, 0, gpu=0)
    (tmp_path / "untimed.json").write_text(json.dumps(request(gauge(POWER, "W", untimed))))
    (tmp_path / "damaged/data/default/2026-01").mkdir(parents=True)
    (tmp_path / "damaged/data/default/2026-01/x.parquet").write_bytes(b"PAR1")
    done = invoke("push", src, "--to", "./out")

    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("hubmeter: ")
    assert said in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("", "expected a folder"),
        ("s3://bucket/x", "expected a folder"),
        ("https://huggingface.co/datasets/me/x", "expected hf://datasets/me/x"),
        ("{user}/a/b", "such as {user}/repo"),
        ("me/x-{dat}", "{date}"),
    ],
)
def test_a_wrong_destination_is_wrong_usage(to: str, said: str, tmp_path: Path) -> None:
    """An empty variable in a script must not choose another place."""
    dataset(tmp_path / "data", "r1")
    done = invoke("push", "data", "--to", to)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_a_setting_that_is_ignored_is_said(tmp_path: Path) -> None:
    """HUBMETER_TO=s3://... would otherwise go to the default in silence."""
    dataset(tmp_path / "data", "r1")
    done = hubmeter("push", "data", folder=tmp_path, HUBMETER_TO="s3://bucket/x")
    assert done.returncode == 0
    assert "HUBMETER_TO='s3://bucket/x' is ignored" in done.stderr


def test_a_push_that_was_killed_is_completed_by_the_next(
    hub: LoopbackHub, home: dict[str, str], tmp_path: Path
) -> None:
    """At any moment; each row is there once."""
    dataset(tmp_path / "data", *(f"r{i}" for i in range(12)))
    hub.delay_s = 0.05
    for seconds in (0.8, 1.0, 1.2):
        with subprocess.Popen(
            [*HUBMETER, "push", "data", *X],
            cwd=tmp_path,
            env={**os.environ, **home},
            stderr=subprocess.DEVNULL,
        ) as process:
            time.sleep(seconds)
            process.kill()
    done = hubmeter("push", "data", *X, folder=tmp_path, **home)

    assert done.returncode == 0, done.stderr
    assert sorted(watts(hub.repo("me/x").files)) == list(range(12))
    assert commits(hub) == 1


def test_ctrl_c_ends_a_push_at_once(hub: LoopbackHub, home: dict[str, str], tmp_path: Path) -> None:
    """Also while the Hub does not answer."""
    dataset(tmp_path / "data", "r1", "r2")
    hub.faults.append(Fault(on="put", hang=True, times=9))
    with subprocess.Popen(
        [*HUBMETER, "push", "data", *X],
        cwd=tmp_path,
        env={**os.environ, **home},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while "batch" not in [one.kind for one in hub.requests]:
            time.sleep(0.05)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=10)
    assert (process.returncode, stderr.splitlines()[-1]) == (130, "interrupted")


def test_a_hub_that_does_not_take_it_is_said(
    hub: LoopbackHub, home: dict[str, str], tmp_path: Path
) -> None:
    """Within the time that was given."""
    dataset(tmp_path / "data", "r1")
    hub.faults.append(Fault(on="commit", status=503, times=10**6))
    started = time.monotonic()
    done = hubmeter("push", "data", *X, "--timeout", "2", folder=tmp_path, **home)
    assert time.monotonic() - started < 10
    assert (done.returncode, done.stdout) == (1, "")
    assert "me/x: the Hub has a problem (503" in done.stderr.splitlines()[-1]
