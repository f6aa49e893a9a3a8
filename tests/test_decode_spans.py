"""Spans to windows: what tells what ran, both encodings, and bodies that are broken."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import set_span_in_context

from hubmeter.batch import PointBatch
from hubmeter.decode.json_values import BAD_TIME
from hubmeter.decode.spans import (
    ATTRIBUTES,
    BACKWARDS,
    NO_START,
    NO_TRACE,
    NOT_SPANS,
    UNFINISHED,
    SpanDecoder,
)
from hubmeter.errors import DecodeError
from hubmeter.ledger import pack
from hubmeter.schema import WINDOW_COLUMNS, WINDOW_METRIC
from makers import SECOND, T0, key_values

TRACE, OTHER = "5b8efff798038103d269b633813fc60c", "0af7651916cd43dd8448eb211c80319c"
PARENT = "eee19b7ec3c1b174"


def span(trace: Any = TRACE, start: Any = T0, end: Any = T0 + SECOND, **attributes) -> dict:
    """A root span in OTLP/JSON; ``gen_ai__agent__name`` is ``gen_ai.agent.name``."""
    named = {key.replace("__", "."): value for key, value in attributes.items()}
    return {
        "traceId": trace,
        "spanId": "00f067aa0ba902b7",
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(end),
        "attributes": key_values(named),
    }


def request(*spans: Any, **resource: Any) -> dict[str, Any]:
    """An OTLP/JSON trace request about one resource."""
    about = {"attributes": key_values({k.replace("__", "."): v for k, v in resource.items()})}
    return {"resourceSpans": [{"resource": about, "scopeSpans": [{"spans": list(spans)}]}]}


def decode(*spans: Any, **resource: Any) -> PointBatch:
    return SpanDecoder().decode_object(request(*spans, **resource))


def said(batch: PointBatch) -> list[dict[str, str]]:
    """The attributes of the windows."""
    return [json.loads(series.attributes) for series in batch.layout.series]


def as_json(message: ExportTraceServiceRequest) -> bytes:
    """*message* in OTLP/JSON, whose identifiers are hexadecimal."""
    made = MessageToDict(message)
    resources = zip(made.get("resourceSpans", []), message.resource_spans, strict=True)
    for one, resource in resources:
        scopes = zip(one.get("scopeSpans", []), resource.scope_spans, strict=True)
        for two, scope in scopes:
            for three, found in zip(two.get("spans", []), scope.spans, strict=True):
                three["traceId"] = found.trace_id.hex().upper()
                three["spanId"] = found.span_id.hex()
                three["parentSpanId"] = found.parent_span_id.hex().upper()
    return json.dumps(made).encode()


def agent_run() -> list[ReadableSpan]:
    """What an SDK has of two tasks: as smoltrace and OpenInference name things."""
    kept = InMemorySpanExporter()
    resource = Resource({"service.name": "agent", "run.id": "r", "n": 1, "f": 0.5, "l": ["a", "b"]})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("test", "1", attributes={"a": 1})
    for task, start in (("t1", T0), ("t2", T0 + 10 * SECOND)):
        root = tracer.start_span(
            "test_evaluation", start_time=start, attributes={"test.id": task, "agent.type": "tool"}
        )
        inside = set_span_in_context(root)
        tool = tracer.start_span(
            "tool", inside, start_time=start + 1, attributes={"tool.name": "x"}
        )
        tool.end(start + SECOND)
        model = tracer.start_span("LiteLLMModel", inside, start_time=start + 2 * SECOND)
        model.set_attribute("llm.model_name", "Qwen/Qwen3-8B")
        model.set_attribute("llm.input_messages.0.message.content", "model_id")
        model.end(start + 3 * SECOND)
        root.end(start + 5 * SECOND)
    return list(kept.get_finished_spans())


# ------------------------------------------------------------------ which spans, and what of them


def test_spans_of_an_sdk_become_windows() -> None:
    """The root and the call of a model say what ran; the tool does not."""
    spans = agent_run()
    batch = SpanDecoder().decode_proto(encode_spans(spans).SerializeToString())

    ids = [f"{spans[place].context.trace_id:032x}" for place in (0, 3)]
    model, task = {"model": "Qwen/Qwen3-8B"}, {"agent_type": "tool"}
    assert said(batch) == [
        {"trace_id": ids[0], **model}, {"trace_id": ids[0], "task_id": "t1", **task},
        {"trace_id": ids[1], **model}, {"trace_id": ids[1], "task_id": "t2", **task},
    ]  # fmt: skip
    assert [time - T0 for time in batch.times_unix_nano] == [
        3 * SECOND, 5 * SECOND, 13 * SECOND, 15 * SECOND,
    ]  # fmt: skip
    assert [time - T0 for time in batch.start_times_unix_nano] == [
        2 * SECOND, 0, 12 * SECOND, 10 * SECOND,
    ]  # fmt: skip
    assert batch.values == [1.0, 5.0, 1.0, 5.0]
    assert batch.skipped == {}
    for series in batch.layout.series:
        assert (series.metric_name, series.unit, series.kind) == (WINDOW_METRIC, "s", "gauge")
        assert series.scope_name == "hubmeter"
        assert json.loads(series.resource)["run.id"] == "r"


def test_json_and_protobuf_are_the_same_batch() -> None:
    """Identifiers, times and every kind of attribute value."""
    message = encode_spans(agent_run())
    resource = message.resource_spans[0].resource
    values: dict[str, Any] = {
        "b": {"bytes_value": b"\xff\x00"},
        "e": {},
        "t": {"bool_value": True},
        "nan": {"double_value": float("nan")},
        "i": {"int_value": -(2**63)},
        "kv": {"kvlist_value": {"values": [{"key": "k", "value": {}}]}},
    }
    for key, value in values.items():
        resource.attributes.add(key=key, value=value)
    found = message.resource_spans[0].scope_spans[0].spans[0]
    found.attributes.add(key="task_id", value={"bytes_value": b"\xff"})
    found.attributes.add(key="agent_type", value={"double_value": 1})
    broken = message.resource_spans[0].scope_spans[0].spans.add(trace_id=b"short")
    broken.attributes.add(key="model", value={"string_value": "m"})

    packed = pack(SpanDecoder().decode_proto(message.SerializeToString()))
    again = pack(SpanDecoder().decode_json(as_json(message)))

    assert packed.layout.series == again.layout.series
    assert packed[1:] == again[1:]
    assert packed.skipped == {NO_TRACE: 1}
    assert said(SpanDecoder().decode_json(as_json(message)))[0] == {
        "trace_id": found.trace_id.hex(), "task_id": "/w==", "agent_type": "1.0",
    }  # fmt: skip


def test_a_span_inside_a_trace_that_says_nothing_is_dropped() -> None:
    """Not even counted: it was understood."""
    batch = decode({**span(), "parentSpanId": PARENT}, {**span(OTHER), "parentSpanId": PARENT})

    assert (said(batch), batch.skipped) == ([], {})


@pytest.mark.parametrize("parent", [None, "", "0000000000000000"])
def test_a_root_has_no_parent_in_whichever_words(parent: str | None) -> None:
    """Some senders write zeros."""
    [series] = decode({**span(), "parentSpanId": parent}).layout.series

    assert json.loads(series.attributes) == {"trace_id": TRACE}


@pytest.mark.parametrize(
    ("column", "name"), [(column, name) for column, names in ATTRIBUTES.items() for name in names]
)
def test_every_name_tells_its_column(column: str, name: str) -> None:
    """Also on a span inside a trace."""
    inside = {**span(), "attributes": key_values({name: "x"}), "parentSpanId": PARENT}

    assert said(decode(inside)) == [{"trace_id": TRACE, column: "x"}]


def test_names_of_the_table_are_those_that_senders_use() -> None:
    """A rename upstream shows here."""
    known = {name for names in ATTRIBUTES.values() for name in names}

    assert {
        gen_ai_attributes.GEN_AI_REQUEST_MODEL,
        gen_ai_attributes.GEN_AI_RESPONSE_MODEL,
        gen_ai_attributes.GEN_AI_AGENT_NAME,
    } <= known
    openinference = pytest.importorskip("openinference.semconv.trace").SpanAttributes
    assert {
        openinference.LLM_MODEL_NAME,
        openinference.LLM_REQUEST_MODEL_NAME,
        openinference.LLM_RESPONSE_MODEL_NAME,
        openinference.EMBEDDING_MODEL_NAME,
        openinference.AGENT_NAME,
    } <= known
    assert set(ATTRIBUTES) == set(WINDOW_COLUMNS) - {"trace_id"}


def test_the_better_of_two_names_counts() -> None:
    """The model that was asked for, the type of an agent; empty and structured values tell none."""
    batch = decode(
        span(gen_ai__response__model="m-2025", gen_ai__request__model="m",
             agent__name="Ann", agent__type="tool", task_id="", test__id="t"),
        span(gen_ai__agent__name="Ann", task_id=["a"], model={"a": 1}),
    )  # fmt: skip

    assert said(batch) == [
        {"trace_id": TRACE, "task_id": "t", "model": "m", "agent_type": "tool"},
        {"trace_id": TRACE, "agent_type": "Ann"},
    ]


def test_numbers_are_texts() -> None:
    """A task may be counted."""
    assert said(decode(span(task_id=0, model=True))) == [
        {"trace_id": TRACE, "task_id": "0", "model": "True"}
    ]


def test_spans_that_say_the_same_are_one_series() -> None:
    """Hundreds of calls of one model in a trace cost little."""
    batch = decode(*(span(start=T0 + n, model="m") for n in range(3)), span(OTHER, model="m"))
    first, second, third, other = batch.layout.series

    assert first is second is third
    assert other.attributes != first.attributes


def test_a_span_of_no_length_is_a_window() -> None:
    """Clocks are coarse."""
    assert decode(span(end=T0)).values == [0.0]


def test_fields_that_nobody_knows_are_ignored() -> None:
    """In either encoding, at each level."""
    new = {"newField": {"a": [1]}}
    sent = request({**span(), **new})
    sent |= new
    sent["resourceSpans"][0] |= new
    batch = SpanDecoder().decode_json(json.dumps(sent).encode())
    unknown = b"\xfa\x3f\x03abc"  # field 1023, three bytes
    message = encode_spans(agent_run()).SerializeToString()

    assert (said(batch), batch.skipped) == ([{"trace_id": TRACE}], {})
    assert len(SpanDecoder().decode_proto(message + unknown).values) == 4


# ------------------------------------------------------------------ what is broken


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (span(""), NO_TRACE),
        (span(None), NO_TRACE),
        (span(5), NO_TRACE),
        (span(TRACE[:-2]), NO_TRACE),
        (span(TRACE + "00"), NO_TRACE),
        (span(TRACE[:-1] + "g"), NO_TRACE),
        (span("0" * 32), NO_TRACE),
        (span(TRACE + "\n"), NO_TRACE),
        (span(end=T0 - 1), BACKWARDS),
        (span(end=0), UNFINISHED),
        ({**span(), "endTimeUnixNano": None}, UNFINISHED),
        (span(start=0), NO_START),
        (span(start="soon"), BAD_TIME),
        (span(end=2**64), BAD_TIME),
        ({**span(), "endTimeUnixNano": 1.5e18}, BAD_TIME),
        ({**span(), "startTimeUnixNano": True}, BAD_TIME),
        ({**span(), "startTimeUnixNano": [T0]}, BAD_TIME),
        ("span", NOT_SPANS.format("an item of spans")),
        (None, NOT_SPANS.format("an item of spans")),
    ],
)
def test_a_broken_span_costs_itself_only(sent: Any, reason: str) -> None:
    """It is counted with its reason."""
    batch = decode(sent, span(OTHER))

    assert said(batch) == [{"trace_id": OTHER}]
    assert batch.skipped == {reason: 1}


@pytest.mark.parametrize(
    ("sent", "key"),
    [
        ({"resourceSpans": {}}, "resourceSpans"),
        ({"resourceSpans": [5]}, "an item of resourceSpans"),
        ({"resourceSpans": [{"scopeSpans": "x"}]}, "scopeSpans"),
        ({"resourceSpans": [{"scopeSpans": [{"spans": 1}]}]}, "spans"),
    ],
)
def test_what_is_no_list_of_objects_is_counted(sent: Any, key: str) -> None:
    """The request as such was JSON."""
    batch = SpanDecoder().decode_object(sent)

    assert (list(batch.values), batch.skipped) == ([], {NOT_SPANS.format(key): 1})


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"resourceSpans": None},
        {"resourceSpans": [{}]},
        {"resourceSpans": [{"resource": None, "scopeSpans": [{}]}]},
        {"resourceMetrics": [1]},
    ],
)
def test_a_request_without_spans_is_an_empty_batch(sent: Any) -> None:
    """Nothing is wrong with it."""
    batch = SpanDecoder().decode_object(sent)

    assert (list(batch.values), batch.skipped) == ([], {})
    assert not pack(batch).values


def test_an_empty_protobuf_body_is_an_empty_request() -> None:
    """As protobuf has it."""
    assert list(SpanDecoder().decode_proto(b"").values) == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"1", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b"{}{}"]
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    """The sender's request is wrong as a whole."""
    with pytest.raises(DecodeError, match="the body is not"):
        SpanDecoder().decode_json(body)


