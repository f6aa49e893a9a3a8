"""
Series and layouts that repeat are handed out as the same objects.
"""

from __future__ import annotations

from collections import OrderedDict

from ..batch import Series, SeriesLayout

MOST_LAYOUTS = 256
"""A source whose series keep changing would fill the memory; what is forgotten is made again."""


class LayoutCache:
    """Interns layouts, so that what is costly per layout happens once."""

    def __init__(self) -> None:
        self._series: dict[Series, Series] = {}
        self._layouts: OrderedDict[tuple[int, ...], SeriesLayout] = OrderedDict()

    def series(self, series: Series) -> Series:
        """The first series seen that equals *series*."""
        return self._series.setdefault(series, series)

    def layout(self, series: list[Series]) -> SeriesLayout:
        """The layout of interned *series*; they live as long as this cache, so do their ids."""
        key = tuple(map(id, series))
        layout = self._layouts.get(key)
        if layout is None:
            layout = self._layouts[key] = SeriesLayout(tuple(series))
            if len(self._layouts) > MOST_LAYOUTS:
                self._layouts.popitem(last=False)
        else:
            self._layouts.move_to_end(key)
        return layout
