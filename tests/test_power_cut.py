"""What is synced, and when: a power cut takes nothing that was acknowledged, or published."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path
from typing import TypeAlias

import pytest

from orphans import program, run

Event: TypeAlias = list[str]
"""What happened, and to which paths."""

TRACED = """
import json
from pathlib import Path
from hubmeter.fleet import Fleet
from hubmeter.recovery import recover

EVENTS = []

def note(what, *paths):
    EVENTS.append([what, *map(os.path.abspath, paths)])

def fsync(fd, really=os.fsync):
    really(fd)
    note("sync", os.readlink(f"/proc/self/fd/{fd}"))

def follow(event, arguments):
    if event in ("os.rename", "os.remove") and os.path.exists(arguments[0]):
        note(event[3:], *(one for one in arguments if not isinstance(one, int)))
    elif event == "os.mkdir" and not os.path.exists(arguments[0]):
        if os.path.exists(os.path.dirname(os.path.abspath(arguments[0]))):
            note("mkdir", arguments[0])

def export(*watts):
    pipeline = Pipeline(load_settings(to="./new/data"))
    for second, value in enumerate(watts):
        feed(pipeline, value, first=second)
        note("answered")
    return pipeline

def receive(*watts):
    fleet = Fleet(load_settings(to="./new/data"))
    for value in watts:
        fleet.deliver(JsonDecoder().decode(request(power(value, first=value), run_id="r")))
        note("answered")
    return fleet

def end():
    print(json.dumps(EVENTS), flush=True)
    os._exit(0)

os.fsync = fsync
sys.addaudithook(follow)
"""


def traced(code: str, folder: Path, **environment: str) -> list[Event]:
    """What a program does in *folder*, which ends without any clearing up."""
    environment["HUBMETER_JOURNAL_DIR"] = "new/journal"
    done = run(program(f"{TRACED}\n{code}\nend()\n", folder), folder, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def at_risk(events: list[Event]) -> set[str]:
    """Files and folders that a power cut may take: nobody synced the folder that they are in."""
    risk: set[str] = set()
    for what, *paths in events:
        match what:
            case "mkdir" | "rename":
                risk.add(paths[-1])
            case "remove":
                risk.discard(paths[0])
            case "sync":
                risk = {path for path in risk if str(Path(path).parent) != paths[0]}
    return risk


def before(events: list[Event], number: int) -> list[Event]:
    """What happened before the answer *number*, from 0."""
    answers = [index for index, event in enumerate(events) if event[0] == "answered"]
    return events[: answers[number]]


def synced_journals(events: list[Event]) -> list[str]:
    synced = [paths[0] for what, *paths in events if what == "sync"]
    return [path for path in synced if path.endswith(".journal")]


SENDERS = pytest.mark.parametrize("sender", ["export", "receive"])


@SENDERS
def test_by_setting_each_answer_comes_after_its_points_are_synced(
    sender: str, tmp_path: Path
) -> None:
    """Whatever comes in between: the journal is synced once more for each of them."""
    events = traced(f"{sender}(1, 2, 3)", tmp_path, HUBMETER_FSYNC="1")

    counts = [len(synced_journals(before(events, number))) for number in range(3)]
    assert counts[0] >= 1
    assert counts == [counts[0], counts[0] + 1, counts[0] + 2]
    assert len(set(synced_journals(events))) == 1


@SENDERS
def test_by_setting_the_first_answer_comes_after_the_name_is_synced(
    sender: str, tmp_path: Path
) -> None:
    """The journal is in a folder in a folder, both of which are new."""
    events = traced(f"{sender}(1)", tmp_path, HUBMETER_FSYNC="1")

    made = [Path(paths[0]).name for what, *paths in events if what == "mkdir"]
    assert made == ["new", "journal"]
    assert at_risk(before(events, 0)) == set()


def test_by_setting_a_receiver_that_goes_on_syncs_the_name_of_its_journal(tmp_path: Path) -> None:
    """It must not vanish with what is acknowledged from now on."""
    traced("receive(1)", tmp_path, HUBMETER_FSYNC="1")
    events = traced("receive(2)", tmp_path, HUBMETER_FSYNC="1")

    assert [paths for what, *paths in events if what == "rename"] != []
    assert at_risk(before(events, 0)) == set()
    assert len(synced_journals(before(events, 0))) >= 1


@SENDERS
def test_without_the_setting_nothing_is_synced(sender: str, tmp_path: Path) -> None:
    """It would cost more than all the rest."""
    events = traced(f"{sender}(1, 2)", tmp_path)

    assert [event for event in events if event[0] == "sync"] == []


CLOSED = "export(1).close(soon())"
RECOVERED = """
export(1)._segment.release()
recover(Path("new/journal"), say=repr)
"""
RECEIVED = """
fleet = receive(1)
for run_log in fleet._open.values():
    run_log.cut()
recover(Path("new/journal"), only_received=True, say=repr)
"""


@pytest.mark.parametrize("code", [CLOSED, RECOVERED, RECEIVED], ids=["live", "dead", "received"])
def test_no_journal_is_removed_before_its_shard_is_synced(code: str, tmp_path: Path) -> None:
    """With its name and its folders, and the totals for the next part; else both could be lost."""
    events = traced(code, tmp_path)

    done = list(takewhile(lambda one: not _removes_a_journal(*one), events))
    assert len(done) < len(events)
    [renamed] = [paths for what, *paths in done if what == "rename" and ".parquet" in paths[1]]
    assert ["sync", renamed[0]] in done
    kept = tmp_path / "new/journal/totals", tmp_path / "new/data/data"
    assert [path for path in at_risk(done) if path.startswith(tuple(map(str, kept)))] == []
    assert str(tmp_path / "new/data") not in at_risk(done)
    assert any("totals" in event[-1] for event in done) == (code == RECEIVED)


def _removes_a_journal(what: str, *paths: str) -> bool:
    return what == "remove" and paths[0].endswith(".journal")