@pytest.mark.parametrize("body", [b"\xff", b"{}", b"\x0a\x7f", b"\x0a\x04\x0a\x02\x0a\xff"])
def test_what_is_no_protobuf_is_refused(body: bytes) -> None:
    """Likewise."""
    with pytest.raises(DecodeError, match="not an OTLP trace request"):
        SpanDecoder().decode_proto(body)


def test_text_that_is_not_utf8_is_refused_in_protobuf() -> None:
    """Nobody could publish it."""
    body = encode_spans(agent_run()).SerializeToString().replace(b"Qwen", b"\xff\xfe\xfd\xfc")

    with pytest.raises(DecodeError):
        SpanDecoder().decode_proto(body)


def test_a_lone_surrogate_is_stored_as_what_can_be_stored() -> None:
    """JSON can write half a character."""
    sent = json.dumps(request(span(model="a\ud800b"))).encode()

    assert said(SpanDecoder().decode_json(sent)) == [{"trace_id": TRACE, "model": "a?b"}]


def test_a_number_of_millions_of_digits_spoils_its_span_only() -> None:
    """Python would read it for minutes, or not at all."""
    body = json.dumps(request({**span(), "endTimeUnixNano": 7}, span(OTHER))).encode()
    body = body.replace(b": 7", b": " + b"7" * 3_000_000)
    batch = SpanDecoder().decode_json(body)

    assert (said(batch), batch.skipped) == ([{"trace_id": OTHER}], {BAD_TIME: 1})


