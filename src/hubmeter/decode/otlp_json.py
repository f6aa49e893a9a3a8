"""
OTLP/JSON, as dictionaries or text, to batches.

Reads what the specification writes (lowerCamelCase, 64-bit integers as strings or
numbers, "NaN" and "Infinity" as strings) and what smoltrace stores (an envelope
with ``run_id``; ``asInt`` and ``asDouble`` both there, either null). A broken
record costs itself only, and is counted.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ..batch import (
    AttributesJson,
    Distribution,
    Extra,
    Kind,
    PointBatch,
    Series,
    Temporality,
    Value,
    attributes_json,
)
from ..errors import DecodeError
from .layouts import LayoutCache

_KINDS: Mapping[str, Kind] = {
    "gauge": "gauge",
    "sum": "sum",
    "histogram": "histogram",
    "exponentialHistogram": "exponential_histogram",
    "summary": "summary",
}
_TEMPORALITIES: Mapping[Any, Temporality] = {
    1: "delta", "1": "delta", "AGGREGATION_TEMPORALITY_DELTA": "delta",
    2: "cumulative", "2": "cumulative", "AGGREGATION_TEMPORALITY_CUMULATIVE": "cumulative",
}  # fmt: skip

NO_RECORDED_VALUE = 1
"""OTLP DataPointFlags: the point says that there is none."""

BAD_LINE = "a line is not JSON"
NOT_A_REQUEST = "a record is not an OTLP metrics request (no resourceMetrics)"
NOT_AN_OBJECT = "{} is null or not what OTLP says"
UNKNOWN_KIND = "a metric is of a kind that is not known"
BAD_TIME = "a timestamp is not an integer"
BAD_NUMBER = "a value is not a number"


class _BadPoint(ValueError):
    """One data point cannot be used; the message is the reason that is counted."""


class JsonDecoder:
    """Decodes requests of one source. Not thread safe."""

    def __init__(self) -> None:
        self._cache = LayoutCache()

    def decode(self, request: Any) -> PointBatch:
        """
        One request, ``{"resourceMetrics": [...]}``, as a batch.

        Args:
            request: Decoded JSON of any shape: what is not OTLP is counted, not raised.
        """
        walk = _Walk(self._cache)
        walk.request(request)
        times = walk.times
        return PointBatch(
            layout=self._cache.layout(walk.series),
            times_unix_nano=times[:1] if len(set(times)) == 1 else times,
            start_times_unix_nano=tuple(walk.starts),
            values=walk.values,
            extras=walk.extras,
            skipped=dict(walk.skipped),
        )

    def decode_text(self, text: str | bytes) -> Iterator[PointBatch]:
        """
        A JSON document, or one request per line.

        Raises:
            DecodeError: If there is nothing but white space.
        """
        if not text.strip():
            raise DecodeError("the input is empty: expected OTLP/JSON")
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            for line in text.splitlines():
                if line.strip():
                    yield self._decode_line(line)
        else:
            for request in document if isinstance(document, list) else [document]:
                yield self.decode(request)

    def _decode_line(self, line: str | bytes) -> PointBatch:
        try:
            return self.decode(json.loads(line))
        except (ValueError, RecursionError):
            empty = self._cache.layout([])
            return PointBatch(layout=empty, times_unix_nano=(), values=(), skipped={BAD_LINE: 1})


class _Walk:
    """Collects the points of one request."""

    def __init__(self, cache: LayoutCache) -> None:
        self.series: list[Series] = []
        self.times: list[int] = []
        self.starts: list[int] = []
        self.values: list[Value] = []
        self.extras: dict[int, Extra] = {}
        self.skipped: Counter[str] = Counter()
        self._cache = cache

    def request(self, request: Any) -> None:
        if not isinstance(request, Mapping) or "resourceMetrics" not in request:
            self.skipped[NOT_A_REQUEST] += 1
            return
        run_id = request.get("run_id")
        for resource_metrics in self._objects(request, "resourceMetrics"):
            resource = resource_metrics.get("resource")
            if resource is not None and not isinstance(resource, Mapping):
                self.skipped[NOT_AN_OBJECT.format("resource")] += 1
            resource = self._attributes(resource)
            for scope_metrics in self._objects(resource_metrics, "scopeMetrics"):
                scope = scope_metrics.get("scope")
                scope_name = scope.get("name") if isinstance(scope, Mapping) else None
                for metric in self._objects(scope_metrics, "metrics"):
                    self._metric(metric, resource, scope_name, run_id)

    def _metric(
        self, metric: Mapping[str, Any], resource: AttributesJson, scope_name: Any, run_id: Any
    ) -> None:
        key = next((key for key in _KINDS if metric.get(key) is not None), None)
        if key is None:
            self.skipped[UNKNOWN_KIND] += 1
            return
        data = metric[key]
        if not isinstance(data, Mapping):
            self.skipped[NOT_AN_OBJECT.format(key)] += 1
            return
        for point in self._objects(data, "dataPoints"):
            series = Series(
                resource=resource,
                scope_name=str(scope_name or ""),
                metric_name=str(metric.get("name") or ""),
                unit=str(metric.get("unit") or ""),
                kind=_KINDS[key],
                temporality=_temporality(key, data),
                is_monotonic=bool(data.get("isMonotonic")) if key == "sum" else None,
                attributes=self._attributes(point),
                run_id=None if run_id is None else str(run_id),
            )
            self._point(point, self._cache.series(series))

    def _point(self, point: Mapping[str, Any], series: Series) -> None:
        try:
            time = _nanos(point.get("timeUnixNano"))
            start = _nanos(point.get("startTimeUnixNano"))
            value = _value(point, series.kind)
            extra = _extra(point)
        except _BadPoint as error:
            self.skipped[str(error)] += 1
            return
        if extra is not None:
            self.extras[len(self.values)] = extra
        self.series.append(series)
        self.times.append(time)
        self.starts.append(start)
        self.values.append(value)

    def _objects(self, parent: Mapping[str, Any], key: str) -> Iterator[Mapping[str, Any]]:
        """The objects in the list *key*; an absent list is an empty one."""
        found = parent.get(key, [])
        if not isinstance(found, list):
            self.skipped[NOT_AN_OBJECT.format(key)] += 1
            return
        for item in found:
            if isinstance(item, Mapping):
                yield item
            else:
                self.skipped[NOT_AN_OBJECT.format(f"an item of {key}")] += 1

    def _attributes(self, owner: Any) -> AttributesJson:
        if not isinstance(owner, Mapping) or not owner.get("attributes"):
            return "{}"
        pairs = self._objects(owner, "attributes")
        return attributes_json({str(pair.get("key", "")): _any(pair.get("value")) for pair in pairs})


def _any(value: Any) -> Any:
    """An OTLP AnyValue; the first of its fields that is not null."""
    if not isinstance(value, Mapping):
        return value
    for kind, content in value.items():
        match kind, content:
            case _, None:
                continue
            case "intValue", _:
                return _integer_or_text(content)
            case "arrayValue", {"values": list(values)}:
                return [_any(item) for item in values]
            case "kvlistValue", {"values": list(values)}:
                return {str(v.get("key")): _any(v.get("value")) for v in values
                        if isinstance(v, Mapping)}  # fmt: skip
            case _:
                return content
    return None


def _integer_or_text(content: Any) -> Any:
    try:
        return int(content)
    except (TypeError, ValueError):
        return content


def _temporality(key: str, data: Mapping[str, Any]) -> Temporality | None:
    """smoltrace leaves it out of histograms; unspecified is read as cumulative."""
    if key in ("gauge", "summary"):
        return None
    word = data.get("aggregationTemporality")
    return _TEMPORALITIES.get(word, "cumulative") if isinstance(word, int | str) else "cumulative"


def _nanos(time: Any) -> int:
    """Nanoseconds; 0 where there are none."""
    if time is None or time == "":
        return 0
    if isinstance(time, bool) or not isinstance(time, int | str):
        raise _BadPoint(BAD_TIME)
    try:
        nanos = int(time)
    except ValueError:
        raise _BadPoint(BAD_TIME) from None
    if not 0 <= nanos < 2**64:
        raise _BadPoint(BAD_TIME)
    return nanos


def _value(point: Mapping[str, Any], kind: Kind) -> Value:
    if _flags(point) & NO_RECORDED_VALUE:
        return None
    if kind in ("gauge", "sum"):
        double, integer = point.get("asDouble"), point.get("asInt")
        return _number(double) if double is not None else _integer(integer)
    return _distribution(point)


def _number(value: Any) -> float | None:
    """A double; "NaN" and "Infinity" are words in JSON."""
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise _BadPoint(BAD_NUMBER)
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise _BadPoint(BAD_NUMBER) from None


def _integer(value: Any) -> int | float | None:
    if isinstance(value, bool):
        raise _BadPoint(BAD_NUMBER)
    if value is None or isinstance(value, int):
        return _in_range(value)
    try:
        return _in_range(int(value)) if isinstance(value, str) else _number(value)
    except ValueError:
        return _number(value)


def _in_range(value: int | None) -> int | None:
    if value is not None and not -(2**63) <= value < 2**64:
        raise _BadPoint(BAD_NUMBER)
    return value


def _distribution(point: Mapping[str, Any]) -> Distribution:
    positive, negative = _mapping(point.get("positive")), _mapping(point.get("negative"))
    return Distribution(
        count=_count(point.get("count")),
        sum=_number(point.get("sum")),
        min=_number(point.get("min")),
        max=_number(point.get("max")),
        bucket_counts=_counts(point.get("bucketCounts")),
        explicit_bounds=_numbers(point.get("explicitBounds")),
        scale=_signed(point.get("scale")),
        zero_count=_count(point.get("zeroCount")),
        zero_threshold=_number(point.get("zeroThreshold")),
        positive_offset=_signed(positive.get("offset")),
        positive_bucket_counts=_counts(positive.get("bucketCounts")),
        negative_offset=_signed(negative.get("offset")),
        negative_bucket_counts=_counts(negative.get("bucketCounts")),
        quantiles=_quantiles(point.get("quantileValues")),
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _count(value: Any) -> int | None:
    count = _signed(value)
    if count is not None and count < 0:
        raise _BadPoint(BAD_NUMBER)
    return count


def _signed(value: Any) -> int | None:
    number = _integer(value)
    if isinstance(number, float):
        if not math.isfinite(number) or number != int(number):
            raise _BadPoint(BAD_NUMBER)
        return int(number)
    return number


def _counts(values: Any) -> tuple[int, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list):
        raise _BadPoint(BAD_NUMBER)
    return tuple(_count(value) or 0 for value in values)


def _numbers(values: Any) -> tuple[float, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list) or None in values:
        raise _BadPoint(BAD_NUMBER)
    return tuple(_number(value) or 0.0 for value in values)


def _quantiles(values: Any) -> tuple[tuple[float, float], ...] | None:
    if values is None:
        return None
    if not isinstance(values, list):
        raise _BadPoint(BAD_NUMBER)
    pairs = (_mapping(value) for value in values)
    return tuple((_number(p.get("quantile")) or 0.0, _number(p.get("value")) or 0.0) for p in pairs)


def _extra(point: Mapping[str, Any]) -> Extra | None:
    flags, exemplars = _flags(point), point.get("exemplars")
    if not flags and not exemplars:
        return None
    return Extra(flags=flags, exemplars=json.dumps(exemplars) if exemplars else None)


def _flags(point: Mapping[str, Any]) -> int:
    return _count(point.get("flags")) or 0
