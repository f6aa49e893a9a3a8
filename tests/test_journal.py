"""Journal files: what was acknowledged is there after every death, and one process has it."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hubmeter.batch import PointBatch, Series, SeriesLayout
from hubmeter.errors import JournalError
from hubmeter.frames import TORN
from hubmeter.journal import (
    Claim,
    Journal,
    Replay,
    peek,
    read_journal,
    segments,
    strangers,
)
from hubmeter.ledger import Packed, pack
from hubmeter.owners import SILENT_S, Owner, as_json, this_process
from hubmeter.records import Encoder

HEADER = {"run": {"run_id": "r"}, "part": 0}
KILLS = 60
ROUNDS = 40

LAYOUT = SeriesLayout(
    tuple(
        Series(resource="{}", scope_name="", metric_name=f"m{n}", unit="", kind="gauge")
        for n in range(7)
    )
)


def batch(number: int, layout: SeriesLayout = LAYOUT) -> Packed:
    """A batch that can be told by its time."""
    values = [number] * len(layout.series)
    return pack(PointBatch(layout=layout, times_unix_nano=(number,), values=values))


def numbers(replay: Replay) -> list[int]:
    """Which batches are in a file."""
    return [one.times_unix_nano[0] for one in replay.contents.batches]


# The same for programs that run beside the tests.
PRELUDE = """
import json, os, random, resource, select, signal, sys, threading, time
from pathlib import Path
from hubmeter.batch import PointBatch, Series, SeriesLayout
from hubmeter.errors import JournalError
from hubmeter.journal import Claim, Journal, peek, read_journal, segments
from hubmeter.ledger import pack

def layout(width):
    return SeriesLayout(tuple(
        Series(resource="{}", scope_name="", metric_name=f"m{n}", unit="", kind="gauge")
        for n in range(width)))

LAYOUT = layout(7)

def batch(number, layout=LAYOUT):
    values = [number] * len(layout.series)
    return pack(PointBatch(layout=layout, times_unix_nano=(number,), values=values))

def numbers(replay):
    return [one.times_unix_nano[0] for one in replay.contents.batches]

def say(what):
    print(json.dumps(what), flush=True)

folder = Path(sys.argv[1])
"""


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A program that runs *code*; it ends when its standard input does."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PRELUDE + code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def told(program: subprocess.Popen[str]) -> Any:
    """The next thing that *program* says."""
    line = program.stdout.readline()
    assert line, f"the program ended with {program.wait()}"
    return json.loads(line)


def outcome(code: str, *arguments: object) -> Any:
    """What a program says before it ends."""
    with python(code, *arguments) as program:
        found = told(program)
        program.communicate("")
    assert program.returncode == 0
    return found


def orphan(folder: Path, owner: Owner | None, *, ended: bool = False, name: str = "a") -> Path:
    """A file that nobody has locked, as *owner* would have left it."""
    encoder = Encoder(7)
    data = encoder.preamble
    if owner is not None:
        data += encoder.note("header", {"owner": as_json(owner), "header": HEADER})
    data += encoder.batch(batch(0))
    encoder.confirm()
    path = folder / f"{name}.journal"
    path.write_bytes(data + (encoder.note("end", {}) if ended else b""))
    return path


def dead() -> Owner:
    """Our pid, but it was another process's."""
    here = this_process()
    return replace(here, started=(here.started or 1) - 1)


def is_locked(path: Path) -> bool:
    """Whether another process has the lock. Not for what this process holds."""
    with path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
    return False


