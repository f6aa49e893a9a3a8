"""Random OTLP requests as protobuf messages, and the OTLP/JSON that says the same."""

from __future__ import annotations

import base64
import math
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from hubmeter.batch import PointBatch
from makers import CO2, POWER, T0, UTIL

KINDS = ("gauge", "sum", "histogram", "exponential_histogram", "summary")
TIMES = (0, 1, T0, T0, T0, T0 + 1, 2**63, 2**64 - 1)
DOUBLES = (0.0, -0.0, 1.5, -1.5, 5e-324, 1.7e308, math.inf, -math.inf, math.nan)
INTEGERS = (0, 1, -1, 2**53, 2**53 + 1, -(2**63), 2**63 - 1)
COUNTS = (0, 1, 7, 2**53 + 1, 2**64 - 1)
TEXTS = ("", "a", "0", "gpu 1", "a.b/c", "ä\u2028€😀", "\0", '"\\\n', "x" * 300)
KEYS = ("gpu_id", "gpu_id", "gpu_name", "hw.id", "service.name", "run.id", "a/b.c", "")
NAMES = (UTIL, POWER, CO2, "m", "", "ä")
OF_SPANS = (*KEYS, "task.id", "gen_ai.request.model", "llm.model_name", "agent.type")
UNKNOWN = b"\xf8\x3f\x07" + b"\xfa\x3f\x03abc"
"""Field 1023, which no message has, as a number and as text."""


def random_request(dice: Random) -> ExportMetricsServiceRequest:
    """A request as small senders and large Collectors make them, with all that OTLP can say."""
    request = ExportMetricsServiceRequest()
    for _ in range(dice.choice((0, 1, 1, 1, 1, 2))):
        resource_metrics = request.resource_metrics.add(schema_url=dice.choice(TEXTS))
        _fill_attributes(resource_metrics.resource.attributes, dice)
        for _ in range(dice.choice((0, 1, 1, 2))):
            scope_metrics = resource_metrics.scope_metrics.add(schema_url=dice.choice(TEXTS[:3]))
            _fill_scope(scope_metrics, dice)
    return request


def random_traces(dice: Random) -> ExportTraceServiceRequest:
    """Spans that say what ran, or do not, some of them without an end or a trace."""
    request = ExportTraceServiceRequest()
    for _ in range(dice.choice((0, 1, 1, 1, 1, 2))):
        resource_spans = request.resource_spans.add(schema_url=dice.choice(TEXTS))
        _fill_attributes(resource_spans.resource.attributes, dice)
        scope_spans = resource_spans.scope_spans.add(schema_url=dice.choice(TEXTS[:3]))
        for _ in range(dice.choice((1, 3, 5))):
            span = scope_spans.spans.add(name=dice.choice(TEXTS), kind=dice.randrange(6))
            span.trace_id = dice.randbytes(dice.choice((16, 16, 16, 16, 0, 12)))
            span.span_id = dice.randbytes(8)
            span.start_time_unix_nano = dice.choice(TIMES)
            span.end_time_unix_nano = dice.choice(TIMES)
            _fill_attributes(span.attributes, dice, OF_SPANS)
            _add_unknown(span, dice)
    return request


def _fill_scope(scope_metrics: Any, dice: Random) -> None:
    if dice.random() < 0.7:
        scope_metrics.scope.name = dice.choice(NAMES)
        scope_metrics.scope.version = dice.choice(TEXTS)
        _fill_attributes(scope_metrics.scope.attributes, dice)
    for _ in range(dice.choice((0, 1, 2, 3, 3))):
        metric = scope_metrics.metrics.add(
            name=dice.choice(NAMES), unit=dice.choice(TEXTS), description=dice.choice(TEXTS)
        )
        _fill_metric(metric, dice)
        _add_unknown(metric, dice)


def _fill_metric(metric: Any, dice: Random) -> None:
    kind = dice.choice(KINDS)
    if dice.random() < 0.05:
        return
    data = getattr(metric, kind)
    data.SetInParent()
    if kind not in ("gauge", "summary"):
        data.aggregation_temporality = dice.choice((0, 1, 2, 7))
    if kind == "sum":
        data.is_monotonic = dice.random() < 0.5
    for _ in range(dice.choice((0, 1, 2, 3, 3))):
        point = data.data_points.add(
            time_unix_nano=dice.choice(TIMES),
            start_time_unix_nano=dice.choice(TIMES),
            flags=dice.choice((0, 0, 0, 0, 1, 3, 2**32 - 1)),
        )
        _fill_attributes(point.attributes, dice)
        _fill_point(point, kind, dice)
        _add_unknown(point, dice)


