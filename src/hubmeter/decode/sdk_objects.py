"""
OpenTelemetry SDK objects to batches, without encoding them first.

A provider collects the same series again and again, with the very same attribute
objects. So their names are read once, and a collection costs a few list
comprehensions over its points.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from operator import is_
from typing import Any, NamedTuple

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogram,
    Gauge,
    Histogram,
    MetricsData,
    Sum,
)

from ..batch import (
    NO_RECORDED_VALUE,
    AttributesJson,
    Distribution,
    Extra,
    Kind,
    PointBatch,
    Series,
    SeriesLayout,
    Temporality,
    Value,
    attributes_json,
    canonical_json,
    finite,
    kinds_of,
    writable,
)
from .layouts import LayoutCache

_KINDS: dict[type, Kind] = {
    Gauge: "gauge",
    Sum: "sum",
    Histogram: "histogram",
    ExponentialHistogram: "exponential_histogram",
}
_TEMPORALITIES: dict[Any, Temporality] = {
    AggregationTemporality.DELTA: "delta",
    AggregationTemporality.CUMULATIVE: "cumulative",
}
_NUMBERS = frozenset({int, float})

UNKNOWN_KIND = "a metric is of a kind that is not known"
BAD_POINT = "a data point lacks a value or a time that can be read"


class _Plan(NamedTuple):
    """What the last collection looked like, and the layout it led to. Replaced as a whole."""

    shape: list[tuple[Any, ...]]
    attributes: list[Any]
    layout: SeriesLayout
    only_numbers: bool
    starts: Sequence[Any] = ()
    start_times_unix_nano: tuple[int, ...] = ()
    types: tuple[type, ...] = ()
    kinds: bytes = b""


class SdkDecoder:
    """Decodes what one provider collects. Not thread safe."""

    def __init__(self) -> None:
        self._cache = LayoutCache()
        self._plan: _Plan | None = None

    def decode(self, data: MetricsData) -> PointBatch:
        """
        One collection as a batch.

        Args:
            data: What ``MetricExporter.export`` gets.
        """
        shape, points, unknown = _walked(data)
        skipped = {UNKNOWN_KIND: unknown} if unknown else {}
        plan, batch = self._plan, None
        if plan is not None and plan.shape == shape:
            batch = self._repeated(plan, points, skipped)
        if plan is None or batch is None:
            plan = self._plan = self._plan_of(shape, points)
            batch = self._repeated(plan, points, skipped)
        return batch or self._careful_batch(plan.layout, points, skipped)

    def _plan_of(self, shape: list[tuple[Any, ...]], points: list[Any]) -> _Plan:
        attributes = [point.attributes for point in points]
        plan = self._plan
        # Identity, not equality: {"a": True} == {"a": 1}, and the SDK keeps the objects.
        if (
            plan is None
            or len(plan.attributes) != len(attributes)
            or not all(map(is_, plan.attributes, attributes))
            or plan.shape != shape
        ):
            plan = self._learn(shape, attributes)
        starts = [point.start_time_unix_nano for point in points]
        known = tuple([start or 0 for start in starts])
        return plan._replace(starts=starts, start_times_unix_nano=known)

    def _learn(self, shape: list[tuple[Any, ...]], attributes: list[Any]) -> _Plan:
        series: list[Series] = []
        remaining = iter(attributes)
        resources: dict[int, AttributesJson] = {}
        for resource, scope, name, unit, data, temporality, is_monotonic, count in shape:
            if id(resource) not in resources:
                resources[id(resource)] = attributes_json(getattr(resource, "attributes", None))
            for _ in range(count):
                one = Series(
                    resource=resources[id(resource)],
                    scope_name=writable(str(getattr(scope, "name", "") or "")),
                    scope=_scope(scope),
                    metric_name=writable(str(name)),
                    unit=writable(str(unit or "")),
                    kind=_KINDS[data],
                    temporality=_TEMPORALITIES.get(temporality),
                    is_monotonic=is_monotonic if data is Sum else None,
                    attributes=attributes_json(next(remaining)),
                )
                series.append(self._cache.series(one))
        only_numbers = all(one.kind in ("gauge", "sum") for one in series)
        return _Plan(shape, attributes, self._cache.layout(series), only_numbers)

    def _repeated(
        self, plan: _Plan, points: list[Any], skipped: dict[str, int]
    ) -> PointBatch | None:
        """
        The usual case, fast: numbers of the series of *plan*. None if any point is different.

        The SDK stamps one time on all points, as one object, and keeps the start times.
        """
        if not plan.only_numbers or not points:
            return None
        time = points[0].time_unix_nano
        values = [
            point.value
            for point, attributes, start in zip(points, plan.attributes, plan.starts, strict=True)
            if point.attributes is attributes
            and point.start_time_unix_nano is start
            and point.time_unix_nano is time
            and not point.exemplars
        ]
        if len(values) < len(points) or not _is_nanos(time):
            return None
        types = tuple(map(type, values))
        if types != plan.types:
            if not _NUMBERS.issuperset(types):
                return None
            plan = self._plan = plan._replace(types=types, kinds=kinds_of(types))
        return PointBatch(
            layout=plan.layout,
            times_unix_nano=(time,),
            values=values,
            start_times_unix_nano=plan.start_times_unix_nano,
            skipped=skipped,
            kinds=plan.kinds,
        )

    def _careful_batch(
        self, layout: SeriesLayout, points: list[Any], skipped: dict[str, int]
    ) -> PointBatch:
        """Point by point: distributions, exemplars, and points that are broken."""
        counts = Counter(skipped)
        kept = [place for place, point in enumerate(points) if _is_usable(point)]
        if len(kept) < len(points):
            counts[BAD_POINT] += len(points) - len(kept)
            layout = self._cache.layout([layout.series[place] for place in kept])
            points = [points[place] for place in kept]
        times = [point.time_unix_nano for point in points]
        return PointBatch(
            layout=layout,
            times_unix_nano=times[:1] if len(set(times)) == 1 else times,
            start_times_unix_nano=tuple(_nanos(point.start_time_unix_nano) for point in points),
            values=[_value(point) for point in points],
            extras={place: extra for place, extra in enumerate(map(_extra, points)) if extra},
            skipped=dict(counts),
        )


def _scope(scope: Any) -> AttributesJson:
    """What tells scopes of one name apart."""
    known = {name: getattr(scope, name, None) for name in ("version", "schema_url", "attributes")}
    return attributes_json({name: value for name, value in known.items() if value})


def _walked(data: MetricsData) -> tuple[list[tuple[Any, ...]], list[Any], int]:
    """What tells metrics apart, one by one; their points; how many are of an unknown kind."""
    shape: list[tuple[Any, ...]] = []
    points: list[Any] = []
    unknown = 0
    for resource_metrics in data.resource_metrics:
        for scope_metrics in resource_metrics.scope_metrics:
            for metric in scope_metrics.metrics:
                found = metric.data
                if found.__class__ not in _KINDS:
                    unknown += 1
                    continue
                points += found.data_points
                shape.append(
                    (
                        resource_metrics.resource,
                        scope_metrics.scope,
                        metric.name,
                        metric.unit,
                        found.__class__,
                        getattr(found, "aggregation_temporality", None),
                        getattr(found, "is_monotonic", None),
                        len(found.data_points),
                    )
                )
    return shape, points, unknown


def _is_nanos(time: Any) -> bool:
    return isinstance(time, int) and 0 <= time < 2**64


def _nanos(time: Any) -> int:
    return time if _is_nanos(time) else 0


def _is_usable(point: Any) -> bool:
    if not _is_nanos(point.time_unix_nano):
        return False
    value = getattr(point, "value", 0.0)
    return isinstance(value, int | float) or hasattr(value, "__float__")


def _value(point: Any) -> Value:
    if _flags(point) & NO_RECORDED_VALUE:
        return None
    if not hasattr(point, "value"):
        return _distribution(point)
    value = point.value
    return int(value) if isinstance(value, int) else float(value)


def _distribution(point: Any) -> Distribution:
    common = {
        "count": point.count,
        "sum": None if point.sum is None else float(point.sum),
        "min": finite(point.min),
        "max": finite(point.max),
    }
    if not hasattr(point, "scale"):
        return Distribution(
            **common,
            bucket_counts=tuple(point.bucket_counts) or None,
            explicit_bounds=_bounds(tuple(point.explicit_bounds)),
        )
    positive, negative = point.positive, point.negative
    return Distribution(
        **common,
        scale=point.scale,
        zero_count=point.zero_count,
        zero_threshold=getattr(point, "zero_threshold", 0.0),
        positive_offset=positive.offset,
        positive_bucket_counts=tuple(positive.bucket_counts) or None,
        negative_offset=negative.offset,
        negative_bucket_counts=tuple(negative.bucket_counts) or None,
    )


@lru_cache(maxsize=256)
def _bounds(bounds: tuple[Any, ...]) -> tuple[float, ...] | None:
    """The same object for the same bounds, which come with every point of a histogram."""
    return tuple(map(float, bounds)) or None


def _extra(point: Any) -> Extra | None:
    flags = _flags(point)
    exemplars = getattr(point, "exemplars", None)
    if not flags and not exemplars:
        return None
    plain = canonical_json([_exemplar(exemplar) for exemplar in exemplars]) if exemplars else None
    return Extra(flags=flags, exemplars=plain)


def _flags(point: Any) -> int:
    return getattr(point, "flags", 0) or 0


def _exemplar(exemplar: Any) -> dict[str, Any]:
    """As OTLP/JSON has it: identifiers are hexadecimal, 64-bit integers are strings."""
    value = exemplar.value
    plain = {
        "filteredAttributes": exemplar.filtered_attributes or {},
        "timeUnixNano": str(exemplar.time_unix_nano),
        **({"asInt": str(value)} if isinstance(value, int) else {"asDouble": value}),
    }
    if exemplar.span_id and exemplar.trace_id:
        plain["spanId"] = f"{exemplar.span_id:016x}"
        plain["traceId"] = f"{exemplar.trace_id:032x}"
    return plain
