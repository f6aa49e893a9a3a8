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

from .batch import AttributesJson, Series
from .ledger import Block, Points

Times: TypeAlias = NDArray[np.uint64]
Floats: TypeAlias = NDArray[np.float64]
Refs: TypeAlias = NDArray[np.int64]

BLOCK_STRIDE = 2**40
"""A point's reference is block number x stride + index of its value in the block."""

WIDEST_ALIGNMENT_NS = 1_000_000_000
"""Points of one request never join over more than this (DESIGN section 2)."""

DUPLICATE = "the same point twice, the last one counts"
NO_TIME = "a point has no timestamp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """
    All points of one series, in order of time.

    Attributes:
        times: Nanoseconds, strictly increasing; aligned within a request.
        values: NaN where the point holds no single number.
        starts: Start times in nanoseconds, 0 where unknown.
        refs: Where each point is in the blocks.
        first_seen: Place of the series among all series.
    """

    series: Series
    times: Times
    values: Floats
    starts: Times
    refs: Refs
    first_seen: int

    def where(self, keep: NDArray[np.bool_]) -> Stream:
        """The stream with only the points that *keep* marks."""
        return replace(
            self,
            times=self.times[keep],
            values=self.values[keep],
            starts=self.starts[keep],
            refs=self.refs[keep],
        )


def streams_of(points: Points) -> tuple[list[Stream], Counter[str]]:
    """
    Sort *points* into streams.

    Returns:
        The streams in order of first appearance, and how many points were left
        out for which reason.
    """
    parts: dict[Series, list[_Part]] = defaultdict(list)
    intervals = _intervals_ns(points)
    for number, block in enumerate(points.blocks):
        times = _aligned(block, intervals)
        for series, part in _parts(block, number, times):
            parts[series].append(part)
    counts: Counter[str] = Counter()
    streams = [
        _stream(series, series_parts, place, counts)
        for place, (series, series_parts) in enumerate(parts.items())
    ]
    return streams, counts


def totals(stream: Stream, *, since_boot: bool) -> Floats:
    """
    What a sum has grown to at each point.

    Delta points add up. A monotonic counter that restarts continues from where it
    was: its value fell, or it says that it started after the point before. A
    *since_boot* counter had a life before the run and counts from its first value.
    """
    series, values = stream.series, stream.values
    if series.kind == "sum" and series.temporality == "delta":
        return np.cumsum(values)
    if series.kind == "sum" and series.is_monotonic is False:
        return values
    fell = values[1:] < values[:-1]
    restarted = (stream.starts[1:] != stream.starts[:-1]) & (stream.starts[1:] >= stream.times[:-1])
    resets = fell | restarted
    result = values.copy()
    if resets.any():
        result[1:] += np.cumsum(np.where(resets, values[:-1], 0.0))
    return result - values[0] if since_boot else result


@dataclass(frozen=True, slots=True)
class _Part:
    times: Times
    values: Floats
    starts: Times
    refs: Refs
    arrival: NDArray[np.uint64]


def _parts(block: Block, number: int, times: Times) -> Iterator[tuple[Series, _Part]]:
    width = len(block.layout.series)
    values = np.frombuffer(block.values, dtype=np.float64).reshape(-1, width)
    refs = np.arange(values.size, dtype=np.int64).reshape(-1, width) + number * BLOCK_STRIDE
    arrival = np.frombuffer(block.batch_numbers, dtype=np.uint64)
    starts = _starts(block)
    for series, places in _places(block).items():
        yield series, _Part(
            times=times[:, places].ravel() if times.shape[1] > 1 else np.repeat(times, len(places)),
            values=values[:, places].ravel(),
            starts=_starts_at(starts, places, len(block)),
            refs=refs[:, places].ravel(),
            arrival=np.repeat(arrival, len(places)),
        )


def _places(block: Block) -> Mapping[Series, list[int]]:
    places: dict[Series, list[int]] = defaultdict(list)
    for place, series in enumerate(block.layout.series):
        places[series].append(place)
    return places


def _starts(block: Block) -> list[tuple[int, int, Times]]:
    """Runs of batches with the same start times: first batch, end, times."""
    ends = [first for first, _ in block.starts[1:]] + [len(block)]
    width = len(block.layout.series)
    return [
        (first, end, np.array(starts if starts else (0,) * width, dtype=np.uint64))
        for (first, starts), end in zip(block.starts, ends, strict=True)
    ]


def _starts_at(runs: list[tuple[int, int, Times]], places: list[int], batches: int) -> Times:
    result = np.empty((batches, len(places)), dtype=np.uint64)
    for first, end, starts in runs:
        result[first:end] = starts[places]
    return result.ravel()


def _stream(series: Series, parts: list[_Part], place: int, counts: Counter[str]) -> Stream:
    stream = Stream(
        series=series,
        times=_joined([part.times for part in parts]),
        values=_joined([part.values for part in parts]),
        starts=_joined([part.starts for part in parts]),
        refs=_joined([part.refs for part in parts]),
        first_seen=place,
    )
    if (stream.times == 0).any():
        counts[NO_TIME] += int((stream.times == 0).sum())
        keep = stream.times != 0
        arrival = _joined([part.arrival for part in parts])[keep]
        stream = stream.where(keep)
    else:
        arrival = _joined([part.arrival for part in parts])
    if (stream.times[1:] > stream.times[:-1]).all():
        return stream
    order: Any = np.lexsort((arrival, stream.times))
    stream = stream.where(order)
    last = np.append(stream.times[1:] != stream.times[:-1], values=True)
    counts[DUPLICATE] += int((~last).sum())
    return stream.where(last)


def _joined(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _aligned(block: Block, intervals: Mapping[AttributesJson, int]) -> Times:
    """Times of the block, batches x 1 or batches x points, aligned request by request."""
    times = np.frombuffer(block.times_unix_nano, dtype=np.uint64)
    if block.shares_time:
        return times.reshape(-1, 1)
    width = len(block.layout.series)
    times = times.reshape(-1, width).copy()
    by_resource: dict[AttributesJson, list[int]] = defaultdict(list)
    for place, series in enumerate(block.layout.series):
        by_resource[series.resource].append(place)
    for resource, places in by_resource.items():
        window = min(WIDEST_ALIGNMENT_NS, intervals.get(resource, 2 * WIDEST_ALIGNMENT_NS) // 2)
        owners = [block.layout.series[place] for place in places]
        for row in times:
            row[places] = _align(row[places].tolist(), owners, window)
    return times


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
        if time - group_start > window_ns or group.get(owner, time) != time:
            group_start, group = time, {}
        group[owner] = time
        result[place] = group_start
    return result


def _intervals_ns(points: Points) -> Mapping[AttributesJson, int]:
    """The shortest typical interval between two points of a series, by resource."""
    seen: dict[Series, list[NDArray[np.uint64]]] = defaultdict(list)
    for block in points.blocks:
        if block.shares_time:
            continue
        times = np.frombuffer(block.times_unix_nano, np.uint64).reshape(len(block), -1)
        for series, places in _places(block).items():
            seen[series].append(times[:, places].ravel())
    intervals: dict[AttributesJson, int] = {}
    for series, parts in seen.items():
        gaps = np.diff(np.unique(np.concatenate(parts)))
        if gaps.size:
            typical = int(np.median(gaps))
            intervals[series.resource] = min(typical, intervals.get(series.resource, typical))
    return intervals