def _fill_point(point: Any, kind: str, dice: Random) -> None:
    if kind in ("gauge", "sum"):
        _fill_number(point, dice)
    else:
        point.count = dice.choice(COUNTS)
        if kind == "summary" or dice.random() < 0.7:
            point.sum = dice.choice(DOUBLES)
    if kind == "summary":
        for _ in range(dice.randrange(3)):
            point.quantile_values.add(quantile=dice.choice(DOUBLES), value=dice.choice(DOUBLES))
        return
    if kind in ("histogram", "exponential_histogram") and dice.random() < 0.5:
        point.min, point.max = dice.choice(DOUBLES), dice.choice(DOUBLES)
    if kind == "histogram":
        point.bucket_counts.extend(dice.choices(COUNTS, k=dice.randrange(4)))
        point.explicit_bounds.extend(dice.choices(DOUBLES, k=dice.randrange(3)))
    if kind == "exponential_histogram":
        point.scale = dice.choice((0, 3, -(2**31), 2**31 - 1))
        point.zero_count, point.zero_threshold = dice.choice(COUNTS), dice.choice(DOUBLES)
        for side in (point.positive, point.negative):
            side.offset = dice.choice((0, -5, 2**31 - 1))
            side.bucket_counts.extend(dice.choices(COUNTS, k=dice.randrange(3)))
    if dice.random() < 0.2:
        _fill_exemplar(point.exemplars.add(), dice)


def _fill_number(point: Any, dice: Random) -> None:
    match dice.randrange(5):
        case 0 | 1:
            point.as_double = dice.choice(DOUBLES)
        case 2 | 3:
            point.as_int = dice.choice(INTEGERS)


def _fill_exemplar(exemplar: Any, dice: Random) -> None:
    _fill_attributes(exemplar.filtered_attributes, dice)
    _fill_number(exemplar, dice)
    exemplar.time_unix_nano = dice.choice(TIMES)
    exemplar.span_id = dice.randbytes(dice.choice((0, 8, 8, 8, 8, 7)))
    exemplar.trace_id = dice.randbytes(dice.choice((0, 16, 16, 16, 16, 12)))


def _fill_attributes(pairs: Any, dice: Random, keys: tuple[str, ...] = KEYS) -> None:
    for _ in range(dice.choice((0, 1, 2, 3))):
        pair = pairs.add(key=dice.choice(keys))
        if dice.random() < 0.95:
            _fill_value(pair.value, dice)


def _fill_value(value: Any, dice: Random, depth: int = 0) -> None:
    match dice.randrange(8 if depth < 2 else 6):
        case 0 | 1:
            value.string_value = dice.choice(TEXTS)
        case 2:
            value.bool_value = dice.random() < 0.5
        case 3:
            value.int_value = dice.choice(INTEGERS)
        case 4:
            value.double_value = dice.choice(DOUBLES)
        case 5:
            value.bytes_value = dice.randbytes(dice.randrange(4))
        case 6:
            value.array_value.SetInParent()
            for _ in range(dice.randrange(3)):
                _fill_value(value.array_value.values.add(), dice, depth + 1)
        case 7:
            value.kvlist_value.SetInParent()
            for _ in range(dice.randrange(3)):
                pair = value.kvlist_value.values.add(key=dice.choice(KEYS))
                _fill_value(pair.value, dice, depth + 1)


def _add_unknown(message: Message, dice: Random) -> None:
    if dice.random() < 0.1:
        message.MergeFromString(UNKNOWN)


def contents(batch: PointBatch) -> tuple[Any, ...]:
    """All that *batch* says, so that two can be compared; NaN is equal to itself."""
    skipped = {reason: count for reason, count in batch.skipped.items() if count}
    columns = (batch.times_unix_nano, batch.start_times_unix_nano, batch.values)
    return (batch.layout.series, *(repr(list(one)) for one in columns), batch.extras, skipped)


def json_of(message: Any) -> dict[str, Any]:
    """*message* as the OTLP specification writes it in JSON: what is set, by its JSON name."""
    return {field.json_name: _field(field, value) for field, value in message.ListFields()}


def _field(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        return _one(field, value)
    return [_one(field, item) for item in value]


def _one(field: FieldDescriptor, value: Any) -> Any:
    match value:
        case bool() | str():
            return value
        case bytes() if field.name in ("trace_id", "span_id"):
            return value.hex().upper()
        case bytes():
            return base64.b64encode(value).decode()
        case float() if math.isfinite(value):
            return value
        case float():
            return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
        case int():
            return str(value) if "64" in _TYPES[field.type] else value
        case _:
            return json_of(value)


_TYPES = {
    number: name for name, number in vars(FieldDescriptor).items() if name.startswith("TYPE_")
}
