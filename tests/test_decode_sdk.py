"""SDK objects, and that they give the same tables as the OTLP/JSON made from them."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics._internal.exemplar import Exemplar
from opentelemetry.sdk.metrics._internal.point import Buckets
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Histogram,
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    NumberDataPoint,
)
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource

from hubmeter.decode.sdk_objects import BAD_POINT, UNKNOWN_KIND, SdkDecoder
from hubmeter.energy import Factors
from hubmeter.ledger import pack
from makers import (
    CO2,
    ENERGY,
    POWER,
    SECOND,
    T0,
    UTIL,
    cells,
    decoded,
    otlp_json,
    sdk_data,
    sdk_gauge,
    sdk_number,
    sdk_points,
    sdk_sum,
    tables,
)

EXEMPLAR = Exemplar({"user": "a", "n": 1}, 1.5, T0 - 1, 0x51, 0x5B8EFFF798038103D269B633813FC60C)


def both(*collections):
    """Tables from the objects, and from their OTLP/JSON."""
    options = {"points": "all", "factors": Factors()}
    return (
        tables(sdk_points(*collections), **options),
        tables(decoded(*map(otlp_json, collections)), **options),
    )


def test_collection_of_a_real_provider() -> None:
    """Every instrument of a MeterProvider, collected twice, through both decoders."""
    reader = InMemoryMetricReader()
    provider = MeterProvider(
        [reader], Resource({"service.name": "s", "run.id": "r"}),
        views=[View(instrument_name="exp", aggregation=ExponentialBucketHistogramAggregation())],
    )  # fmt: skip
    meter = provider.get_meter("lib")
    meter.create_observable_gauge(
        UTIL, [lambda _: [Observation(n, {"gpu_id": n}) for n in (0, 1)]], "%"
    )
    counter, updown = meter.create_counter(ENERGY, "J"), meter.create_up_down_counter("m")
    histogram, exponential = meter.create_histogram("h"), meter.create_histogram("exp")
    collections = []
    for value in (1, 2.5):
        counter.add(value, {"gpu_id": 0})
        updown.add(-value, {"list": ["a", "b"], "flag": True})
        histogram.record(value)
        exponential.record(value)
        collections.append(reader.get_metrics_data())
    provider.shutdown()

    ours, theirs = both(*collections)

    assert ours == theirs
    assert cells(ours[0], "run_id", "gpu_id", "gpu_utilization_percent", "energy_joules") == [
        ("r", "0", 0, 1), ("r", "1", 1, None), ("r", "0", 0, 3.5), ("r", "1", 1, None),
    ]  # fmt: skip


def test_layout_is_the_same_object_while_a_provider_reports_the_same() -> None:
    """So that everything costly happens once."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    made = provider.get_meter("lib").create_gauge(POWER, "W")
    decoder, layouts = SdkDecoder(), []
    for gpu in (0, 0, 1, 1):
        made.set(1.0, {"gpu_id": gpu})
        layouts.append(decoder.decode(reader.get_metrics_data()).layout)
    provider.shutdown()

    assert layouts[0] is layouts[1]
    assert layouts[1] is not layouts[2]
    assert layouts[2] is layouts[3]


def test_attributes_that_are_equal_in_python_are_different_series() -> None:
    """True == 1, but not for us; also in the collection after."""
    first, second = (
        sdk_data(sdk_gauge("m", "", sdk_number(1, T0 + n, a=a))) for n, a in enumerate([True, 1])
    )
    _, points = tables(sdk_points(first, second))

    assert cells(points, "attributes") == [('{"a":true}',), ('{"a":1}',)]


def test_points_with_different_times() -> None:
    """Not every exporter's caller is the SDK."""
    data = sdk_data(
        sdk_gauge(UTIL, "%", sdk_number(1, T0, gpu_id=0), sdk_number(2, T0 + SECOND, gpu_id=0))
    )

    assert cells(tables(sdk_points(data))[0], "gpu_utilization_percent") == [(1,), (2,)]


