"""
The runs of a receiver: each batch goes to its runs' journals, and what is silent is published.
"""

from __future__ import annotations

import logging
import math
import tempfile
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .batch import PointBatch
from .deadline import Deadline
from .destinations import HubRepo, destination_of
from .errors import JournalError, SettingsError
from .held_files import most_open
from .journal import JOURNAL, Claim, peek, says_end, sealed_path, segments
from .ledger import Packed, pack
from .owners import SILENT_S
from .publisher import Publisher
from .resting import resting_path
from .routing import Router, RunKey
from .run import absolute, begin_run, working_folder
from .run_log import Ended, Place, RunLog, left_by_receiver
from .settings import Settings
from .waiting import is_orphan, is_received

log = logging.getLogger(__name__)

LONGEST_PART_S = 3600.0
"""A run that goes on and on is published in parts of this length."""

CUT_BYTES = 32 * 2**20
"""A part is cut here at the latest: sealing takes about ten times as much memory."""

SMALLEST_BYTES = 2**16
"""However many runs share the journal, their parts are not cut below this."""

CUT_LAYOUT_BYTES = 2**26
"""Likewise for names and attributes, which a journal has compressed."""

CUT_ROW_BYTES = 2**31
"""And for them in each row: a few kilobytes may stand in millions of rows."""

MOST_LAYOUT_BYTES = 2**28
"""Of all open parts together; beyond it those are cut that have more than their share."""

FOLDER_EVERY_S, HUB_EVERY_S = 5.0, 30.0
"""Between two publications."""

TICK_S = 0.5
"""Longest time that one look may take for runs that have fallen silent."""

PATIENCE_S, POLL_S = 2.0, 0.05
"""For all journals together: whoever only looks at one has it for a moment."""

RECORD_BYTES = 2**12
"""Points are taken again as soon as so much can be written."""

LOOK_EVERY_S = 60.0
"""How often to see what other receivers left that died in this directory."""

DROPPED = "dropped as the oldest, the journal was full"


