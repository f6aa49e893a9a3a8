"""
One stream per series: its points in order of time, each once. Pure.

Undoes the packing by batch, aligns the times of a request, drops what has no
time, and turns sums into totals that continue across restarts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .batch import NO_TIME, AttributesJson, Series
from .ledger import Block, Points
from .openings import SumEnd

Times: TypeAlias = NDArray[np.uint64]
Floats: TypeAlias = NDArray[np.float64]
Refs: TypeAlias = NDArray[np.int64]

BLOCK_STRIDE = 2**40
"""A point's reference is block number x stride + index of its value in the block."""

WIDEST_ALIGNMENT_NS = 1_000_000_000
"""Points of one request never join over more than this (DESIGN section 2)."""

_Found: TypeAlias = tuple[NDArray[Any], ...]
"""Columns of points: series, times, starts, bits of values, arrivals, references."""

DUPLICATE = "the same point twice, the last one counts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """
    All points of one series, in order of time.

    Attributes:
        times: Nanoseconds, strictly increasing; aligned within a request.
        values: NaN where the point holds no single number.
        starts: Start times in nanoseconds, 0 where unknown.
        refs: Where each point is in the blocks.
    """

    series: Series
    times: Times
    values: Floats
    starts: Times
    refs: Refs

    def where(self, keep: NDArray[np.bool_]) -> Stream:
        """The stream with only the points that *keep* marks."""
        return replace(
            self,
            times=self.times[keep],
            values=self.values[keep],
            starts=self.starts[keep],
            refs=self.refs[keep],
        )


@dataclass(frozen=True, slots=True)
class Directory:
    """
    Which series stand where.

    Attributes:
        series: All series, in order of first appearance.
        numbers: For each block the number of the series at each place of its layout.
    """

    series: list[Series]
    numbers: list[NDArray[np.int64]]


def directory_of(points: Points) -> Directory:
    """Number the series of *points*. Equal series have one number, whatever their layout."""
    by_series: dict[Series, int] = {}
    by_id: dict[int, int] = {}  # decoders hand out the same objects: hashing is for the others
    numbers = []
    for block in points.blocks:
        for series in block.layout.series:
            if id(series) not in by_id:
                by_id[id(series)] = by_series.setdefault(series, len(by_series))
        numbers.append(np.array([by_id[id(series)] for series in block.layout.series], np.int64))
    return Directory(list(by_series), numbers)


def streams_of(
    points: Points, directory: Directory, wanted: NDArray[np.bool_], counts: Counter[str]
) -> list[Stream]:
    """
    Sort the points of *wanted* series into streams, in order of first appearance.

    *wanted* says it for each series of *directory*; *counts* is told how many points
    were left out for which reason.
    """
    parts: dict[int, list[_Part]] = defaultdict(list)
    intervals = _intervals_ns(points, directory)
    for number, block in enumerate(points.blocks):
        places = _places(directory.numbers[number], wanted)
        for one, part in _parts(block, number, places, intervals):
            parts[one].append(part)
    return [_stream(directory.series[one], parts[one], counts) for one in sorted(parts)]


def refs_of(
    points: Points,
    directory: Directory,
    wanted: NDArray[np.bool_],
    counts: Counter[str],
    last_wins: NDArray[np.bool_],
) -> Refs:
    """
    References of the points of *wanted* series that have a time, each once.

    A point comes again if all is equal: two processes whose resources are equal, or a clock
    that knows milliseconds, may give two numbers one time. Of distributions, and of the series
    where *last_wins*, as in rows, the last one at a time counts.
    """
    found: list[_Found] = []
    for number, block in enumerate(points.blocks):
        places = np.flatnonzero(wanted[directory.numbers[number]])
        width = len(block.layout.series)
        firsts = np.arange(len(block), dtype=np.int64)[:, None] * width + number * BLOCK_STRIDE
        arrival = np.frombuffer(block.batch_numbers, dtype=np.uint64)
        values = np.frombuffer(block.values, dtype=np.uint64).reshape(-1, width)
        found.append(
            (
                np.tile(directory.numbers[number][places], len(block)),
                _columns(_times(block), places),
                _starts_at(_starts(block), places, len(block)),
                values[:, places].ravel(),
                np.repeat(arrival, places.size),
                (firsts + places).ravel(),
            )
        )
    owners, times, starts, values, arrivals, refs = map(np.concatenate, zip(*found, strict=True))
    starts, values = (np.where(last_wins[owners], 0, said) for said in (starts, values))
    order = np.lexsort((arrivals, values, starts, times, owners))
    order = order[times[order] > 0]
    is_last = np.zeros(order.size, dtype=bool)
    is_last[-1:] = True
    for said in (owners, times, starts, values):
        is_last[:-1] |= said[order[1:]] != said[order[:-1]]
    counts[NO_TIME] += times.size - order.size
    counts[DUPLICATE] += int((~is_last).sum())
    kept = order[is_last]
    return np.asarray(refs[kept[np.lexsort((arrivals[kept], times[kept], owners[kept]))]])


def is_delta(series: Series) -> bool:
    """Whether the points of *series* tell what was added, not what there is."""
    return series.kind == "sum" and series.temporality == "delta"


def without_points(series: Series) -> Stream:
    """The stream of a series that is silent."""
    times = np.empty(0, dtype=np.uint64)
    refs = np.empty(0, dtype=np.int64)
    return Stream(series=series, times=times, values=np.empty(0), starts=times, refs=refs)


def totals(stream: Stream, *, since_boot: bool, end: SumEnd | None = None) -> Floats:
    """
    What a sum has grown to at each point.

    Delta points add up. A monotonic counter that restarts continues from where it
    was: its value fell, or it says that it started after the point before. A
    *since_boot* counter had a life before the run and counts from its first value.
    Where the run began in an earlier part, *end* is how that part ended.
    """
    series, values = stream.series, stream.values
    if is_delta(series):
        first = [] if end is None else [end.total]
        return np.cumsum(np.concatenate([first, values]))[len(first) :]
    if series.kind == "sum" and series.is_monotonic is False:
        return values
    if end is None:
        grown = _continued(values, stream.starts, stream.times)
        return grown - values[:1] if since_boot else grown
    # A point that comes late is older than the end: it must not look like a restart.
    at = int(np.searchsorted(stream.times, np.uint64(end.time_unix_nano), side="right"))
    grown = _continued(
        np.insert(values, at, end.value),
        np.insert(stream.starts, at, np.uint64(end.start_unix_nano)),
        np.insert(stream.times, at, np.uint64(end.time_unix_nano)),
    )
    return np.delete(grown + (end.total - grown[at]), at)


def _continued(values: Floats, starts: Times, times: Times) -> Floats:
    """*values* of a counter as if it had never restarted."""
    fell = values[1:] < values[:-1]
    restarted = (starts[1:] != starts[:-1]) & (starts[1:] >= times[:-1])
    resets = fell | restarted
    result = values.copy()
    if resets.any():
        result[1:] += np.cumsum(np.where(resets, values[:-1], 0.0))
    return result


def end_of(stream: Stream, grown: Floats, end: SumEnd | None) -> SumEnd:
    """How *stream*, which has points, ends: *grown* are its totals, *end* is an earlier part's."""
    last = SumEnd(
        total=float(grown[-1]),
        value=float(stream.values[-1]),
        start_unix_nano=int(stream.starts[-1]),
        time_unix_nano=int(stream.times[-1]),
    )
    if end is None or is_delta(stream.series) or last.time_unix_nano > end.time_unix_nano:
        return last
    return end  # all points came late


