"""OTLP in protobuf, and that it says the same as OTLP/JSON and as the SDK's objects."""

from __future__ import annotations

import json
import math
import tracemalloc
from itertools import product
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.metrics import Observation
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, MetricsData, NumberDataPoint
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource

from hubmeter.batch import TOO_DEEP, Distribution, Extra, PointBatch, Series
from hubmeter.decode.json_values import BAD_ID
from hubmeter.decode.otlp_json import UNKNOWN_KIND, JsonDecoder
from hubmeter.decode.otlp_proto import ProtoDecoder
from hubmeter.decode.sdk_objects import SdkDecoder
from hubmeter.errors import DecodeError
from makers import T0, UTIL
from otlp_wire import UNKNOWN, contents, json_of, random_request


def request_of(*metrics: Metric, **attributes: Any) -> bytes:
    """One resource with one scope."""
    request = ExportMetricsServiceRequest()
    resource_metrics = request.resource_metrics.add()
    add_attributes(resource_metrics.resource, attributes)
    scope_metrics = resource_metrics.scope_metrics.add()
    scope_metrics.scope.name = "test"
    scope_metrics.metrics.extend(metrics)
    return request.SerializeToString()


def number(time: int = T0, **fields: Any) -> NumberDataPoint:
    """Fields of the message by name; what it has not are attributes."""
    known = NumberDataPoint.DESCRIPTOR.fields_by_name
    point = NumberDataPoint(time_unix_nano=time, **{k: v for k, v in fields.items() if k in known})
    add_attributes(point, {k: v for k, v in fields.items() if k not in known})
    return point


def add_attributes(owner: Any, attributes: dict[str, Any]) -> None:
    for key, value in attributes.items():
        content = value if isinstance(value, AnyValue) else AnyValue(string_value=value)
        owner.attributes.add(key=key, value=content)


def gauge(*points: NumberDataPoint, name: str = UTIL) -> Metric:
    return Metric(name=name, unit="%", gauge={"data_points": points})


def decode(*metrics: Metric, **attributes: Any) -> PointBatch:
    return ProtoDecoder().decode(request_of(*metrics, **attributes))


# ------------------------------------------------------------------ one by one


@pytest.mark.parametrize(
    ("sent", "value"),
    [
        ({"as_int": 5}, 5), ({"as_int": 0}, 0), ({"as_double": 5.5}, 5.5), ({"as_double": 0}, 0.0),
        ({"as_double": -0.0}, -0.0), ({}, None), ({"as_int": 5, "flags": 1}, None),
        ({"as_int": 2**63 - 1}, 2**63 - 1), ({"as_int": -(2**63)}, -(2**63)),
        ({"as_double": math.inf}, math.inf), ({"as_double": math.nan}, math.nan),
    ],
)  # fmt: skip
def test_number(sent, value) -> None:
    """Integers and doubles keep their type and bits, also where the series is known."""
    decoder = ProtoDecoder()
    for _ in range(2):
        [found] = decoder.decode(request_of(gauge(number(**sent)))).values

        assert (repr(found), type(found)) == (repr(value), type(value))


def test_series() -> None:
    """Who and what, from all levels."""
    total = Metric(name="t", unit="J")
    total.sum.is_monotonic = True
    total.sum.aggregation_temporality = 1
    total.sum.data_points.append(number(gpu="0", as_int=1, start_time_unix_nano=T0 - 1))
    batch = decode(total, host="h")

    assert batch.layout.series == (
        Series(resource='{"host":"h"}', scope_name="test", metric_name="t", unit="J", kind="sum",
               temporality="delta", is_monotonic=True, attributes='{"gpu":"0"}'),
    )  # fmt: skip
    assert list(batch.start_times_unix_nano) == [T0 - 1]


