"""
The points of a run in memory, as packed columns. Not the rows: those are derived.

Batches of one layout are one :class:`Block`: eight bytes per value, times once
per collection where all points share one, start times only where they change.
Nothing is converted, dropped or merged here.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .batch import Distribution, Extra, PointBatch, SeriesLayout, Value

EXACT = 2**53
"""Integers below this magnitude survive in a float64, and so does their being below it."""

NO_VALUE = float("nan")


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

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.batch_numbers)

    def append(self, batch: PointBatch, number: int) -> None:
        """Take *batch*, which has this block's layout and way of telling time."""
        times = array("Q", batch.times_unix_nano)
        starts = array("Q", batch.start_times_unix_nano)
        kinds = bytes([value.__class__ is int for value in batch.values])
        values, is_plain = _packed(batch.values, any_integer=any(kinds))
        first, place = len(self.values), len(self.batch_numbers)
        # Nothing below can fail: a batch is taken as a whole, or not at all.
        if not self.integers or self.integers[-1][1] != kinds:
            self.integers.append((place, kinds))
        if not self.starts or self.starts[-1][1] != starts:
            self.starts.append((place, starts))
        if not is_plain:
            self.special.update(_special(batch.values, first))
        self.values.extend(values)
        self.times_unix_nano.extend(times)
        self.batch_numbers.append(number)
        if batch.extras:
            self.extras.update({first + index: extra for index, extra in batch.extras.items()})

    def copy(self, before: int) -> Block:
        """The batches numbered below *before*; no reader holds a buffer that must grow."""
        batches = bisect_left(self.batch_numbers, before)
        width = len(self.layout.series)
        end = batches * width
        return Block(
            self.layout,
            self.shares_time,
            self.batch_numbers[:batches],
            self.times_unix_nano[: batches if self.shares_time else end],
            self.values[:end],
            {index: value for index, value in self.special.items() if index < end},
            [change for change in self.starts if change[0] < batches],
            [change for change in self.integers if change[0] < batches],
            {index: extra for index, extra in self.extras.items() if index < end},
        )

    def times_since(self, number: int) -> array[int]:
        """Times in the batches numbered *number* and above."""
        batches = bisect_left(self.batch_numbers, number)
        return self.times_unix_nano[
            batches if self.shares_time else batches * len(self.layout.series) :
        ]

    def value(self, index: int, kinds: bytes) -> Value:
        """The value at *index*, exactly as it was sent; *kinds* are its batch's integers."""
        if index in self.special:
            return self.special[index]
        value = self.values[index]
        return int(value) if kinds[index % len(kinds)] else value


class Ledger:
    """
    All blocks of a run, in order of first appearance. Not thread safe.

    Attributes:
        batches: How many batches there are.
        skipped: Reason to number of points that decoders left out.
    """

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self._blocks: dict[tuple[SeriesLayout, bool], Block] = {}
        self.batches = 0

    def append(self, batch: PointBatch) -> None:
        """Add the points of *batch*."""
        if batch.skipped:
            self.skipped.update(batch.skipped)
        if not batch.values:
            return
        shares_time = len(batch.times_unix_nano) == 1
        key = (batch.layout, shares_time)
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = Block(*key)
        block.append(batch, self.batches)
        self.batches += 1

    def snapshot(self, before: int | None = None) -> Points:
        """A copy that does not change any more; of all batches, or of the first *before*."""
        end = self.batches if before is None else before
        copies = (block.copy(end) for block in self._blocks.values())
        return Points(tuple(block for block in copies if len(block)), dict(self.skipped))


@dataclass(frozen=True, slots=True)
class Points:
    """Points at rest: what :mod:`hubmeter.flattening` reads."""

    blocks: tuple[Block, ...]
    skipped: Mapping[str, int]


def gather(batches: Iterator[PointBatch]) -> Points:
    """Pack *batches*, which may be generated one by one."""
    ledger = Ledger()
    for batch in batches:
        ledger.append(batch)
    return ledger.snapshot()


def _packed(values: Sequence[Value], *, any_integer: bool) -> tuple[array[float], bool]:
    """*values* as float64, and whether that says everything about them."""
    try:
        packed: array[float] = array("d", values)  # type: ignore[arg-type]
    except (TypeError, OverflowError):
        return array("d", map(_as_float, values)), False
    # A NaN may make this False where it need not be; then a closer look follows.
    return packed, not any_integer or (min(values) > -EXACT and max(values) < EXACT)  # type: ignore[type-var,operator]


def _as_float(value: Value) -> float:
    if value is None or isinstance(value, Distribution):
        return NO_VALUE
    try:
        return float(value)
    except OverflowError:
        return NO_VALUE


def _special(
    values: Sequence[Value], first: int
) -> Iterator[tuple[int, Distribution | int | None]]:
    for index, value in enumerate(values, first):
        if isinstance(value, float) or (isinstance(value, int) and -EXACT < value < EXACT):
            continue
        yield index, value
