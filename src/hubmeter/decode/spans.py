"""
Spans to windows: which trace, task, model and agent ran when. All else of a span is dropped.

A window is a data point (``schema.WINDOW_METRIC``), so it is journaled, routed and published
as all points are; :mod:`hubmeter.windows` makes columns of it. Which spans are windows: root
spans, and those that carry an attribute in :data:`ATTRIBUTES`.

Sources: OTLP (``trace.proto``; OTLP/JSON encoding), OpenTelemetry semantic conventions
``gen_ai.*`` (Development), OpenInference, smoltrace, genai_otel.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..batch import AttributesJson, PointBatch, Series, SeriesLayout, attributes_json
from ..conventions import text_of
from ..errors import DecodeError
from ..schema import WINDOW_METRIC, WINDOW_SCOPE, WINDOW_UNIT
from . import json_values, proto_values
from .json_values import LONGEST_INTEGER, BadPoint, nanos_of

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "task_id": ("task_id", "task.id", "test.id", "test_id", "crewai.task.id"),
    "model": (
        "gen_ai.request.model",
        "llm.request.model_name",
        "llm.model_name",
        "gen_ai.response.model",
        "llm.response.model_name",
        "embedding.model_name",
        "model",
        "model_name",
        "model_id",
    ),
    "agent_type": (
        "agent_type",
        "agent.type",
        "autogen_agentchat.agent.type",
        "autogen.agent.type",
        "gen_ai.agent.name",
        "agent.name",
    ),
}
"""
Column to the attributes that tell it; the first that is there counts.

