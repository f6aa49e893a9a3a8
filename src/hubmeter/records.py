"""
What the frames of a journal say: notes, layouts and batches. No files here.

::

    note   = JSON of [kind, value]                                            written twice
    layout = zlib of JSON, as layout_records has it                           written twice
    batch  = layout u32  values u32  times u32  flags u8  times u64*  values f64*
             [n u32, starts u64*]  [kinds u8*]  [JSON of what few batches have]

Numbers are little endian. Start times and kinds (which values are integers) are in a
batch only where they differ from what its layout says.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import islice
from operator import attrgetter, is_
from typing import Any

from .batch import Distribution, Extra, Series, SeriesLayout
from .frames import TORN, Damage, Frame, Framer, check_length, read_frames
from .layout_records import Announced, Known, announced, read_layout
from .ledger import EXACT, Packed

__all__ = ["TORN", "Contents", "Damage", "Encoder", "decode"]

NOTE, LAYOUT, BATCH = 1, 2, 3
NO_LAYOUT = 2**32 - 1
"""Stands for the layout of a batch without values."""
_BATCH = struct.Struct("<IIIB")
_COUNT = struct.Struct("<I")
_HAS_STARTS, _HAS_KINDS, _HAS_RARE = 1, 2, 4

AT_A_TIME = 1000
"""Values that become JSON together."""

_DISTRIBUTION_FIELDS = tuple(one.name for one in fields(Distribution))
_distribution_values = attrgetter(*_DISTRIBUTION_FIELDS)

# What a record with a valid checksum can raise if another version wrote it.
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError,
              struct.error, zlib.error)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Contents:
    """
    What could be read of a journal.

    Attributes:
        notes: Kind to value, the last one of each kind; those of kind "rejected" are summed up.
        batches: In the order in which they were written.
        damage: In the order of the file.
        points: How many there are in *batches*.
    """

    notes: Mapping[str, Any]
    batches: list[Packed]
    damage: tuple[Damage, ...]
    points: int


_UNKNOWN = Known(NO_LAYOUT, SeriesLayout(()), array("Q"), b"")


class Encoder:
    """
    Makes the records of one journal file, in order; remembers which layouts it has.

    What it returns must be written, all of it and in this order, and :meth:`confirm` called
    then: an interrupt in between must not make it believe that a layout is in the file.
    Not thread safe.

    Args:
        salt: 32 random bits.

    Attributes:
        layout_bytes: About how much memory it takes to remember them.
    """

    def __init__(self, salt: int) -> None:
        self.layout_bytes = 0
        self._framer = Framer(salt)
        self._layouts: dict[SeriesLayout, Known] = {}
        self._series: dict[Series, int] = {}
        self._announced: Announced | None = None

    @property
    def preamble(self) -> bytes:
        """The first bytes of the file."""
        return self._framer.preamble

    def note(self, kind: str, value: Any) -> bytes:
        """
        Two copies of a note, of which one may break.

        Raises:
            TypeError, ValueError: *value* is no JSON.
        """
        return self._framer.frame(NOTE, _json([kind, value])) * 2

    def batch(self, packed: Packed) -> bytes:
        """
        The record of a batch, after two copies of its layout if the file has it not yet.

        Raises:
            TypeError, ValueError: Something in it is no OTLP value, or it is too long for a
                record; nothing was encoded.
        """
        known = self._layouts.get(packed.layout)
        if known is not None:
            return self._framer.frame(BATCH, _batch_payload(packed, known))
        if not packed.values:
            return self._framer.frame(BATCH, _batch_payload(packed, _UNKNOWN))
        return self._first(packed)

    def _first(self, packed: Packed) -> bytes:
        """The first batch of a layout. Nothing is remembered until it is confirmed."""
        known = Known(len(self._layouts), packed.layout, packed.starts, packed.kinds)
        one = announced(known, self._series)
        batch = _batch_payload(packed, known)
        check_length(one.payload)
        check_length(batch)
        frames = self._framer.frame(LAYOUT, one.payload) * 2 + self._framer.frame(BATCH, batch)
        self._announced = one
        return frames

    def has(self, layout: SeriesLayout) -> bool:
        """Whether the file has *layout*."""
        return layout in self._layouts

    def confirm(self) -> None:
        """What was returned last is in the file, or will be before anything else."""
        if self._announced is not None:
            known, new, _, size_bytes = self._announced
            self._layouts[known.layout] = known
            self._series.update(new)
            self.layout_bytes += size_bytes
            self._announced = None


def decode(data: bytes, *, only_notes: bool = False) -> Contents:
    """
    All that can be read of *data*, the bytes of a journal file, whatever they are.

    Without *only_notes* it may take much more memory than *data*.
    """
    frames, damage = read_frames(data)
    reader = _Reader(damage)
    for frame in frames:
        if frame.kind == NOTE or not only_notes:
            reader.read(frame)
    reader.damage.sort(key=lambda one: one.offset)
    notes = reader.notes | ({"rejected": dict(reader.rejected)} if reader.rejected else {})
    return Contents(notes, reader.batches, tuple(reader.damage), reader.points)


@dataclass(slots=True)
class _Reader:
    """Turns frames back into batches; every layout and every series is one object."""

    damage: list[Damage]
    batches: list[Packed] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    points: int = 0
    _layouts: dict[int, Known] = field(default_factory=lambda: {NO_LAYOUT: _UNKNOWN})
    _series: dict[int, Series] = field(default_factory=dict)

    def read(self, frame: Frame) -> None:
        try:
            match frame.kind:
                case 1:
                    self._note(frame)
                case 2:
                    self._layout(frame)
                case 3:
                    self._batch(frame)
                case kind:
                    reason = f"unknown record type {kind} (written by a newer version?)"
                    self.damage.append(frame.damage(reason))
        except _MALFORMED as error:
            reason = f"unreadable record of type {frame.kind}: {type(error).__name__}: {error}"
            self.damage.append(frame.damage(reason))

    def _note(self, frame: Frame) -> None:
        kind, value = json.loads(bytes(frame.payload))
        if kind == "rejected":
            self.rejected.update({str(reason): int(count) for reason, count in value.items()})
        else:
            self.notes[kind] = value

    def _layout(self, frame: Frame) -> None:
        known = read_layout(frame.payload, self._series)
        self._layouts[known.number] = known

    def _batch(self, frame: Frame) -> None:
        number, _, _, _ = _BATCH.unpack_from(frame.payload)
        known = self._layouts.get(number)
        if known is None:
            self.damage.append(frame.damage("batch of a lost layout"))
            return
        packed = _packed(frame.payload, known)
        if not _fits(packed):
            raise ValueError("it does not fit its layout")
        self.batches.append(packed)
        self.points += len(packed.values)


def _fits(packed: Packed) -> bool:
    width = len(packed.layout.series)
    return (
        len(packed.values) == len(packed.kinds) == width
        and len(packed.times_unix_nano) in {1, width}
        and len(packed.starts) in {0, width}
    )


def _batch_payload(packed: Packed, known: Known) -> bytes:
    _, times, values, starts, kinds, special, extras, skipped = packed
    is_usual = starts is known.starts or starts == known.starts
    if is_usual and kinds == known.kinds and not (special or extras or skipped):
        head = _BATCH.pack(known.number, len(values), len(times), 0)
        return b"".join((head, _bytes(times), _bytes(values)))
    flags, rest = 0, b""
    if not is_usual:
        flags, rest = _HAS_STARTS, _COUNT.pack(len(starts)) + _bytes(starts)
    if kinds != known.kinds:
        flags, rest = flags | _HAS_KINDS, rest + kinds
    if special or extras or skipped:
        flags, rest = flags | _HAS_RARE, rest + _rare_payload(packed)
    head = _BATCH.pack(known.number, len(values), len(times), flags)
    return head + _bytes(times) + _bytes(values) + rest


def _rare_payload(packed: Packed) -> bytes:
    special = _listed([place, _special_json(one)] for place, one in packed.special.items())
    extras = _listed(
        [place, _exact(extra.flags), extra.exemplars] for place, extra in packed.extras.items()
    )
    skipped = _json(packed.skipped)
    return b'{"special":[%b],"extras":[%b],"skipped":%b}' % (special, extras, skipped)


def _listed(items: Iterable[Any]) -> bytes:
    """The items of a JSON list, some at a time: until they are text they take much memory."""
    rest = iter(items)
    return b",".join(iter(lambda: _json(list(islice(rest, AT_A_TIME)))[1:-1], b""))


def _packed(payload: memoryview, known: Known) -> Packed:
    """
    The batch in *payload*.

    Raises:
        ValueError: The parts do not fill the payload.
    """
    _, n_values, n_times, flags = _BATCH.unpack_from(payload)
    cut = _Cutter(payload, _BATCH.size)
    times, values = cut.array("Q", n_times), cut.array("d", n_values)
    starts = cut.array("Q", cut.count()) if flags & _HAS_STARTS else known.starts
    kinds = bytes(cut.take(n_values)) if flags & _HAS_KINDS else known.kinds
    rare = json.loads(bytes(cut.rest())) if flags & _HAS_RARE else None
    if cut.rest():
        raise ValueError("bytes left over")
    if rare is None:
        return Packed(known.layout, times, values, starts, kinds, {}, {}, {})
    special = {index: _restored_special(value) for index, value in rare["special"]}
    extras = {
        index: Extra(flags=_restored(bits), exemplars=exemplars)
        for index, bits, exemplars in rare["extras"]
    }
    return Packed(known.layout, times, values, starts, kinds, special, extras, rare["skipped"])


@dataclass(slots=True)
class _Cutter:
    """Takes a payload apart from front to back."""

    payload: memoryview
    position: int

    def take(self, size: int) -> memoryview:
        piece = self.payload[self.position : self.position + size]
        if len(piece) != size:
            raise ValueError("too short")
        self.position += size
        return piece

    def array(self, code: str, length: int) -> array[Any]:
        numbers = array(code)
        numbers.frombytes(self.take(length * numbers.itemsize))
        return _little(numbers)

    def count(self) -> int:
        return int(_COUNT.unpack(self.take(_COUNT.size))[0])

    def rest(self) -> memoryview:
        return self.take(len(self.payload) - self.position)


def _special_json(value: Distribution | int | None) -> Any:
    if not isinstance(value, Distribution):
        return _exact(value)
    held = zip(_DISTRIBUTION_FIELDS, _distribution_values(value), strict=True)
    return {name: _exact(one) for name, one in held if one is not None}


def _restored_special(value: Any) -> Distribution | int | None:
    if isinstance(value, dict):
        return Distribution(**{name: _restored(one) for name, one in value.items()})
    return _restored(value)  # type: ignore[no-any-return]


def _exact(value: Any) -> Any:
    """What JSON does not keep, as text: bits of NaN, integers that have too many digits for it."""
    match value:
        case tuple() | list():
            made = [_exact(one) for one in value]
            return value if all(map(is_, made, value)) else made  # thousands of small ones
        case float() if value != value:  # noqa: PLR0124 - it is how NaN is told
            return f"nan:{struct.pack('<d', value).hex()}"
        case int() if not -EXACT < value < EXACT:
            return f"int:{value:x}"
    return value


def _restored(value: Any) -> Any:
    match value:
        case list():
            return tuple(map(_restored, value))
        case str() if value.startswith("nan:"):
            return struct.unpack("<d", bytes.fromhex(value[4:]))[0]
        case str():
            return int(value.removeprefix("int:"), 16)
    return value


# Escapes keep lone surrogates; `float` takes numbers of other libraries.
_encoded = json.JSONEncoder(separators=(",", ":"), default=float).encode


def _json(value: Any) -> bytes:
    return _encoded(value).encode()


def _little(numbers: array[Any], byte_order: str = sys.byteorder) -> array[Any]:
    """Between this machine's order of bytes and the file's."""
    if byte_order == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers


def _bytes_anywhere(numbers: array[Any]) -> bytes:
    return _little(numbers).tobytes()


_bytes = array.tobytes if sys.byteorder == "little" else _bytes_anywhere
