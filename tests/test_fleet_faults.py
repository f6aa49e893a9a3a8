"""A receiver whose disk, destination or neighbours fail: nothing acknowledged is lost."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fleet_runs import (  # noqa: F401
    SOON_S,
    WIDE,
    Feeder,
    cut_all,
    end_all,
    fleet_in,
    power,
    publish,
    published,
    quick,
    until,
    visible,
    wide,
)
from fleet_server import serving
from hubmeter import fleet as fleet_module
from hubmeter import publisher as publisher_module
from hubmeter import routing, strict_journal
from hubmeter.attempts import GIVEN_UP, MOST_ATTEMPTS
from hubmeter.deadline import Deadline
from hubmeter.errors import DecodeError, JournalError
from hubmeter.ledger import Packed
from hubmeter.owners import SILENT_S
from hubmeter.recovery import recover
from hubmeter.run_log import LOOK_EVERY_S
from hubmeter.waiting import waiting_text
from loopback_hub import Fault, LoopbackHub
from makers import SECOND, T0, gauge, point, resource_metrics
from orphans import contents, hubmeter, kill, metadata, run, watts
from orphans import rows as rows_of

HAS_MOUNTS = (
    shutil.which("unshare") is not None
    and subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
)


def asked(*parts: dict[str, Any]) -> dict[str, Any]:
    """A request."""
    return {"resourceMetrics": list(parts)}


def test_at_the_limit_points_are_refused_until_some_are_published(tmp_path: Path) -> None:
    """Also if no run falls silent: the largest are cut, published, and it goes on."""
    fleet = fleet_in(tmp_path, journal_limit_mib=1)
    send, refused, second, taken = Feeder(fleet), 0, 0, 0
    while refused < 3:
        second += 1
        try:
            send(wide(f"r{second % 3}", second))
        except JournalError as error:
            refused += "1 MiB" in str(error)
        else:
            taken += 1
    status = fleet.status()
    assert status["points_received"] - status["points_acknowledged"] == 3 * WIDE
    assert 2**20 <= status["journal_bytes"] < 1.2 * 2**20
    assert not status["ready"]
    until(fleet, lambda: fleet.status()["journal_bytes"] < 2**19)
    assert fleet.status()["ready"]
    send(wide("r0", 9999))
    assert fleet.close(Deadline.after(SOON_S))
    found = rows_of(contents(tmp_path / "data"), "points")
    assert (
        len(found) == (taken + 1) * WIDE == len({(r["timestamp"], r["attributes"]) for r in found})
    )


def test_a_request_of_many_runs_keeps_to_the_limit(tmp_path: Path) -> None:
    """What of it was kept before it was refused is kept once, however often it comes again."""
    fleet = fleet_in(tmp_path, journal_limit_mib=1)
    send = Feeder(fleet)
    parts = [power(n, 1, run_id=f"r{n}", a="x" * 500) for n in range(900)]
    with pytest.raises(JournalError, match="1 MiB"):
        send(*parts)
    assert 2**20 <= fleet.status()["journal_bytes"] < 1.01 * 2**20
    assert 0 < len(visible(tmp_path)) < 900
    end_all(fleet, is_final=False)
    publish(tmp_path)
    until(fleet, lambda: fleet.status()["journal_bytes"] < 2**19)
    send(*parts[:50], *parts[-50:])
    assert fleet.close(Deadline.after(SOON_S))
    found = watts(contents(tmp_path / "data"))
    assert len(found) == len(set(found))
    assert {*range(50), *range(850, 900)} <= set(found)


def test_a_request_of_too_many_runs_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would be a journal; it is refused for good, before the first one is there."""
    monkeypatch.setattr(routing, "MOST_RUNS", 10)
    fleet = fleet_in(tmp_path)
    send, parts = Feeder(fleet), [power(n, 1, service_name=f"s{n}") for n in range(11)]
    with pytest.raises(DecodeError, match="more than 10 runs"):
        send(*parts)
    assert (visible(tmp_path), fleet.status()["runs_open"]) == ([], 0)
    send(*parts[1:])
    assert len(visible(tmp_path)) == 10