def test_what_was_appended_is_read(tmp_path: Path) -> None:
    """Also while it is still written, by the process itself and by others."""
    journal = Journal.create(tmp_path / "deep" / "er", "a", HEADER)
    for number in range(5):
        journal.append(batch(number))
    journal.note("opening", {"total": 1})
    replay = read_journal(journal.path)
    others = outcome("say(numbers(read_journal(folder / 'a.journal')))", journal.path.parent)

    assert (numbers(replay), others) == (list(range(5)), list(range(5)))
    assert (replay.header, replay.owner) == (HEADER, this_process())
    assert (replay.contents.notes["opening"], replay.contents.damage) == ({"total": 1}, ())
    assert journal.size_bytes == journal.path.stat().st_size
    assert (replay.has_ended, journal.is_open) == (False, True)
    journal.note("end", {})
    journal.close()
    journal.close()
    assert read_journal(journal.path).has_ended
    assert not journal.is_open


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    """Attributes can be private: folder 0700, file 0600, whatever the umask."""
    before = os.umask(0)
    try:
        journal = Journal.create(tmp_path / "new", "a", HEADER)
    finally:
        os.umask(before)
    journal.close()

    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(journal.path.parent.stat().st_mode) == 0o700


def test_fsync_writes_the_same(tmp_path: Path) -> None:
    """It is slower, and that is all."""
    journal = Journal.create(tmp_path, "a", HEADER, fsync=True)
    journal.append(batch(1))
    journal.close()

    assert numbers(read_journal(journal.path)) == [1]


def test_a_name_is_used_once(tmp_path: Path) -> None:
    """What is there is not overwritten, and nothing is left of the attempt."""
    first = Journal.create(tmp_path, "a", HEADER)
    first.append(batch(1))
    with pytest.raises(JournalError, match=r"a\.journal: it exists"):
        Journal.create(tmp_path, "a", {})
    first.append(batch(2))
    first.close()

    assert [path.name for path in tmp_path.iterdir()] == ["a.journal"]
    assert numbers(read_journal(first.path)) == [1, 2]


def test_closed_is_closed(tmp_path: Path) -> None:
    """Nothing is written any more; removing it is still possible, and twice too."""
    journal = Journal.create(tmp_path, "a", HEADER)
    journal.close()
    with pytest.raises(JournalError, match="closed"):
        journal.append(batch(1))
    with pytest.raises(JournalError, match="closed"):
        journal.note("end", {})
    assert not journal.owes_last
    journal.discard()
    journal.discard()

    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_said_leaves_no_trace(tmp_path: Path) -> None:
    """Neither a header nor a note that is no JSON spoils a file."""
    with pytest.raises(TypeError):
        Journal.create(tmp_path, "a", {"x": {1}})
    assert list(tmp_path.iterdir()) == []
    journal = Journal.create(tmp_path, "a", HEADER)
    with pytest.raises(TypeError):
        journal.note("opening", {1})
    journal.append(batch(1))
    journal.close()

    assert numbers(read_journal(journal.path)) == [1]
    assert read_journal(journal.path).contents.damage == ()


@pytest.mark.parametrize("content", [b"", b"\x7fELF" * 99, b"hubmeter journal 2\n" + bytes(99)])
def test_other_files_are_reported(tmp_path: Path, content: bytes) -> None:
    """Empty, foreign, newer: no exception, one sentence; and whoever asks may have it."""
    path = tmp_path / "a.journal"
    path.write_bytes(content)
    replay = read_journal(path)

    assert (replay.header, replay.owner, len(replay.contents.damage)) == (None, None, 1)
    with Claim.take(path) as claim:
        assert claim.path == path
    assert path.read_bytes() == content


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """That is for the caller to tell: the file may be there tomorrow."""
    with pytest.raises(FileNotFoundError):
        read_journal(tmp_path / "a.journal")
    with pytest.raises(IsADirectoryError):
        read_journal(tmp_path)


def test_a_look_at_the_beginning(tmp_path: Path) -> None:
    """Header and owner are found without reading a long file."""
    journal = Journal.create(tmp_path, "a", HEADER)
    for number in range(2000):
        journal.append(batch(number))
    found, notes = peek(journal.path, only_notes=False), peek(journal.path)
    journal.close()

    assert (notes.header, notes.owner, notes.contents.batches) == (HEADER, this_process(), [])
    assert (found.header, found.owner) == (HEADER, this_process())
    assert 0 < len(found.contents.batches) < 2000
    assert {damage.reason for damage in found.contents.damage} <= {TORN}


