"""Recovering what killed programs left: each data point once, whatever is in the way."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hubmeter import receipts, totals
from hubmeter.journal import peek
from hubmeter.openings import START, GpuKey, Opening, PowerEnd
from hubmeter.receipts import Receipt, read_receipts, write_receipt
from hubmeter.recovery import recover
from hubmeter.totals import Totals, forget_totals, read_totals, write_totals
from hubmeter.waiting import waiting_text
from loopback_hub import Fault, LoopbackHub
from observed import undisturbed  # noqa: F401
from orphans import (
    HUBMETER,
    contents,
    hubmeter,
    invoke,
    journals,
    kill,
    metadata,
    program,
    rows,
    run,
    watts,
)
from otlp_wire import json_of, random_request

ONE = 'feed(begin("./data", "r1"), 7, 8, 9)'
NOWHERE = "http://127.0.0.1:9"
HAS_RO_MOUNTS = (
    shutil.which("unshare") is not None
    and subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
)


@pytest.fixture(name="hub")
def _hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub
        assert hub.errors == []


@pytest.fixture(name="home")
def _home(hub: LoopbackHub, tmp_path: Path) -> dict[str, str]:
    """The environment of a program whose Hub is ours."""
    return hub.environment(tmp_path / "home")


def recovered(folder: Path, **options: Any) -> list[str]:
    """The runs that a recovery in this process published from *folder*/journal."""
    result = recover(folder / "journal", say=lambda _: None, **options)
    assert (result.failures, result.left) == ([], [])
    return sorted(one.shard.run_id for one in result.published if one.shard)


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Everything below *folder*: bytes and time of the last change."""
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_orphans_of_many_runs_go_to_their_destinations(
    hub: LoopbackHub, home: dict[str, str], tmp_path: Path
) -> None:
    """Several parts per run, a folder and two repositories: one commit each, then nothing."""
    kill(
        """
        here = feed(begin("./data", "here"), 1); cut(here); feed(here, 2, first=1)
        there = feed(begin("me/x", "there"), 3); cut(there); feed(there, 4, first=1); cut(there)
        feed(begin("hf://datasets/me/x", "also"), 5)
        feed(begin("me/y", "public", private=False), 6)
        """,
        tmp_path,
        **home,
    )
    done = hubmeter("recover", "journal", folder=tmp_path, **home)

    assert done.returncode == 0, done.stderr
    assert "published 6 segments: 6 rows; 6 data points received, 6 published" in done.stdout
    assert watts(contents(tmp_path / "data")) == [1, 2]
    x, y = hub.repo("me/x"), hub.repo("me/y")
    assert (watts(x.files), x.private, len(x.commits)) == ([5, 3, 4], True, 1)
    assert (watts(y.files), y.private, len(y.commits)) == ([6], False, 1)
    assert journals(tmp_path) == []

    again = hubmeter("recover", "journal", folder=tmp_path, **home)
    assert (again.returncode, again.stdout) == (
        0,
        "nothing waits in journal\n",
    )
    assert len(x.commits) == 1


def test_250_orphans_are_three_commits(
    hub: LoopbackHub, home: dict[str, str], tmp_path: Path
) -> None:
    """A commit has at most 100 files; and no more files are open than some systems allow."""
    kill('for i in range(250): feed(begin("me/x", f"r{i:03}"), i)', tmp_path, **home)
    command = ["bash", "-c", 'ulimit -n 256; exec "$@"', "-", *HUBMETER, "recover", "journal"]
    done = run(command, tmp_path, **home)

    repo = hub.repo("me/x")
    assert done.returncode == 0, done.stderr
    assert watts(repo.files) == list(range(250))
    assert [len(commit.paths) <= 100 for commit in repo.commits] == [True] * 3
    assert done.stderr.count("publishing ") == 3
    assert "reading 250 of 250" in done.stderr
    assert len(done.stdout.splitlines()) < 30
    assert journals(tmp_path) == []


def test_shards_of_two_files_fill_their_commits_too(
    hub: LoopbackHub, home: dict[str, str], tmp_path: Path
) -> None:
    """60 runs with both configs are 120 files: two commits."""
    kill('for i in range(60): feed(begin("me/x", f"r{i}", points="all"), i)', tmp_path, **home)
    done = hubmeter("recover", "journal", folder=tmp_path, **home)

    repo = hub.repo("me/x")
    assert done.returncode == 0, done.stderr
    assert (len(repo.commits), len(rows(repo.files)), len(rows(repo.files, "points"))) == (
        2,
        60,
        60,
    )
    assert max(len(commit.paths) for commit in repo.commits) <= 100


def test_totals_go_on_over_parts_whoever_published_them(tmp_path: Path) -> None:
    """Part 0 was published live, the others are recovered: energy is that of one run."""
    kill(
        """
        whole = feed(begin("./whole", "r"), *range(100, 109)); whole.close(soon())
        run = feed(begin("./data", "r"), 100, 101, 102); run.publish_part()
        feed(run, 103, 104, first=3); cut(run)
        feed(run, 105, 106, first=5); cut(run)
        feed(run, 107, 108, first=7)
        """,
        tmp_path,
    )
    assert recovered(tmp_path) == ["r", "r", "r"]

    names = (
        "timestamp",
        "gpu_power_watts",
        "energy_joules",
        "co2_emissions_gco2e",
        "power_cost_usd",
    )
    whole, parts = (
        [[row.get(name) for name in names] for row in rows(contents(tmp_path / place))]
        for place in ("whole", "data")
    )
    assert parts == whole
    assert len(contents(tmp_path / "data")) == 4


