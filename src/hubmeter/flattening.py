"""
Points to rows: one row per run, resource, instant and GPU. Pure.

No clock, disk, log or environment: the same function serves a live run, a file,
a recovery and an old dataset. What finds no column comes back as references for
the ``points`` config.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .batch import Series
from .conventions import Target, target_of, text_of
from .energy import Factors
from .gpus import Gpu, Reporter, gpus_of, owner_of
from .ledger import Points
from .openings import START, Opening, SumEnd
from .schema import CUMULATIVE_COLUMNS, SEED_METRICS
from .sheets import COUNTER, ENERGY_SOURCES, INTEGRATED, Sheet, derive, fold_loose
from .streams import (
    BLOCK_STRIDE,
    Directory,
    Floats,
    Refs,
    Stream,
    Times,
    directory_of,
    end_of,
    is_delta,
    refs_of,
    streams_of,
    totals,
    without_points,
)
from .windows import Words, holds_windows, is_window, labels

PointsKept: TypeAlias = Literal["all", "other", "none"]

NOT_FINITE = "the value is not a finite number, see points"
COMPETING = "another series already fills this cell, see points"
IN_POINTS = frozenset({NOT_FINITE, COMPETING})
"""Not in the rows for these reasons, but in the ``points`` config."""

LEFT_OUT = "left out by HUBMETER_POINTS=none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """
    What flattening needs to know beside the points.

    Attributes:
        run_id: For resources without ``run.id``.
        factors: Derive energy, CO2 and cost where a source does not send them;
            None leaves them null.
        zero_fill: 0.0 instead of null in the seven seed metrics, as smoltrace has it.
        points: What the ``points`` config keeps; ``other`` is what has no column.
        empty_run_unix_nano: If there is no row at all, make one with this time.
    """

    run_id: str
    factors: Factors | None = None
    zero_fill: bool = False
    points: PointsKept = "other"
    empty_run_unix_nano: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """
    The ``default`` config as columns, and what is for ``points``.

    Attributes:
        times: Nanoseconds, one per row.
        gpus: Distinct identities; *gpu_of_row* points into them.
        floats: Column name to values, NaN is null; absent columns are null.
        throttle_reasons: Reason to 1.0, 0.0 or NaN per row.
        labels: Column name to what was running at each row; absent columns are null.
        leftovers: References of the points that are for the ``points`` config.
        skipped: Reason to number of points that are not in the rows because of it.
        closing: What the run has grown to: the opening of its next part.
    """

    times: Times
    gpus: tuple[Gpu, ...]
    gpu_of_row: NDArray[np.int64]
    floats: Mapping[str, Floats]
    throttle_reasons: Mapping[str, Floats]
    energy_source: Floats
    labels: Mapping[str, Words]
    leftovers: Refs
    skipped: Mapping[str, int]
    closing: Opening


def flatten_points(points: Points, options: Options, opening: Opening = START) -> Rows:
    """
    Flatten *points* into rows, sorted by time and GPU id, rows without a GPU first.

    The merging rules are those of the dataset contract (README, "The dataset"). Windows
    (:mod:`hubmeter.windows`) label rows; they make none, and change nothing else in one.

    A run may be flattened in parts, each with the closing of the part before as its
    *opening*: sums and integrals go on, and what was sent once is not derived later.
    What needs several points at once is judged within a part, from its own points:
    which points are one instant or the same point twice, which gauge of several
    serves a column, whose GPU a series is about where another series tells that, what was
    running, and whether a column is derived that only a later part sends. The typical interval of
    power readings is that of the run so far.
    """
    counts: Counter[str] = Counter()
    directory = directory_of(points)
    here = set(directory.series)
    silent = [series for series in opening.sums if series not in here]
    known = (*directory.series, *silent)
    targets = {series: target for series in known if (target := _target(series))}
    others = [one for one in directory.series if one not in targets and not is_window(one)]
    gpus = gpus_of(targets, others, options.run_id)
    is_fed = np.array([series in gpus for series in directory.series], dtype=bool)
    grid = _Grid(points=points, counts=counts, opening=opening, sums=dict(opening.sums))
    with np.errstate(over="ignore", invalid="ignore"):
        for stream in streams_of(points, _without_windows(points, directory), is_fed, counts):
            grid.offer(stream, targets[stream.series], gpus[stream.series])
        for series in silent:
            if series in gpus:
                grid.offer(without_points(series), targets[series], gpus[series])
        grid.fill()
        grid.fold()
        closing = derive(grid.sheets, options.factors, replace(opening, sums=grid.sums))
    leftovers = _leftovers(grid, directory, is_fed, options.points)
    return _rows(grid, directory.series, options, leftovers, closing)


def _without_windows(points: Points, directory: Directory) -> Directory:
    """*directory* in which nothing stands where spans do: they tell no collection interval."""
    nothing = np.empty(0, dtype=np.int64)
    blocks = zip(points.blocks, directory.numbers, strict=True)
    return replace(
        directory, numbers=[nothing if holds_windows(b) else numbers for b, numbers in blocks]
    )


def _leftovers(
    grid: _Grid, directory: Directory, is_fed: NDArray[np.bool_], kept: PointsKept
) -> Refs:
    """References for the ``points`` config; what nobody keeps is counted all the same."""
    if not directory.series:
        return np.empty(0, dtype=np.int64)
    others = refs_of(grid.points, directory, ~is_fed, grid.counts, is_fed)
    match kept:
        case "none":
            grid.counts[LEFT_OUT] += np.unique(np.concatenate([others, *grid.leftovers])).size
            return others[:0]
        case "all":
            # What is wrong with points that feed a column was counted when they did.
            return refs_of(grid.points, directory, np.ones_like(is_fed), Counter(), is_fed)
        case _:
            return np.unique(np.concatenate([others, *grid.leftovers]))


def _target(series: Series) -> Target | None:
    if series.kind not in ("gauge", "sum") or is_window(series):
        return None
    return target_of(series.metric_name, series.unit, json.loads(series.attributes))


@dataclass(slots=True)
class _Offer:
    """
    Attributes:
        stream: The finite points of a stream; none where an earlier part had them all.
        times: All its times: a point without a value still makes a row.
        grown: Its values; what it has grown to where it counts since the run began.
        before: How an earlier part left it.
    """

    stream: Stream
    target: Target
    times: Times
    grown: Floats
    before: SumEnd | None

    @property
    def is_measured(self) -> bool:
        """Whether there ever was a value."""
        return self.before is not None or self.stream.times.size > 0


@dataclass(slots=True)
class _Grid:
    """Collects streams by GPU and column, then fills one sheet per GPU."""

    points: Points
    counts: Counter[str]
    opening: Opening
    sums: dict[Series, SumEnd]
    offers: dict[Gpu, dict[str, list[_Offer]]] = field(default_factory=lambda: defaultdict(dict))
    sheets: list[Sheet] = field(default_factory=list)
    leftovers: list[Refs] = field(default_factory=list)

    def leave(self, stream: Stream, reason: str | None = None) -> None:
        """Keep the points of *stream* for the ``points`` config."""
        if stream.refs.size:
            self.leftovers.append(stream.refs)
            if reason:
                self.counts[reason] += stream.refs.size

    def offer(self, stream: Stream, target: Target, gpu: Gpu) -> None:
        """Let *stream* serve a column of *gpu*, as far as its points are finite."""
        if target.column.startswith("memory:"):
            self.leave(stream)  # only their sum has a column
        finite = np.isfinite(stream.values * target.scale)
        measured = stream if finite.all() else stream.where(finite)
        if not finite.all():
            self._leave_broken(stream.where(~finite))
        grown, before = measured.values, self.opening.sums.get(stream.series)
        if target.column in CUMULATIVE_COLUMNS or is_delta(stream.series):
            grown = totals(measured, since_boot=target.since_boot, end=before)
            if measured.times.size:
                self.sums[stream.series] = end_of(measured, grown, before)
        offer = _Offer(measured, target, stream.times, grown, before)
        self.offers[gpu].setdefault(target.column, []).append(offer)

    def fill(self) -> None:
        """Write every stream into its GPU's sheet."""
        for gpu, by_column in self.offers.items():
            sheet = Sheet(gpu, _union([o.times for offers in by_column.values() for o in offers]))
            for column, offers in by_column.items():
                served = self._one_producer(offers)
                if column in CUMULATIVE_COLUMNS:
                    _fill_cumulative(sheet, column, served)
                else:
                    self._fill_gauge(sheet, column, served)
            self.sheets.append(sheet)

    def fold(self) -> None:
        """Move rows without a GPU into the GPU's row where there is exactly one."""
        by_reporter: dict[Reporter, list[Sheet]] = defaultdict(list)
        for sheet in self.sheets:
            by_reporter[sheet.gpu.reporter].append(sheet)
        folded = [sheet for sheets in by_reporter.values() for sheet in fold_loose(sheets)]
        self.sheets = [sheet for sheet in folded if sheet.times.size]

    def _leave_broken(self, broken: Stream) -> None:
        """Points that say "no recorded value" are not broken: their cell is null."""
        self.leave(broken)
        values = (self.points.blocks[ref // BLOCK_STRIDE].special.get(ref % BLOCK_STRIDE, 0.0)
                  for ref in broken.refs.tolist())  # fmt: skip
        not_finite = sum(value is not None for value in values)
        if not_finite:
            self.counts[NOT_FINITE] += not_finite

    def _one_producer(self, offers: list[_Offer]) -> list[_Offer]:
        """Of several metrics that mean the same, one serves the column, whoever came first."""
        offers = sorted(offers, key=lambda offer: (not offer.is_measured, *_name(offer)))
        served = [offer for offer in offers if _name(offer)[:3] == _name(offers[0])[:3]]
        for offer in offers[len(served) :]:
            self.leave(offer.stream, COMPETING)
        return served

    def _fill_gauge(self, sheet: Sheet, column: str, offers: list[_Offer]) -> None:
        cells = sheet.column(column)
        for offer in offers:
            stream = offer.stream
            rows = np.searchsorted(sheet.times, stream.times)
            free = np.isnan(cells[rows])
            if not free.all():
                self.leave(stream.where(~free), COMPETING)
            cells[rows[free]] = offer.grown[free] * offer.target.scale


def _name(offer: _Offer) -> tuple[str, ...]:
    series = offer.stream.series
    return series.metric_name, series.scope_name, series.scope, series.attributes, series.unit


def _fill_cumulative(sheet: Sheet, column: str, offers: list[_Offer]) -> None:
    """Attributes partition a sum (OTLP data model), so its streams add up."""
    observed = _union([offer.stream.times for offer in offers])
    sums = np.zeros(observed.size)
    integrated = np.zeros(observed.size, dtype=bool)
    for offer in offers:
        stream = offer.stream
        before = 0.0 if offer.before is None else offer.before.total
        latest = np.searchsorted(stream.times, observed, side="right")
        so_far = np.concatenate([[before], offer.grown])[latest] * offer.target.scale
        sums += so_far
        source = json.loads(stream.series.attributes).get("energy_source")
        integrated |= (source == ENERGY_SOURCES[INTEGRATED]) & (so_far > 0)
    rows = np.searchsorted(sheet.times, observed)
    sheet.column(column)[rows] = sums
    if column == "energy_joules":
        sheet.column("energy:source")[rows] = np.where(integrated, INTEGRATED, COUNTER)


def _rows(
    grid: _Grid, series: list[Series], options: Options, leftovers: Refs, closing: Opening
) -> Rows:
    sheets = grid.sheets or _empty_run(series, options)
    names = {name for sheet in sheets for name in sheet.columns}
    times = np.concatenate([np.empty(0, np.uint64), *(sheet.times for sheet in sheets)])
    sizes = np.array([sheet.times.size for sheet in sheets], dtype=np.int64)
    gpu_of_row = np.repeat(np.arange(len(sheets)), sizes)
    order = np.lexsort((_ranks(sheets)[gpu_of_row], times))
    times, gpu_of_row = times[order], gpu_of_row[order]
    floats = {name: np.concatenate([s.read(name) for s in sheets])[order] for name in sorted(names)}
    if options.zero_fill:
        for name in SEED_METRICS:
            floats[name] = np.nan_to_num(floats.get(name, np.zeros(times.size)), nan=0.0)
    source = floats.pop("energy:source", np.full(times.size, np.nan))
    return Rows(
        times=times,
        gpus=tuple(sheet.gpu for sheet in sheets),
        gpu_of_row=gpu_of_row,
        floats={name: values for name, values in floats.items() if ":" not in name},
        throttle_reasons={
            name.removeprefix("throttle:"): values
            for name, values in floats.items()
            if name.startswith("throttle:")
        },
        energy_source=source,
        labels=labels(
            grid.points, options.run_id, times, [sheet.gpu.run_id for sheet in sheets], gpu_of_row
        ),
        leftovers=leftovers,
        skipped=dict(Counter(grid.points.skipped) + grid.counts),
        closing=closing,
    )


def _ranks(sheets: list[Sheet]) -> NDArray[np.int64]:
    """Order of the GPUs within an instant: no id first, then by id as text, then by owner."""

    def key(place: int) -> tuple[str, str, Reporter]:
        gpu = sheets[place].gpu
        return gpu.gpu_id or "", gpu.host_name or "", gpu.reporter

    order = sorted(range(len(sheets)), key=key)
    ranks = np.empty(len(sheets), dtype=np.int64)
    ranks[order] = np.arange(len(sheets))
    return ranks


def _empty_run(series: list[Series], options: Options) -> list[Sheet]:
    """One row that identifies a run of which no GPU metric is known."""
    if options.empty_run_unix_nano is None:
        return []
    resource, run_id, service_name = "{}", options.run_id, None
    if series:
        first = min(series, key=is_window)  # who reported metrics, if there was anybody
        resource = first.resource
        run_id, service_name = owner_of(first, options.run_id)
    loose = Gpu(
        reporter=(run_id, resource),
        run_id=run_id,
        service_name=service_name,
        host_name=text_of(json.loads(resource).get("host.name")),
        gpu_id=None,
    )
    return [Sheet(loose, np.array([options.empty_run_unix_nano], dtype=np.uint64))]


def _union(times: Iterable[Times]) -> Times:
    """Distinct times in order; cheap where all are the same, which is the rule."""
    arrays = [some for some in times if some.size] or [np.empty(0, dtype=np.uint64)]
    same = all(a.size == b.size and (a is b or (a == b).all()) for a, b in pairwise(arrays))
    return arrays[0] if same else np.unique(np.concatenate(arrays))