def test_whatever_differs_is_another_series() -> None:
    """Name, unit, kind, temporality, monotonicity, scope, schema, resource."""
    metrics = [Metric(name=name, unit=unit) for name in "ab" for unit in "cd"]
    metrics += [Metric(name="a", unit="c") for _ in range(7)]
    for metric in metrics[:5]:
        metric.gauge.data_points.append(number(as_int=1))
    for metric, kind in zip(metrics[5:9], product((1, 2), (True, False)), strict=True):
        temporality, monotonic = kind
        metric.sum.aggregation_temporality = temporality
        metric.sum.is_monotonic = monotonic
        metric.sum.data_points.append(number(as_int=1))
    for temporality, metric in enumerate(metrics[9:], 1):
        metric.histogram.aggregation_temporality = temporality
        metric.histogram.data_points.add()
    one = ExportMetricsServiceRequest.FromString(request_of(*metrics))
    whole = ExportMetricsServiceRequest(resource_metrics=[*one.resource_metrics] * 4)
    whole.resource_metrics[1].resource.attributes.add(key="k")
    whole.resource_metrics[2].scope_metrics[0].schema_url = "s"
    whole.resource_metrics[3].scope_metrics[0].scope.version = "2"
    series = ProtoDecoder().decode(whole.SerializeToString()).layout.series

    assert len(series) == 4 * 11
    assert len(set(series)) == 4 * 10  # one of the gauges is there twice
    assert contents(ProtoDecoder().decode(whole.SerializeToString())) == contents(
        JsonDecoder().decode(json_of(whole))
    )


@pytest.mark.parametrize("time", [0, 1, T0, 2**64 - 1])
def test_times_are_as_sent(time: int) -> None:
    """Missing, long ago or in the future: the flattener decides."""
    assert list(decode(gauge(number(time, as_int=1))).times_unix_nano) == [time]


def test_points_have_one_time_or_their_own() -> None:
    """One that all share is stored once."""
    for times, stored in (((5, 5), [5]), ((5, 6), [5, 6]), ((6, 5, 6), [6, 5, 6])):
        batch = decode(gauge(*(number(time, as_int=1) for time in times)))

        assert list(batch.times_unix_nano) == stored


def test_metadata_of_the_specification_is_the_same_message() -> None:
    """Files hold MetricsData, receivers get requests."""
    body = request_of(gauge(number(as_int=1)))

    assert MetricsData.FromString(body).SerializeToString() == body
    assert len(ProtoDecoder().decode(body).values) == 1


@pytest.mark.parametrize("body", [b"", request_of(), b"\x0a\x00", UNKNOWN])
def test_nothing_is_a_request_without_points(body: bytes) -> None:
    """An empty request is a success."""
    batch = ProtoDecoder().decode(body)

    assert (list(batch.values), batch.skipped) == ([], {})


@pytest.mark.parametrize(
    "body",
    [b"\xff", b"{}", request_of(gauge(number(as_int=1)))[:-1], b"\x0a" * 200,
     request_of(gauge(number(gpu="0"), name="m\x7fm")).replace(b"m\x7fm", b"m\xffm")],
    ids=["tag", "json", "truncated", "deep", "not UTF-8"],
)  # fmt: skip
def test_what_is_no_request_is_refused(body: bytes) -> None:
    """In one kind of error, which says what was expected."""
    with pytest.raises(DecodeError, match="no OTLP metrics request in protobuf"):
        ProtoDecoder().decode(body)


def test_metric_without_data_is_counted() -> None:
    """A kind of tomorrow, or none; its siblings survive."""
    batch = decode(Metric(name="m"), gauge(number(as_int=1)))

    assert (list(batch.values), batch.skipped) == ([1], {UNKNOWN_KIND: 1})


def test_unknown_fields_are_ignored() -> None:
    """Tomorrow's fields do not make another series."""
    old, new = number(as_int=1, gpu="0"), number(as_int=1, gpu="0")
    new.MergeFromString(UNKNOWN)
    decoder = ProtoDecoder()
    batches = [decoder.decode(request_of(gauge(one))) for one in (old, new, new, old)]

    assert len({batch.layout for batch in batches}) == 1


@pytest.mark.parametrize(
    "identifier", [{"span_id": b"1" * n} for n in (1, 7, 16)] + [{"trace_id": b"1" * 8}], ids=str
)
def test_identifier_of_a_wrong_length_costs_its_point(identifier) -> None:
    """The batch goes on, the sender hears of it."""
    bad, good = number(as_int=1), number(as_int=2)
    bad.exemplars.add(**identifier)
    good.exemplars.add(span_id=b"12345678", trace_id=b"1" * 16, as_double=1.5, time_unix_nano=7)
    batch = decode(gauge(bad, good))

    assert (list(batch.values), batch.skipped) == ([2], {BAD_ID: 1})
    assert json.loads(batch.extras[0].exemplars or "") == [
        {"filteredAttributes": {}, "timeUnixNano": "7", "asDouble": 1.5,
         "spanId": "3132333435363738", "traceId": "31" * 16}
    ]  # fmt: skip


