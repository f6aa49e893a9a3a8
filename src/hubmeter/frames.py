r"""
Framed records with checksums: bytes that survive being cut off, flipped, moved or mixed.

::

    file  = "hubmeter journal 1\n" salt salt salt  frame*
    frame = marker  length u32  sequence u32  type u8  check u32  crc u32  payload

Numbers are little endian. *check* covers length, sequence and type, so that a broken
length is never followed; *crc* continues it over the payload. Both begin with the salt,
which nobody outside knows: no text in an attribute can imitate a frame. Copies of a
frame have the same sequence number and are read once.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .errors import DecodeError

MAGIC = b"hubmeter journal 1\n"
PREAMBLE_SIZE = len(MAGIC) + 12
MARKER = b"\xf5\xc1\x9d\xfe"  # no text: these bytes never occur in UTF-8
LONGEST = 2**28
"""Bytes of the largest payload."""

TORN = "torn tail"
"""Why a frame at the end is not used that was never finished."""

_SALTS = struct.Struct("<III")
_FRAME = struct.Struct("<4sIIBII")
_CHECKED = struct.Struct("<IIB")
_MOST_COPIES = 8


@dataclass(frozen=True, slots=True)
class Damage:
    """
    Bytes of a journal that were not used.

    Attributes:
        offset: Where in the file.
        size: How many bytes; 0 where a record is missing.
    """

    offset: int
    size: int
    reason: str


class Framer:
    """
    Frames the records of one file, in order.

    Args:
        salt: 32 random bits.
        sequence: Number of the next frame.
    """

    def __init__(self, salt: int, sequence: int = 0) -> None:
        self.preamble = MAGIC + _SALTS.pack(salt, salt, salt)
        self._seed = _seed(salt)
        self._sequence = sequence

    def frame(self, kind: int, payload: bytes) -> bytes:
        """
        The next frame.

        Raises:
            DecodeError: The payload is too long; the frame was not counted.
        """
        sequence, length = self._sequence, len(payload)
        if length > LONGEST:
            check_length(payload)
        check = zlib.crc32(_CHECKED.pack(length, sequence, kind), self._seed)
        crc = zlib.crc32(payload, check)
        self._sequence = sequence + 1
        return _FRAME.pack(MARKER, length, sequence, kind, check, crc) + payload


def check_length(payload: bytes) -> None:
    """
    Whether *payload* fits into a frame.

    Raises:
        DecodeError: It does not.
    """
    if len(payload) > LONGEST:
        raise DecodeError(f"a record of {len(payload)} bytes is longer than {LONGEST}")


class Frame(NamedTuple):
    """A record whose checksums are right."""

    sequence: int
    offset: int
    size: int
    kind: int
    payload: memoryview

    def damage(self, reason: str) -> Damage:
        return Damage(self.offset, self.size, reason)


def read_frames(data: bytes) -> tuple[list[Frame], list[Damage]]:
    """The frames in their original order, each once, and what is between and missing."""
    for salt in _salts(data):
        found, damage = _scan(data, _seed(salt))
        if found:
            frames = [found[sequence] for sequence in sorted(found)]
            damage += _gaps(frames)
            if data[:PREAMBLE_SIZE] != MAGIC + _SALTS.pack(salt, salt, salt):
                damage.append(Damage(0, PREAMBLE_SIZE, "checksum"))
            return frames, damage
    return [], [Damage(0, len(data), _what_else(data))]


def salt_of(data: bytes, frame: Frame) -> int:
    """The salt of the file in which *frame* was found."""
    return next(s for s in _salts(data) if _genuine_head(data, frame.offset, _seed(s)))


def _salts(data: bytes) -> list[int]:
    """The salts that the file may have, the likeliest first: one flip leaves two of three."""
    if len(data) < PREAMBLE_SIZE:
        return []
    copies = Counter(_SALTS.unpack_from(data, len(MAGIC)))
    return [salt for salt, _ in copies.most_common()]


def _what_else(data: bytes) -> str:
    """What a file is that has not one readable record."""
    version = re.match(rb"hubmeter journal (\d+)\n", data)
    if not data:
        return "empty file"
    if version and int(version[1]) > 1:
        return f"format {int(version[1])}, written by a newer version of hubmeter"
    if data.startswith(MAGIC[: len(data)]) and len(data) < PREAMBLE_SIZE:
        return TORN
    if version and any(_tail(data, PREAMBLE_SIZE, _seed(salt)) == TORN for salt in _salts(data)):
        return TORN
    return "no readable record" if version else "not a journal of hubmeter"


def _scan(data: bytes, seed: int) -> tuple[dict[int, Frame], list[Damage]]:
    """
    Every frame with right checksums by sequence number, and the stretches between frames.

    Linear in time: a payload is looked at only if its head is genuine, and seldom twice.
    """
    found: dict[int, Frame] = {}
    damage = []
    tries: Counter[int] = Counter()
    position = good = PREAMBLE_SIZE
    while 0 <= position < len(data):
        frame = _frame_at(data, position, seed, tries)
        if frame is None:
            position = data.find(MARKER, position + 1)
            continue
        if good < position:
            damage.append(Damage(good, position - good, "checksum"))
        found.setdefault(frame.sequence, frame)
        position = good = position + frame.size
    if good < len(data):
        damage.append(Damage(good, len(data) - good, _tail(data, good, seed)))
    return found, damage


def _frame_at(data: bytes, position: int, seed: int, tries: Counter[int]) -> Frame | None:
    head = _genuine_head(data, position, seed)
    if head is None:
        return None
    length, sequence, kind, check, crc = head
    tries[sequence] += 1
    start = position + _FRAME.size
    payload = memoryview(data)[start : start + length]
    if len(payload) < length or tries[sequence] > _MOST_COPIES:
        return None
    if zlib.crc32(payload, check) != crc:
        return None
    return Frame(sequence, position, _FRAME.size + length, kind, payload)


def _genuine_head(data: bytes, position: int, seed: int) -> tuple[int, int, int, int, int] | None:
    """Length, sequence, type and checksums, if a frame of this file begins at *position*."""
    if len(data) - position < _FRAME.size:
        return None
    marker, length, sequence, kind, check, crc = _FRAME.unpack_from(data, position)
    checked = data[position + len(MARKER) : position + len(MARKER) + _CHECKED.size]
    if marker != MARKER or zlib.crc32(checked, seed) != check:
        return None
    return length, sequence, kind, check, crc


def _tail(data: bytes, position: int, seed: int) -> str:
    """Whether the last frame was never finished, or is broken."""
    head = _genuine_head(data, position, seed)
    if head is not None:
        return TORN if position + _FRAME.size + head[0] > len(data) else "checksum"
    rest = data[position : position + _FRAME.size]
    is_begun = MARKER.startswith(rest[: len(MARKER)]) and len(rest) < _FRAME.size
    return TORN if is_begun else "checksum"


def _gaps(frames: Iterable[Frame]) -> Iterator[Damage]:
    expected = 0
    for frame in frames:
        missing = frame.sequence - expected
        if missing:
            yield Damage(frame.offset, 0, f"{missing} missing before record {frame.sequence}")
        expected = frame.sequence + 1


def _seed(salt: int) -> int:
    """Where checksums begin; another format begins elsewhere, whatever its first line says."""
    return zlib.crc32(MAGIC, salt)
