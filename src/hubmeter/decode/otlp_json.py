"""
OTLP/JSON, as dictionaries or text, to batches.

Reads what the specification writes (lowerCamelCase, 64-bit integers as strings or
numbers, "NaN" and "Infinity" as strings) and what smoltrace stores (an envelope
with ``run_id``; ``asInt`` and ``asDouble`` both there, either null). A broken
record costs itself only, and is counted.

A source sends the same series again and again, so what attributes mean and whose
series they are is remembered; what is broken is not, as it counts each time.
"""

from __future__ import annotations

import json
import marshal
from collections.abc import Iterator, Mapping
from typing import Any

from ..batch import (
    AttributesJson,
    Kind,
    PointBatch,
    Series,
    Temporality,
    attributes_json,
)
from ..errors import DecodeError
from .json_values import BadPoint, attributes_of, extra_of, name_of, nanos_of, value_of
from .layouts import MOST_BYTES, Columns, LayoutCache

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

_SNAKE_CASE = {
    "resourceMetrics": "resource_metrics",
    "scopeMetrics": "scope_metrics",
    "dataPoints": "data_points",
}
_OF_DOUBLES = frozenset({"attributes", "startTimeUnixNano", "timeUnixNano", "asDouble"})
"""All that the usual number has."""

_NEVER = ("", 0)

_LEAVES = frozenset({str, int, float, bool, type(None)})

BAD_LINE = "a line is not JSON"
NOT_A_REQUEST = "a record is not an OTLP metrics request (no resourceMetrics)"
NOT_AN_OBJECT = "{} is null or not what OTLP says"
SNAKE_CASE = "{} is not a field of OTLP/JSON: write {}"
UNKNOWN_KIND = "a metric is of a kind that is not known"


class JsonDecoder:
    """
    Decodes requests of one source. Not thread safe.

    Args:
        most_bytes: About how much it may remember.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._cache = LayoutCache(most_bytes)

    def decode(self, request: Any) -> PointBatch:
        """
        One request, ``{"resourceMetrics": [...]}``, as a batch.

        Args:
            request: Decoded JSON of any shape: what is not OTLP is counted, not raised.
        """
        walk = _Walk(self._cache)
        walk.request(request)
        return walk.columns.batch(self._cache)

    def decode_request(self, body: bytes) -> PointBatch:
        """
        The body of one request that a sender waits for, in UTF-8.

        What is wrong inside is counted, as in :meth:`decode`. A body without
        ``resourceMetrics`` is a request without points, as unknown fields are ignored.

        Raises:
            DecodeError: *body* is not a JSON object.
        """
        request = _object_of(body)
        if "resource_metrics" not in request:  # that is counted, or its points would vanish
            request = {"resourceMetrics": [], **request}
        return self.decode(request)

    def decode_document(self, document: Any) -> Iterator[PointBatch]:
        """A request; or smoltrace's envelope, each item of which is a collection of its own."""
        collections = None
        if isinstance(document, Mapping) and "run_id" in document:
            collections = document.get("resourceMetrics")
        if not isinstance(collections, list):
            yield self.decode(document)
            return
        for collection in collections:
            yield self.decode({**document, "resourceMetrics": [collection]})

    def decode_text(self, text: str | bytes) -> Iterator[PointBatch]:
        """
        A JSON document, or one request per line.

        Raises:
            DecodeError: If there is nothing but white space.
        """
        if not text.strip():
            raise DecodeError("the input is empty: expected OTLP/JSON")
        try:
            document = _parsed(text)
        except (ValueError, RecursionError):
            # Not splitlines(): a JSON string may hold other line separators.
            for line in text.split("\n") if isinstance(text, str) else text.split(b"\n"):
                if line.strip():
                    yield from self._decode_line(line)
        else:
            for item in document if isinstance(document, list) else [document]:
                yield from self.decode_document(item)

    def _decode_line(self, line: str | bytes) -> Iterator[PointBatch]:
        try:
            document = _parsed(line)
        except (ValueError, RecursionError):
            empty = self._cache.layout([])
            yield PointBatch(layout=empty, times_unix_nano=(), values=(), skipped={BAD_LINE: 1})
        else:
            yield from self.decode_document(document)


