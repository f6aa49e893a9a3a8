"""
What decoders share: the points of a request as they are found, and layouts that repeat
handed out as the same objects.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter, OrderedDict
from dataclasses import replace

from ..batch import AttributesJson, Extra, PointBatch, Series, SeriesLayout, Value

MOST_LAYOUTS = 256
"""A source whose series keep changing would fill the memory; what is forgotten is made again."""

MOST_BYTES = 2**26
"""About as much a cache holds: more than 100,000 series whose names are of usual length."""

_ENTRY_BYTES, _METRIC_BYTES, _SERIES_BYTES, _PLACE_BYTES = 100, 300, 300, 16


class LayoutCache:
    """
    Interns layouts, so that what is costly per layout happens once.

    Args:
        most_bytes: When it holds about as much, it forgets everything after the next layout,
            which is after a request: a sender that puts request numbers into attributes
            makes new series for ever.

    Attributes:
        attributes: What :meth:`remember` was told.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self.attributes: dict[bytes, AttributesJson] = {}
        self._texts: dict[str, str] = {}
        self._metrics: dict[tuple[str | bool | None, ...], dict[AttributesJson, Series]] = {}
        self._series: dict[Series, Series] = {}
        self._layouts: OrderedDict[bytes, SeriesLayout] = OrderedDict()

    def text(self, text: str) -> str:
        """The first text seen that equals *text*: a long one is not compared for each point."""
        known = self._texts.get(text)
        if known is None:
            known = self._texts[text] = text
            self._bytes += _ENTRY_BYTES + sys.getsizeof(text)
        return known

    def remember(self, said: bytes, attributes: AttributesJson) -> None:
        """That *said*, bytes that are equal only where the same is said, means *attributes*."""
        self.attributes[said] = self.text(attributes)
        self._bytes += _ENTRY_BYTES + sys.getsizeof(said)

    def series_of(self, *metric: str | bool | None) -> dict[AttributesJson, Series]:
        """
        The series of one metric by their attributes, for the decoder to complete.

        Args:
            metric: All that its series have in common. What is added must come from
                :meth:`series`, and is good until the next :meth:`layout`.
        """
        known = self._metrics.get(metric)
        if known is None:
            texts = [self.text(one) if isinstance(one, str) else one for one in metric]
            known = self._metrics[tuple(texts)] = {}
            self._bytes += _METRIC_BYTES
        return known

    def series(self, series: Series) -> Series:
        """The same object for equal series."""
        known = self._series.get(series)
        if known is None:
            known = replace(
                series,
                resource=self.text(series.resource),
                scope_name=self.text(series.scope_name),
                scope=self.text(series.scope),
                metric_name=self.text(series.metric_name),
                unit=self.text(series.unit),
                attributes=self.text(series.attributes),
                run_id=None if series.run_id is None else self.text(series.run_id),
            )
            self._series[known] = known
            self._bytes += _SERIES_BYTES
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
        if self._bytes > self._most_bytes:
            self._forget()
        return layout

    def _forget(self) -> None:
        self.attributes.clear()
        self._texts.clear()
        self._metrics.clear()
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
