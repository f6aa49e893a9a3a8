"""
The ``points`` config: complete data points that have no column in the rows. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .batch import Distribution, Extra, Series
from .ledger import Block, Points
from .streams import BLOCK_STRIDE, Floats, Refs, Times, directory_of

INT64_LIMIT = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class PointRows:
    """
    Data points as columns, in order of time.

    Attributes:
        series: Distinct series; *series_of_row* points into them.
        start_times: 0 where unknown.
        values: Numbers; not valid where *is_number* is False.
        integers: The same, exact, where *is_integer* is True.
        distributions: Row to value, of histograms and summaries.
        extras: Row to flags and exemplars, where there are any.
    """

    series: list[Series]
    series_of_row: NDArray[np.int64]
    times: Times
    start_times: Times
    values: Floats
    is_number: NDArray[np.bool_]
    integers: NDArray[np.int64]
    is_integer: NDArray[np.bool_]
    distributions: Mapping[int, Distribution]
    extras: Mapping[int, Extra]


def point_rows(points: Points, refs: Refs) -> PointRows:
    """The points at *refs*."""
    directory = directory_of(points)
    refs = np.sort(refs)
    cuts = np.searchsorted(refs, np.arange(len(points.blocks) + 1) * BLOCK_STRIDE)
    parts = [
        _read(block, numbers, refs[first:end] - number * BLOCK_STRIDE)
        for number, (block, numbers, first, end) in enumerate(
            zip(points.blocks, directory.numbers, cuts[:-1], cuts[1:], strict=True)
        )
    ]
    columns = [np.concatenate(column) for column in zip(_EMPTY, *parts, strict=True)]
    order = np.lexsort((refs, columns[1]))
    owners, times, starts, values, is_integer = (column[order] for column in columns)
    is_number, integers = np.ones(refs.size, dtype=bool), np.zeros(refs.size, dtype=np.int64)
    with np.errstate(invalid="ignore"):
        integers[is_integer] = values[is_integer].astype(np.int64)
    distributions: dict[int, Distribution] = {}
    row_of = np.empty(refs.size, dtype=np.int64)
    row_of[order] = np.arange(refs.size)
    for place, special in _sparse(points, refs, "special"):
        row = int(row_of[place])
        is_number[row] = isinstance(special, int)
        is_integer[row] = isinstance(special, int) and -INT64_LIMIT <= special < INT64_LIMIT
        if isinstance(special, Distribution):
            distributions[row] = special
        elif is_integer[row]:
            integers[row] = special
    return PointRows(
        series=directory.series,
        series_of_row=owners,
        times=times,
        start_times=starts,
        values=values,
        is_number=is_number,
        integers=integers,
        is_integer=is_integer,
        distributions=distributions,
        extras={int(row_of[place]): extra for place, extra in _sparse(points, refs, "extras")},
    )


_Columns = tuple[NDArray[np.int64], Times, Times, Floats, NDArray[np.bool_]]

_EMPTY: _Columns = (
    np.empty(0, np.int64),
    np.empty(0, np.uint64),
    np.empty(0, np.uint64),
    np.empty(0, np.float64),
    np.empty(0, np.bool_),
)


def _read(block: Block, numbers: NDArray[np.int64], indices: NDArray[np.int64]) -> _Columns:
    """Series, time, start time, value and whether that is an integer, at each of *indices*."""
    if not indices.size:
        return _EMPTY
    batch, place = np.divmod(indices, len(numbers))
    times = np.frombuffer(block.times_unix_nano, dtype=np.uint64)
    starts = np.array([list(own) or [0] * len(numbers) for _, own in block.starts], dtype=np.uint64)
    kinds = np.array([np.frombuffer(own, dtype=np.bool_) for _, own in block.integers])
    return (
        numbers[place],
        times[batch if block.shares_time else indices],
        starts[_in_force([first for first, _ in block.starts], batch), place],
        np.frombuffer(block.values, dtype=np.float64)[indices],
        kinds[_in_force([first for first, _ in block.integers], batch), place],
    )


def _in_force(firsts: list[int], batch: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of what changes at the batches *firsts*, which holds at each *batch*."""
    return np.asarray(np.searchsorted(firsts, batch, side="right") - 1)


def _sparse(points: Points, refs: Refs, name: str) -> Iterator[tuple[int, Any]]:
    """What only few points have: place in the sorted *refs*, and what it is."""
    for number, block in enumerate(points.blocks):
        known: Mapping[int, Any] = getattr(block, name)
        wanted = np.fromiter(known, dtype=np.int64, count=len(known)) + number * BLOCK_STRIDE
        places = np.searchsorted(refs, wanted)
        there = places < refs.size
        there[there] = refs[places[there]] == wanted[there]
        for place, what, is_there in zip(places.tolist(), known.values(), there, strict=True):
            if is_there:
                yield place, what