@dataclass(frozen=True, slots=True)
class _Part:
    """Points of one series in one block. *times* as sent, *aligned* with their neighbours."""

    times: Times
    aligned: Times
    values: Floats
    starts: Times
    refs: Refs
    arrival: NDArray[np.uint64]


def _parts(
    block: Block,
    number: int,
    places_by_series: Mapping[int, NDArray[np.int64]],
    intervals: Mapping[AttributesJson, int],
) -> Iterator[tuple[int, _Part]]:
    if not places_by_series:
        return
    width = len(block.layout.series)
    times = _times(block)
    aligned = times if block.shares_time else _aligned(times, block, intervals)
    values = np.frombuffer(block.values, dtype=np.float64).reshape(-1, width)
    refs = np.arange(values.size, dtype=np.int64).reshape(-1, width) + number * BLOCK_STRIDE
    arrival = np.frombuffer(block.batch_numbers, dtype=np.uint64)
    starts = _starts(block)
    for one, places in places_by_series.items():
        own_times = _columns(times, places)
        yield (
            one,
            _Part(
                times=own_times,
                aligned=own_times if aligned is times else _columns(aligned, places),
                values=values[:, places].ravel(),
                starts=_starts_at(starts, places, len(block)),
                refs=refs[:, places].ravel(),
                arrival=np.repeat(arrival, len(places)),
            ),
        )


def _times(block: Block) -> Times:
    """Batches x points, or batches x 1 where the points of a batch share their time."""
    return np.frombuffer(block.times_unix_nano, dtype=np.uint64).reshape(len(block), -1)


def _columns(times: Times, places: NDArray[np.int64]) -> Times:
    return np.repeat(times, len(places)) if times.shape[1] == 1 else times[:, places].ravel()