def test_what_is_in_a_folder(tmp_path: Path) -> None:
    """Journals by name; what others put there is neither touched nor overlooked."""
    for name in ("b.journal", "a.journal", "a.sealed", "notes.txt", ".c.journal.new"):
        (tmp_path / name).touch()
    for name in ("done", "d.journal"):
        (tmp_path / name).mkdir()

    assert [path.name for path in segments(tmp_path)] == ["a.journal", "b.journal"]
    assert [path.name for path in strangers(tmp_path)] == ["notes.txt"]
    assert segments(tmp_path / "nowhere") == strangers(tmp_path / "nowhere") == []


# Disks that are full, or refuse


FULL = """
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
journal = Journal.create(folder, "a", {})
taken = [batch(n) for n in range(100)]
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
failed = []
for number, one in enumerate(taken[:60]):
    try:
        journal.append(one)
    except JournalError as error:
        failed.append((number, error.errno, journal.owes_last, str(error)))
full = read_journal(journal.path)
owed = journal.owed_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
for one in taken[60:]:
    journal.append(one)
after = read_journal(journal.path)
say({"failed": failed, "full": numbers(full), "damage": len(full.contents.damage), "owed": owed,
     "after": numbers(after), "later": len(after.contents.damage), "left": journal.owed_bytes,
     "size": journal.size_bytes - journal.path.stat().st_size})
"""


