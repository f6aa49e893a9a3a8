"""
A journal whose records are on disk or refused, and which can go on where a dead process ended.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .batch import SeriesLayout
from .errors import DecodeError
from .frames import Framer
from .journal import Claim, Journal, Replay
from .ledger import Packed
from .owners import as_json, this_process
from .records import Encoder
from .whole_files import sync_folders

MOST_ROW_BYTES = 2**32
"""Of one batch: a publisher needs some seconds for each gigabyte."""

GOES_ON = frozenset({"rejected", "resends"})
"""Notes that stay true when a journal goes on."""


class StrictJournal(Journal):
    """
    A journal for those who send again what was refused: nothing waits in memory.

    Use :meth:`create` or :meth:`go_on`. Not thread safe.

    Attributes:
        row_bytes: Of resources and attributes, which a table has in the row of each point.
    """

    def __init__(self, path: Path, *, fsync: bool) -> None:
        super().__init__(path, fsync=fsync)
        self.row_bytes = 0
        self._row_bytes: dict[SeriesLayout, int] = {}
        self._encoder = self._strict = _Encoder(int.from_bytes(os.urandom(4), "little"))

    @classmethod
    def go_on(
        cls, claim: Claim, header: Mapping[str, Any], replay: Replay, *, fsync: bool = False
    ) -> StrictJournal:
        """
        Take the place of the journal under *claim*, with all that *replay* says.

        It is a new file under the same name: whatever interrupts this, one of the two is there.

        Raises:
            OSError: It cannot be written; the old one is as it was, and still claimed. Or it has
                taken its place, but could not be synced.
        """
        fresh = claim.path.with_name(f".{claim.path.name}.new")
        fresh.unlink(missing_ok=True)  # of a process that was killed here
        journal = cls(fresh, fsync=fsync)
        try:
            journal._file.lock()
            journal._write(journal._encoder.preamble)
            journal.note("header", {"owner": as_json(this_process()), "header": dict(header)})
            for kind in replay.contents.notes.keys() & GOES_ON:
                journal.note(kind, replay.contents.notes[kind])
            for packed in replay.contents.batches:
                journal.append(packed)
            journal.path = fresh.rename(claim.path)
            if fsync:
                sync_folders([journal.path.parent])
        except BaseException:
            if journal.path == fresh:
                journal.discard()
            else:  # it has all points by now
                journal.close()
            raise
        claim.release()
        return journal

    @property
    def layout_bytes(self) -> int:
        """About how much memory its layouts take, of its writer and of each reader."""
        return self._encoder.layout_bytes

    def has(self, layout: SeriesLayout) -> bool:
        """Whether *layout* is in it."""
        return self._encoder.has(layout)

    def append(self, packed: Packed) -> None:
        """
        Write a batch in one piece.

        Raises:
            JournalError: Nothing of it is kept.
            TypeError, ValueError: It holds something that OTLP cannot say, or too much.
        """
        self._check()
        row_bytes = self._row_bytes.get(packed.layout)
        if row_bytes is None:
            row_bytes = _row_bytes_of(packed.layout)
        self._put(self._encoder.batch(packed))
        self._row_bytes[packed.layout] = row_bytes
        self.row_bytes += row_bytes

    def note(self, kind: str, value: Any) -> None:
        """Write a note, like :meth:`append`."""
        self._check()
        self._put(self._encoder.note(kind, value))

    def _put(self, record: bytes) -> None:
        size_bytes = self.size_bytes
        try:
            self._write(record)
        except OSError as error:
            # A record that could not be cut off again keeps its number.
            self._strict.withdraw(is_written=self.size_bytes != size_bytes)
            raise self._unwritten(error) from error
        self._encoder.confirm()


def _row_bytes_of(layout: SeriesLayout) -> int:
    row_bytes = sum(len(one.resource) + len(one.attributes) for one in layout.series)
    if row_bytes > MOST_ROW_BYTES:
        words = f"{row_bytes} bytes, once for each point, are more than {MOST_ROW_BYTES}"
        raise DecodeError(f"resources and attributes of {words}: send them in smaller parts")
    return row_bytes


class _Encoder(Encoder):
    """An encoder that can take back its last record."""

    def __init__(self, salt: int) -> None:
        super().__init__(salt)
        self._framer = self._counted = _Framer(salt)

    def withdraw(self, *, is_written: bool) -> None:
        """The last record is not in the file, or not as a whole; nobody may build on it."""
        if not is_written:
            self._counted.step_back(1 if self._announced is None else 2)
        self._announced = None


class _Framer(Framer):
    def step_back(self, frames: int) -> None:
        """The last *frames* were not written: their numbers are free."""
        self._sequence -= frames
