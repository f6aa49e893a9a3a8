"""
Whose points these are: a batch of many runs becomes one batch for each. Pure.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, NamedTuple, TypeVar

from .batch import AttributesJson, PointBatch, Series, SeriesLayout
from .errors import DecodeError
from .gpus import owner_of
from .schema import WINDOW_METRIC

MOST_BYTES = 2**26
"""About what the layouts take that a router remembers; what is forgotten is made again."""

MOST_RUNS = 1000
"""Of one request: each is a journal."""

_SERIES_BYTES, _PLACE_BYTES = 400, 40

LONGEST_KEY = 4096
"""Characters; a longer name of a run stands for itself by its digest."""


_texts_of = attrgetter("resource", "scope_name", "scope", "metric_name", "unit", "attributes")


class RunKey(NamedTuple):
    """
    What tells runs apart: the id that the sender gave, or else its resource.

    Both are short enough for the header of a journal.
    """

    run_id: str | None
    resource: AttributesJson | None


class Router:
    """
    Splits batches by run: ``run.id``, else *run_id*, else each resource is a run of its own.

    Not thread safe.

    Args:
        run_id: Of resources that name no run (HUBMETER_RUN_ID).
    """

    def __init__(self, run_id: str | None) -> None:
        self._run_id = run_id
        self._plans = _Recent[SeriesLayout, tuple[_Share, ...]]()
        self._layouts = _Recent[tuple[int, ...], SeriesLayout]()

    def split(self, batch: PointBatch) -> Iterator[tuple[RunKey, PointBatch]]:
        """
        The part of *batch* for each run, in order of appearance.

        A batch of one run passes as it is. Counts of broken points, whose run nobody knows,
        stay with the first; a batch that has nothing else belongs to no run.

        Raises:
            DecodeError: There are more than :data:`MOST_RUNS`.
        """
        shares = self._plans.get(batch.layout)
        if shares is None:
            shares = self._compiled(batch.layout)
            if not _is_new_each_time(batch.layout):
                self._plans.put(batch.layout, shares, _bytes_of(batch.layout.series))
        if len(shares) == 1:
            yield shares[0].key, batch
            return
        skipped = batch.skipped
        for share in shares:
            yield share.key, share.of(batch, skipped)
            skipped = {}

    def _compiled(self, layout: SeriesLayout) -> tuple[_Share, ...]:
        keys: dict[tuple[AttributesJson, str | None], RunKey] = {}
        places: dict[RunKey, list[int]] = {}
        for place, series in enumerate(layout.series):
            owner = series.resource, series.run_id
            key = keys.get(owner)
            if key is None:
                key = keys[owner] = self._key(series)
            places.setdefault(key, []).append(place)
            if len(places) > MOST_RUNS:
                raise DecodeError(
                    f"points of more than {MOST_RUNS} runs: send them in smaller parts"
                )
        if len(places) == 1:
            return tuple(_Share(key, layout, ()) for key in places)
        return tuple(
            _Share(key, self._layout([layout.series[p] for p in own]), tuple(own))
            for key, own in places.items()
        )

    def _key(self, series: Series) -> RunKey:
        run_id = owner_of(series, self._run_id or "")[0]
        return RunKey(_short(run_id), None) if run_id else RunKey(None, _short(series.resource))

    def _layout(self, series: list[Series]) -> SeriesLayout:
        """The same object as long as a run sends the same, whoever shares its requests."""
        key = tuple(map(id, series))  # the layout keeps them alive, and so their ids
        layout = self._layouts.get(key)
        if layout is None:
            layout = SeriesLayout(tuple(series))
            if not _is_new_each_time(layout):
                self._layouts.put(key, layout, _bytes_of(series))
        return layout


@dataclass(frozen=True, slots=True)
class _Share:
    """What a run has of a layout: the series at *places*."""

    key: RunKey
    layout: SeriesLayout
    places: tuple[int, ...]

    def of(self, batch: PointBatch, skipped: Mapping[str, int]) -> PointBatch:
        """This run's part of *batch*, which has the points of several."""
        places, times, starts = self.places, batch.times_unix_nano, batch.start_times_unix_nano
        own = times if len(times) == 1 else [times[place] for place in places]
        extras = batch.extras
        return PointBatch(
            layout=self.layout,
            times_unix_nano=own[:1] if len(set(own)) == 1 else own,
            values=[batch.values[place] for place in places],
            start_times_unix_nano=tuple(starts[p] for p in places) if starts else (),
            extras={n: extras[p] for n, p in enumerate(places) if p in extras} if extras else {},
            skipped=skipped,
        )


def _is_new_each_time(layout: SeriesLayout) -> bool:
    """Windows: each has a trace of its own, so their layouts never come again."""
    return bool(layout.series) and layout.series[0].metric_name == WINDOW_METRIC


def _bytes_of(series: Sequence[Series]) -> int:
    """About how much memory *series* take, with each text once."""
    distinct = {id(one): one for one in series}.values()
    texts = {id(text): len(text) for one in distinct for text in _texts_of(one)}
    own = _SERIES_BYTES * len(distinct) + _PLACE_BYTES * len(series)
    return own + sum(texts.values())


def _short(text: str) -> str:
    if len(text) <= LONGEST_KEY:
        return text
    return f"sha256-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()}"


_K = TypeVar("_K")
_V = TypeVar("_V")


class _Recent(Generic[_K, _V]):
    """What was used last, as far as it is not too much; the very last in any case."""

    def __init__(self) -> None:
        self._held: OrderedDict[_K, tuple[_V, int]] = OrderedDict()
        self._bytes = 0

    def get(self, key: _K) -> _V | None:
        found = self._held.get(key)
        if found is None:
            return None
        self._held.move_to_end(key)
        return found[0]

    def put(self, key: _K, value: _V, size_bytes: int) -> None:
        self._held[key] = value, size_bytes
        self._bytes += size_bytes
        while self._bytes > MOST_BYTES and len(self._held) > 1:
            _, (_, freed) = self._held.popitem(last=False)
            self._bytes -= freed
