"""
The road from batches to a published shard. Owns the segments of one run.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .batch import PointBatch
from .deadline import Deadline
from .destinations import HubRepo, Sink, commits, destination_of, sink_of
from .errors import JournalError, PublishError, PublishRejected, PublishUnavailable, fresh
from .ledger import Block, Packed, Points, pack
from .openings import START
from .run import absolute, begin_run
from .sealing import options_of, table_of
from .segment import Segment
from .settings import Settings
from .uploader import Uploader
from .warming import HUB, LOCAL, warm

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

LONGEST_PUBLISH_S = 20.0
"""However long a program would wait at its end, a Hub that does not answer gets this."""

MEMORY_ONLY_S = 30.0
"""Without a journal, what is not published is lost: then it may take this long at least."""

LEAST_LOCK_S, LONGEST_LOCK_S = 0.1, 600.0

PART_PUBLISH_S = 120.0
"""Time for a part of a run that goes on: nobody waits for it."""

REFUSED = "refused, the journal was full"
DROPPED = "dropped as the oldest, the journal was full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """
    Data points of a pipeline: ``received`` = ``stored`` + ``published`` + ``rejected``.

    Attributes:
        stored: Not published yet; in the journal if there is one, and in memory.
        rejected: Broken, sent twice, refused or dropped. Only known once published.
    """

    received: int
    stored: int
    published: int
    rejected: int


class Pipeline:
    """
    Keeps the points of a run and publishes them when it closes.

    Safe to call from several threads. A forked child inherits a copy that belongs to
    its parent: whoever owns a pipeline must not use it there.

    Attributes:
        failure: Why the last attempt to publish failed.

    Args:
        settings: Effective settings.
        sink: Destination; by default the one that the settings name.
        wall_clock_ns: Time of a row that stands for an empty run.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        sink: Sink | None = None,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.settings = settings
        self.run = begin_run(settings, wall_clock_ns())
        self.journal_dir = _folder(settings, self.run.base)
        self._sink = sink
        self._wall_clock_ns = wall_clock_ns
        self._limit_bytes = settings.journal_limit_mib * 2**20
        self._enough_bytes = self._limit_bytes / (1 if settings.journal_full == "refuse" else 2)
        self._opening = START
        self._segment = self._new_segment(0, 0)
        self._ended: list[Segment] = []  # not published yet
        self._bytes_ended = 0
        self._kept: list[Segment] = []  # published, but table() still has them
        self._has_rows = False
        self._closed = self._is_warm = False
        self.failure: PublishError | None = None
        self._published = self._rejected = 0
        self._lock = threading.Lock()
        self._publishing = threading.Lock()
        self._publisher = 0  # the thread that publishes
        self._sending: list[Segment] = []
        self.uploader = _uploader(self, settings.flush_every_s)
        _pipelines.add(self)

    @property
    def run_id(self) -> str:
        """Of resources that name no run."""
        return self.run.run_id

    def consume(self, batch: PointBatch) -> None:
        """
        Take *batch*. When this returns, its points are in the journal.

        What comes after :meth:`close` (an export that was in flight) is published by
        the next :meth:`close`.

        Raises:
            JournalError: The journal has reached its limit, and the points are refused;
                or it cannot be written, and they are in memory only.
        """
        packed = pack(batch)
        with self._lock:
            segment = self._segment
            if segment.bytes_stored + self._bytes_ended >= self._enough_bytes:
                self._make_room(packed)
                segment = self._segment
            segment.take(packed)
        if not self._is_warm:
            self._is_warm = True
            self.uploader.submit(partial(warm, self._needed()))

    def points(self) -> Points:
        """The points so far, as a copy; without those of parts that were published."""
        with self._lock:
            return _joined(s.points() for s in (*self._kept, *self._ended, self._segment))

    def table(self, config: str = "default") -> pa.Table:
        """The rows so far; without those of parts that were published."""
        with self._lock:
            segments = [s for s in (*self._kept, *self._ended, self._segment) if s.ledger.points]
            opening = segments[0].opening if segments else START
        return table_of(self.points(), options_of(self.run), config, opening)

    def counts(self) -> Counts:
        """What became of the data points until now."""
        with self._lock:
            stored = sum(s.received for s in (*self._ended, self._segment))
            return Counts(
                received=stored + self._published + self._rejected,
                stored=stored,
                published=self._published,
                rejected=self._rejected,
            )

    def close(self, deadline: Deadline) -> bool:
        """
        Publish the run. Further calls publish what came since, and what failed before.

        Returns:
            Whether it is done. If not, the time was over, and publishing goes on.

        Raises:
            PublishRejected: The destination refused.
            PublishUnavailable: It did not answer, or was full.
        """
        patience_s = min(max(deadline.remaining_s(), LEAST_LOCK_S), LONGEST_LOCK_S)
        if not self._lock.acquire(timeout=patience_s):
            return False  # a signal interrupted who has it
        try:
            is_first, self._closed = not self._closed, True
            if is_first or not self._segment.is_empty:
                self._cut(self._wall_clock_ns() if is_first and not self._has_rows else None)
            is_safe = all(segment.is_journaled for segment in self._ended)
            is_done = not self._ended
        finally:
            self._lock.release()
        if not is_safe:  # leaving would lose more than waiting
            deadline = Deadline.after(max(MEMORY_ONLY_S, deadline.remaining_s()))
        if not is_done and not self._hand_over(deadline):
            return False
        self.uploader.stop()
        return not self.unpublished()

    def publish_part(self) -> None:
        """Publish what there is of a run that goes on, and forget it. What fails comes again."""
        with self._lock:
            if not self._segment.is_empty:
                self._cut(None)
        level = logging.WARNING if self.failure is None else logging.DEBUG
        try:
            self._publish(Deadline.after(PART_PUBLISH_S), keep=False)
        except PublishError as error:
            log.log(level, "hubmeter: %s; the run goes on, and the next part tries again", error)

    def leave(self) -> bool:
        """
        Leave what is not published to a process of its own: this one is about to end.

        Waits for no lock: a signal may have interrupted who has it.

        Returns:
            Whether there is such a process. Not if the destination refused: it would again.
        """
        from .detached import start_detached

        if self.journal_dir is None or isinstance(self.failure, PublishRejected):
            return False
        return start_detached(
            ["recover", str(self.journal_dir), "--process", self.run.process_id, "--wait"]
        )

    def is_published(self) -> bool:
        """Whether nothing is left. Waits for no lock."""
        return self._segment.is_empty and not self._ended  # what is cut meanwhile is in one of both

    def is_journaled(self) -> bool:
        """Whether everything that is not published is on disk. Waits for no lock."""
        left = (self._segment, *self._ended)  # what is cut meanwhile is in both
        return all(segment.is_journaled for segment in left if not segment.is_empty)

    def unpublished(self) -> int:
        """How many segments have ended and are not published. Not zero after a failure."""
        with self._lock:
            return len(self._ended)

    def _needed(self) -> tuple[str, ...]:
        destination = destination_of(self.run.to, base=self.run.base)
        return HUB if isinstance(destination, HubRepo) and self._sink is None else LOCAL

    def _hand_over(self, deadline: Deadline) -> bool:
        # Who waits may have little time; the work goes on as long as it makes sense.
        job = self.uploader.submit(partial(self._publish, Deadline.after(math.inf)))
        if job is not None:
            return job.wait(deadline)
        self._publish(deadline)
        return True

    def _publish(self, deadline: Deadline, *, keep: bool = True) -> None:
        """Seal and publish all ended segments, in as few commits as it takes."""
        if self._publisher == threading.get_ident():  # a signal handler, while we publish
            return
        if not self._publishing.acquire(timeout=min(deadline.remaining_s(), LONGEST_LOCK_S)):
            raise PublishUnavailable("another thread is still publishing")
        self._publisher = threading.get_ident()
        try:
            with self._lock:
                segments = self._sending = list(self._ended)
            mine = [segment for segment in segments if segment.reclaim()]
            self._seal(mine, keep=keep)
            self.failure = None
            try:
                for commit in commits(mine, lambda one: one.size):
                    self._send(commit, deadline)
                    self._forget(commit, keep=keep)
            except PublishError as error:
                self.failure = fresh(error)
                for segment in mine:  # each is an open file
                    if self._closed or segment.is_on_disk:
                        segment.release()
                raise
            self._forget([], keep=keep)
        finally:
            self._sending = []
            self._publisher = 0
            self._publishing.release()

    def _forget(self, published: list[Segment], *, keep: bool) -> None:
        """Nothing more is to be done for *published*, and for what a recovery was faster with."""
        with self._lock:
            done = [s for s in self._ended if s in published or s.is_gone]
            self._ended = [segment for segment in self._ended if segment not in done]
            self._published += sum(segment.received - segment.rejected for segment in done)
            self._rejected += sum(segment.rejected for segment in done)
            self._kept += done if keep else []
            self._count_bytes()

    def _seal(self, segments: list[Segment], *, keep: bool) -> None:
        for segment in segments:
            if self._has_rows and segment.stands_for_empty_run:
                segment.end()  # an earlier part has rows
            self._opening = segment.seal(self._opening)
            self._has_rows = self._has_rows or segment.rows > 0
            if not keep:
                segment.forget_points()
        if segments:
            with self._lock:  # what was cut meanwhile comes first
                later = [one for one in self._ended if one.part > segments[-1].part]
                next_one = (later or [self._segment])[0]
                next_one.continue_from(self._opening, has_rows=self._has_rows)
                self._count_bytes()

    def _send(self, segments: list[Segment], deadline: Deadline) -> None:
        longest_s = LONGEST_PUBLISH_S if self._closed else PART_PUBLISH_S
        shards = [shard for segment in segments if (shard := segment.shard()) is not None]
        if shards:
            run_id = shards[0].run_id
            # Only now: the destination may name the run, which the first resource may name.
            destination = destination_of(self.run.to, run_id, self.run.base)
            self._sink = self._sink or sink_of(destination, private=self.run.private)
            self._sink.publish(shards, deadline.no_later_than(Deadline.after(longest_s)))
            rows = sum(shard.rows for shard in shards)
            log.info("hubmeter: %d rows of run %s are in %s", rows, run_id, self._sink)
        for segment in reversed(segments):  # a later one can do without an earlier one's totals
            segment.finish(str(self._sink))

    def _cut(self, empty_run_unix_nano: int | None) -> None:
        """End the segment and begin the next."""
        self._segment.end(empty_run_unix_nano)
        self._ended.append(self._segment)
        self._count_bytes()
        self._segment = self._new_segment(self._segment.part + 1, self._segment.ledger.batches)

    def _new_segment(self, part: int, first_batch: int) -> Segment:
        return Segment(
            self.run, part, self.journal_dir, fsync=self.settings.fsync, first_batch=first_batch
        )

    def _count_bytes(self) -> None:
        self._bytes_ended = sum(one.bytes_stored + one.bytes_sealed for one in self._ended)

    def _make_room(self, packed: Packed) -> None:
        """Keep to the limit of the journal, by the policy that was chosen."""
        if self.settings.journal_full == "refuse":
            points = len(packed.values) + sum(packed.skipped.values())
            self._segment.count_lost(REFUSED, points)
            what = "the journal has" if self.is_journaled() else "the points in memory have"
            raise JournalError(
                f"{what} reached {self.settings.journal_limit_mib:g} MiB, and new "
                "points are refused: raise HUBMETER_JOURNAL_LIMIT or set HUBMETER_FLUSH_EVERY"
            )
        self._drop_oldest()
        if self._segment.bytes_stored >= self._limit_bytes / 2:
            self._cut(None)  # so that not all of it has to be dropped next time

    def _drop_oldest(self) -> None:
        dropped = 0
        # What is being published may arrive at any moment: it stays.
        for old in [segment for segment in self._ended if segment not in self._sending]:
            if self._segment.bytes_stored + self._bytes_ended < self._limit_bytes:
                break
            dropped += old.received
            old.discard()
            self._ended.remove(old)
            self._count_bytes()
        if dropped:
            log.warning("hubmeter: the journal is full, the oldest %d points are dropped", dropped)
            self._segment.count_lost(DROPPED, dropped)


def _folder(settings: Settings, base: str) -> Path | None:
    return absolute(settings.journal_dir, base) if settings.journal_dir else None


def _joined(parts: Iterable[Points]) -> Points:
    skipped: Counter[str] = Counter()
    blocks: list[Block] = []
    for part in parts:
        blocks += part.blocks
        skipped.update(part.skipped)
    return Points(tuple(blocks), dict(skipped))


def _uploader(pipeline: Pipeline, interval_s: float) -> Uploader:
    """A thread that does not keep *pipeline* alive, and ends with it."""
    reference = weakref.ref(pipeline)

    def publish_part() -> None:
        if (survivor := reference()) is not None:
            survivor.publish_part()

    uploader = Uploader(interval_s=interval_s, tick=publish_part)
    weakref.finalize(pipeline, uploader.abandon).atexit = False
    return uploader


_pipelines: weakref.WeakSet[Pipeline] = weakref.WeakSet()


def _renew_locks() -> None:
    """A lock that some thread held while the process forked would never be released."""
    for pipeline in _pipelines:
        pipeline._lock = threading.Lock()  # noqa: SLF001
        pipeline._publishing = threading.Lock()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