def test_points_that_cannot_be_read_are_counted() -> None:
    """Their siblings survive."""
    data = sdk_data(
        sdk_gauge(UTIL, "%", sdk_number(None, gpu_id=0), sdk_number(2, gpu_id=1),
                  replace(sdk_number(3, gpu_id=2), time_unix_nano=None), sdk_number("4", gpu_id=3))
    )  # fmt: skip
    points = sdk_points(data)

    assert cells(tables(points)[0], "gpu_id") == [("1",)]
    assert points.skipped == {BAD_POINT: 3}


def test_unknown_kind_of_metric_is_counted() -> None:
    """Also a metric without data."""
    points = sdk_points(
        sdk_data(Metric("m", "", "", None), sdk_gauge(UTIL, "%", sdk_number(1, gpu_id=0)))
    )

    assert len(points.blocks) == 1
    assert points.skipped == {UNKNOWN_KIND: 1}


def test_names_that_are_not_unicode_are_made_so() -> None:
    """File names become attributes; Parquet holds UTF-8 only."""
    default, points = tables(sdk_points(sdk_data(
        sdk_gauge("\udcff", "\udcff", sdk_number(1, a="\udcff")),
        sdk_gauge(UTIL, "%", sdk_number(1, gpu_id=0, gpu_name="\udcff")),
        resource={"service.name": "\udcff"})))  # fmt: skip

    assert cells(default, "gpu_name", "service_name") == [("?", "?")]
    assert cells(points, "metric_name", "unit", "attributes") == [("?", "?", '{"a":"?"}')]


def test_attributes_that_contain_themselves() -> None:
    """Metric attributes are not checked by the SDK."""
    endless: list[object] = []
    endless.append(endless)
    _, points = tables(sdk_points(sdk_data(sdk_gauge("m", "", sdk_number(1, a=endless)))))

    assert "nested too deeply" in points[0]["attributes"]


def test_exemplar_that_is_not_finite_is_json() -> None:
    """The exemplars column is JSON that any parser takes."""
    broken = replace(EXEMPLAR, value=float("nan"), span_id=None, trace_id=None)
    _, [row] = tables(sdk_points(sdk_data(sdk_gauge("m", "", sdk_number(1, exemplars=[broken])))))

    [exemplar] = json.loads(row["exemplars"], parse_constant=lambda _: 1 / 0)
    assert exemplar["asDouble"] == "NaN"


# ------------------------------------------------------------------ the same tables

VALUES = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, width=32)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.text(max_size=3)
    | st.floats()
    | st.binary(max_size=3)
)
ATTRIBUTES = st.dictionaries(
    st.sampled_from(["gpu_id", "gpu_name", "hw.id", "uuid", "x"]),
    SCALARS
    | st.lists(SCALARS, max_size=2)
    | st.dictionaries(st.text(max_size=2), SCALARS, max_size=2),
    max_size=3,
)
TIMES = st.integers(1, 2**63)
EXEMPLARS = st.lists(
    st.builds(Exemplar, ATTRIBUTES, st.integers(-5, 5) | st.floats(), TIMES,
              st.integers(1, 2**64 - 1), st.integers(1, 2**128 - 1)),
    max_size=1,
)  # fmt: skip


@st.composite
def metrics(draw):
    """One metric of any kind."""
    points = draw(st.lists(st.tuples(ATTRIBUTES, TIMES, VALUES, EXEMPLARS), max_size=3))
    delta = draw(st.booleans())
    name = draw(st.sampled_from([UTIL, POWER, CO2, "m"]))
    numbers = [replace(sdk_number(value, time, None, exemplars), attributes=attributes)
               for attributes, time, value, exemplars in points]  # fmt: skip
    match draw(st.sampled_from(["gauge", "sum", "histogram", "exponential"])):
        case "gauge":
            return sdk_gauge(name, "1", *numbers)
        case "sum":
            numbers = [
                replace(number, start_time_unix_nano=draw(st.integers(0, 9))) for number in numbers
            ]
            return sdk_sum(name, "gCO2e", *numbers, delta=delta)
        case kind:
            make = _histogram if kind == "histogram" else _exponential
            word = AggregationTemporality.DELTA if delta else AggregationTemporality.CUMULATIVE
            data = Histogram if kind == "histogram" else ExponentialHistogram
            return Metric(name, "", "s", data([make(draw, *one) for one in points], word))