# ------------------------------------------------------------------ mutated bodies

BODIES = 5000


def mutated(body: bytes, dice: random.Random) -> bytes:
    """*body* with some of its bytes changed, cut out, doubled, or put elsewhere."""
    made = bytearray(body)
    for _ in range(dice.randint(1, 4)):
        at, size = dice.randrange(len(made) + 1), dice.choice([1, 1, 2, 8, 40])
        match dice.randrange(4):
            case 0:
                made[at : at + size] = dice.randbytes(size)
            case 1:
                del made[at : at + size]
            case 2:
                made[at:at] = made[at : at + size]
            case _:
                made[at:at] = bytes(dice.choices([0, 1, 0x7F, 0x80, 0xFF, *b'[{"0']))
    return bytes(made)


def replaced(sent: Any, dice: random.Random) -> Any:
    """*sent* with a random descendant replaced or removed."""
    made = copy.deepcopy(sent)
    node = made
    while True:
        key = dice.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if isinstance(node[key], dict | list) and node[key] and dice.random() < 0.85:
            node = node[key]
            continue
        if dice.random() < 0.2:
            del node[key]
        else:
            node[key] = dice.choice(
                [None, True, 0, -1, 2**70, 1.5, "", "x", [], {}, [[]], "é\ud800"]
            )
        return made


