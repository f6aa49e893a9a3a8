"""
OTLP in protobuf to batches: protobuf's own parser, then columns.

A source sends the same series again and again. What is left of a data point without its
times and value is the same bytes each time, so these bytes find its series, in whatever
order the points come, and attributes become JSON once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from google.protobuf.message import DecodeError as ProtobufError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, NumberDataPoint

from ..batch import (
    NO_RECORDED_VALUE,
    Kind,
    PointBatch,
    Series,
    Temporality,
    Value,
    attributes_json,
)
from ..errors import DecodeError
from .json_values import BadPoint
from .layouts import Columns, LayoutCache
from .otlp_json import UNKNOWN_KIND
from .proto_values import attributes_of, distribution_of, extra_of, number_of

_KINDS: frozenset[str] = frozenset(get_args(Kind))
_DELTA = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
_WITH_TEMPORALITY = _KINDS - {"gauge", "summary"}

# Merged into a point, it makes points that differ in times and value only the same.
_MASK = NumberDataPoint(time_unix_nano=1, start_time_unix_nano=1, as_double=1.0).SerializeToString()

MOST_BYTES = 2**26
"""About as much is remembered of what came before; then everything is forgotten."""

_ENTRY_BYTES = 200


@dataclass(frozen=True, slots=True)
class _Seen:
    """
    A resource, a scope of it, or a metric of that, which came before.

    Attributes:
        pattern: What all its series have in common.
        parts: Of a resource its scopes, of a scope its metrics, by what identifies them.
        series: Of a metric, by a data point in protobuf with the same times and value each time.
    """

    pattern: Series
    parts: dict[Any, _Seen] = field(default_factory=dict)
    series: dict[bytes, Series] = field(default_factory=dict)


_NOTHING = Series(resource="{}", scope_name="", metric_name="", unit="", kind="gauge")


class ProtoDecoder:
    """
    Decodes requests of any number of sources. Not thread safe.

    A faster decoder can take its place, if it gives the same batches.

    Args:
        most_bytes: About how much it may remember.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._forget()

    def _forget(self) -> None:
        self._bytes = 0
        self._resources: dict[bytes, _Seen] = {}
        self._cache = LayoutCache()

    def decode(self, body: bytes) -> PointBatch:
        """
        An ``ExportMetricsServiceRequest``, or ``MetricsData``, which has the same form.

        Times are as they were sent, also 0 and in the future. Unknown fields are ignored.
        A metric without data, and a point with an exemplar whose identifier has a wrong
        length, are counted in ``skipped``.

        Raises:
            DecodeError: *body* is no such message: it is damaged, a text in it is not UTF-8,
                or it is nested more than 100 messages deep.
        """
        if self._bytes > self._most_bytes:
            self._forget()
        columns = Columns()
        for resource_metrics in _parsed(body).resource_metrics:
            resource = self._resource(resource_metrics.resource)
            for scope_metrics in resource_metrics.scope_metrics:
                scope = self._scope(resource, scope_metrics)
                for metric in scope_metrics.metrics:
                    self._metric(scope, metric, columns)
        return columns.batch(self._cache)

    def _resource(self, resource: Any) -> _Seen:
        key = resource.SerializeToString()
        seen = self._resources.get(key)
        if seen is None:
            text = attributes_json(attributes_of(resource.attributes))
            seen = self._resources[key] = _Seen(replace(_NOTHING, resource=text))
            self._bytes += _ENTRY_BYTES + len(key)
        return seen

    def _scope(self, resource: _Seen, scope_metrics: Any) -> _Seen:
        scope = scope_metrics.scope
        key = (scope.SerializeToString(), scope_metrics.schema_url)
        seen = resource.parts.get(key)
        if seen is None:
            known = {
                "version": scope.version,
                "schema_url": scope_metrics.schema_url,
                "attributes": attributes_of(scope.attributes),
            }
            text = attributes_json({name: value for name, value in known.items() if value})
            pattern = replace(resource.pattern, scope_name=scope.name, scope=text)
            seen = resource.parts[key] = _Seen(pattern)
            self._bytes += _ENTRY_BYTES + len(key[0]) + len(key[1])
        return seen

    def _metric(self, scope: _Seen, metric: Any, columns: Columns) -> None:
        kind = metric.WhichOneof("data")
        if kind not in _KINDS:
            columns.skipped[UNKNOWN_KIND] += 1
            return
        data = getattr(metric, kind)
        seen = self._seen_metric(scope, metric, kind, data)
        if kind in ("gauge", "sum"):
            self._numbers(seen, data.data_points, columns)
            return
        for point in data.data_points:
            self._point(seen, point, _times(point), distribution_of(point, kind), columns)

    def _seen_metric(self, scope: _Seen, metric: Any, kind: Kind, data: Any) -> _Seen:
        temporality = _temporality(data) if kind in _WITH_TEMPORALITY else None
        is_monotonic = data.is_monotonic if kind == "sum" else None
        key = (metric.name, metric.unit, kind, temporality, is_monotonic)
        seen = scope.parts.get(key)
        if seen is None:
            pattern = replace(
                scope.pattern,
                metric_name=metric.name,
                unit=metric.unit,
                kind=kind,
                temporality=temporality,
                is_monotonic=is_monotonic,
            )
            seen = scope.parts[key] = _Seen(pattern)
            self._bytes += _ENTRY_BYTES + len(metric.name) + len(metric.unit)
        return seen

    def _numbers(self, metric: _Seen, points: Iterable[Any], columns: Columns) -> None:
        """Points like those that were seen before in as few steps as possible."""
        known = metric.series
        series, times, starts, values = (
            columns.series,
            columns.times,
            columns.starts,
            columns.values,
        )
        for point in points:
            # Only one of the two can be other than 0; of 0 must be asked which it is.
            value = point.as_double or point.as_int or number_of(point)
            time, start = point.time_unix_nano, point.start_time_unix_nano
            point.MergeFromString(_MASK)
            one = known.get(point.SerializeToString())
            if one is None:
                self._point(metric, point, (time, start), value, columns)
            else:
                series.append(one)
                times.append(time)
                starts.append(start)
                values.append(value)

    def _point(
        self, metric: _Seen, point: Any, times: tuple[int, int], value: Value, columns: Columns
    ) -> None:
        """Any point: of a new series, with flags or exemplars, or a distribution."""
        try:
            extra = extra_of(point)
        except BadPoint as error:
            columns.skipped[str(error)] += 1
            return
        if point.flags & NO_RECORDED_VALUE:
            value = None
        columns.add(self._series(metric, point.attributes), *times, value, extra)

    def _series(self, metric: _Seen, attributes: Any) -> Series:
        point = NumberDataPoint(attributes=attributes)
        point.MergeFromString(_MASK)
        key = point.SerializeToString()
        series = metric.series.get(key)
        if series is None:
            text = attributes_json(attributes_of(attributes))
            series = self._cache.series(replace(metric.pattern, attributes=text))
            metric.series[key] = series
            self._bytes += _ENTRY_BYTES + len(key)
        return series


def _parsed(body: bytes) -> Any:
    try:
        return ExportMetricsServiceRequest.FromString(body)
    except ProtobufError as error:
        raise DecodeError(f"the body is no OTLP metrics request in protobuf: {error}") from error


def _times(point: Any) -> tuple[int, int]:
    return point.time_unix_nano, point.start_time_unix_nano


def _temporality(data: Any) -> Temporality:
    """Unspecified is read as cumulative, as in OTLP/JSON."""
    return "delta" if data.aggregation_temporality == _DELTA else "cumulative"