def _places(numbers: NDArray[np.int64], wanted: NDArray[np.bool_]) -> dict[int, NDArray[np.int64]]:
    """Number of each wanted series to its places in the layout."""
    places = np.flatnonzero(wanted[numbers])
    places = places[np.argsort(numbers[places], kind="stable")]
    own = numbers[places]
    cuts = np.flatnonzero(own[1:] != own[:-1]) + 1
    parts = np.split(places, cuts) if places.size else []
    return {int(numbers[part[0]]): part for part in parts}


def _starts(block: Block) -> list[tuple[int, int, Times]]:
    """Runs of batches with the same start times: first batch, end, times."""
    ends = [first for first, _ in block.starts[1:]] + [len(block)]
    width = len(block.layout.series)
    return [
        (first, end, np.array(starts or (0,) * width, dtype=np.uint64))
        for (first, starts), end in zip(block.starts, ends, strict=True)
    ]


def _starts_at(
    runs: list[tuple[int, int, Times]], places: NDArray[np.int64], batches: int
) -> Times:
    result = np.empty((batches, len(places)), dtype=np.uint64)
    for first, end, starts in runs:
        result[first:end] = starts[places]
    return result.ravel()


def _stream(series: Series, parts: list[_Part], counts: Counter[str]) -> Stream:
    times = _joined([part.times for part in parts])
    kept = _kept(times, _joined([part.arrival for part in parts]), counts)
    return Stream(
        series=series,
        times=_settled(times[kept], _joined([part.aligned for part in parts])[kept]),
        values=_joined([part.values for part in parts])[kept],
        starts=_joined([part.starts for part in parts])[kept],
        refs=_joined([part.refs for part in parts])[kept],
    )


def _kept(times: Times, arrival: NDArray[np.uint64], counts: Counter[str]) -> Any:
    """Places in order of time, of points that have one; of equal times the last arrival."""
    if times[0] and (times[1:] > times[:-1]).all():
        return slice(None)
    order = np.lexsort((arrival, times))
    order = order[times[order] > 0]
    is_last = np.ones(order.size, dtype=bool)
    is_last[:-1] = times[order[1:]] != times[order[:-1]]
    counts[NO_TIME] += times.size - order.size
    counts[DUPLICATE] += int((~is_last).sum())
    return order[is_last]


def _settled(times: Times, aligned: Times) -> Times:
    """*aligned*, but where that would pass the point before: two points stay two."""
    return np.concatenate([aligned[:1], np.where(aligned[1:] > times[:-1], aligned[1:], times[1:])])


def _joined(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _aligned(times: Times, block: Block, intervals: Mapping[AttributesJson, int]) -> Times:
    """*times* of the block with those of each request and resource aligned."""
    aligned = times.copy()
    by_resource: dict[AttributesJson, list[int]] = defaultdict(list)
    for place, series in enumerate(block.layout.series):
        by_resource[series.resource].append(place)
    for resource, places in by_resource.items():
        window = min(WIDEST_ALIGNMENT_NS, intervals.get(resource, 2 * WIDEST_ALIGNMENT_NS) // 2)
        owners = [block.layout.series[place] for place in places]
        own = times[:, places]
        for batch in np.flatnonzero(own.min(axis=1) != own.max(axis=1)):
            aligned[batch, places] = _align(own[batch].tolist(), owners, window)
    return aligned


def _align(times: list[int], owners: list[Series], window_ns: int) -> list[int]:
    """
    Give points within *window_ns* the earliest of their times.

    Two points of one series are two instants, however close they are.
    """
    result = list(times)
    group_start = 0
    group: dict[Series, int] = {}
    for place in sorted(range(len(times)), key=times.__getitem__):
        time, owner = times[place], owners[place]
        if not group_start or time - group_start > window_ns or group.get(owner, time) != time:
            group_start, group = time, {}
        group[owner] = time
        result[place] = group_start
    return result


def _intervals_ns(points: Points, directory: Directory) -> Mapping[AttributesJson, int]:
    """The shortest typical interval between two points of a series, by resource."""
    if all(block.shares_time for block in points.blocks):
        return {}  # nobody asks
    seen: dict[int, list[Times]] = defaultdict(list)
    everything = np.ones(len(directory.series), dtype=bool)
    for block, numbers in zip(points.blocks, directory.numbers, strict=True):
        times = _times(block)
        for one, places in _places(numbers, everything).items():
            seen[one].append(_columns(times, places))
    intervals: dict[AttributesJson, int] = {}
    for one, parts in seen.items():
        times = np.unique(np.concatenate(parts))
        gaps = np.diff(times[times > 0])
        if gaps.size:
            resource, typical = directory.series[one].resource, int(np.median(gaps))
            intervals[resource] = min(typical, intervals.get(resource, typical))
    return intervals
