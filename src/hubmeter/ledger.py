"""
The points of a run in memory, as packed columns. Not the rows: those are derived.

Batches of one layout are one :class:`Block`: eight bytes per value, times once
per collection where all points share one, start times only where they change.
Nothing is converted, dropped or merged here.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import NamedTuple, TypeAlias, TypeVar

from .batch import Distribution, Extra, PointBatch, SeriesLayout, Value, kinds_of

EXACT = 2**53
"""Integers below this magnitude survive in a float64, and so does their being below it."""

NO_VALUE = float("nan")

MOST_REMEMBERED = 10_000
"""Values: of wider batches nothing is remembered here, as it would be megabytes."""

GROUP = 64
"""So many batches wait for their blocks at most."""

VALUE_BYTES, SERIES_BYTES, RARE_BYTES = 8, 500, 1_000
"""About what each takes in memory; rare are distributions and exemplars."""

_Picker: TypeAlias = Callable[[Sequence[Value]], tuple[int, ...]]


class Packed(NamedTuple):
    """
    A batch as the ledger and the journal keep it: exact, in a few flat buffers.

    Attributes:
        times_unix_nano: One that all points share, or one per point.
        values: One per point; NaN stands where *special* holds the value.
        starts: Start times, one per point; empty where all are unknown.
        kinds: 1 per integer, 0 per other value.
        special: Position to what a float64 cannot hold: distributions, large integers,
            and None for "no recorded value".
        extras: Position to flags and exemplars.
        skipped: Reason to number of points that could not be decoded.
    """

    layout: SeriesLayout
    times_unix_nano: array[int]
    values: array[float]
    starts: array[int]
    kinds: bytes
    special: Mapping[int, Distribution | int | None]
    extras: Mapping[int, Extra]
    skipped: Mapping[str, int]

    @property
    def shares_time(self) -> bool:
        return len(self.times_unix_nano) == 1


def pack(batch: PointBatch) -> Packed:
    """
    Pack *batch* as a whole, or not at all.

    Raises:
        TypeError, OverflowError: A time or a value is no number that OTLP could send.
    """
    values = batch.values
    kinds = batch.kinds
    is_wide = len(values) > MOST_REMEMBERED
    if kinds is None:
        types = tuple(map(type, values))
        kinds = kinds_of.__wrapped__(types) if is_wide else kinds_of(types)
    picker = _picker.__wrapped__(kinds) if is_wide else _picker(kinds)
    floats, is_plain = _floats(values, picker)
    return Packed(
        batch.layout,
        array("Q", batch.times_unix_nano),
        floats,
        _starts(tuple(batch.start_times_unix_nano)),
        kinds,
        {} if is_plain else dict(_special(values)),
        batch.extras,
        batch.skipped,
    )


def only(packed: Packed, places: Sequence[int]) -> Packed:
    """*packed* with only the points at *places*."""
    layout, times, values, starts, kinds, special, extras, skipped = packed
    return Packed(
        SeriesLayout(tuple([layout.series[place] for place in places])),
        times if packed.shares_time else array("Q", [times[place] for place in places]),
        array("d", [values[place] for place in places]),
        array("Q", [starts[place] for place in places] if starts else ()),
        bytes([kinds[place] for place in places]),
        {n: special[place] for n, place in enumerate(places) if place in special},
        {n: extras[place] for n, place in enumerate(places) if place in extras},
        skipped,
    )


@dataclass(slots=True)
class Block:
    """
    Many batches of one layout.

    Attributes:
        batch_numbers: For each batch its place in the order of arrival.
        times_unix_nano: One per batch if *shares_time*, else one per point.
        values: Batches x series, float64; NaN stands where *special* holds the value.
        special: Index in *values* to what a float64 cannot hold: distributions, large
            integers, and None for "no recorded value".
        starts: Start times from that batch on, where they differ from the batch before.
        integers: Which values were integers, per batch where it differs likewise.
        extras: Index in *values* to flags and exemplars.
        is_torn: A batch was taken in part.
    """

    layout: SeriesLayout
    shares_time: bool
    batch_numbers: array[int] = field(default_factory=lambda: array("Q"))
    times_unix_nano: array[int] = field(default_factory=lambda: array("Q"))
    values: array[float] = field(default_factory=lambda: array("d"))
    special: dict[int, Distribution | int | None] = field(default_factory=dict)
    starts: list[tuple[int, array[int]]] = field(default_factory=list)
    integers: list[tuple[int, bytes]] = field(default_factory=list)
    extras: dict[int, Extra] = field(default_factory=dict)
    is_torn: bool = False

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.batch_numbers)

    def append(self, packed: Packed, number: int) -> None:
        """
        Take *packed*, which has this block's layout and way of telling time.

        Nothing in it can fail, but a signal handler may raise in the middle.
        """
        if self.is_torn:
            self._mend()
        self.is_torn = True
        first, place = len(self.values), len(self.batch_numbers)
        if not self.integers or self.integers[-1][1] != packed.kinds:
            self.integers.append((place, packed.kinds))
        if not self.starts or self.starts[-1][1] != packed.starts:
            self.starts.append((place, packed.starts))
        self.values.extend(packed.values)
        self.times_unix_nano.extend(packed.times_unix_nano)
        if packed.special:
            self.special.update({first + index: v for index, v in packed.special.items()})
        if packed.extras:
            self.extras.update({first + index: extra for index, extra in packed.extras.items()})
        self.batch_numbers.append(number)  # with it, the batch is there
        self.is_torn = False

    def _mend(self) -> None:
        """Drop the batch that was taken in part."""
        batches = len(self.batch_numbers)
        end = batches * len(self.layout.series)
        del self.values[end:]
        del self.times_unix_nano[batches if self.shares_time else end :]
        self.starts = [change for change in self.starts if change[0] < batches]
        self.integers = [change for change in self.integers if change[0] < batches]
        self.special = {index: value for index, value in self.special.items() if index < end}
        self.extras = {index: extra for index, extra in self.extras.items() if index < end}
        self.is_torn = False

    def copy(self) -> Block:
        """The batches so far; no reader holds a buffer that must grow."""
        if self.is_torn:
            self._mend()
        return Block(
            self.layout,
            self.shares_time,
            self.batch_numbers[:],
            self.times_unix_nano[:],
            self.values[:],
            dict(self.special),
            list(self.starts),
            list(self.integers),
            dict(self.extras),
        )

    def packed(self) -> Iterator[tuple[int, Packed]]:
        """The batches as they were taken, with their numbers."""
        width, step = len(self.layout.series), 1 if self.shares_time else len(self.layout.series)
        all_starts, all_kinds = dict(self.starts), dict(self.integers)
        starts, kinds = array("Q"), b""
        for place, number in enumerate(self.batch_numbers):
            starts, kinds = all_starts.get(place, starts), all_kinds.get(place, kinds)
            first = place * width
            yield (
                number,
                Packed(
                    self.layout,
                    self.times_unix_nano[place * step : (place + 1) * step],
                    self.values[first : first + width],
                    starts,
                    kinds,
                    _slice(self.special, first, width),
                    _slice(self.extras, first, width),
                    {},
                ),
            )

    def value(self, index: int, kinds: bytes) -> Value:
        """The value at *index*, exactly as it was sent; *kinds* are its batch's integers."""
        if index in self.special:
            return self.special[index]
        value = self.values[index]
        return int(value) if kinds[index % len(kinds)] else value


