"""Which process wrote a file, and whether it lives: never by its pid alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from hubmeter.owners import SILENT_S, Owner, as_json, from_json, is_alive, this_process

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
SLEEP = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
NAMED = """
import ctypes, json, sys
from hubmeter.owners import as_json, this_process
owner = this_process()
ctypes.CDLL(None).prctl(15, sys.argv[1].encode(), 0, 0, 0)
print(json.dumps(as_json(owner)), flush=True)
sys.stdin.read()
"""


def test_this_process_lives() -> None:
    """It can be told from every other process, also by what was written down."""
    here = this_process()

    assert (here.pid, from_json(json.loads(json.dumps(as_json(here))))) == (os.getpid(), here)
    assert is_alive(here, last_written_s_ago=1e9)


@linux_only
def test_a_pid_that_was_given_out_again_is_another_process() -> None:
    """Same number, other start: the writer is dead, however lately it wrote."""
    here = this_process()

    assert here.started is not None
    assert not is_alive(replace(here, started=here.started - 1), last_written_s_ago=0)


def test_an_ended_process_is_dead_before_anybody_waited_for_it() -> None:
    """A zombie keeps its pid and its start time, but writes nothing."""
    child = subprocess.Popen(
        [sys.executable, "-c", NAMED, "x"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with child:
        owner = from_json(json.loads(child.stdout.readline()))
        lived = is_alive(owner, last_written_s_ago=0)
        child.kill()
        child.stdout.read()  # its end of the pipe is closed: it is gone, and not waited for
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        lives = is_alive(owner, last_written_s_ago=0)

    assert (lived, lives) == (True, False)
    assert not is_alive(owner, last_written_s_ago=0)


@linux_only
@pytest.mark.parametrize("name", ["a b", ") R 1 1", "((", "))", "\u00e4\u00f6"])
def test_the_name_of_a_program_does_not_confuse(name: str) -> None:
    """It stands in parentheses before the numbers, may contain some, and may change."""
    with subprocess.Popen(
        [sys.executable, "-c", NAMED, name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        owner = from_json(json.loads(child.stdout.readline()))
        lived = is_alive(owner, last_written_s_ago=0)
        later = is_alive(replace(owner, started=owner.started + 1), last_written_s_ago=0)
        child.communicate("")

    assert (lived, later) == (True, False)


@linux_only
@pytest.mark.parametrize(
    ("changes", "silent_s", "has_lock", "expected"),
    [
        # this machine was restarted
        ({"boot_id": "other"}, 0, True, False),
        # another machine on a shared folder: nobody knows, so time decides
        ({"boot_id": "other", "host": "elsewhere"}, SILENT_S - 1, True, True),
        ({"boot_id": "other", "host": "elsewhere"}, SILENT_S + 1, True, False),
        # a clock that is ahead
        ({"boot_id": "other", "host": "elsewhere"}, -60, True, True),
        # another container of this machine: whoever lost the lock is dead
        ({"pid_namespace": "pid:[1]", "host": "container"}, 0, True, False),
        # but where there are no locks, time decides again
        ({"pid_namespace": "pid:[1]"}, SILENT_S - 1, False, True),
        ({"pid_namespace": "pid:[1]"}, SILENT_S + 1, False, False),
        # a new name of the machine is no new machine
        ({"host": "renamed"}, 1e9, True, True),
    ],
)
def test_other_machines_and_containers(changes, silent_s, has_lock, expected) -> None:
    """A pid says something only where it counts."""
    owner = replace(this_process(), **changes)

    assert is_alive(owner, last_written_s_ago=silent_s, has_lock=has_lock) is expected


@linux_only
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
def test_a_container_on_this_machine() -> None:
    """In a pid namespace of its own, a process has our boot and another namespace."""
    code = "import json; from hubmeter.owners import *; print(json.dumps(as_json(this_process())))"
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"no new pid namespace here: {done.stderr.strip()}")
    owner, here = from_json(json.loads(done.stdout)), this_process()

    assert (owner.boot_id, owner.pid_namespace != here.pid_namespace) == (here.boot_id, True)
    assert not is_alive(owner, last_written_s_ago=0)


def test_without_start_time_the_pid_must_do() -> None:
    """Where the system has no /proc, a signal that does nothing asks."""
    here = replace(this_process(), started=None)
    with subprocess.Popen(SLEEP, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        lived = is_alive(replace(here, pid=child.pid), last_written_s_ago=0)
        child.kill()
    lives = is_alive(replace(here, pid=child.pid), last_written_s_ago=0)

    assert (lived, lives) == (True, False)
    assert not is_alive(replace(here, pid=2**80), last_written_s_ago=0)


@pytest.mark.parametrize(
    "value",
    [None, 3, [], {}, {"pid": 1}, {**as_json(this_process()), "pid": "1"},
     {**as_json(this_process()), "boot_id": None}, {**as_json(this_process()), "started": "1"}],
)  # fmt: skip
def test_what_is_no_owner_is_none(value: object) -> None:
    """A header may be damaged, or from another version."""
    assert from_json(value) is None


def test_more_than_we_know_is_no_obstacle() -> None:
    """A newer version may write more about itself."""
    here: Owner = this_process()

    assert from_json({**as_json(here), "more": 1}) == here