def test_a_full_disk_leaves_no_torn_record(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: a short write is taken back; when there is room all comes, in order."""
    found = outcome(FULL, tmp_path)
    first = found["failed"][0][0]

    assert 0 < first < 60
    assert found["full"] == list(range(first))
    assert [number for number, *_ in found["failed"]] == list(range(first, 60))
    assert all(is_owed for _, _, is_owed, _ in found["failed"])
    assert "File too large" in found["failed"][0][3]
    assert "wait in memory" in found["failed"][0][3]
    assert (found["damage"], found["owed"] > 0) == (0, True)
    assert (found["after"], found["later"], found["left"]) == (list(range(100)), 0, 0)
    assert found["size"] == 0


CROWDED = """
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
journal = Journal.create(folder, "a", {})
wide = layout(2**17)
journal.append(batch(0, wide))
resource.setrlimit(resource.RLIMIT_FSIZE, (journal.size_bytes + 100, hard))
kept, refused, most = [0], [], 0
for number in range(1, 30):
    try:
        journal.append(batch(number, wide))
    except JournalError as error:
        (kept if journal.owes_last else refused).append(number)
    most = max(most, journal.owed_bytes)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
journal.append(batch(99, wide))
replay = read_journal(journal.path)
say({"kept": kept, "refused": refused, "most": most, "found": numbers(replay),
     "damage": len(replay.contents.damage)})
"""


def test_memory_for_what_is_owed_has_an_end(tmp_path: Path) -> None:
    """Beyond 16 MiB a batch is refused; the file has exactly those that were not."""
    found = outcome(CROWDED, tmp_path)

    assert found["kept"] == list(range(17))
    assert found["refused"] == list(range(17, 30))
    assert found["most"] < 18 * 2**20
    assert (found["found"], found["damage"]) == ([*found["kept"], 99], 0)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system in memory; skips where none can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_file_system(tmp_path: Path) -> None:
    """A real ENOSPC, in the middle of records; the journal recovers by itself."""
    wide = SeriesLayout(LAYOUT.series * 20)
    with mounted(tmp_path / "disk", "size=64k") as disk:
        (disk / "ballast").write_bytes(bytes(20_000))
        journal = Journal.create(disk, "a", HEADER)
        failures = []
        for number in range(60):
            try:
                journal.append(batch(number, wide))
            except JournalError as error:
                failures.append((number, str(error)))
        full = read_journal(journal.path)
        (disk / "ballast").unlink()
        with suppress(JournalError):  # there may not be room for all
            journal.append(batch(60, wide))
        later = read_journal(journal.path)
        journal.discard()

    assert "No space left on device" in failures[0][1]
    assert numbers(full) == list(range(failures[0][0]))
    assert full.contents.damage == later.contents.damage == ()
    assert len(numbers(later)) > len(numbers(full))
    assert numbers(later) == list(range(len(numbers(later))))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """An error that says what, why and what to do; nothing half-made stays."""
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match="HUBMETER_JOURNAL_DIR"):
        Journal.create(tmp_path / "file", "a", HEADER)
    with mounted(tmp_path / "disk", "size=64k,ro") as disk:
        with pytest.raises(JournalError, match="Read-only file system"):
            Journal.create(disk, "a", HEADER)
        assert list(disk.iterdir()) == []


def test_no_room_for_the_header(tmp_path: Path) -> None:
    """A journal that cannot begin leaves no file."""
    found = outcome(
        """
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
try:
    Journal.create(folder, "a", {"x": "y" * 999})
except JournalError as error:
    say([str(error), os.listdir(folder)])
""",
        tmp_path,
    )

    assert "File too large" in found[0]
    assert found[1] == []


# Processes that die


KILLED = """
def write(name, pipe):
    journal = Journal.create(folder, name, {})
    for number in range(10**9):
        journal.append(batch(number))
        os.write(pipe, b"x")

def acknowledged(ours):
    found = 0
    while piece := os.read(ours, 2**16):
        found += len(piece)
    return found

rounds = []
for turn in range(int(sys.argv[2])):
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(ours)
        write(f"{turn:04}", theirs)
    os.close(theirs)
    select.select([ours], [], [])
    time.sleep(random.Random(turn).random() * 0.02)
    os.kill(pid, signal.SIGKILL)
    count = acknowledged(ours)
    os.close(ours)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # dead, but nobody has waited for it
    path = folder / f"{turn:04}.journal"
    claim = Claim.take(path)
    replay = read_journal(path)
    damage = [d.reason for d in replay.contents.damage]
    rounds.append([count, numbers(replay), damage, claim is not None])
    claim.release()
    os.waitpid(pid, 0)
say(rounds)
"""


def test_killed_at_random_moments(tmp_path: Path, report_counts) -> None:
    """SIGKILL: every append that returned is readable, and at most one more."""
    rounds = outcome(KILLED, tmp_path, KILLS)
    batches = sum(acknowledged for acknowledged, *_ in rounds)
    report_counts(f"journal: {len(rounds)} kills, {batches} batches acknowledged")

    assert len(rounds) == KILLS
    for acknowledged, found, damage, is_claimed in rounds:
        assert found == list(range(len(found)))
        assert acknowledged <= len(found) <= acknowledged + 1
        assert damage in ([], [TORN])
        assert is_claimed
    assert len({len(found) for _, found, _, _ in rounds}) > KILLS / 4


LIVE = """
journal = Journal.create(folder, "a", {})
journal.append(batch(0))
path = journal.path
tried = [Claim.take(path) is None, numbers(read_journal(path)), peek(path).header]
threading.Thread(target=lambda: tried.append(Claim.take(path) is None)).start()
say(tried)
sys.stdin.readline()
journal.append(batch(1))
if len(sys.argv) > 2:
    journal.note("end", {})
say("written")
sys.stdin.readline()
"""


def test_a_live_process_keeps_its_journal(tmp_path: Path) -> None:
    """Reading it there, or trying to take it, does not lose the lock; death does."""
    path = tmp_path / "a.journal"
    with python(LIVE, tmp_path) as program:
        assert told(program)[:3] == [True, [0], {}]
        refused = Claim.take(path)
        locked = is_locked(path)
        program.stdin.write("\n")
        program.stdin.flush()
        assert told(program) == "written"
        again = Claim.take(path)
        program.kill()
    with Claim.take(path) as claim:
        found = numbers(read_journal(path))

    assert (refused, locked, again) == (None, True, None)
    assert (claim.path, found) == (path, [0, 1])


def test_an_end_is_no_end_while_it_is_open(tmp_path: Path) -> None:
    """A process that said "end" has the lock until it closes."""
    with python(LIVE, tmp_path, "end") as program:
        told(program)
        program.stdin.write("\n")
        program.stdin.flush()
        told(program)
        refused = Claim.take(tmp_path / "a.journal")
        program.kill()

    assert refused is None


def test_without_lock_the_owner_decides(tmp_path: Path) -> None:
    """Some file systems lose locks: while a process lives, only its end note frees a journal."""
    with python("from hubmeter.owners import *; say(as_json(this_process())); input()",
                tmp_path) as program:  # fmt: skip
        owner = Owner(**told(program))
        kept = Claim.take(orphan(tmp_path, owner, name="lives"))
        with Claim.take(orphan(tmp_path, owner, name="ended", ended=True)):
            pass
        program.communicate("\n")
    with Claim.take(tmp_path / "lives.journal"):
        pass

    assert kept is None


def test_a_pid_that_was_given_out_again(tmp_path: Path) -> None:
    """The number lives, the writer does not."""
    with Claim.take(orphan(tmp_path, dead())) as claim:
        assert claim.path == tmp_path / "a.journal"


def test_ones_own_journal(tmp_path: Path) -> None:
    """Not while it is open; after that, also without an end."""
    journal = Journal.create(tmp_path, "a", HEADER)
    open_ = Claim.take(journal.path)
    journal.close()
    with Claim.take(journal.path):
        twice = Claim.take(journal.path)
    with Claim.take(journal.path) as again:
        again.release()
        again.release()

    assert (open_, twice) == (None, None)


def test_what_is_claimed_stays_claimed(tmp_path: Path) -> None:
    """Reading a journal that this process took over does not give it away."""
    path = orphan(tmp_path, dead())
    ask = "say(Claim.take(folder / 'a.journal') is None)"
    with Claim.take(path):
        assert numbers(read_journal(path)) == [0]
        assert peek(path).header == HEADER
        assert outcome(ask, tmp_path)
    assert not outcome(ask, tmp_path)


def test_nothing_to_claim(tmp_path: Path) -> None:
    """A journal that is gone, or no file."""
    assert Claim.take(tmp_path / "a.journal") is None
    assert Claim.take(tmp_path) is None


RACE = """
def run(path, start, result):
    os.read(start, 1)
    claim = Claim.take(path)
    if claim is not None:
        if sys.argv[3] == "keep":
            time.sleep(0.05)
        path.unlink()
        claim.release()
    os.write(result, b"1" if claim else b"0")
    os._exit(0)

wins = []
for turn in range(int(sys.argv[2])):
    path = folder / f"{turn:04}.journal"
    journal = Journal.create(folder, path.stem, {})
    journal.append(batch(0))
    journal.note("end", {})
    journal.close()
    start, result = os.pipe(), os.pipe()
    pids = []
    for _ in range(4):
        pids.append(os.fork())
        if not pids[-1]:
            run(path, start[0], result[1])
    os.write(start[1], b"xxxx")
    for pid in pids:
        os.waitpid(pid, 0)
    wins.append(os.read(result[0], 4).count(b"1"))
    for end in (*start, *result):
        os.close(end)
say(wins)
"""


@pytest.mark.parametrize("winner", ["keep", "vanish"])
def test_of_many_one_wins(tmp_path: Path, winner: str) -> None:
    """Four processes at once; also if the winner is done before the others have looked."""
    assert outcome(RACE, tmp_path, ROUNDS, winner) == [1] * ROUNDS


REPLACED = """
path = folder / "a.journal"
data = (folder / "orphan.journal").read_bytes()
remover = os.fork()
while not remover:
    claim = Claim.take(path)
    if claim is not None:
        path.unlink()
        claim.release()
    if not path.exists():
        path.write_bytes(data)
claims = gone = 0
end = time.monotonic() + 30
while claims < 2000 and time.monotonic() < end:
    claim = Claim.take(path)
    if claim is not None:
        claims += 1
        gone += not os.fstat(claim.file.fd).st_nlink
        claim.release()
os.kill(remover, signal.SIGKILL)
say([claims, gone])
"""


def test_what_is_claimed_is_in_the_folder(tmp_path: Path) -> None:
    """A file that is removed between opening and locking is not taken for the new one."""
    orphan(tmp_path, dead(), name="orphan")
    claims, gone = outcome(REPLACED, tmp_path)

    assert (claims, gone) == (2000, 0)


def test_of_many_threads_one_wins(tmp_path: Path) -> None:
    """Within a process the kernel's lock says nothing."""
    path = orphan(tmp_path, dead())
    barrier, claims = threading.Barrier(8), []

    def take() -> None:
        barrier.wait()
        claims.append(Claim.take(path))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [won] = [claim for claim in claims if claim is not None]
    won.release()


FORKED = """
journal = Journal.create(folder, "a", {})
journal.append(batch(0))
ours, theirs = os.pipe()
child = os.fork()
if not child:
    found = []
    for attempt in (lambda: journal.append(batch(666)), lambda: journal.note("end", {})):
        try:
            attempt()
        except JournalError as error:
            found.append(str(error))
    found.append(Claim.take(journal.path) is None)
    if sys.argv[2] == "discard":
        journal.discard()
    own = Journal.create(folder, "child", {})
    own.append(batch(1))
    own.close()
    os.write(theirs, json.dumps(found).encode())
    os.close(theirs)
    time.sleep(60)
os.close(theirs)
found = os.read(ours, 2**16).decode()
journal.append(batch(1))
say([child, json.loads(found)])
time.sleep(60)
"""


@pytest.mark.parametrize("action", ["keep", "discard"])
def test_a_forked_child_neither_writes_nor_holds(tmp_path: Path, action: str) -> None:
    """It has a copy of everything but the lock, and it outlives its parent here."""
    with python(FORKED, tmp_path, action) as program:
        child, [refused, also_refused, not_taken] = told(program)
        locked = is_locked(tmp_path / "a.journal")
        program.kill()
    try:
        os.kill(child, 0)
        with Claim.take(tmp_path / "a.journal"):
            found = numbers(read_journal(tmp_path / "a.journal"))
    finally:
        os.kill(child, 9)

    assert "parent process" in refused
    assert "parent process" in also_refused
    assert (not_taken, locked, found) == (True, True, [0, 1])
    assert numbers(read_journal(tmp_path / "child.journal")) == [1]


@pytest.mark.parametrize("owner", [None, replace(this_process(), pid_namespace="pid:[1]")])
def test_where_there_are_no_locks_silence_decides(tmp_path: Path, monkeypatch, owner) -> None:
    """As on Windows: whoever we know nothing of is dead after a quarter of an hour."""
    monkeypatch.setattr("hubmeter.held_files.fcntl", None)
    path = orphan(tmp_path, owner)
    lately = Claim.take(path)
    os.utime(path, (0, time.time() - SILENT_S - 1))
    with Claim.take(path):
        pass

    assert lately is None


def test_a_descriptor_that_is_gone(tmp_path: Path) -> None:
    """A program may close everything: an error that says so, and no second one at the end."""
    journal = Journal.create(tmp_path, "a", HEADER)
    journal.append(batch(0))
    os.close(journal._file.fd)
    with pytest.raises(JournalError, match="Bad file descriptor"):
        journal.append(batch(1))
    journal.close()

    assert numbers(read_journal(journal.path)) == [0]