COUNTS = st.lists(st.integers(0, 2**63), max_size=3)
NUMBERS = st.floats(allow_nan=False)


def _histogram(draw, attributes, time, _, exemplars):
    return HistogramDataPoint(
        attributes, 1, time, draw(st.integers(0, 9)), draw(NUMBERS), draw(COUNTS),
        sorted(draw(st.lists(NUMBERS, max_size=2))), draw(NUMBERS), draw(NUMBERS), exemplars,
    )  # fmt: skip


def _exponential(draw, attributes, time, _, exemplars):
    sides = [Buckets(draw(st.integers(-9, 9)), counts) if counts else Buckets(0, [])
             for counts in (draw(COUNTS), draw(COUNTS))]  # fmt: skip
    return ExponentialHistogramDataPoint(
        attributes,
        1,
        time,
        draw(st.integers(0, 9)),
        draw(NUMBERS),
        draw(st.integers(-10, 20)),
        draw(st.integers(0, 9)),
        *sides,
        draw(st.integers(0, 3)),
        draw(NUMBERS),
        draw(NUMBERS),
        exemplars,
    )


@given(st.lists(st.lists(metrics(), max_size=3), max_size=3), ATTRIBUTES)
def test_sdk_objects_and_their_otlp_json_give_the_same_tables(collections, resource) -> None:
    """The SDK's own encoder is the reference: two walks, one result."""
    resource = {key: value for key, value in resource.items() if value is not None}
    data = [sdk_data(*one, resource=resource) for one in collections]
    ours, theirs = both(*data)

    assert repr(ours) == repr(theirs)  # repr, because NaN is not equal to itself


def test_scopes_of_one_name_stay_apart() -> None:
    """Two versions of a library that count the same are two series, in both decoders."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    for version, steps in (("1.0", 1), ("2.0", 10)):
        provider.get_meter("lib", version).create_counter("steps").add(steps)

    for found in both(reader.get_metrics_data()):
        assert sorted(row["value_int"] for row in found[1]) == [1, 10]


def test_bounds_of_a_histogram_are_kept_once() -> None:
    """They come with every point, and would take most of the memory."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    latency = provider.get_meter("lib").create_histogram("latency")
    decoder, bounds = SdkDecoder(), []
    for _ in range(2):
        latency.record(1)
        [value] = decoder.decode(reader.get_metrics_data()).values
        bounds.append(value.explicit_bounds)

    assert bounds[0] is bounds[1]


@given(st.lists(st.tuples(*[st.sampled_from([0, 1, 0.0, 2.5, True])] * 2), min_size=1, max_size=6))
def test_a_decoder_remembers_nothing_wrong(values: list[tuple]) -> None:
    """Types and start times that come and go: one decoder says what a new one says each time."""
    attributes = {"gpu_id": 0}, {"gpu_id": 1}
    decoder = SdkDecoder()
    for step, pair in enumerate(values):
        points = [
            NumberDataPoint(one, start, T0, value)
            for value, one, start in zip(pair, attributes, (None, T0 - step // 2), strict=True)
        ]
        collection = sdk_data(sdk_sum(ENERGY, "J", *points))
        packed, fresh = (pack(one.decode(collection)) for one in (decoder, SdkDecoder()))

        assert packed._replace(layout=fresh.layout) == fresh
        assert packed.layout.series == fresh.layout.series
        assert packed.kinds == bytes(isinstance(value, int) for value in pair)
