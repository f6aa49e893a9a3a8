"""
OTLP/JSON, as dictionaries or text, to batches.

Reads what the specification writes (lowerCamelCase, 64-bit integers as strings or
numbers, "NaN" and "Infinity" as strings) and what smoltrace stores (an envelope
with ``run_id``; ``asInt`` and ``asDouble`` both there, either null). A broken
record costs itself only, and is counted.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ..batch import (
    DEEPEST,
    TOO_DEEP,
    AttributesJson,
    Distribution,
    Extra,
    Kind,
    PointBatch,
    Series,
    Temporality,
    Value,
    attributes_json,
    canonical_json,
    finite,
    writable,
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
SNAKE_CASE = "{} is not a field of OTLP/JSON: write {}"
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
            # Not splitlines(): a JSON string may hold other line separators.
            for line in text.split("\n") if isinstance(text, str) else text.split(b"\n"):
                if line.strip():
                    yield self._decode_line(line)
        else:
            for request in document if isinstance(document, list) else [document]:
                yield self.decode(request)

    def _decode_line(self, line: str | bytes) -> PointBatch:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            empty = self._cache.layout([])
            return PointBatch(layout=empty, times_unix_nano=(), values=(), skipped={BAD_LINE: 1})
        return self.decode(request)


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
        if not isinstance(request, Mapping) or not {"resourceMetrics", "resource_metrics"} & {*request}:
            self.skipped[NOT_A_REQUEST] += 1
            return
        run_id = _name(request.get("run_id")) or None
        for resource_metrics in self._objects(request, "resourceMetrics"):
            resource = self._attributes(self._object(resource_metrics, "resource"))
            for scope_metrics in self._objects(resource_metrics, "scopeMetrics"):
                scope_name = _name(self._object(scope_metrics, "scope").get("name"))
                for metric in self._objects(scope_metrics, "metrics"):
                    self._metric(metric, resource, scope_name, run_id)

    def _metric(
        self, metric: Mapping[str, Any], resource: AttributesJson, scope_name: str, run_id: str | None
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
                scope_name=scope_name,
                metric_name=_name(metric.get("name")),
                unit=_name(metric.get("unit")),
                kind=_KINDS[key],
                temporality=_temporality(key, data),
                is_monotonic=bool(data.get("isMonotonic")) if key == "sum" else None,
                attributes=self._attributes(point),
                run_id=run_id,
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
        if key not in parent and (snake := re.sub("([A-Z])", r"_\1", key).lower()) in parent:
            self.skipped[SNAKE_CASE.format(snake, key)] += 1
        found = parent.get(key, [])
        if not isinstance(found, list):
            self.skipped[NOT_AN_OBJECT.format(key)] += 1
            return
        for item in found:
            if isinstance(item, Mapping):
                yield item
            else:
                self.skipped[NOT_AN_OBJECT.format(f"an item of {key}")] += 1

    def _object(self, parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        """The object *key*; empty where there is none."""
        found = parent.get(key)
        if found is not None and not isinstance(found, Mapping):
            self.skipped[NOT_AN_OBJECT.format(key)] += 1
        return found if isinstance(found, Mapping) else {}

    def _attributes(self, owner: Mapping[str, Any]) -> AttributesJson:
        if not owner.get("attributes"):
            return "{}"
        return attributes_json(_pairs(list(self._objects(owner, "attributes"))))


def _name(value: Any) -> str:
    return writable(str(value)) if isinstance(value, str | int | float) else ""


def _pairs(pairs: list[Any], depth: int = 0) -> dict[str, Any]:
    """A list of OTLP KeyValues; of one key the last counts."""
    return {_name(p.get("key")): _any(p.get("value"), depth) for p in pairs if isinstance(p, Mapping)}


def _any(value: Any, depth: int = 0) -> Any:
    """An OTLP AnyValue; the first of its fields that is not null."""
    if not isinstance(value, Mapping):
        return value
    if depth > DEEPEST:
        return TOO_DEEP
    for kind, content in value.items():
        match kind, content:
            case _, None:
                continue
            case "intValue", str():
                return _or_as_sent(int, content)
            case "doubleValue", int() | str():
                return _or_as_sent(float, content)
            case "arrayValue", Mapping():
                return [_any(item, depth + 1) for item in _list(content.get("values"))]
            case "kvlistValue", Mapping():
                return _pairs(_list(content.get("values")), depth + 1)
            case _:
                return content
    return None


def _or_as_sent(number: type[int | float], content: Any) -> Any:
    try:
        return number(content)
    except (ValueError, OverflowError):
        return content


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


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
    return _distribution(point, kind)


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


def _distribution(point: Mapping[str, Any], kind: Kind) -> Distribution:
    """
    What *kind* has. As in protobuf, a count that is not there is 0.

    ``sum``, ``min`` and ``max`` of histograms are optional: not there is not known.
    """
    count, total = _count(point.get("count")) or 0, _number(point.get("sum"))
    low, high = finite(_number(point.get("min"))), finite(_number(point.get("max")))
    if kind == "summary":
        quantiles = _quantiles(point.get("quantileValues"))
        return Distribution(count=count, sum=total or 0.0, quantiles=quantiles)
    if kind == "histogram":
        return Distribution(
            count=count,
            sum=total,
            min=low,
            max=high,
            bucket_counts=_counts(point.get("bucketCounts")),
            explicit_bounds=_numbers(point.get("explicitBounds")),
        )
    positive, negative = _buckets(point, "positive"), _buckets(point, "negative")
    return Distribution(
        count=count,
        sum=total,
        min=low,
        max=high,
        scale=_signed(point.get("scale")) or 0,
        zero_count=_count(point.get("zeroCount")) or 0,
        zero_threshold=_number(point.get("zeroThreshold")) or 0.0,
        positive_offset=_signed(positive.get("offset")) or 0,
        positive_bucket_counts=_counts(positive.get("bucketCounts")),
        negative_offset=_signed(negative.get("offset")) or 0,
        negative_bucket_counts=_counts(negative.get("bucketCounts")),
    )


def _buckets(point: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = point.get(key)
    if found is not None and not isinstance(found, Mapping):
        raise _BadPoint(BAD_NUMBER)
    return found or {}


def _count(value: Any, limit: int = 2**64) -> int | None:
    count = _whole(value)
    if count is not None and not 0 <= count < limit:
        raise _BadPoint(BAD_NUMBER)
    return count


def _signed(value: Any) -> int | None:
    number = _whole(value)
    if number is not None and not -(2**31) <= number < 2**31:
        raise _BadPoint(BAD_NUMBER)
    return number


def _whole(value: Any) -> int | None:
    number = _integer(value)
    if isinstance(number, float):
        if not number.is_integer():
            raise _BadPoint(BAD_NUMBER)
        return int(number)
    return number


def _counts(values: Any) -> tuple[int, ...] | None:
    return tuple(_count(value) or 0 for value in _items(values)) or None


def _numbers(values: Any) -> tuple[float, ...] | None:
    return tuple(_number(value) or 0.0 for value in _items(values)) or None


def _quantiles(values: Any) -> tuple[tuple[float, float], ...] | None:
    return tuple(
        (_number(pair.get("quantile")) or 0.0, _number(pair.get("value")) or 0.0)
        for pair in _items(values, Mapping)
    ) or None  # fmt: skip


def _items(values: Any, kind: type = object) -> list[Any]:
    """The items of a repeated field, where null is not a value."""
    items = [] if values is None else values
    if not isinstance(items, list) or None in items or not all(isinstance(i, kind) for i in items):
        raise _BadPoint(BAD_NUMBER)
    return items


def _extra(point: Mapping[str, Any]) -> Extra | None:
    flags, exemplars = _flags(point), _list(point.get("exemplars"))
    if not flags and not exemplars:
        return None
    plain = canonical_json([_exemplar(exemplar) for exemplar in exemplars]) if exemplars else None
    return Extra(flags=flags, exemplars=plain)


def _exemplar(exemplar: Any) -> Any:
    """As it was sent, but attributes are a plain object and numbers and ids have one form."""
    if not isinstance(exemplar, Mapping):
        return exemplar
    forms = {
        "timeUnixNano": str,
        "asInt": str,
        "asDouble": lambda value: _or_as_sent(float, value),
        "spanId": lambda value: str(value).lower(),
        "traceId": lambda value: str(value).lower(),
    }
    plain = {
        key: forms[key](value) if key in forms and isinstance(value, str | int | float) else value
        for key, value in exemplar.items()
        if value not in (None, "")
    }
    return plain | {"filteredAttributes": _pairs(_list(exemplar.get("filteredAttributes")))}


def _flags(point: Mapping[str, Any]) -> int:
    return _count(point.get("flags"), 2**32) or 0