_Blocks: TypeAlias = dict[tuple[SeriesLayout, bool], Block]


class Ledger:
    """
    All blocks of a run, in order of first appearance. Not thread safe, except for reading.

    Batches wait for their blocks and are taken in groups: that finds the processor's caches
    warm, and a program that exports every few seconds does not pay for cold ones each time.

    Attributes:
        batches: Number of the next batch.
        points: How many points there are.
        skipped: Reason to number of points that decoders left out.
        size_bytes: About what it takes in memory, without the batches that wait.
    """

    def __init__(self, batches: int = 0) -> None:
        self.batches = batches
        self.points = 0
        self.skipped: Counter[str] = Counter()
        self._blocks: _Blocks = {}
        self._waiting: list[tuple[int, Packed]] = []
        self.size_bytes = 0
        self._bytes_beside_values = 0

    def append(self, packed: Packed) -> None:
        """Add the points of a batch."""
        if packed.skipped:
            self.skipped.update(packed.skipped)
        if not packed.values:
            return
        number = self.batches
        self.batches = number + 1  # first: a signal handler may raise, and no two may share one
        self._waiting.append((number, packed))
        self.points += len(packed.values)
        if len(self._waiting) >= GROUP:
            self._bytes_beside_values += _take(self._waiting, self._blocks)
            self._waiting = []
            self.size_bytes = VALUE_BYTES * self.points + self._bytes_beside_values

    def snapshot(self) -> Points:
        """A copy that does not change any more."""
        blocks = {key: block.copy() for key, block in self._blocks.items()}
        _take(self._waiting, blocks)
        return Points(tuple(blocks.values()), dict(self.skipped))

    def packed(self) -> list[Packed]:
        """All batches as they were taken, in order of arrival, then the counts of broken points."""
        numbered = chain.from_iterable(block.packed() for block in self.snapshot().blocks)
        batches = [packed for _, packed in sorted(numbered, key=itemgetter(0))]
        if self.skipped:
            nothing = PointBatch(
                layout=SeriesLayout(()), times_unix_nano=(), values=(), skipped=dict(self.skipped)
            )
            batches.append(pack(nothing))
        return batches


