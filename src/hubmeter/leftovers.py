"""
The ``points`` config: complete data points that have no column in the rows. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .batch import Distribution, Extra, Series
from .gpus import owner_of
from .ledger import Block, Points
from .schema import POINTS
from .streams import BLOCK_STRIDE, Refs

INT64_LIMIT = 2**63


def point_columns(points: Points, refs: Refs, default_run_id: str) -> dict[str, list[Any]]:
    """
    Columns of the ``points`` config for the points at *refs*, in order of time.

    ``timestamp`` is left out: it follows from ``timestamp_unix_nano``.
    """
    readers = [_Reader(block, default_run_id) for block in points.blocks]
    found = [readers[ref // BLOCK_STRIDE].read(ref % BLOCK_STRIDE) for ref in refs.tolist()]
    found.sort(key=lambda point: point.time_unix_nano)
    names = [column.name for column in POINTS if column.name != "timestamp"]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for point in found:
        cells = dict(_cells(point))
        for name in names:
            columns[name].append(cells.get(name))
    return columns


@dataclass(frozen=True, slots=True)
class _Point:
    series: Series
    run_id: str
    service_name: str | None
    time_unix_nano: int
    start_time_unix_nano: int
    value: Any
    extra: Extra


class _Reader:
    """Finds points of one block again."""

    def __init__(self, block: Block, default_run_id: str) -> None:
        self._block = block
        self._width = len(block.layout.series)
        self._owners = [owner_of(series, default_run_id) for series in block.layout.series]

    def read(self, index: int) -> _Point:
        block = self._block
        batch, place = divmod(index, self._width)
        starts = _in_force(block.starts, batch)
        run_id, service_name = self._owners[place]
        return _Point(
            series=block.layout.series[place],
            run_id=run_id,
            service_name=service_name,
            time_unix_nano=block.times_unix_nano[batch if block.shares_time else index],
            start_time_unix_nano=starts[place] if starts else 0,
            value=block.value(index, _in_force(block.integers, batch)),
            extra=block.extras.get(index, Extra()),
        )


def _in_force(changes: list[tuple[int, Any]], batch: int) -> Any:
    return changes[bisect_right(changes, batch, key=lambda change: change[0]) - 1][1]


def _cells(point: _Point) -> Iterator[tuple[str, Any]]:
    series = point.series
    yield "run_id", point.run_id
    yield "timestamp_unix_nano", point.time_unix_nano
    yield "start_time_unix_nano", point.start_time_unix_nano or None
    yield "service_name", point.service_name
    yield "metric_name", series.metric_name
    yield "unit", series.unit
    yield "kind", series.kind
    yield "temporality", series.temporality
    yield "is_monotonic", series.is_monotonic
    yield "scope_name", series.scope_name
    yield "flags", point.extra.flags
    yield "attributes", series.attributes
    yield "resource_attributes", series.resource
    yield "exemplars", point.extra.exemplars
    yield from _value_cells(point.value)


def _value_cells(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Distribution):
        for name in Distribution.__slots__:
            yield name, getattr(value, name)
    elif value is not None:
        yield "value", float(value)
        if isinstance(value, int) and -INT64_LIMIT <= value < INT64_LIMIT:
            yield "value_int", value