def test_flags_and_exemplars_come_and_go() -> None:
    """They belong to the point, not to what is remembered of its series."""
    flagged, sampled = number(as_int=1, flags=1), number(as_int=2)
    sampled.exemplars.add(as_int=3)
    decoder = ProtoDecoder()
    found = [
        decoder.decode(request_of(gauge(one)))
        for one in (number(as_int=4), flagged, sampled, number(as_int=5), flagged)
    ]

    assert [list(batch.values) for batch in found] == [[4], [None], [2], [5], [None]]
    assert [len(batch.extras) for batch in found] == [0, 1, 1, 0, 1]
    assert found[1].extras == {0: Extra(flags=1)}
    assert len({batch.layout for batch in found}) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (AnyValue(), "null"), (AnyValue(bool_value=False), "false"), (AnyValue(int_value=1), "1"),
        (AnyValue(double_value=1), "1.0"), (AnyValue(double_value=math.nan), '"NaN"'),
        (AnyValue(bytes_value=b"\0\xff"), '"AP8="'), (AnyValue(string_value="ä\0"), '"ä\\u0000"'),
        (AnyValue(array_value={}), "[]"), (AnyValue(kvlist_value={}), "{}"),
        (AnyValue(array_value={"values": [{"int_value": 1}, {}]}), "[1,null]"),
        (AnyValue(kvlist_value={"values": [{"key": "k", "value": {"int_value": 1}}]}), '{"k":1}'),
    ],
)  # fmt: skip
def test_attribute_value(value: AnyValue, text: str) -> None:
    """Every kind that there is."""
    [series] = decode(gauge(number(a=value))).layout.series

    assert series.attributes == f'{{"a":{text}}}'


def test_of_a_duplicate_attribute_the_last_counts() -> None:
    """OTLP forbids it, senders do it."""
    twice = number(a="1")
    add_attributes(twice, {"a": "2"})

    assert decode(gauge(twice)).layout.series[0].attributes == '{"a":"2"}'


@pytest.mark.parametrize("depth", [1, 14, 15, 16, 17, 18, 30])
@pytest.mark.parametrize("shape", ["array_value", "kvlist_value"])
def test_what_nests_too_deeply_is_cut(shape: str, depth: int) -> None:
    """Where JSON is cut, too; protobuf itself refuses some dozens of levels."""
    value = AnyValue(int_value=1)
    for _ in range(depth):
        item = value if shape == "array_value" else {"key": "k", "value": value}
        value = AnyValue(**{shape: {"values": [item]}})
    one = number(a=value)
    one.exemplars.add().filtered_attributes.add(key="k", value=value)
    body = request_of(gauge(one), r=value)
    batch = ProtoDecoder().decode(body)
    parsed = json_of(ExportMetricsServiceRequest.FromString(body))

    assert contents(batch) == contents(JsonDecoder().decode(parsed))
    assert (TOO_DEEP in batch.layout.series[0].attributes) == (depth > 16)


def test_distributions() -> None:
    """What is optional may be missing; empty sides are sides."""
    point = {"time_unix_nano": T0, "count": 2**64 - 1}
    histogram = Metric(name="h", histogram={"data_points": [
        point,
        {**point, "sum": 0, "min": math.inf, "bucket_counts": [1], "explicit_bounds": [-0.0]},
    ]})  # fmt: skip
    exponential = Metric(name="e", exponential_histogram={"data_points": [
        {**point, "scale": -3, "positive": {"offset": -1, "bucket_counts": [1, 2]}}
    ]})  # fmt: skip
    summary = Metric(name="s", summary={"data_points": [
        {**point, "quantile_values": [{"quantile": 0.5, "value": 1}]}
    ]})  # fmt: skip
    batch = decode(histogram, exponential, summary)

    count = 2**64 - 1
    assert list(batch.values) == [
        Distribution(count=count),
        Distribution(count=count, sum=0.0, bucket_counts=(1,), explicit_bounds=(-0.0,)),
        Distribution(count=count, scale=-3, zero_count=0, zero_threshold=0.0, positive_offset=-1,
                     positive_bucket_counts=(1, 2), negative_offset=0),
        Distribution(count=count, sum=0.0, quantiles=((0.5, 1.0),)),
    ]  # fmt: skip
    assert str(batch.values[1].explicit_bounds) == "(-0.0,)"


