"""
A segment: a stretch of a run, in memory and in its journal, on its way to a shard.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import JournalError
from .journal import Claim, Journal, read_journal, sealed_path
from .ledger import Ledger, Packed, Points
from .openings import START, Opening, as_json
from .run import Run
from .run import as_json as run_as_json

if TYPE_CHECKING:
    from .shard import Shard

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
"""How often to see whether the journal is still there, or can be made by now."""


class Segment:
    """
    Takes points until it is ended, then becomes a shard. Not thread safe.

    The journal file is made with the first point. As long as that is not possible the
    points are in memory, and each batch tries again.

    Attributes:
        bytes_sealed: What the shard takes beside the points. Known once it is sealed.

    Args:
        part: Number of the segment within run and process.
        folder: Journal directory; None for memory only.
        first_batch: Number of the first batch, so that batches stay in order across segments.
    """

    def __init__(
        self, run: Run, part: int, folder: Path | None, *, fsync: bool = False, first_batch: int = 0
    ) -> None:
        self.run = run
        self.part = part
        self.ledger = Ledger(first_batch)
        self.opening = START
        self.lost: Counter[str] = Counter()
        self._said_lost: Counter[str] = Counter()  # in the journal, before its end
        self._shard: Shard | None = None
        self._received = 0
        self._folder = folder
        self._fsync = fsync
        self._journal: Journal | None = None
        self._claim: Claim | None = None
        self._has_rows = False  # of an earlier segment
        self._look_again_s = 0.0
        self._why = ""  # there is no journal
        self._is_whole = True
        self._owes = False  # the journal owes a batch, not only notes
        self._empty_run_unix_nano: int | None = None
        self._is_sealed = False
        self.bytes_sealed = 0
        self.is_on_disk = False  # sealed, and needs no memory

    @property
    def name(self) -> str:
        """File name without suffix; names sort by run, process and part."""
        started = datetime.fromtimestamp(self.run.started_unix_nano // 10**9, timezone.utc)
        return f"{started:%Y%m%dT%H%M%SZ}-{self.run.process_id}-{self.part:04d}"

    @property
    def is_empty(self) -> bool:
        return not self.received

    @property
    def received(self) -> int:
        """Data points that were taken, also those that are in no table."""
        skipped = sum(self.ledger.skipped.values())
        return self._received + self.ledger.points + skipped + sum(self.lost.values())

    @property
    def rejected(self) -> int:
        """Data points that are in no table. Known once it is sealed."""
        return self.received - (0 if self._shard is None else self._shard.published)

    @property
    def rows(self) -> int:
        """Of the ``default`` config. Known once it is sealed."""
        return 0 if self._shard is None else self._shard.rows

    @property
    def size(self) -> tuple[int, int]:
        """Parquet files, and bytes of these. Known once it is sealed."""
        return (0 if self._shard is None else self._shard.number_of_files), self.bytes_sealed

    @property
    def stands_for_empty_run(self) -> bool:
        """Whether it makes a row if there is none."""
        return self._empty_run_unix_nano is not None

    @property
    def is_journaled(self) -> bool:
        """Whether there is a file that has all points."""
        journal = self._journal
        if journal is None or not journal.path.exists():  # or somebody removed it
            return False
        return self.is_on_disk or (self._is_whole and not (self._owes and journal.owed_bytes))

    @property
    def is_gone(self) -> bool:
        """A recovery published it. What somebody only holds for a moment still has its file."""
        if self._journal is None or self._journal.is_open:
            return False
        return not self._journal.path.exists()

    @property
    def bytes_stored(self) -> int:
        """What its points take on disk, or in memory as long as they are not there."""
        journal = self._journal
        if journal is None:
            return self.ledger.size_bytes
        return (
            journal.size_bytes
            if self._is_whole
            else max(journal.size_bytes, self.ledger.size_bytes)
        )

    def take(self, packed: Packed) -> None:
        """
        Take a batch. When this returns, its points survive the process.

        Raises:
            JournalError: They do not, but are in memory.
        """
        try:
            journal = self._journal
            now_s = time.monotonic()
            if now_s >= self._look_again_s:
                self._look_again_s = now_s + LOOK_EVERY_S
                if journal is None or not journal.is_there():
                    journal = self._open()
            if journal is not None:
                journal.append(packed)
                self._owes = False
            elif self._folder is not None:
                self._fail_again()
        except JournalError as error:
            if self._journal is None:  # the next attempt writes everything
                self._why = str(error)
            elif self._journal.owes_last:
                self._owes = True
            else:
                self._is_whole = False
            raise
        finally:
            self.ledger.append(packed)

    def _fail_again(self) -> None:
        """It is not looked for at each batch, but none is acknowledged without it."""
        raise JournalError(self._why)

    def continue_from(self, opening: Opening, *, has_rows: bool = False) -> None:
        """Totals that the run had before this segment, and whether it had rows already."""
        self.opening, self._has_rows = opening, has_rows or self._has_rows
        self._note_beginning()

    def count_lost(self, reason: str, points: int) -> None:
        """
        Points that were received are not kept; this segment accounts for them.

        Exactly, once it has ended. Of a process that is killed before, the journal says the
        first 16 times, and later all but at most a sixteenth.
        """
        self.lost[reason] += points
        unsaid = self.lost[reason] - self._said_lost[reason]
        if unsaid * 16 >= self.lost[reason]:  # a full journal must not grow with each refusal
            self._say_lost()

    def _say_lost(self) -> None:
        if unsaid := self.lost - self._said_lost:
            self._note("rejected", dict(unsaid))
            self._said_lost = self.lost.copy()

    def end(self, empty_run_unix_nano: int | None = None) -> None:
        """
        Nothing follows. A run without rows gets one with the time *empty_run_unix_nano*.
        """
        with suppress(JournalError):
            if self._journal is None and (self.received or empty_run_unix_nano is not None):
                self._open()
        self._empty_run_unix_nano = empty_run_unix_nano
        self._note("end", {"empty_run_unix_nano": empty_run_unix_nano, "lost": dict(self.lost)})

    def seal(self, opening: Opening) -> Opening:
        """Freeze the shard, in memory and beside the journal; returns the closing totals."""
        if self._is_sealed:
            return opening
        if opening is not self.opening:  # without `.sealed` the journal must say the same
            self.continue_from(opening)
        self._shard, closing = self._sealed(self.points(), opening)
        self._is_sealed = True
        self.bytes_sealed = sum(map(len, self._shard.files.values())) if self._shard else 0
        # A sealed file whose journal was removed would never be found.
        if self._shard is not None and self._journal is not None and self._journal.path.exists():
            from .sealed import write_sealed

            try:
                write_sealed(sealed_path(self._journal.path), self._shard, as_json(closing))
            except OSError as error:  # the journal has the points
                log.debug("hubmeter: %s is not sealed on disk: %s", self.name, error)
            else:
                self._shard = replace(self._shard, files={})
                self.is_on_disk = True
        return closing

    def shard(self) -> Shard | None:
        """What was sealed, with its bytes; None if there is nothing to publish."""
        if self._shard is None or self._shard.files or self._journal is None:
            return self._shard
        from .sealed import read_sealed

        try:
            return read_sealed(sealed_path(self._journal.path))[0]
        except OSError:
            return self._sealed_again()

    def _sealed_again(self) -> Shard | None:
        """Somebody removed or damaged the sealed file: made anew, from memory or the journal."""
        try:
            points = self.points() if self.ledger.points else self._points_on_disk()
            return self._sealed(points, self.opening)[0]
        except OSError as error:
            log.error("hubmeter: %d points of %s are lost, its files were removed: %s",  # noqa: TRY400
                      self.received, self.name, error)  # fmt: skip
            return None

    def _points_on_disk(self) -> Points:
        ledger = Ledger()
        if self._journal is not None:
            for packed in read_journal(self._journal.path).contents.batches:
                ledger.append(packed)
        return ledger.snapshot()

    def _sealed(self, points: Points, opening: Opening) -> tuple[Shard | None, Opening]:
        from .sealing import seal_segment

        return seal_segment(
            points,
            self.run,
            opening,
            part=self.part,
            empty_run_unix_nano=self._empty_run_unix_nano,
            lost=self.lost,
        )

    def forget_points(self) -> None:
        """Free the memory, if the shard is on disk."""
        if self._shard is not None and self._shard.files:
            return
        self._received = self.received - sum(self.lost.values())
        self.ledger = Ledger(self.ledger.batches)

    def points(self) -> Points:
        """The points so far, as a copy."""
        return self.ledger.snapshot()

    def release(self) -> None:
        """Let a recovery have the journal."""
        if self._journal is not None:
            self._journal.close()
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def reclaim(self) -> bool:
        """Take the journal again after :meth:`release`; False if a recovery was faster."""
        if self._journal is None or self._journal.is_open or self._claim is not None:
            return True
        self._claim = Claim.take(self._journal.path)
        return self._claim is not None

    def finish(self, destination: str) -> None:
        """The shard has arrived: only the receipt stays."""
        if self._journal is None:
            return
        if self._shard is not None and self._folder is not None:
            from .receipts import receipt_of, write_receipt

            receipt = receipt_of(self.name, self._shard, destination, time.time_ns())
            write_receipt(self._folder, receipt)
        self.discard()

    def discard(self) -> None:
        """Remove what is on disk. What cannot be removed is found and settled by a recovery."""
        if self._journal is not None:
            try:
                sealed_path(self._journal.path).unlink(missing_ok=True)
                self._journal.discard()
            except OSError as error:
                log.warning("hubmeter: %s is published, but stays on disk: %s", self.name, error)
        self.release()

    def _open(self) -> Journal | None:
        """A new file with everything so far; None for memory only."""
        if self._folder is None:
            return None
        if self._journal is not None:
            log.info("hubmeter: the journal %s was removed, it is made anew", self._journal.path)
            self._journal.close()
            self._journal = None
        header = {"run": run_as_json(self.run), "part": self.part}
        journal = Journal.create(self._folder, self.name, header, fsync=self._fsync)
        self._journal, self._is_whole = journal, True
        self._note_beginning()
        self._said_lost.clear()
        self._say_lost()
        for packed in self.ledger.packed():
            journal.append(packed)
        return journal

    def _note_beginning(self) -> None:
        if self.opening is not START:
            self._note("opening", as_json(self.opening))
        if self._has_rows:
            self._note("rows", True)

    def _note(self, kind: str, value: Any) -> None:
        if self._journal is None:
            return
        try:
            self._journal.note(kind, value)
        except JournalError as error:
            log.debug("hubmeter: no note %s in the journal: %s", kind, error)