def _object_of(body: bytes) -> Mapping[str, Any]:
    try:
        found = _parsed(body.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DecodeError(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except ValueError as error:
        raise DecodeError(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise DecodeError("the body is nested too deeply to be OTLP/JSON") from None
    if not isinstance(found, dict):
        raise DecodeError('the body is not a JSON object: expected {"resourceMetrics": [...]}')
    return found


def _parsed(text: str | bytes) -> Any:
    """JSON, in which one number of thousands of digits spoils that number only."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:
        return json.loads(
            text, parse_int=lambda digits: int(digits) if len(digits) < 40 else digits
        )


class _Walk:
    """Collects the points of one request."""

    def __init__(self, cache: LayoutCache) -> None:
        self.columns = Columns()
        self._skipped = self.columns.skipped
        self._cache = cache
        self._time = self._start = _NEVER

    def request(self, request: Any) -> None:
        names = {"resourceMetrics", "resource_metrics"}
        if not isinstance(request, Mapping) or names.isdisjoint(request):
            self._skipped[NOT_A_REQUEST] += 1
            return
        run_id = name_of(request.get("run_id")) or None
        for resource_metrics in self._objects(request, "resourceMetrics"):
            resource = self._cache.text(
                self._attributes(self._object(resource_metrics, "resource"))
            )
            for scope_metrics in self._objects(resource_metrics, "scopeMetrics"):
                scope = self._object(scope_metrics, "scope")
                owner: dict[str, Any] = {
                    "resource": resource,
                    "scope_name": name_of(scope.get("name")),
                    "scope": self._cache.text(self._scope(scope, scope_metrics)),
                    "run_id": run_id,
                }
                for metric in self._objects(scope_metrics, "metrics"):
                    self._metric(metric, owner)

    def _scope(self, scope: Mapping[str, Any], scope_metrics: Mapping[str, Any]) -> AttributesJson:
        """What tells scopes of one name apart."""
        known = {
            "version": scope.get("version"),
            "schema_url": scope_metrics.get("schemaUrl"),
            "attributes": json.loads(self._attributes(scope)),
        }
        return attributes_json({name: value for name, value in known.items() if value})

    def _metric(self, metric: Mapping[str, Any], owner: Mapping[str, Any]) -> None:
        key = next((key for key in _KINDS if metric.get(key) is not None), None)
        if key is None:
            self._skipped[UNKNOWN_KIND] += 1
            return
        data = metric[key]
        if not isinstance(data, Mapping):
            self._skipped[NOT_AN_OBJECT.format(key)] += 1
            return
        common: dict[str, Any] = {
            **owner,
            "metric_name": name_of(metric.get("name")),
            "unit": name_of(metric.get("unit")),
            "kind": _KINDS[key],
            "temporality": _temporality(key, data),
            "is_monotonic": bool(data.get("isMonotonic")) if key == "sum" else None,
        }
        known = self._cache.series_of(*common.values())
        for point in self._objects(data, "dataPoints"):
            attributes = self._attributes(point)
            series = known.get(attributes)
            if series is None:
                series = self._cache.series(Series(**common, attributes=attributes))
                known[series.attributes] = series
            self._point(point, series)

    def _point(self, point: Mapping[str, Any], series: Series) -> None:
        extra = None
        try:
            self._time = _read_again(point.get("timeUnixNano"), self._time)
            self._start = _read_again(point.get("startTimeUnixNano"), self._start)
            value = point.get("asDouble")
            is_usual = type(value) is float and series.kind in ("gauge", "sum")
            if not (is_usual and _OF_DOUBLES.issuperset(point)):
                value = value_of(point, series.kind)
                extra = extra_of(point) if "flags" in point or "exemplars" in point else None
        except BadPoint as error:
            self._skipped[str(error)] += 1
        else:
            self.columns.add(series, self._time[1], self._start[1], value, extra)

    def _objects(self, parent: Mapping[str, Any], key: str) -> Iterator[Mapping[str, Any]]:
        """The objects in the list *key*; an absent list, or null, is an empty one."""
        found = parent.get(key)
        if found is None:
            snake = _SNAKE_CASE.get(key)
            if snake is not None and snake in parent:
                self._skipped[SNAKE_CASE.format(snake, key)] += 1
            return
        if not isinstance(found, list):
            self._skipped[NOT_AN_OBJECT.format(key)] += 1
            return
        for item in found:
            if type(item) is dict or isinstance(item, Mapping):
                yield item
            else:
                self._skipped[NOT_AN_OBJECT.format(f"an item of {key}")] += 1

    def _object(self, parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        """The object *key*; empty where there is none."""
        found = parent.get(key)
        if found is not None and not isinstance(found, Mapping):
            self._skipped[NOT_AN_OBJECT.format(key)] += 1
        return found if isinstance(found, Mapping) else {}

    def _attributes(self, owner: Mapping[str, Any]) -> AttributesJson:
        said = owner.get("attributes")
        if not said:
            return "{}"
        try:
            # Version 2 has no references, so equal values are equal bytes; and 1 is not True.
            key = marshal.dumps(said, 2)
        except ValueError:  # not what JSON can say, or too deep
            return self._read_attributes(owner)
        known = self._cache.attributes.get(key)
        if known is None:
            skipped = self._skipped.total()
            known = self._read_attributes(owner)
            if self._skipped.total() == skipped and _is_json(said):
                self._cache.remember(key, known)
        return known

    def _read_attributes(self, owner: Mapping[str, Any]) -> AttributesJson:
        return attributes_json(attributes_of(list(self._objects(owner, "attributes"))))


def _read_again(time: Any, last: tuple[str, int]) -> tuple[str, int]:
    """*time* and its nanoseconds, read once for all points that say the same one after another."""
    if type(time) is str and time == last[0]:
        return last
    return time if type(time) is str else "", nanos_of(time)


def _is_json(value: Any) -> bool:
    """
    Nothing but what JSON can say.

    Of other objects marshal sees the memory only: NumPy's 0.0 and 0 are the same to it.
    """
    found = [value]
    for one in found:  # which grows meanwhile
        kind = type(one)
        if kind is dict:
            found += one
            found += one.values()
        elif kind is list:
            found += one
        elif kind not in _LEAVES:
            return False
    return True


def _temporality(key: str, data: Mapping[str, Any]) -> Temporality | None:
    """Unspecified is read as cumulative: smoltrace leaves it out of histograms."""
    if key in ("gauge", "summary"):
        return None
    word = data.get("aggregationTemporality")
    return _TEMPORALITIES.get(word, "cumulative") if isinstance(word, int | str) else "cumulative"