def test_no_request_stays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it was kept, came again or was refused."""
    fleet = fleet_in(tmp_path)
    send, one, other = Feeder(fleet), power(1, 1, run_id="r"), wide("r", 2, 5)
    before = _held_batches()
    for _ in range(2):
        send(one)
        assert _held_batches() <= before
    monkeypatch.setattr(strict_journal, "MOST_ROW_BYTES", 10)
    with pytest.raises(DecodeError):
        send(other)
    assert _held_batches() <= before


def _held_batches() -> int:
    gc.collect()
    return sum(isinstance(one, Packed) for one in gc.get_objects())


def test_the_oldest_is_dropped_if_that_was_chosen(tmp_path: Path) -> None:
    """Counted by the receiver, and in the next shard of the run that lost them."""
    fleet = fleet_in(tmp_path, journal_limit_mib=1, journal_full="drop-oldest", to="/dev/null/x")
    send = Feeder(fleet)
    fleet._publisher._next_s = float("inf")  # nobody publishes
    for second in range(1, 40):
        send(wide("r", second))
        fleet.tick()
    status = fleet.status()
    assert status["points_received"] == status["points_acknowledged"] == 39 * WIDE
    assert 0 < status["points_dropped"] < 39 * WIDE
    assert status["ready"]
    assert status["points_dropped"] % WIDE == 0
    assert status["journal_bytes"] < 1.2 * 2**20
    end_all(fleet)
    result = recover(tmp_path / "journal", to=str(tmp_path / "data"), say=lambda _: None)
    assert result.failures == []
    kept = len(rows_of(contents(tmp_path / "data"), "points"))
    assert kept == 39 * WIDE - status["points_dropped"]
    about = metadata(contents(tmp_path / "data"))
    received = {name: sum(int(one[name]) for one in {str(a): a for a in about}.values())
                for name in ("points_received", "points_published")}  # fmt: skip
    assert received == {"points_received": 39 * WIDE, "points_published": kept}


LIMIT = "__import__('resource').setrlimit(__import__('resource').RLIMIT_FSIZE, ({}, -1))"


def test_a_disk_that_is_full_refuses_and_recovers_by_itself(tmp_path: Path) -> None:
    """What was refused is not kept, not even in memory; sent again it is there once."""
    with serving(tmp_path, settings={}, tick_s=0) as server:
        assert server.ask(1, asked(power(1, 1, run_id="r"))) == "+ 1"
        [journal] = tmp_path.glob("journal/*.journal")
        size = journal.stat().st_size
        server.do(LIMIT.format(size + 30))
        for number in (2, 3):
            answer = server.ask(number, asked(power(2, 2, run_id="r"), power(3, 3, run_id="new")))
            assert answer.startswith(f"- {number} cannot write the journal")
            assert "File too large (refused)" in answer
            assert journal.stat().st_size == size
        assert server.do("fleet.tick() or fleet.status()['points_acknowledged']") == 1
        server.do(LIMIT.format(-1))
        assert server.ask(4, asked(power(2, 2, run_id="r"), power(3, 3, run_id="new"))) == "+ 4"
        assert server.ask(5, asked(wide("r", 9, 50), power(4, 4, run_id="r"))) == "+ 5"
        assert server.close() == "closed True"
    assert watts(contents(tmp_path / "data")) == [3, 1, 2, 4]
    assert len(rows_of(contents(tmp_path / "data"), "points")) == 50
    assert not (tmp_path / "journal/damaged").exists()


def test_an_end_that_cannot_be_written_is_written_later(tmp_path: Path) -> None:
    """A run that falls silent while the disk is full stays open, as one part."""
    options = {"fleet": {"silence_s": 0.1}, "settings": {}, "tick_s": 0}
    with serving(tmp_path, **options) as server:
        assert server.ask(1, asked(power(1, 1, run_id="r"))) == "+ 1"
        [journal] = tmp_path.glob("journal/*.journal")
        server.do(LIMIT.format(journal.stat().st_size + 30))
        time.sleep(0.15)
        assert server.do("fleet.tick() or fleet.status()['runs_open']") == 1
        assert "File too large" in server.do("[log.cut() for log in fleet._open.values()]")
        assert visible(tmp_path) == [journal.name]
        server.do(LIMIT.format(-1))
        assert server.ask(2, asked(power(2, 2, run_id="r"))) == "+ 2"
        assert server.close() == "closed True"
    files = contents(tmp_path / "data")
    assert (watts(files), len(files)) == ([1, 2], 1)


@pytest.mark.skipif(not HAS_MOUNTS, reason="LOUD: cannot mount (not root): full disks untested")
def test_a_disk_of_its_own_that_is_full(tmp_path: Path) -> None:
    """ENOSPC in a small file system: refused, published all the same, and then it goes on."""
    (tmp_path / "journal").mkdir()
    code = f"""