The model that was asked for comes before the one that answered, and the type of an agent
before its name. Sessions and conversations are not tasks: they hold several.
"""

NO_TRACE = "a span has no trace id of 16 bytes"
UNFINISHED = "a span has no end"
NO_START = "a span has no start"
BACKWARDS = "a span ends before it starts"
NOT_SPANS = "{} is not what OTLP says"

_NAMES = frozenset(name for names in ATTRIBUTES.values() for name in names)
_TRACE_ID = re.compile("[0-9a-f]{32}")


class SpanDecoder:
    """
    Decodes OTLP trace requests. Keeps nothing from one to the next: each trace is new.

    Spans that cannot be used are counted in the batch: they name no trace, have not ended,
    or end before they start. Fields that are not known are ignored.
    """

    def decode_proto(self, body: bytes) -> PointBatch:
        """
        An ExportTraceServiceRequest, or TracesData, which has the same form.

        Raises:
            DecodeError: It is not protobuf.
        """
        from google.protobuf.message import DecodeError as NotProtobuf
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        try:
            request = ExportTraceServiceRequest.FromString(body)
        except NotProtobuf as error:
            raise DecodeError(f"the body is not an OTLP trace request: {error}") from error
        return _batch(_proto_spans(request), Counter())

    def decode_json(self, body: bytes) -> PointBatch:
        """
        The same in OTLP/JSON.

        Raises:
            DecodeError: It is not JSON, or not an object.
        """
        try:
            request = json.loads(body, parse_int=_integer)
        except (ValueError, RecursionError) as error:
            raise DecodeError(f"the body is not JSON: {error}") from error
        return self.decode_object(request)

    def decode_object(self, request: Any) -> PointBatch:
        """
        The same as JSON that was decoded already.

        Raises:
            DecodeError: It is not an object.
        """
        if not isinstance(request, Mapping):
            raise DecodeError("the body is not an OTLP trace request: expected a JSON object")
        skipped: Counter[str] = Counter()
        return _batch(_json_spans(request, skipped), skipped)


def _integer(digits: str) -> int | str:
    """Python takes long to read millions of digits, or refuses."""
    return int(digits) if len(digits) < LONGEST_INTEGER else digits


class _Span(NamedTuple):
    """
    A span in the words of either encoding.

    Attributes:
        trace_id: Hexadecimal, in any case.
        parent: Likewise; empty or zeros for a root.
        start: As sent, likewise *end*.
        named: Only attributes that we know.
    """

    resource: AttributesJson
    trace_id: Any
    parent: Any
    start: Any
    end: Any
    named: Mapping[str, Any]


@dataclass(slots=True)
class _Windows:
    """Windows of one request. Spans of a trace that say the same are one series."""

    series: list[Series] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    known: dict[tuple[AttributesJson, AttributesJson], Series] = field(default_factory=dict)

    def add(self, span: _Span, said: Mapping[str, str]) -> None:
        """Take *span*, or raise BadPoint."""
        trace_id = span.trace_id.lower() if isinstance(span.trace_id, str) else ""
        if not _TRACE_ID.fullmatch(trace_id) or not trace_id.strip("0"):
            raise BadPoint(NO_TRACE)
        start, end = nanos_of(span.start), nanos_of(span.end)
        if not end or not start:
            raise BadPoint(NO_START if end else UNFINISHED)
        if end < start:
            raise BadPoint(BACKWARDS)
        key = span.resource, attributes_json({"trace_id": trace_id, **said})
        if key not in self.known:
            self.known[key] = _series(*key)
        self.series.append(self.known[key])
        self.starts.append(start)
        self.ends.append(end)


def _batch(spans: Iterable[_Span], skipped: Counter[str]) -> PointBatch:
    windows = _Windows()
    for span in spans:
        said = _said(span.named)
        if said or _is_root(span):
            try:
                windows.add(span, said)
            except BadPoint as error:
                skipped[str(error)] += 1
    times = zip(windows.starts, windows.ends, strict=True)
    return PointBatch(
        layout=SeriesLayout(tuple(windows.series)),
        times_unix_nano=windows.ends,
        start_times_unix_nano=tuple(windows.starts),
        values=[(end - start) / 1e9 for start, end in times],
        skipped=dict(skipped),
    )


def _series(resource: AttributesJson, attributes: AttributesJson) -> Series:
    return Series(
        resource=resource,
        scope_name=WINDOW_SCOPE,
        metric_name=WINDOW_METRIC,
        unit=WINDOW_UNIT,
        kind="gauge",
        attributes=attributes,
    )


def _said(named: Mapping[str, Any]) -> dict[str, str]:
    """Column to text, as far as the attributes tell."""
    said = {}
    for column, names in ATTRIBUTES.items() if named else ():
        texts = (_text(named.get(name)) for name in names)
        text = next((text for text in texts if text is not None), None)
        if text is not None:
            said[column] = text
    return said


def _text(value: Any) -> str | None:
    """Bytes are what JSON has for them."""
    return text_of(base64.b64encode(value).decode() if isinstance(value, bytes) else value)


def _is_root(span: _Span) -> bool:
    """Senders write no parent as nothing, or as zeros."""
    return not (span.parent.strip("0") if isinstance(span.parent, str) else span.parent)


# ------------------------------------------------------------------ OTLP/JSON


def _json_spans(request: Mapping[str, Any], skipped: Counter[str]) -> Iterator[_Span]:
    for resource_spans in _objects(request, "resourceSpans", skipped):
        resource = resource_spans.get("resource")
        pairs = resource.get("attributes") if isinstance(resource, Mapping) else None
        about = attributes_json(json_values.attributes_of(pairs if isinstance(pairs, list) else []))
        for scope_spans in _objects(resource_spans, "scopeSpans", skipped):
            for span in _objects(scope_spans, "spans", skipped):
                yield _Span(
                    about,
                    span.get("traceId"),
                    span.get("parentSpanId"),
                    span.get("startTimeUnixNano"),
                    span.get("endTimeUnixNano"),
                    _json_named(span.get("attributes")),
                )


def _json_named(pairs: Any) -> dict[str, Any]:
    return {
        pair["key"]: json_values.any_value(pair.get("value"))
        for pair in (pairs if isinstance(pairs, list) else ())
        if isinstance(pair, Mapping) and isinstance(key := pair.get("key"), str) and key in _NAMES
    }


def _objects(
    parent: Mapping[str, Any], key: str, skipped: Counter[str]
) -> Iterator[Mapping[str, Any]]:
    """The objects in the list *key*; null is no list, as protobuf has it."""
    found = parent.get(key)
    if found is not None and not isinstance(found, list):
        skipped[NOT_SPANS.format(key)] += 1
    for item in found if isinstance(found, list) else ():
        if isinstance(item, Mapping):
            yield item
        else:
            skipped[NOT_SPANS.format(f"an item of {key}")] += 1


# ------------------------------------------------------------------ protobuf


def _proto_spans(request: Any) -> Iterator[_Span]:
    for resource_spans in request.resource_spans:
        about = attributes_json(proto_values.attributes_of(resource_spans.resource.attributes))
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield _Span(
                    about,
                    span.trace_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    _proto_named(span.attributes),
                )


def _proto_named(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: proto_values.any_value(pair.value) for pair in pairs if pair.key in _NAMES}