def test_parts_that_come_after_the_list_was_made_go_on_from_its_totals(tmp_path: Path) -> None:
    """Their process lived when the journals were listed, and was dead when they were claimed."""
    kill(
        """
        whole = feed(begin("./whole", "r"), *range(100, 105)); whole.close(soon())
        run = feed(begin("./data", "r"), 100, 101, 102); cut(run)
        run._cut(run._wall_clock_ns())  # a shutdown that knew of no rows
        feed(run, 103, 104, first=3)
        """,
        tmp_path,
    )
    folder, aside = tmp_path / "journal", tmp_path / "aside"
    late = [path for path in journals(tmp_path) if path.stem[-1] in "12"]
    aside.mkdir()
    for path in late:
        path.rename(aside / path.name)

    def bring_back(_progress: str) -> None:
        for path in aside.iterdir():
            path.rename(folder / path.name)

    assert len(recover(folder, say=bring_back).published) == 1
    assert recovered(tmp_path) == ["r"]
    whole, parts = (rows(contents(tmp_path / place)) for place in ("whole", "data"))
    assert len(late) == 2
    assert parts == whole
    assert list(folder.glob("totals/*")) == []


@pytest.mark.parametrize("moments", [(0.0, 0.3), (0.4, 0.5), (0.8, 1.1)])
def test_a_recovery_that_is_killed_is_completed_by_the_next(
    moments: tuple[float, ...], hub: LoopbackHub, home: dict[str, str], tmp_path: Path
) -> None:
    """Reading, sealing, publishing or removing: each row is there once, totals go on."""
    kill(
        """
        for i in range(4):
            parts = begin("me/x" if i % 2 else "./data", f"r{i}")
            for part in range(4):
                feed(parts, 100 * i + part, first=part); cut(parts)
        """,
        tmp_path,
        **home,
    )
    hub.delay_s = 0.02
    for seconds in moments:
        with subprocess.Popen(
            [*HUBMETER, "recover", "journal"],
            cwd=tmp_path,
            env={**os.environ, **home},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        ) as process:
            assert process.stderr is not None
            process.stderr.readline()  # it is reading the first one
            time.sleep(seconds)
            process.kill()
    done = hubmeter("recover", "journal", folder=tmp_path, **home)

    assert done.returncode == 0, done.stderr
    files = {**contents(tmp_path / "data"), **hub.repo("me/x").files}
    assert watts(files) == [100 * i + part for i in range(4) for part in range(4)]
    joules = [row["energy_joules"] for row in rows(files)]
    assert all(joules[i : i + 4] == sorted(set(joules[i : i + 4])) for i in range(0, 16, 4))
    assert journals(tmp_path) == []