@dataclass(frozen=True, slots=True)
class Points:
    """Points at rest: what :mod:`hubmeter.flattening` reads."""

    blocks: tuple[Block, ...]
    skipped: Mapping[str, int]


def _take(waiting: Iterable[tuple[int, Packed]], blocks: _Blocks) -> int:
    """
    Add to *blocks* what is not there yet: the last time may have been interrupted.

    Returns:
        About the bytes that it takes, beside those of the values.
    """
    size_bytes = 0
    for number, packed in waiting:
        key = (packed.layout, packed.shares_time)
        block = blocks.get(key)
        if block is None:
            block = blocks[key] = Block(*key)
            size_bytes += sum(SERIES_BYTES + len(one.attributes) for one in packed.layout.series)
        if not block or block.batch_numbers[-1] < number:
            block.append(packed, number)
            if packed.special or packed.extras:
                size_bytes += RARE_BYTES * (len(packed.special) + len(packed.extras))
    return size_bytes


def gather(batches: Iterator[PointBatch]) -> Points:
    """Pack *batches*, which may be generated one by one."""
    ledger = Ledger()
    for batch in batches:
        ledger.append(pack(batch))
    return ledger.snapshot()


def _floats(values: Sequence[Value], integers_of: _Picker | None) -> tuple[array[float], bool]:
    """*values* as float64, and whether that says everything about them."""
    try:
        floats: array[float] = array("d", values)  # type: ignore[arg-type]
    except (TypeError, OverflowError):
        return array("d", map(_as_float, values)), False
    if integers_of is None:
        return floats, True
    integers = integers_of(values)
    return floats, min(integers) > -EXACT and max(integers) < EXACT


_T = TypeVar("_T")


def _slice(known: Mapping[int, _T], first: int, width: int) -> dict[int, _T]:
    """What is *known* of one batch, by place in it."""
    places = (place for place in range(width) if known and first + place in known)
    return {place: known[first + place] for place in places}


# A source repeats its start times and which values are integers, so both are looked at once.

_last_starts: tuple[tuple[int, ...], array[int]] = ((), array("Q"))


def _starts(starts: tuple[int, ...]) -> array[int]:
    global _last_starts  # noqa: PLW0603 - a memory of one; comparing is cheaper than hashing
    last = _last_starts
    if last[0] is not starts and last[0] != starts:
        last = _last_starts = (starts, array("Q", starts))
    return last[1]


@lru_cache(maxsize=256)
def _picker(kinds: bytes) -> _Picker | None:
    """Picks the integers; None if there are none."""
    places = [place for place, is_integer in enumerate(kinds) if is_integer]
    # Of a single place itemgetter would give no tuple.
    return itemgetter(*places, *places[:1]) if places else None


def _as_float(value: Value) -> float:
    if value is None or isinstance(value, Distribution):
        return NO_VALUE
    try:
        return float(value)
    except OverflowError:
        return NO_VALUE


def _special(values: Sequence[Value]) -> Iterator[tuple[int, Distribution | int | None]]:
    for index, value in enumerate(values):
        if isinstance(value, float) or (isinstance(value, int) and -EXACT < value < EXACT):
            continue
        yield index, value