class Fleet:
    """
    Keeps what a receiver takes, and has it published. Thread safe.

    At the start it goes on with the runs of receivers that were killed in the same journal
    directory: who sends again what was not acknowledged sends it to the same run.

    Args:
        settings: Effective settings.
        silence_s: A run that sends nothing for so long is ended and published.
        most_runs: Runs that are open at a time; each is an open file.
        say: Is told what was published, and what was not.

    Raises:
        SettingsError: There is no journal directory.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        silence_s: float = 180.0,
        most_runs: int = 1000,
        say: Callable[[str], None] = log.info,
    ) -> None:
        if not settings.journal_dir:
            raise SettingsError("a receiver needs a journal: set HUBMETER_JOURNAL_DIR to a folder")
        base = working_folder()
        folder = absolute(settings.journal_dir, base).absolute()
        self._settings = settings
        self._silence_s = silence_s
        self._most_runs = int(max(1, min(most_runs, most_open() / 2)))
        self._most_bytes = settings.journal_limit_mib * 2**20
        self._part_s = settings.flush_every_s or LONGEST_PART_S
        self._place = Place(folder, settings.to, base, settings.fsync)
        self._router = Router(settings.run_id)
        is_hub = isinstance(destination_of(settings.to, base=base), HubRepo)
        every_s = HUB_EVERY_S if is_hub else FOLDER_EVERY_S
        self._publisher = Publisher(folder, every_s=every_s, say=say)
        self._open: OrderedDict[RunKey, RunLog] = OrderedDict()  # the longest silent one first
        self._received = self._acknowledged = self._dropped = self._refused = 0
        self._can_write = True
        self._look_again_s = time.monotonic() + LOOK_EVERY_S
        self._closed = False
        self._trouble = ""
        self._lock = threading.Lock()
        self._take_over()
        self._count()

    def deliver(self, batch: PointBatch) -> None:
        """
        Keep *batch*. When this returns, its points survive the process.

        Raises:
            JournalError: They do not, or not all; who sends them again loses and doubles none.
            DecodeError: They never will, as they are of too many runs.
        """
        points = len(batch.values)
        with self._lock:
            self._received += points
            if self._closed:
                raise JournalError("the receiver ends")
            for key, part in self._router.split(batch):
                self._make_room()
                self._append(self._log_of(key), pack(part))
            self._acknowledged += points

    def tick(self) -> None:
        """
        What is to be done about once a second. Not from several threads at once.

        What fails is said once, and tried again by one of the next.
        """
        try:
            self._look_after_runs()
        except OSError as error:
            if str(error) != self._trouble:
                log.warning("hubmeter: looking after the runs failed: %s", error)
            self._trouble = str(error)
        self._publisher.tick()

    def close(self, deadline: Deadline) -> bool:
        """
        End and publish all runs. Nothing is taken any more. Idempotent.

        Returns:
            Whether nothing waits any more. If the time is over, a process of its own goes on
            publishing; if the destination failed, the next start does.
        """
        with self._lock:
            self._closed = True
            for key, run_log in list(self._open.items()):
                with suppress(JournalError):
                    self._end(key, is_final=key.run_id is None)
                run_log.release()  # what could not be ended is for the next receiver
            self._open.clear()
        return self._publisher.finish(deadline)

    def status(self) -> dict[str, Any]:
        """
        What there is, for people and probes. Points are counted since the start.

        Of ``points_received`` those that are not ``points_acknowledged`` were refused. It is not
        ``ready`` while it would refuse more: at the limit of the journal, or as that cannot be
        written.
        """
        publisher = self._publisher
        with self._lock:
            return {
                "ready": self._can_write and self._has_room(),
                "runs_open": len(self._open),
                "points_received": self._received,
                "points_acknowledged": self._acknowledged,
                "points_published": publisher.published_points,
                "points_dropped": self._dropped,
                "journal_bytes": self._bytes,
                "journal_limit_bytes": int(self._most_bytes),
                "segments_waiting": publisher.segments,
                "is_publishing": publisher.is_busy,
                "published_unix_nano": publisher.published_unix_nano,
                "failure": publisher.failure,
            }

    def _look_after_runs(self) -> None:
        deadline = Deadline.after(TICK_S)
        while not deadline.is_over() and self._end_a_silent_one():
            pass
        with self._lock:
            if time.monotonic() >= self._look_again_s:
                self._look_again_s = time.monotonic() + LOOK_EVERY_S
                self._take_over(SILENT_S)
            self._count()
            self._cut_large_ones()
            refused = self._received - self._acknowledged
            if refused != self._refused or not self._can_write:
                self._refused, self._can_write = refused, _can_write(self._place.folder)

    def _append(self, run_log: RunLog, packed: Packed) -> None:
        if run_log.has(packed):
            return
        is_wide = run_log.layout_bytes >= self._share_layout_bytes
        is_long = run_log.age_s >= self._part_s or run_log.row_bytes >= CUT_ROW_BYTES
        is_large = run_log.size_bytes >= self._share_bytes
        if is_large or is_long or (is_wide and not run_log.has_layout(packed)):
            self._retire(run_log.cut())
        before = run_log.size_bytes
        run_log.append(packed)
        self._bytes += run_log.size_bytes - before

    def _log_of(self, key: RunKey) -> RunLog:
        """The open run of *key*; it may be known from before, or begin now."""
        run_log = self._open.get(key)
        if run_log is not None:
            self._open.move_to_end(key)
            return run_log
        while len(self._open) >= self._most_runs:
            self._end(next(iter(self._open)), is_final=False)
        # A resource that comes back is a new run; a run that has a name is not.
        run_log = RunLog.woken(key, self._place, math.inf if key.run_id else self._silence_s)
        if run_log is None:
            now = time.time_ns()
            run = begin_run(self._settings, now, run_id=key.run_id, is_received=True)
            run_log = RunLog(key, run, self._place)
        self._open[key] = run_log
        return run_log

    def _end(self, key: RunKey, *, is_final: bool) -> None:
        """
        End a run that is open.

        Raises:
            JournalError: It is still open.
        """
        run_log = self._open[key]
        self._retire(run_log.end(is_final=is_final))
        del self._open[key]

    def _end_a_silent_one(self) -> bool:
        """End the run that is silent for the longest time, if that is long enough."""
        with self._lock:
            key = next(iter(self._open), None)
            if key is None or time.monotonic() - self._open[key].last_s < self._silence_s:
                return False
            try:
                self._end(key, is_final=key.run_id is None)
            except JournalError as error:
                log.debug("hubmeter: run %s is not ended yet: %s", key, error)
                self._open.move_to_end(key)
                return False
            return True

    def _retire(self, ended: Ended | None) -> None:
        if ended is not None:
            self._publisher.add(ended)

    def _make_room(self) -> None:
        """Keep to the limit of the journal, by the policy that was chosen."""
        if self._bytes < self._most_bytes:
            return
        if self._settings.journal_full == "drop-oldest":
            self._drop_oldest()
        if self._bytes >= self._most_bytes:
            raise JournalError(
                f"the journal has reached {self._settings.journal_limit_mib:g} MiB, and new points"
                " are refused until some are published: raise HUBMETER_JOURNAL_LIMIT"
            )

    def _has_room(self) -> bool:
        """Whether the limit of the journal lets points in."""
        can_drop = self._settings.journal_full == "drop-oldest" and self._publisher.segments
        return self._bytes < self._most_bytes or bool(can_drop)

    def _drop_oldest(self) -> None:
        dropped = self._publisher.drop_oldest(self._most_bytes / 10)
        points = sum(ended.points for ended in dropped)
        self._dropped += points
        self._bytes -= sum(ended.size_bytes for ended in dropped)
        for ended in dropped:
            lost = Counter(ended.lost) + Counter({DROPPED: ended.points})
            if run_log := self._open.get(ended.key):
                run_log.count_lost(lost)
            else:
                RunLog.count_lost_at_rest(ended.key, self._place, lost)
        if dropped:
            log.warning("hubmeter: the journal is full, the oldest %d points are dropped", points)

    def _count(self) -> None:
        """What is on disk, and how much of it a run may have before its part is cut."""
        open_bytes = sum(run_log.size_bytes for run_log in self._open.values())
        layout_bytes = sum(run_log.layout_bytes for run_log in self._open.values())
        runs = len(self._open) or 1
        half = self._most_bytes / 2
        self._bytes = open_bytes + self._publisher.size_bytes
        share = MOST_LAYOUT_BYTES if layout_bytes < MOST_LAYOUT_BYTES else MOST_LAYOUT_BYTES // runs
        self._share_layout_bytes = min(CUT_LAYOUT_BYTES, share)
        share_bytes = max(half / runs, SMALLEST_BYTES) if open_bytes > half else half
        self._share_bytes = min(CUT_BYTES, share_bytes)

    def _cut_large_ones(self) -> None:
        """What is refused cannot make a run longer: at the limit nobody else would cut it."""
        if self._bytes < self._most_bytes / 2:
            return
        for run_log in self._open.values():
            if run_log.size_bytes >= self._share_bytes:
                with suppress(JournalError):
                    self._retire(run_log.cut())

    def _take_over(self, silent_s: float = 0.0) -> None:
        """
        Take what dead receivers left, if nobody wrote to it for *silent_s*.

        At the start their open runs go on here. What is found later is only published: somebody
        else may have the run by now.
        """
        patience = Deadline.after(0.0 if silent_s else PATIENCE_S)
        for path in _silent(self._place.folder, silent_s):
            if self._publisher.has(path) or not is_received(path):
                continue
            claim = _claimed(path, patience)
            if claim is not None:
                try:
                    self._inherit(claim, goes_on=not silent_s)
                except OSError as error:
                    log.warning("hubmeter: %s stays as it is: %s", path, error)
                    claim.release()
        _tidy(self._place.folder)

    def _inherit(self, claim: Claim, *, goes_on: bool) -> None:
        left = left_by_receiver(peek(claim.path))
        if left is None or says_end(claim.path) or sealed_path(claim.path).exists():
            claim.release()
            if left is not None:
                self._publisher.add(Ended(claim.path, claim.path.stat().st_size))
            return
        place = self._place._replace(to=left.to)
        run_log = RunLog(left.key, left.run, place, part=left.part, claim=claim)
        is_same = left.to == self._place.to and left.run.base == self._place.base
        if goes_on and is_same and left.key not in self._open and len(self._open) < self._most_runs:
            self._open[left.key] = run_log
            self._open.move_to_end(left.key, last=False)  # the newest come first
            with suppress(OSError):  # of a receiver that was killed as it ended this part
                resting_path(self._place.folder, left.key).unlink()
            return
        here = self._open.get(left.key)
        is_followed = here is not None and here.run.process_id == left.run.process_id
        try:
            if is_followed:
                self._retire(run_log.finish())
            else:
                self._retire(run_log.end(is_final=left.key.run_id is None))
        finally:
            run_log.release()


def _silent(folder: Path, silent_s: float) -> Iterator[Path]:
    """Journals to which nobody wrote for *silent_s*; the last part of each run comes first."""
    for path in reversed(segments(folder)):
        with suppress(OSError):
            if not silent_s or time.time() - path.stat().st_mtime >= silent_s:
                yield path


def _can_write(folder: Path) -> bool:
    """Whether there is room for a record, as far as another file can tell."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(RECORD_BYTES))
    except OSError:
        return False
    return True


def _tidy(folder: Path) -> None:
    """Remove files of processes that were killed before they gave them their name."""
    with suppress(OSError):
        for path in folder.glob(f".*{JOURNAL}.new"):
            if time.time() - path.stat().st_mtime >= SILENT_S:
                path.unlink()


def _claimed(path: Path, patience: Deadline) -> Claim | None:
    """The journal at *path*, if it is nobody's; whoever only looks at it has it for a moment."""
    claim = Claim.take(path)
    while claim is None and path.exists() and is_orphan(path) and not patience.is_over():
        time.sleep(POLL_S)
        claim = Claim.take(path)
    return claim