def test_two_recoveries_at_once_share_the_work(
    hub: LoopbackHub, home: dict[str, str], tmp_path: Path
) -> None:
    """Parts of one run hang on one another: whoever has the first one has them all."""
    kill(
        """
        for i in range(20):
            parts = begin("me/x", f"r{i:02}")
            for part in range(3):
                feed(parts, 100 + i, first=2 * part); feed(parts, 100 + i, first=2 * part + 1)
                cut(parts)
        """,
        tmp_path,
        **home,
    )
    command = [*HUBMETER, "recover", "journal"]
    both = [
        subprocess.Popen(
            command, cwd=tmp_path, env={**os.environ, **home},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in both:
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr.decode()

    files = hub.repo("me/x").files
    assert watts(files) == [100 + i for i in range(20) for _ in range(6)]
    assert [row["energy_joules"] for row in rows(files)] == pytest.approx(
        [(100 + i) * second for i in range(20) for second in range(6)]
    )
    assert journals(tmp_path) == []


def test_a_live_run_is_left_alone_and_counted(tmp_path: Path) -> None:
    """Its journal stays as it is, byte for byte, and it publishes itself at its end."""
    kill(ONE, tmp_path)
    code = 'live = feed(begin("./data", "live"), 1); print("on", flush=True)\n'
    code += "sys.stdin.read(); live.close(soon())"
    with subprocess.Popen(
        program(code, tmp_path), cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as agent:
        assert agent.stdin is not None
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"on\n"
        [mine] = [path for path in journals(tmp_path) if b'"live"' in path.read_bytes()]
        before = mine.read_bytes()
        done = hubmeter("recover", "journal", folder=tmp_path)
        assert "r1" in done.stdout
        assert "; 1 segment is held by a live process: a run that goes on, or" in done.stdout
        assert (done.returncode, mine.read_bytes()) == (0, before)
        assert waiting_text(tmp_path / "journal") == ""
        agent.stdin.close()
        assert agent.wait(30) == 0

    assert watts(contents(tmp_path / "data")) == [1, 7, 8, 9]
    assert journals(tmp_path) == []


def test_whoever_looks_at_a_journal_does_not_keep_a_recovery_away(tmp_path: Path) -> None:
    """An exporter that starts, or doctor, has each journal for a moment."""
    kill('for i in range(20): feed(begin("./data", f"r{i}"), i)', tmp_path)
    code = "from pathlib import Path; from hubmeter.waiting import waiting_text; import sys\n"
    code += "while waiting_text(Path('journal')): print('.', flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE
    ) as looking:
        assert looking.stdout is not None
        looking.stdout.readline()
        assert len(recovered(tmp_path)) == 20
        looking.kill()


def test_a_dry_run_changes_nothing(hub: LoopbackHub, home: dict[str, str], tmp_path: Path) -> None:
    """It says what would happen, and neither the disk nor the Hub learns of it."""
    kill(ONE + '\nfeed(begin("me/x", "r2"), 1)', tmp_path, **home)
    before = state(tmp_path)
    done = hubmeter("recover", "journal", "--dry-run", folder=tmp_path, **home)

    assert done.returncode == 0
    assert f"r1  3 rows, 0 other points  -> {tmp_path / 'data'}" in done.stdout
    assert "r2  1 rows, 0 other points  -> hf://datasets/me/x" in done.stdout
    assert "would publish 2 segments: 4 rows" in done.stdout
    assert state(tmp_path) == before
    assert hub.requests == []

    data = json.loads(
        hubmeter("recover", "journal", "--dry-run", "--format", "json", folder=tmp_path).stdout
    )
    assert data["schema_version"] == 1
    assert sorted((one["run_id"], one["rows"]) for one in data["segments"]) == [
        ("r1", 3),
        ("r2", 1),
    ]
    assert state(tmp_path) == before


def test_each_destination_gets_its_runs_in_one_commit(
    hub: LoopbackHub, home: dict[str, str], tmp_path: Path
) -> None:
    """More orphans than are locked at a time, to several repositories, in turns."""
    kill('for i in range(220): feed(begin(f"me/x{i % 11}", f"r{i}"), i)', tmp_path)
    assert hubmeter("recover", "journal", folder=tmp_path, **home).returncode == 0

    repos = [hub.repo(f"me/x{number}") for number in range(11)]
    assert [len(repo.commits) for repo in repos] == [1] * 11
    assert [len(watts(repo.files)) for repo in repos] == [20] * 11


def test_a_hub_that_is_down_keeps_everything(
    hub: LoopbackHub, home: dict[str, str], tmp_path: Path
) -> None:
    """Exit code 1, what to do, and other destinations get theirs; later all is published."""
    kill('feed(begin("me/x", "r2"), 1); feed(begin("me/y", "r3"), 2)\n' + ONE, tmp_path)
    down = {**home, "HF_ENDPOINT": NOWHERE}
    started = time.monotonic()
    done = hubmeter("recover", "journal", "--timeout", "3", folder=tmp_path, **down)

    assert time.monotonic() - started < 20
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for repo in ("me/x", "me/y"):
        assert f"not published: {repo}: no answer from" in done.stdout
    assert "Try again: hubmeter recover journal" in done.stdout
    assert "published 1 segments: 3 rows" in done.stdout
    assert "2 stay in the journal" in done.stdout
    assert watts(contents(tmp_path / "data")) == [7, 8, 9]
    assert hub.token not in done.stdout + done.stderr

    assert hubmeter("recover", "journal", folder=tmp_path, **home).returncode == 0
    assert watts(hub.repo("me/x").files) + watts(hub.repo("me/y").files) == [1, 2]
    assert journals(tmp_path) == []


def test_privacy_that_is_chosen_for_a_recovery(
    hub: LoopbackHub, home: dict[str, str], tmp_path: Path
) -> None:
    """It wins over what the run was told; a process that goes on for a program chooses nothing."""
    hub.create("me/x", private=False)
    kill('feed(begin("me/x", "r1"), 1)', tmp_path)
    assert hubmeter("recover", "journal", folder=tmp_path, **home).returncode == 1
    toml = tmp_path / "hubmeter.toml"
    toml.write_text("private = false")
    assert hubmeter("recover", "journal", folder=tmp_path, **home).returncode == 0
    toml.unlink()

    kill('feed(begin("me/x", "r2", private=False), 2)', tmp_path)
    process_id = journals(tmp_path)[0].stem.split("-")[1]
    strict = {**home, "HUBMETER_PRIVATE": "1"}
    assert hubmeter("recover", "journal", folder=tmp_path, **strict).returncode == 1
    going_on = ("recover", "journal", "--process", process_id)
    assert hubmeter(*going_on, folder=tmp_path, **strict).returncode == 0
    assert watts(hub.repo("me/x").files) == [1, 2]


def test_a_hub_that_drips_its_headers_does_not_hold_a_recovery(
    hub: LoopbackHub, home: dict[str, str], tmp_path: Path
) -> None:
    """Each byte comes in time, the last one would not: over in time, and the run waits."""
    kill('feed(begin("me/x", "r1"), 1)', tmp_path)
    hub.faults.append(Fault(times=10**6, slow_headers_bytes_per_s=2))
    started = time.monotonic()
    done = hubmeter("recover", "journal", "--timeout", "2", folder=tmp_path, **home)

    assert time.monotonic() - started < 10
    assert done.returncode == 1
    assert re.search("not published: me/x: (no answer from|.* did not answer in time)", done.stdout)
    assert "Try again: hubmeter recover journal" in done.stdout
    hub.faults.clear()
    assert hubmeter("recover", "journal", folder=tmp_path, **home).returncode == 0
    assert watts(hub.repo("me/x").files) == [1]


def test_a_destination_that_failed_is_asked_once(
    hub: LoopbackHub, home: dict[str, str], tmp_path: Path
) -> None:
    """120 orphans are two commits; who waits for the first in vain does not wait again."""
    hub.faults.append(Fault(on="create", status=503, times=10**6))
    kill('for i in range(120): feed(begin("me/x", f"r{i}"), i)', tmp_path)
    started = time.monotonic()
    done = hubmeter(
        "recover", "journal", "--timeout", "2", "--format", "json", folder=tmp_path, **home
    )

    data = json.loads(done.stdout)
    assert time.monotonic() - started < 12
    assert (done.returncode, len(data["failures"]), len(data["kept"])) == (1, 1, 120)
    assert len(list(tmp_path.glob("journal/*.journal"))) == 120


def test_ctrl_c_loses_nothing(hub: LoopbackHub, home: dict[str, str], tmp_path: Path) -> None:
    """Exit code 130 at once, also while the Hub does not answer; the next one completes."""
    kill('for i in range(5): feed(begin("me/x", f"r{i}"), i)', tmp_path)
    hub.faults.append(Fault(on="put", hang=True, times=5))
    with subprocess.Popen(
        [*HUBMETER, "recover", "journal"],
        cwd=tmp_path,
        env={**os.environ, **home},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        while "batch" not in [request.kind for request in hub.requests]:
            time.sleep(0.05)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=10)

    assert (process.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-1] == "interrupted"
    assert len(list(tmp_path.glob("journal/*.journal"))) == 5
    hub.faults.clear()
    assert hubmeter("recover", "journal", folder=tmp_path, **home).returncode == 0
    assert watts(hub.repo("me/x").files) == list(range(5))


def _flip(data: bytes, place: float) -> bytes:
    at = int(len(data) * place)
    return data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("damage", "left", "reported"),
    [
        (lambda data: _flip(data, 0.999), [7, 8], "checksum"),
        (lambda data: data[:-100] + b"\0" * 60 + data[-100:], [7, 8, 9], "checksum"),
        (lambda data: data[: len(data) // 2] + data, [7, 8, 9], "bytes at"),
    ],
    ids=["a byte", "bytes in between", "twice the beginning"],
)
def test_the_readable_points_of_a_damaged_journal_are_published(
    damage: Any, left: list[float], reported: str, tmp_path: Path
) -> None:
    """The damage is reported, the journal is kept where nobody waits for it."""
    kill(ONE, tmp_path)
    [journal] = journals(tmp_path)
    journal.write_bytes(damaged := damage(journal.read_bytes()))
    done = invoke("recover", "journal")

    assert done.returncode == 0, done.stderr + done.stdout
    assert reported in done.stdout
    assert f"not readable: {journal.name}" in done.stdout
    assert watts(contents(tmp_path / "data")) == left
    assert journals(tmp_path) == []
    assert (tmp_path / "journal/damaged" / journal.name).read_bytes() == damaged
    assert waiting_text(tmp_path / "journal") == ""


def test_a_record_that_was_not_finished_is_no_damage(tmp_path: Path) -> None:
    """Nobody was told that it is kept."""
    kill(ONE, tmp_path)
    [journal] = journals(tmp_path)
    journal.write_bytes(journal.read_bytes()[:-5])
    done = invoke("recover", "journal")

    assert (done.returncode, journals(tmp_path)) == (0, [])
    assert f"not finished when it was killed: {journal.name}: torn tail, " in done.stdout
    assert "not readable" not in done.stdout
    assert watts(contents(tmp_path / "data")) == [7, 8]
    assert not (tmp_path / "journal/damaged").exists()


@pytest.mark.parametrize(
    ("content", "reported"),
    [(b"", "empty file"), (b"PK\3\4 somebody's zip" * 99, "not a journal"),
     (b"hubmeter journal 1\n" + b"\0" * 500, "no readable record")],
    ids=["empty", "foreign", "zeros"],
)  # fmt: skip
def test_a_file_without_one_record_is_put_aside(
    content: bytes, reported: str, tmp_path: Path
) -> None:
    """Nothing in it can ever be published; the runs beside it are, and no start names it again."""
    kill(ONE, tmp_path)
    (tmp_path / "journal/other.journal").write_bytes(content)
    _old(tmp_path / "journal/other.journal")
    done = invoke("recover", "journal")

    assert done.returncode == 0, done.stdout
    assert f"not readable: other.journal: {reported}" in done.stdout
    assert watts(contents(tmp_path / "data")) == [7, 8, 9]
    assert (tmp_path / "journal/damaged/other.journal").read_bytes() == content
    assert waiting_text(tmp_path / "journal") == ""


def test_a_journal_of_a_newer_version_waits_for_it(tmp_path: Path) -> None:
    """It stays, with the advice to upgrade; the others are published."""
    kill(ONE, tmp_path)
    newer = tmp_path / "journal/20270101T000000Z-00000000000f-0000.journal"
    newer.write_bytes(content := b"hubmeter journal 2\n" + b"\1" * 500)
    _old(newer)
    for options in ([], ["--to", "./other"]):
        done = invoke("recover", "journal", *options)
        assert done.returncode == 1
        assert f"left in journal: {newer.name}: format 2" in done.stdout
        assert "upgrade it" in done.stdout
        assert newer.read_bytes() == content

    assert watts(contents(tmp_path / "data")) == [7, 8, 9]


def _old(path: Path) -> None:
    os.utime(path, (1_700_000_000, 1_700_000_000))


def _lose_header(journal: Path) -> None:
    """Break both copies of the first record."""
    data = bytearray(journal.read_bytes())
    first = data.index(b'["header"')
    second = data.index(b'["header"', first + 1)
    data[first + 2] ^= 1
    data[second + 2] ^= 1
    journal.write_bytes(data)
    assert peek(journal).header is None
    _old(journal)


def test_a_journal_that_lost_its_header_needs_a_destination(tmp_path: Path) -> None:
    """Nobody knows where it should go; with `--to` its points are published."""
    kill(ONE + '\nother = feed(begin("./data", "r2"), 1); cut(other); feed(other, 2)', tmp_path)
    for journal in journals(tmp_path):
        _lose_header(journal)
    done = invoke("recover", "journal")

    assert done.returncode == 1
    assert done.stdout.count("its header is lost") == 3
    assert "--to" in done.stdout
    assert len(journals(tmp_path)) == 3
    assert not (tmp_path / "data").exists()

    done = invoke("recover", "journal", "--to", "./found")
    assert done.returncode == 0, done.stdout
    found = rows(contents(tmp_path / "found"))
    assert sorted(row["gpu_power_watts"] for row in found) == [1, 2, 7, 8, 9]
    assert all(row["run_id"].startswith("recovered-") for row in found)
    assert journals(tmp_path) == []
    assert len(list(tmp_path.glob("journal/damaged/*"))) == 3


def test_parts_that_lost_their_headers_stay_two_files(tmp_path: Path) -> None:
    """The points know their run, and the files must not take each other's place."""
    kill(
        """
        parts = begin("./data", "unused")
        def send(watts, second):
            document = request(power(watts, first=second), run_id="mine")
            parts.consume(JsonDecoder().decode(document))
        send(1, 0); cut(parts); send(2, 1); cut(parts); send(3, 2)
        """,
        tmp_path,
    )
    for journal in journals(tmp_path)[1:]:
        _lose_header(journal)
    recover(tmp_path / "journal", to="./data", say=lambda _: None)

    found = rows(contents(tmp_path / "data"))
    assert [row["gpu_power_watts"] for row in found] == [1, 2, 3]
    assert {row["run_id"] for row in found} == {"mine"}
    assert [row["energy_joules"] for row in found] == pytest.approx([0, 1.5, 4])


@pytest.mark.parametrize("harm", ["cut off", "another format", "a folder", "other totals"])
def test_a_sealed_file_that_is_damaged_is_made_again(harm: str, tmp_path: Path) -> None:
    """The journal has the points; what is published is what would have been."""
    kill(ONE + '\nfeed(begin("./data", "r2"), 1)', tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "journal", copy / "journal")
    assert recovered(copy) == ["r1", "r2"]
    good = contents(tmp_path / "data")
    shutil.rmtree(tmp_path / "data")

    for journal in journals(tmp_path):
        sealed = journal.with_suffix(".sealed")
        if harm == "a folder":
            sealed.mkdir()
        elif harm == "cut off":
            sealed.write_bytes(b"PK\3\4 and nothing more")
        else:
            with zipfile.ZipFile(sealed, "w") as archive:
                manifest = {"format": 99} if harm == "another format" else {
                    "format": 1, "name": "n", "run_id": "r", "files": [], "rows": 0, "points": 0,
                    "received": 0, "rejected": {}, "closing": {"sums": 3},
                }  # fmt: skip
                archive.writestr("manifest.json", json.dumps(manifest))
    result = recover(tmp_path / "journal", say=lambda _: None)

    assert result.failures == []
    assert contents(tmp_path / "data") == good


def test_what_is_published_but_cannot_be_removed_is_said(tmp_path: Path) -> None:
    """A folder in the place of the sealed file: the rows arrive, the exit code is 1."""
    kill(ONE, tmp_path)
    [journal] = journals(tmp_path)
    (journal.with_suffix(".sealed") / "x").mkdir(parents=True)
    for _ in range(2):
        done = invoke("recover", "journal")
        assert done.returncode == 1
        assert "published, but it cannot be removed" in done.stdout
        assert watts(contents(tmp_path / "data")) == [7, 8, 9]
    assert len(contents(tmp_path / "data")) == 1


@pytest.mark.skipif(not HAS_RO_MOUNTS, reason="LOUD: cannot mount (not root): read-only untested")
def test_a_journal_directory_that_is_read_only_is_said(tmp_path: Path) -> None:
    """Nothing is published twice, nothing is called a live process, and there is no traceback."""
    kill(ONE, tmp_path)
    script = 'mount --bind journal journal && mount -o remount,ro,bind journal && exec "$@"'
    command = ["unshare", "-m", "bash", "-c", script, "-", *HUBMETER, "recover", "journal"]
    done = run(command, tmp_path)

    assert done.returncode == 1
    assert "this user may not write it" in done.stdout
    assert "live" not in done.stdout
    assert "Traceback" not in done.stderr
    assert recovered(tmp_path) == ["r1"]


def test_a_journal_directory_that_is_not_there(tmp_path: Path) -> None:
    """The default may not exist yet; one that was named should."""
    home = str(tmp_path / "hf")
    done = hubmeter("recover", folder=tmp_path, HF_HOME=home)
    assert (done.returncode, done.stdout) == (0, f"nothing waits in {home}/hubmeter\n")
    assert not (tmp_path / "hf").exists()

    for name in ("missing", "file"):
        (tmp_path / "file").write_text("x")
        done = hubmeter("recover", name, folder=tmp_path)
        assert done.returncode == 1
        assert done.stderr == f"hubmeter: {name}: there is no such folder\n"

    done = hubmeter("recover", folder=tmp_path, HUBMETER_JOURNAL_DIR=str(tmp_path / "file"))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)

    (tmp_path / "empty").mkdir()
    done = hubmeter("recover", "empty", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "nothing waits in empty\n")


def test_a_journal_that_is_off_is_not_the_working_folder(tmp_path: Path) -> None:
    """`HUBMETER_JOURNAL_DIR=off hubmeter recover` needs to be told where to look."""
    kill(ONE, tmp_path)
    done = hubmeter("recover", folder=tmp_path / "journal", HUBMETER_JOURNAL_DIR="off")

    assert (done.returncode, done.stdout) == (1, "")
    assert "journal is off" in done.stderr
    assert len(journals(tmp_path)) == 1


@pytest.mark.parametrize("to", ["", "s3://bucket/x", " "])
def test_a_wrong_destination_is_wrong_usage(to: str, tmp_path: Path) -> None:
    """An empty variable in a script is no wish to publish somewhere else."""
    kill(ONE, tmp_path)
    done = invoke("recover", "journal", "--to", to)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(journals(tmp_path)) == 1


def test_a_destination_may_have_the_date(
    hub: LoopbackHub, home: dict[str, str], tmp_path: Path
) -> None:
    """As with HUBMETER_TO: no folder of that odd name is made."""
    kill(ONE, tmp_path)
    done = hubmeter("recover", "journal", "--to", "{user}/x-{date}", folder=tmp_path, **home)

    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("{user}*"))
    [name] = re.findall(r"hf://datasets/\{user\}/(x-20\S+)", done.stdout)
    assert watts(hub.repo(f"me/{name}").files) == [7, 8, 9]


def test_progress_is_on_stderr_and_the_result_on_stdout(tmp_path: Path) -> None:
    """The result can be piped into a program."""
    kill(ONE, tmp_path)
    done = invoke("recover", "journal", "--format", "json")

    data = json.loads(done.stdout)
    assert data["segments"][0] | {"segment": ""} == {
        "segment": "",
        "run_id": "r1",
        "destination": str(tmp_path / "data"),
        "rows": 3,
        "points": 0,
        "received": 3,
        "published": 3,
        "rejected": {},
    }
    assert (data["failures"], data["left"], data["kept"], data["live"]) == ([], [], [], 0)
    assert "reading 1 of 1" in done.stderr
    assert "publishing 1 segments" in done.stderr


def test_odd_notes_of_another_version_do_not_stop_the_others(tmp_path: Path) -> None:
    """One journal that cannot be understood must not keep back all others."""
    kill(
        ONE
        + """
odd = feed(begin("./data", "odd"), 1)
for kind, value in [("end", [1]), ("opening", 7)]:
    odd._segment._journal.note(kind, value)
more = feed(begin("./data", "more"), 2)
more._segment._journal.note("end", {"lost": {"a": "b"}, "empty_run_unix_nano": "soon"})
""",
        tmp_path,
    )
    assert recovered(tmp_path) == ["more", "odd", "r1"]
    assert watts(contents(tmp_path / "data")) == [2, 1, 7, 8, 9]


def test_the_next_start_names_what_waits(tmp_path: Path) -> None:
    """One line with the command, while there is something; none about live runs."""
    kill('for i in range(5): feed(begin("./data", f"r{i}"), 1)', tmp_path)
    program_text = """
    from hubmeter import HubMetricExporter
    live = feed(begin("./data", "live"), 1)
    exporter = HubMetricExporter(to="./mine", journal_dir="journal")
    another = HubMetricExporter(to="./mine", journal_dir="other")
    exporter.shutdown(); another.shutdown(); live.close(soon())
    """
    told = run(program(program_text, tmp_path), tmp_path)
    [line] = told.stderr.splitlines()
    assert line.startswith("hubmeter: 5 earlier runs wait to be published (r")
    assert line.endswith(f" and 2 more): hubmeter recover {tmp_path / 'journal'}")
    assert "live" not in line

    assert len(recovered(tmp_path)) == 5
    assert run(program(program_text, tmp_path), tmp_path).stderr == ""


def test_nothing_in_the_journal_directory_keeps_a_run_from_starting(tmp_path: Path) -> None:
    """It is recorded and published; what is not readable is no run, and is named as files."""
    kill('feed(begin("./data", "waits"), 1)', tmp_path)
    [journal] = journals(tmp_path)
    content = journal.read_bytes()
    for name, data in {
        "empty": b"",
        "foreign": b"PK\3\4 somebody's zip" * 99,
        "newer": b"hubmeter journal 2\n" + b"\1" * 500,
        "zeros": b"hubmeter journal 1\n" + b"\0" * 500,
        "cut": content[:40],
    }.items():
        (tmp_path / f"journal/{name}.journal").write_bytes(data)
        _old(tmp_path / f"journal/{name}.journal")
    (tmp_path / "journal/folder.journal").mkdir()
    program_text = """
    from hubmeter import HubMetricExporter
    from observed import Machine
    exporter = HubMetricExporter("./mine")
    exporter.export(Machine(**{"run.id": "new"}).collect(5))
    exporter.shutdown()
    """
    environment = {"PYTHONPATH": str(Path(__file__).parent), "HUBMETER_JOURNAL_DIR": "journal"}
    told = run(program(program_text, tmp_path), tmp_path, **environment)

    assert (told.returncode, watts(contents(tmp_path / "mine"))) == (0, [5])
    unreadable = "5 files without a readable beginning"
    assert told.stderr == (
        f"hubmeter: 1 earlier run waits to be published (waits); {unreadable}: "
        f"hubmeter recover {tmp_path / 'journal'}\n"
    )
    journal.unlink()
    assert waiting_text(tmp_path / "journal") == unreadable


def test_looking_for_what_waits_reads_no_whole_journals(tmp_path: Path) -> None:
    """A journal of a gigabyte is named as fast as a small one."""
    kill('for i in range(50): feed(begin("./data", f"r{i}"), 1)', tmp_path)
    for journal in journals(tmp_path):
        os.truncate(journal, 2**30)
    started = time.monotonic()
    assert waiting_text(tmp_path / "journal").startswith("50 earlier runs wait")
    assert time.monotonic() - started < 2


def test_names_from_a_journal_cannot_steer_the_terminal(tmp_path: Path) -> None:
    """A run id may hold anything, also what a terminal takes for a command."""
    kill(
        r"""
        parts = begin("./data", "x")
        evil = "evil\x1b[31m\r\n"
        parts.consume(JsonDecoder().decode(request(power(1), run_id=evil)))
        """,
        tmp_path,
    )
    assert "\x1b" not in waiting_text(tmp_path / "journal")
    done = invoke("recover", "journal")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout + done.stderr


def test_receipts_that_are_broken_are_not_read(tmp_path: Path) -> None:
    """Whatever is in `done/`, what is sound is returned."""
    kill(ONE, tmp_path)
    recovered(tmp_path)
    [receipt] = read_receipts(tmp_path / "journal")
    assert (receipt.run_id, receipt.rows, receipt.received, receipt.published) == ("r1", 3, 3, 3)
    [path] = tmp_path.glob("journal/done/*.json")
    good = json.loads(path.read_text())
    for number, wrong in enumerate(
        ["", "[]", "null", "[" * 9999, {"rejected": []}, {"rejected": {"a": "b"}}, {"rows": "many"}]
    ):
        text = wrong if isinstance(wrong, str) else json.dumps(good | wrong)
        path.with_name(f"{number}.json").write_text(text)
    (path.parent / "folder.json").mkdir()

    assert read_receipts(tmp_path / "journal") == [receipt]


def test_recovered_shards_say_what_became_of_their_points(tmp_path: Path) -> None:
    """The metadata of a recovered shard is that of a live one."""
    kill(
        """
        live = feed(begin("./live", "r"), 7, 8); live.close(soon())
        feed(begin("./data", "r"), 7, 8)
        """,
        tmp_path,
    )
    recovered(tmp_path)
    assert metadata(contents(tmp_path / "data")) == metadata(contents(tmp_path / "live"))


@pytest.mark.parametrize("settings", [{}, {"missing": "zero"}, {"points": "all"}], ids=str)
def test_recovered_files_are_those_of_a_live_run_byte_for_byte(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """In two parts, with all kinds of metrics, broken values and points that come twice."""
    dice = random.Random(3)
    requests = [json_of(random_request(dice)) for _ in range(60)]
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    kill(
        f"""
        import json
        requests = json.load(open("requests.json"))
        for to in ("./live", "./data"):
            decoder, pipeline = JsonDecoder(), begin(to, "r", **{settings})
            for half in (requests[:30], requests[30:]):
                feed(pipeline, 7, 8, "NaN", "oops")
                for one in half:
                    pipeline.consume(decoder.decode(one))
                feed(pipeline, 9, 8, first=len(half))
                if half is not requests[30:]: cut(pipeline)
            if to == "./live": pipeline.close(soon())
        """,
        tmp_path,
    )
    assert len(recovered(tmp_path)) == 2
    live, dead = contents(tmp_path / "live"), contents(tmp_path / "data")
    kinds = {row["kind"] for row in rows(live, "points")}
    assert kinds >= {"histogram", "exponential_histogram", "summary"}
    assert len(live) == 4
    assert _without_process(dead) == _without_process(live)


def _without_process(files: dict[str, bytes]) -> dict[str, bytes]:
    return {re.sub("-[0-9a-f]{12}", "", path): content for path, content in files.items()}


def test_a_recovery_does_not_wait_for_a_thread_of_this_process(tmp_path: Path) -> None:
    """Two in one process share as two processes do."""
    kill('for i in range(30): feed(begin("./data", f"r{i}"), i)', tmp_path)
    found: list[str] = []

    def work() -> None:
        with suppress(OSError):
            result = recover(tmp_path / "journal", say=lambda _: None)
            found.extend(one.shard.run_id for one in result.published if one.shard)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(f"r{i}" for i in range(30))
    assert sorted(watts(contents(tmp_path / "data"))) == list(range(30))


def test_a_batch_that_does_not_fit_its_layout_costs_only_itself(tmp_path: Path) -> None:
    """A value too many in a record with good checksums: its neighbours are published."""
    code = """
    from array import array
    pipeline = feed(begin("data", "bad"), 1, 2)
    from hubmeter.ledger import pack
    packed = pack(JsonDecoder().decode(request(power(5))))
    journal = pipeline._segment._journal
    journal.append(packed._replace(values=array("d", [1.0, 2.0]), kinds=b"\\0\\0"))
    feed(pipeline, 3, first=3)
    """
    kill(code, tmp_path)
    done = hubmeter("recover", "journal", folder=tmp_path)

    assert "does not fit its layout" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert watts(contents(tmp_path / "data")) == [1, 2, 3]


def test_totals_are_found_by_part(tmp_path: Path) -> None:
    """The last before a part counts; the one before that stays for who must seal again."""
    key = GpuKey("r", "{}", None, "0")
    ends = [Opening({}, {key: PowerEnd(float(part), 1.0, 7)}) for part in range(9)]
    for part in (0, 3, 7):
        write_totals(tmp_path, "p", Totals(part, ends[part], part > 0))

    assert read_totals(tmp_path, "p", 8) == Totals(7, ends[7], True)
    assert read_totals(tmp_path, "p", 7) == Totals(3, ends[3], True)
    assert read_totals(tmp_path, "p", 3) is None
    assert read_totals(tmp_path, "another", 3) is None
    write_totals(tmp_path, "p", Totals(7, ends[8], False))
    assert read_totals(tmp_path, "p", 8) == Totals(7, ends[8], False)
    forget_totals(tmp_path, "p")
    forget_totals(tmp_path, "p")
    assert read_totals(tmp_path, "p", 8) is None


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 9999, '[{"part": 1}]', '[{"part": "x"}]',
                                  '[{"part": 1, "closing": {}, "has_rows": 1}]'])  # fmt: skip
