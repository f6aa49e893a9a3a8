"""
A journal whose records are on disk or refused, and the end of one that a dead process left open.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .batch import SeriesLayout
from .errors import DecodeError, JournalError
from .frames import PREAMBLE_SIZE, Frame, Framer, read_frames, salt_of
from .held_files import HeldFile
from .journal import Claim, Journal
from .ledger import Packed
from .records import BATCH, TORN, Encoder, decode

MOST_ROW_BYTES = 2**32
"""Of one batch: a publisher needs some seconds for each gigabyte."""

_VALUES = struct.Struct("<4xI")
"""In the payload of a batch: how many it has."""


class StrictJournal(Journal):
    """
    A journal for those who send again what was refused: nothing waits in memory.

    Use :meth:`create`. Not thread safe.

    Attributes:
        row_bytes: Of resources and attributes, which a table has in the row of each point.
    """

    def __init__(self, path: Path, *, fsync: bool, file: HeldFile | None = None) -> None:
        super().__init__(path, fsync=fsync, file=file)
        self.row_bytes = 0
        self._row_bytes: dict[SeriesLayout, int] = {}
        self._encoder = self._strict = _Encoder(int.from_bytes(os.urandom(4), "little"))

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


class LeftJournal(StrictJournal):
    """
    The journal under *claim*, which a dead process left open. It takes notes, but no batches.

    A torn record at its end is cut off: it was never acknowledged.

    Args:
        claim: It is this journal's from now on.
        most_batches: How many of the last batches are read.
        fsync: As for any journal.

    Raises:
        OSError: It cannot be read; the claim is as it was.

    Attributes:
        notes: Kind to value.
        batches: The last ones.
        points: How many there are in all.
    """

    def __init__(self, claim: Claim, most_batches: int, *, fsync: bool) -> None:
        data = claim.file.read()
        frames, damage = read_frames(data)
        if not frames:
            raise JournalError(f"nothing of {claim.path} can be read")
        for torn in (one for one in damage if one.reason == TORN):
            os.ftruncate(claim.file.fd, torn.offset)
        super().__init__(claim.path, fsync=fsync, file=claim.file)
        self.size_bytes = os.fstat(claim.file.fd).st_size
        self._encoder = self._strict = _Encoder(salt_of(data, frames[-1]), frames[-1].sequence + 1)
        batches = [one for one in frames if one.kind == BATCH]
        self.points = sum(_VALUES.unpack_from(one.payload)[0] for one in batches)
        wanted = [one for one in frames if one.kind != BATCH] + batches[-most_batches:]
        contents = decode(_only(data, wanted))
        self.notes, self.batches = contents.notes, contents.batches


def _only(data: bytes, frames: Sequence[Frame]) -> bytes:
    """The journal *data* with no other *frames*."""
    kept = (data[one.offset : one.offset + one.size] for one in frames)
    return data[:PREAMBLE_SIZE] + b"".join(kept)


class _Encoder(Encoder):
    """An encoder that can take back its last record."""

    def __init__(self, salt: int, sequence: int = 0) -> None:
        super().__init__(salt)
        self._framer = self._counted = _Framer(salt, sequence)

    def withdraw(self, *, is_written: bool) -> None:
        """The last record is not in the file, or not as a whole; nobody may build on it."""
        if not is_written:
            self._counted.step_back(1 if self._announced is None else 2)
        self._announced = None


class _Framer(Framer):
    def step_back(self, frames: int) -> None:
        """The last *frames* were not written: their numbers are free."""
        self._sequence -= frames
