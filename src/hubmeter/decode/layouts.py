"""
What decoders share: the points of a request as they are found, and layouts that repeat
handed out as the same objects.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from dataclasses import replace

from ..batch import Extra, PointBatch, Series, SeriesLayout, Value

MOST_LAYOUTS = 256
"""A source whose series keep changing would fill the memory; what is forgotten is made again."""

MOST_BYTES = 2**26
"""About as much a cache holds: more than 100,000 series whose names are of usual length."""

_SERIES_BYTES, _PLACE_BYTES = 300, 16


class LayoutCache:
    """
    Interns layouts, so that what is costly per layout happens once.

    Args:
        most_bytes: When it holds about as much, it forgets everything: a sender that puts
            request numbers into attributes makes new series for ever.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._texts: dict[str, str] = {}
        self._series: dict[Series, Series] = {}
        self._layouts: OrderedDict[bytes, SeriesLayout] = OrderedDict()

    def text(self, text: str) -> str:
        """The first text seen that equals *text*: a long one is not compared for each point."""
        known = self._texts.get(text)
        if known is None:
            known = self._texts[text] = text
            self._bytes += len(text)
        return known

    def series(self, series: Series) -> Series:
        """The same object for equal series."""
        known = self._series.get(series)
        if known is None:
            if self._bytes > self._most_bytes:
                self._forget()
            known = replace(
                series,
                resource=self.text(series.resource),
                scope_name=self.text(series.scope_name),
                scope=self.text(series.scope),
                metric_name=self.text(series.metric_name),
            )
            self._series[known] = known
            self._bytes += _SERIES_BYTES + len(series.unit) + len(series.attributes)
        return known

    def layout(self, series: list[Series]) -> SeriesLayout:
        """The layout of interned *series*: it keeps them alive, so ids tell layouts apart."""
        key = array("Q", map(id, series)).tobytes()
        layout = self._layouts.get(key)
        if layout is None:
            layout = self._layouts[key] = SeriesLayout(tuple(series))
            self._bytes += _PLACE_BYTES * len(series)
            if len(self._layouts) > MOST_LAYOUTS:
                _, oldest = self._layouts.popitem(last=False)
                self._bytes -= _PLACE_BYTES * len(oldest.series)
        else:
            self._layouts.move_to_end(key)
        return layout

    def _forget(self) -> None:
        self._texts.clear()
        self._series.clear()
        self._layouts.clear()
        self._bytes = 0


class Columns:
    """
    The points of one request, in its order.

    Attributes:
        skipped: Reason to number of points that were too broken to be decoded.
    """

    def __init__(self) -> None:
        self.series: list[Series] = []
        self.times: list[int] = []
        self.starts: list[int] = []
        self.values: list[Value] = []
        self.extras: dict[int, Extra] = {}
        self.skipped: Counter[str] = Counter()

    def add(
        self, series: Series, time: int, start: int, value: Value, extra: Extra | None = None
    ) -> None:
        """One point of the interned *series*; times in nanoseconds, 0 where unknown."""
        if extra is not None:
            self.extras[len(self.values)] = extra
        self.series.append(series)
        self.times.append(time)
        self.starts.append(start)
        self.values.append(value)

    def batch(self, cache: LayoutCache) -> PointBatch:
        """All points; a time that they share is there once."""
        times = self.times
        return PointBatch(
            layout=cache.layout(self.series),
            times_unix_nano=times[:1] if len(set(times)) == 1 else times,
            start_times_unix_nano=tuple(self.starts),
            values=self.values,
            extras=self.extras,
            skipped=dict(self.skipped),
        )