def other_message(sent: ExportTraceServiceRequest, dice: random.Random) -> bytes:
    """*sent* with a field of a random span replaced: sound protobuf, whatever it says."""
    made = ExportTraceServiceRequest.FromString(sent.SerializeToString())
    one = dice.choice(made.resource_spans[0].scope_spans[0].spans)
    name = dice.choice([field.name for field in one.DESCRIPTOR.fields])
    if isinstance(getattr(one, name), bytes):
        setattr(one, name, dice.randbytes(dice.choice([0, 8, 15, 16, 17])))
    elif name.endswith("_nano"):
        setattr(one, name, dice.choice([0, 1, T0 + SECOND, 2**63, 2**64 - 1]))
    else:
        one.ClearField(name)
    return made.SerializeToString()


def bodies(form: str) -> Iterator[bytes]:
    """Half of them can be parsed, so that what follows is reached too."""
    dice = random.Random(4)
    message = encode_spans(agent_run())
    plain = message.SerializeToString() if form == "proto" else as_json(message)
    for number in range(BODIES):
        if number % 2:
            yield mutated(plain, dice)
        elif form == "proto":
            yield other_message(message, dice)
        else:
            yield json.dumps(replaced(json.loads(plain), dice)).encode()


@pytest.mark.parametrize("form", ["json", "proto"])
def test_mutated_bodies_are_refused_or_can_be_kept(form: str) -> None:
    """Never another exception, and never a batch that the journal could not take."""
    decoder = SpanDecoder()
    decode = decoder.decode_json if form == "json" else decoder.decode_proto
    outcomes = {"refused": 0, "skipped": 0, "whole": 0}
    for body in bodies(form):
        try:
            batch = decode(body)
        except DecodeError:
            outcomes["refused"] += 1
            continue
        packed = pack(batch)
        times = zip(batch.start_times_unix_nano, batch.times_unix_nano, strict=True)
        assert all(0 < start <= end for start, end in times)
        assert len(packed.values) == len(packed.starts) == len(batch.layout.series)
        for series in batch.layout.series:
            series.resource.encode()
            json.loads(series.attributes.encode())["trace_id"].isascii()
        outcomes["skipped" if batch.skipped else "whole"] += 1

    assert all(count > BODIES // 100 for count in outcomes.values()), outcomes