import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from fleet_runs import *
fleet_module.FOLDER_EVERY_S = 0.05
fleet, refused, taken, second = fleet_in(Path(".")), 0, 0, 0
while refused < 3:
    second += 1
    try:
        Feeder(fleet)(wide(f"r{{second % 3}}", second))
        taken += 1
    except OSError as error:
        assert "No space left" in str(error), error
        refused += 1
with open("journal/room", "rb+") as room: room.truncate(0)
cut_all(fleet)
until(fleet, lambda: not fleet.status()["segments_waiting"])
Feeder(fleet)(wide("r1", 999))
print(taken + 1, fleet.close(Deadline.after(20)))
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    mount = "mount -t tmpfs -o size=600k none journal && head -c 40000 /dev/zero > journal/room"
    command = ["unshare", "-m", "bash", "-ec", f'{mount}; exec "$@"', "-", sys.executable]
    done = run([*command, str(script)], tmp_path)
    found = rows_of(contents(tmp_path / "data"), "points")
    assert done.stdout.split() == [str(len(found) // WIDE), "True"], done.stderr
    assert len({(row["timestamp"], row["attributes"]) for row in found}) == len(found)


@pytest.mark.skipif(not HAS_MOUNTS, reason="LOUD: cannot mount (not root): read-only untested")
def test_a_folder_that_becomes_read_only_is_a_503_until_it_can_be_written(tmp_path: Path) -> None:
    """
    As an administrator remounts it: senders come again, and nothing is lost or doubled.

    The kernel allows that between two runs; while a journal is open it is busy.
    """
    (tmp_path / "journal").mkdir()
    code = f"""
import json, subprocess, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from fleet_runs import *
from hubmeter.receiver.intake import Intake
fleet = fleet_in(Path("."))
intake = Intake(fleet.deliver)
def send(*seconds):
    for second in seconds:
        body = json.dumps({{"resourceMetrics": [power(second, second, run_id="r")]}}).encode()
        print(intake.take("metrics", "json", body).status.http)
def remount(how):
    subprocess.run(["mount", "-o", f"remount,{{how}}", "journal"], check=True)
send(1)
end_all(fleet, is_final=False)
remount("ro")
send(2, 2)
fleet.tick()
remount("rw")
send(2, 3)
print(fleet.close(Deadline.after(20)))
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    mount = ["unshare", "-m", "bash", "-ec", 'mount -t tmpfs none journal; exec "$@"', "-"]
    done = run([*mount, sys.executable, str(script)], tmp_path)
    assert done.stdout.split() == ["200", "503", "503", "200", "200", "True"], done.stderr
    assert watts(contents(tmp_path / "data")) == [1, 2, 3]


def test_a_journal_that_is_removed_costs_what_was_in_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said and counted; the run goes on in its next part."""
    fleet = fleet_in(tmp_path)
    send = Feeder(fleet)
    send(power(1, 1, run_id="r"))
    send(power(2, 2, run_id="r"))
    [journal] = tmp_path.glob("journal/*.journal")
    journal.unlink()
    time.sleep(LOOK_EVERY_S + 0.1)
    send(power(3, 3, run_id="r"))
    assert "was removed with 2 points" in caplog.text
    assert fleet.close(Deadline.after(SOON_S))
    assert watts(contents(tmp_path / "data")) == [3]
    [about] = metadata(contents(tmp_path / "data"))
    assert (about["points_received"], about["points_rejected"]) == ("3", "2")


def test_a_look_that_fails_is_said_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is wrong with the folder, or missing to the process: the receiver goes on."""
    fleet, folder = fleet_in(tmp_path), tmp_path / "journal"
    Feeder(fleet)(power(1, 1, run_id="r"))
    folder.rename(tmp_path / "away")
    folder.touch()
    for _ in range(3):
        fleet._look_again_s = 0.0
        fleet.tick()
    assert [one.getMessage() for one in caplog.records if one.levelname == "WARNING"] == [
        f"hubmeter: looking after the runs failed: [Errno 20] Not a directory: '{folder}'"
    ]
    with pytest.raises(JournalError):
        Feeder(fleet)(power(3, 3, run_id="other"))
    for _ in range(2):
        fleet.tick()
        assert not fleet.status()["ready"]
    folder.unlink()
    (tmp_path / "away").rename(folder)
    fleet.tick()
    assert fleet.status()["ready"]
    Feeder(fleet)(power(2, 2, run_id="r"))
    assert fleet.close(Deadline.after(SOON_S))
    assert watts(contents(tmp_path / "data")) == [1, 2]


def test_a_damaged_journal_is_kept_and_its_run_goes_on(tmp_path: Path) -> None:
    """What can be read of it is published with what comes later."""
    with serving(tmp_path, settings={}, tick_s=0) as server:
        for number in range(4):
            assert server.ask(number, asked(power(number, number, run_id="r")))[0] == "+"
    [journal] = tmp_path.glob("journal/*.journal")
    data = bytearray(journal.read_bytes())
    data[-100] ^= 1  # in the last batch but one
    journal.write_bytes(data)
    with serving(tmp_path, settings={}, tick_s=0) as server:
        assert server.ask(9, asked(power(9, 9, run_id="r"))) == "+ 9"
        assert server.close() == "closed True"
    assert sorted(watts(contents(tmp_path / "data"))) == [0, 1, 3, 9]
    assert (tmp_path / "journal/damaged" / journal.name).read_bytes().startswith(data)


@pytest.mark.parametrize("cut", [0, 1, 10, 30])
def test_a_record_that_was_torn_by_a_kill_is_cut_off(tmp_path: Path, cut: int) -> None:
    """It was not acknowledged; its sender sends it again, and nothing looks damaged."""
    with serving(tmp_path, settings={}, tick_s=0) as server:
        for number in range(3):
            assert server.ask(number, asked(power(number, number, run_id="r")))[0] == "+"
    [journal] = tmp_path.glob("journal/*.journal")
    os.truncate(journal, journal.stat().st_size - cut)
    with serving(tmp_path, settings={}, tick_s=0) as server:
        for number in (1, 2):
            assert server.ask(number, asked(power(number, number, run_id="r")))[0] == "+"
        assert server.close() == "closed True"
    assert sorted(watts(contents(tmp_path / "data"))) == [0, 1, 2]
    assert not (tmp_path / "journal/damaged").exists()


def test_a_large_journal_of_a_killed_receiver_is_not_written_anew(tmp_path: Path) -> None:
    """The first request has its answer soon, whatever was kept before."""
    with serving(tmp_path, settings={}, tick_s=0) as server:
        for number in range(50):
            assert server.ask(number, asked(wide("r", number)))[0] == "+"
    [journal] = tmp_path.glob("journal/*.journal")
    before = journal.stat()
    with serving(tmp_path, settings={}, tick_s=0) as server:
        assert server.ask(60, asked(wide("r", 49)))[0] == "+"
        assert server.ask(61, asked(wide("r", 60)))[0] == "+"
        after, following = sorted(tmp_path.glob("journal/*.journal"))
        assert after.stat().st_ino == before.st_ino
        assert before.st_size < after.stat().st_size < before.st_size + 1000
        assert following.stat().st_size < before.st_size / 10
        assert server.close() == "closed True"
    found = rows_of(contents(tmp_path / "data"), "points")
    assert len(found) == 51 * WIDE


def test_another_destination_is_for_new_runs(tmp_path: Path) -> None:
    """What a killed receiver had goes where it meant to go."""
    with serving(tmp_path, settings={}, tick_s=0) as server:
        assert server.ask(1, asked(power(1, 1, run_id="r"))) == "+ 1"
    with serving(tmp_path, settings={"to": "./other"}, tick_s=0) as server:
        assert server.do("fleet.status()['runs_open']") == 0
        assert server.ask(2, asked(power(2, 2, run_id="r"))) == "+ 2"
        assert server.close() == "closed True"
    assert watts(contents(tmp_path / "data")) == [1]
    assert watts(contents(tmp_path / "other")) == [2]


def test_a_restart_gives_each_run_its_time_again(tmp_path: Path) -> None:
    """It goes on under its run id, in its next part, and its silence begins anew."""
    options = {"fleet": {"silence_s": 0.8}, "settings": {}, "tick_s": 0.05}
    ids = "[log.run.run_id for log in fleet._open.values()]"
    with serving(tmp_path, **options) as server:
        assert server.ask(1, asked(power(1, 1, host_name="h"))) == "+ 1"
        [run_id] = server.do(ids)
    time.sleep(0.5)
    with serving(tmp_path, **options) as server:
        assert server.do(ids) == [run_id]
        time.sleep(0.5)
        assert server.ask(2, asked(power(2, 2, host_name="h"))) == "+ 2"
        assert server.do(ids) == [run_id]
        assert server.close() == "closed True"
    files = contents(tmp_path / "data")
    assert {path.rsplit("/", 1)[1].startswith(run_id) for path in files} == {True}
    assert sorted(watts(files)) == [1, 2]


def test_two_receivers_share_a_directory(tmp_path: Path) -> None:
    """Each keeps its own runs; each publishes what either has ended; one dies, one lives on."""
    options = {"fleet": {"silence_s": 0.3}, "settings": {}, "tick_s": 0.05,
               "constants": {"FOLDER_EVERY_S": 0.1}}  # fmt: skip
    with serving(tmp_path, **options) as one, serving(tmp_path, **options) as two:
        for number in range(30):
            for server, offset in ((one, 0), (two, 1000)):
                value = number + offset
                run_id = f"r{value % 7}"
                assert server.ask(value, asked(power(value, value, run_id=run_id)))[0] == "+"
        one.kill()
        assert two.do("fleet.status()['runs_open']") <= 7
        assert two.close() == "closed True"
    with serving(tmp_path, **options) as again:
        assert again.close() == "closed True"
    found = watts(contents(tmp_path / "data"))
    assert sorted(found) == [*range(30), *range(1000, 1030)]
    assert visible(tmp_path) == []


def test_what_another_receiver_left_is_published_in_the_end(tmp_path: Path) -> None:
    """Not before it could have come back: who sends to it again must find it."""
    fleet = fleet_in(tmp_path)
    with serving(tmp_path, settings={}, tick_s=0) as server:
        assert server.ask(1, asked(power(1, 1, run_id="r"))) == "+ 1"
    [journal] = tmp_path.glob("journal/*.journal")
    rubbish = journal.with_name(".x.journal.new")
    rubbish.write_bytes(b"")
    for silent_s in (SILENT_S - 60, SILENT_S + 60):
        for path in (journal, rubbish):
            os.utime(path, (time.time() - silent_s,) * 2)
        fleet._look_again_s = 0.0
        fleet.tick()
        is_over = silent_s > SILENT_S
        assert (fleet.status()["segments_waiting"], rubbish.exists()) == (is_over, not is_over)
    until(fleet, published(fleet))
    assert watts(contents(tmp_path / "data")) == [1]
    assert fleet.close(Deadline.after(1))


def test_a_destination_that_fails_is_asked_less_and_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points are taken all the while; as soon as it can be written, all is there."""
    monkeypatch.setattr(publisher_module, "FIRST_DELAY_S", 0.1)
    (tmp_path / "data").write_text("a file where the dataset should be")
    said: list[str] = []
    fleet = fleet_in(tmp_path, silence_s=0.05, say=said.append)
    fleet._publisher._delay_s = 0.1
    send = Feeder(fleet)
    send(power(1, 1, run_id="r"))
    until(fleet, lambda: fleet._publisher._attempts == 3)
    send(power(2, 2, run_id="r"))
    status = fleet.status()
    assert status["failure"]
    assert fleet._publisher._delay_s == pytest.approx(0.8)
    assert len([line for line in said if line.startswith("not published: ")]) == 1
    (tmp_path / "data").unlink()
    until(fleet, published(fleet))
    assert (fleet.status()["failure"], fleet._publisher._delay_s) == ("", 0.1)
    assert said[-1].startswith("published ")
    assert watts(contents(tmp_path / "data")) == [1, 2]
    assert fleet.close(Deadline.after(1))


def test_a_publication_that_hangs_is_ended_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nothing would be published any more, and nobody would hear of it."""
    monkeypatch.setattr(publisher_module, "FIRST_DELAY_S", 0.1)
    monkeypatch.setattr(publisher_module, "LONGEST_SILENCE_S", 20.0)
    said: list[str] = []
    fleet = fleet_in(tmp_path, silence_s=0.05, say=said.append)
    Feeder(fleet)(power(1, 1, run_id="r"))
    until(fleet, lambda: fleet.status()["is_publishing"])
    child = fleet._publisher._child
    assert child is not None
    os.kill(child._process.pid, signal.SIGSTOP)
    monkeypatch.setattr(publisher_module, "LONGEST_SILENCE_S", 0.2)
    until(fleet, lambda: said)
    monkeypatch.setattr(publisher_module, "LONGEST_SILENCE_S", 20.0)
    assert said[0].startswith("not published: the process that publishes ended with -9")
    until(fleet, published(fleet))
    assert watts(contents(tmp_path / "data")) == [1]
    assert fleet.close(Deadline.after(1))


def test_what_was_left_is_tried_again_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was in its way may be gone; it is said once."""
    monkeypatch.setattr(publisher_module, "LEFT_DELAY_S", 0.3)
    said: list[str] = []
    fleet, in_the_way = fleet_in(tmp_path, say=said.append), tmp_path / "journal/damaged"
    for number in (1, 2):
        Feeder(fleet)(power(number, number, run_id="r"))
    end_all(fleet)
    [journal] = tmp_path.glob("journal/*.journal")
    data = bytearray(journal.read_bytes())
    data[len(data) // 2] ^= 1
    journal.write_bytes(data)
    in_the_way.touch()
    until(fleet, lambda: fleet._publisher._attempts == 3)
    in_the_way.unlink()
    until(fleet, published(fleet))
    assert len([line for line in said if line.startswith("left in")]) == 1
    assert in_the_way.is_dir()
    assert fleet.close(Deadline.after(1))


def test_a_hub_that_is_down_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 503 for a while, then one repository with all rows."""
    with LoopbackHub() as hub:
        for name, value in hub.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        hub.faults.append(Fault(on="create", status=403, times=1))
        fleet = fleet_in(tmp_path, to="me/x", silence_s=0.05)
        Feeder(fleet)(power(1, 1, run_id="r"), power(2, 1, run_id="s"))
        until(fleet, lambda: fleet.status()["failure"])
        assert len(visible(tmp_path)) == 4  # with what is sealed already
        assert fleet.status()["segments_waiting"] == 2
        Feeder(fleet)(power(3, 2, run_id="r"))
        assert fleet.close(Deadline.after(SOON_S))
        assert watts(hub.repo("me/x").files) == [1, 3, 2]
        assert hub.errors == []
    assert visible(tmp_path) == []


def test_when_the_time_is_over_a_process_goes_on(tmp_path: Path) -> None:
    """Whoever stops a receiver does not wait for the Hub; nothing more is taken."""
    fleet = fleet_in(tmp_path)
    send = Feeder(fleet)
    send(power(1, 1, run_id="r"))
    cut_all(fleet)
    fleet.tick()
    send(power(2, 2, run_id="r"))
    began = time.monotonic()
    assert not fleet.close(Deadline.after(0.05))
    assert time.monotonic() - began < 1.5
    with pytest.raises(JournalError):
        send(power(3, 3, run_id="r"))
    deadline = Deadline.after(SOON_S)
    while visible(tmp_path) and not deadline.is_over():
        time.sleep(0.05)
    assert watts(contents(tmp_path / "data")) == [1, 2]
    assert fleet.close(Deadline.after(1))


def test_only_what_receivers_ended_is_published_for_them(tmp_path: Path) -> None:
    """A program that was killed beside a receiver waits for its own recovery, untouched."""
    kill('feed(begin("./data", "program"), 7)', tmp_path)
    [other] = tmp_path.glob("journal/*.journal")
    before = (other.read_bytes(), other.stat().st_mtime_ns)
    fleet = fleet_in(tmp_path, silence_s=0.1)
    assert fleet.status()["runs_open"] == 0
    Feeder(fleet)(power(1, 1, run_id="r"))
    assert waiting_text(tmp_path / "journal") == "1 earlier run waits to be published (program)"
    end_all(fleet)
    assert waiting_text(tmp_path / "journal") == "1 earlier run waits to be published (program)"
    assert fleet.close(Deadline.after(SOON_S))
    assert watts(contents(tmp_path / "data")) == [1]
    assert (other.read_bytes(), other.stat().st_mtime_ns) == before


def test_a_receiver_that_never_comes_back_is_recovered_by_hand(tmp_path: Path) -> None:
    """Also what it had not ended; a live one is left alone."""
    with (
        serving(tmp_path, settings={}, tick_s=0) as dead,
        serving(tmp_path, settings={}, tick_s=0) as live,
    ):
        assert dead.ask(1, asked(power(1, 1, run_id="dead"))) == "+ 1"
        assert live.ask(2, asked(power(2, 2, run_id="live"))) == "+ 2"
        dead.kill()
        assert waiting_text(tmp_path / "journal") == "1 earlier run waits to be published (dead)"
        done = hubmeter("recover", "journal", folder=tmp_path)
        assert "; 1 segment is held by a live process: a run that goes on, or" in done.stdout
        assert watts(contents(tmp_path / "data")) == [1]
        assert live.close() == "closed True"
    assert watts(contents(tmp_path / "data")) == [1, 2]


@pytest.mark.parametrize("moments", [(0.0, 0.3), (0.2, 0.5)])
def test_a_publication_that_is_killed_keeps_the_totals(
    moments: tuple[float, ...], tmp_path: Path
) -> None:
    """Parts that were published before, and parts that are sealed again, count as one run."""
    fleet = fleet_in(tmp_path)
    send = Feeder(fleet)
    for second in range(12):
        send(*(power(100 + n, second, run_id=f"r{n}") for n in range(4)))
        cut_all(fleet)
        if second == 3:
            publish(tmp_path)
    command = [sys.executable, "-m", "hubmeter", "recover", "journal", "--received"]
    for seconds in moments:
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            process.stderr.readline()
            time.sleep(seconds)
            process.kill()
    fleet.close(Deadline.after(SOON_S))
    found = rows_of(contents(tmp_path / "data"))
    assert [(row["run_id"], row["energy_joules"]) for row in found] == [
        (f"r{n}", pytest.approx((100 + n) * second)) for n in range(4) for second in range(12)
    ]
    assert visible(tmp_path) == []
    assert len(list(tmp_path.glob("journal/totals/*"))) == 4  # named runs may come back


def test_names_and_attributes_cut_a_part_before_they_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compressed they are small: 30 kB for each megabyte. Those that come again cut nothing."""
    monkeypatch.setattr(fleet_module, "CUT_LAYOUT_BYTES", 2**18)
    fleet = fleet_in(tmp_path)
    send = Feeder(fleet)
    for second in range(60):
        for task in (f"{second:05}" + "x" * 20_000, "the same" + "x" * 2**18):
            points = gauge("my.gauge", "1", point(1.0, T0 + second * SECOND, task=task))
            send(resource_metrics(points, resource={"run.id": task[5:8]}))
    [often, once] = sorted(Counter(path.split("-")[-2] for path in visible(tmp_path)).values())[
        ::-1
    ]
    assert (4 <= often <= 7, once) == (True, 1)
    end_all(fleet)
    publish(tmp_path)
    assert len(rows_of(contents(tmp_path / "data"), "points")) == 120


def test_what_would_be_gigabytes_in_rows_is_cut_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resource stands in each row: few bytes in the journal, much work for the publisher."""
    monkeypatch.setattr(fleet_module, "CUT_ROW_BYTES", 5 * 10**5)
    monkeypatch.setattr(strict_journal, "MOST_ROW_BYTES", 2 * 10**5)
    fleet = fleet_in(tmp_path)
    send = Feeder(fleet)
    for count in (*[15] * 10, 25):
        points = [point(1.0, T0 + n, which=n) for n in range(count)]
        one = resource_metrics(gauge("m", "1", *points), resource={"run.id": "r", "a": "x" * 10**4})
        if count > 20:
            with pytest.raises(DecodeError, match="smaller parts"):
                send(one)
        else:
            one["scopeMetrics"][0]["metrics"][0]["name"] = f"m{fleet.status()['points_received']}"
            send(one)
    assert len(visible(tmp_path)) == 3
    end_all(fleet)
    publish(tmp_path)
    assert len(rows_of(contents(tmp_path / "data"), "points")) == 150


def test_a_journal_that_ends_its_readers_does_not_keep_the_others(tmp_path: Path) -> None:
    """It is read last, then only by hand; nothing of it is lost."""
    fleet = fleet_in(tmp_path)
    Feeder(fleet)(*(power(n, 1, run_id=f"r{n}") for n in range(3)))
    end_all(fleet)
    [victim, *others] = visible(tmp_path)
    for left in (others, *[[]] * (MOST_ATTEMPTS - 1)):
        done = run([sys.executable, "-c", KILLED_READING.format(victim)], tmp_path)
        assert done.returncode == 99, done.stderr
        assert visible(tmp_path) == [victim, *left]
    result = recover(tmp_path / "journal", only_received=True, say=lambda _: None)
    assert [(path.name, why) for path, why in result.left] == [(victim, GIVEN_UP)]
    assert len(watts(contents(tmp_path / "data"))) == 2
    assert recover(tmp_path / "journal", say=lambda _: None).left == []
    assert sorted(watts(contents(tmp_path / "data"))) == [0, 1, 2]
    assert not list(tmp_path.glob("journal/.*"))


KILLED_READING = """
import os
from pathlib import Path
from hubmeter import recovery
real = recovery.read_journal
recovery.read_journal = lambda path: os._exit(99) if path.name == {!r} else real(path)
recovery.recover(Path("journal"), only_received=True)
"""
"""As by the kernel, when the memory is full."""


LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from hubmeter.recovery import recover

recover(Path("small"), say=lambda _: None)  # loads what it needs
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**27, -1))
print([(path.name, why) for path, why in recover(Path("journal"), say=lambda _: None).left])
"""


def test_a_journal_that_memory_does_not_hold_does_not_keep_the_others(tmp_path: Path) -> None:
    """It stays, and its name is said."""
    for folder in ("small", "journal"):
        fleet = fleet_in(tmp_path, journal_dir=str(tmp_path / folder))
        Feeder(fleet)(*(power(n, 1, run_id=f"{folder}{n}") for n in range(2)))
        end_all(fleet)
    Feeder(fleet)(
        resource_metrics(
            gauge("my.gauge", "1", point(1.0, T0, task="x" * 60_000_000)),
            resource={"run.id": "large"},
        )
    )
    end_all(fleet)
    done = run([sys.executable, "-c", LITTLE_MEMORY], tmp_path)
    [large] = visible(tmp_path)
    assert done.stdout.startswith(f"[('{large}', "), done.stderr
    assert "nothing can be made of it: MemoryError(" in done.stdout
    assert len(watts(contents(tmp_path / "data"))) == 4