# ------------------------------------------------------------------ what is remembered


def test_layouts_repeat() -> None:
    """The same series share one layout, whatever their values and times."""
    decoder, layouts = ProtoDecoder(), set()
    for n in range(3):
        points = [number(T0 + n, as_double=n, gpu=gpu) for gpu in "01"]
        layouts.add(decoder.decode(request_of(gauge(*points))).layout)

    assert len(layouts) == 1


def test_points_in_another_order_are_the_same_series() -> None:
    """Go's maps have no order."""
    decoder = ProtoDecoder()
    first, second = (
        decoder.decode(request_of(gauge(*(number(as_int=int(g), gpu=g) for g in order))))
        for order in ("012", "201")
    )

    assert {id(one) for one in first.layout.series} == {id(one) for one in second.layout.series}
    assert [one.attributes for one in second.layout.series] == [
        f'{{"gpu":"{value}"}}' for value in second.values
    ]


def test_bounds_of_a_histogram_are_kept_once() -> None:
    """They come with every point, and would take most of the memory."""
    data = {"data_points": [{"explicit_bounds": [0.5, 1.5]}] * 2}
    first, second = decode(Metric(name="h", histogram=data)).values

    assert first.explicit_bounds is second.explicit_bounds


def test_series_for_ever_do_not_fill_the_memory() -> None:
    """A sender that puts request numbers into attributes, resources or names."""
    decoder = ProtoDecoder(most_bytes=100_000)
    tracemalloc.start()
    for n in range(1500):
        one = request_of(gauge(number(as_int=1, request=f"{n}"), name=f"m{n}"), pod=f"{n}")
        [series] = decoder.decode(one).layout.series
        assert series.attributes == f'{{"request":"{n}"}}'
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert held < 2_000_000


# ------------------------------------------------------------------ the same in all forms


@given(st.randoms(use_true_random=False))
def test_protobuf_and_json_say_the_same(dice: Random) -> None:
    """All that OTLP can say; again, when the decoders know it."""
    proto, json_decoder = ProtoDecoder(), JsonDecoder()
    for request in [random_request(dice)] * 2 + [random_request(dice)]:
        text = json.dumps(json_of(request)).encode()

        assert contents(proto.decode(request.SerializeToString())) == contents(
            json_decoder.decode_request(text)
        )


def test_what_a_real_provider_sends_is_what_it_has() -> None:
    """Through the SDK's own encoder, every instrument, with exemplars."""
    reader = InMemoryMetricReader()
    provider = MeterProvider(
        [reader], Resource({"service.name": "s", "run.id": "r", "list": ["a", "b"]}),
        views=[View(instrument_name="exp", aggregation=ExponentialBucketHistogramAggregation())],
    )  # fmt: skip
    meter = provider.get_meter("lib", "1.0", "https://schema", {"scope": True})
    meter.create_observable_gauge(UTIL, [lambda _: [Observation(n, {"gpu_id": n}) for n in (0, 1)]])
    counter, updown = meter.create_counter("c", "J"), meter.create_up_down_counter("u")
    histogram, exponential = meter.create_histogram("h"), meter.create_histogram("exp")
    sampled = trace.SpanContext(0x51, 0x5B8E, is_remote=False, trace_flags=trace.TraceFlags(1))
    proto, sdk, extras = ProtoDecoder(), SdkDecoder(), 0
    for value in (1, 2.5, 0):
        with trace.use_span(trace.NonRecordingSpan(sampled)):
            counter.add(value, {"gpu_id": 0})
            histogram.record(value, {"user": "a"})
        updown.add(-value, {"list": ["a", 1.5], "flag": True})
        exponential.record(value)
        data = reader.get_metrics_data()
        ours = proto.decode(encode_metrics(data).SerializeToString())
        extras += len(ours.extras)

        assert contents(ours) == contents(sdk.decode(data))
    provider.shutdown()

    assert extras > 0