def test_totals_that_are_broken_are_none(text: str, tmp_path: Path) -> None:
    """A run begins its sums anew, rather than not at all; they are written again."""
    (tmp_path / "totals").mkdir()
    (tmp_path / "totals/p.json").write_text(text)
    assert read_totals(tmp_path, "p", 5) is None
    write_totals(tmp_path, "p", Totals(5, START, True))
    assert read_totals(tmp_path, "p", 6) == Totals(5, START, True)


def test_the_oldest_totals_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs whose end nobody saw do not fill the disk."""
    monkeypatch.setattr(totals, "MOST_FILES", 3)
    for number in range(5):
        write_totals(tmp_path, f"p{number}", Totals(0, START, True))
        _set_time(tmp_path / f"totals/p{number}.json", 1_700_000_000 - number)
    totals.prune(tmp_path / totals.FOLDER)
    assert sorted(path.stem for path in tmp_path.glob("totals/*")) == ["p0", "p1", "p2"]


def test_receipts_of_long_runs_are_kept_as_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver's run that began days ago was published last: its receipt is the newest."""
    monkeypatch.setattr(receipts, "MOST_RECEIPTS", 2)
    monkeypatch.setattr(receipts, "SLACK", 0)
    for number, name in enumerate(["c", "d", "e", "a"]):
        write_receipt(tmp_path, Receipt(name=name, run_id="r", destination="x", rejected={},
                                        published_unix_nano=number))  # fmt: skip
        _set_time(tmp_path / f"done/{name}.json", 1_700_000_000 + number)
    assert [receipt.name for receipt in read_receipts(tmp_path)] == ["e", "a"]


def _set_time(path: Path, seconds: int) -> None:
    os.utime(path, (seconds, seconds))
