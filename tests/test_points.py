"""The ``points`` config: what has no column is kept complete."""

from __future__ import annotations

import json

import pytest

from makers import T0, UTIL, decoded, gauge, key_values, point, point_rows, request, tables, total

EXEMPLAR = {
    "filteredAttributes": key_values({"user": "a"}),
    "timeUnixNano": str(T0 - 1),
    "asDouble": 1.5,
    "spanId": "EEE19B7EC3C1B174",
    "traceId": "5b8efff798038103d269b633813fc60c",
}


def of_kind(kind: str, *points, temporality: int | None = 1):
    data = {"dataPoints": [{"timeUnixNano": str(T0), **one} for one in points]}
    if temporality:
        data["aggregationTemporality"] = temporality
    return request({"name": "m", "unit": "s", kind: data}, resource={"service.name": "svc", "a": 1})


def test_identity_of_a_point_is_complete() -> None:
    """Names, times, attributes of point and resource, as sent."""
    sent = request(
        total("queue.length", "{item}", point(3, T0, start=T0 - 5, b=1, a="x"), temporality=1),
        resource={"service.name": "svc", "run.id": "r"}, scope="lib",
    )  # fmt: skip
    [row] = point_rows(sent)

    assert {name: value for name, value in row.items() if value is not None} == {
        "run_id": "r", "service_name": "svc", "timestamp": "2025-10-27T05:58:15.460017+00:00",
        "timestamp_unix_nano": str(T0), "start_time_unix_nano": str(T0 - 5),
        "metric_name": "queue.length", "unit": "{item}", "kind": "sum", "temporality": "delta",
        "is_monotonic": True, "scope_name": "lib", "value": 3.0, "value_int": 3, "flags": 0,
        "attributes": '{"a":"x","b":1}',
        "resource_attributes": '{"run.id":"r","service.name":"svc"}',
    }  # fmt: skip


@pytest.mark.parametrize(
    "value", [0, 2**53 - 1, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)]
)
def test_integers_are_exact(value: int) -> None:
    """Also where a float64 would round."""
    [row] = point_rows(request(gauge("m", "", point(value))))

    assert (row["value_int"], row["value"]) == (value, float(value))


def test_a_large_integer_beside_floats_is_exact() -> None:
    """Neighbours of another type in the batch do not matter."""
    sent = request(gauge("m", "", point(0.5, n=0), point(2**53 + 1, n=1), point(float(2**60), n=2)))

    assert [row["value_int"] for row in point_rows(sent)] == [None, 2**53 + 1, None]


def test_a_float_is_not_an_integer() -> None:
    """42.0 was sent as a double, so there is no exact integer."""
    [row] = point_rows(request(gauge("m", "", point(42.0))))

    assert (row["value"], row["value_int"]) == (42.0, None)


def test_histogram_is_complete() -> None:
    """All fields of a histogram point."""
    [row] = point_rows(of_kind("histogram", {
        "count": "3", "sum": 6.5, "min": 0.5, "max": 4, "bucketCounts": ["1", 2, "0"],
        "explicitBounds": [1, 2.5]}))  # fmt: skip

    assert (row["kind"], row["temporality"], row["count"], row["sum"]) == (
        "histogram",
        "delta",
        3,
        6.5,
    )
    assert (row["min"], row["max"]) == (0.5, 4)
    assert (row["bucket_counts"], row["explicit_bounds"]) == ([1, 2, 0], [1.0, 2.5])
    assert row["value"] is None


def test_exponential_histogram_is_complete() -> None:
    """All fields of an exponential histogram point."""
    [row] = point_rows(of_kind("exponentialHistogram", {
        "count": 6, "sum": 1.0, "scale": -1, "zeroCount": "2", "zeroThreshold": 0.1,
        "positive": {"offset": -3, "bucketCounts": ["1", "2"]},
        "negative": {"offset": 4, "bucketCounts": ["1"]}}))  # fmt: skip

    assert row["kind"] == "exponential_histogram"
    assert (row["scale"], row["zero_count"], row["zero_threshold"]) == (-1, 2, 0.1)
    assert (row["positive_offset"], row["positive_bucket_counts"]) == (-3, [1, 2])
    assert (row["negative_offset"], row["negative_bucket_counts"]) == (4, [1])


def test_summary_is_complete() -> None:
    """All fields of a summary point."""
    [row] = point_rows(of_kind("summary", {
        "count": "2", "sum": 3.5,
        "quantileValues": [{"quantile": 0.5, "value": 1}, {"quantile": 1, "value": "NaN"}]},
        temporality=None))  # fmt: skip

    assert (row["kind"], row["temporality"], row["count"], row["sum"]) == ("summary", None, 2, 3.5)
    assert [pair["quantile"] for pair in row["quantiles"]] == [0.5, 1.0]
    assert str(row["quantiles"][1]["value"]) == "nan"


def test_counts_go_to_the_end_of_64_bits() -> None:
    """OTLP counts without a sign."""
    [row] = point_rows(of_kind("histogram", {"count": str(2**64 - 1), "bucketCounts": [2**64 - 1]}))

    assert (row["count"], row["bucket_counts"]) == (2**64 - 1, [2**64 - 1])


def test_minimum_and_maximum_that_were_not_kept_are_null() -> None:
    """The SDK says infinity where it recorded none."""
    [row] = point_rows(of_kind("histogram", {"count": 1, "min": "Infinity", "max": "-Infinity"}))

    assert (row["min"], row["max"]) == (None, None)


def test_exemplars_are_complete_with_hexadecimal_ids() -> None:
    """As OTLP/JSON, in one form: attributes as an object, identifiers in lower case."""
    sent = of_kind("histogram", {"count": 1, "exemplars": [EXEMPLAR]})
    [row] = point_rows(sent)

    assert json.loads(row["exemplars"]) == [
        {
            "filteredAttributes": {"user": "a"}, "timeUnixNano": str(T0 - 1), "asDouble": 1.5,
            "spanId": "eee19b7ec3c1b174", "traceId": "5b8efff798038103d269b633813fc60c",
        }
    ]  # fmt: skip


def test_points_with_flags_are_kept() -> None:
    """No recorded value is null, and the flag says why."""
    [row] = point_rows(of_kind("histogram", {"flags": 1, "count": 3}))

    assert (row["flags"], row["count"], row["value"]) == (1, None, None)


@pytest.mark.parametrize(("kept", "names"), [("all", [UTIL, "m"]), ("other", ["m"]), ("none", [])])
def test_points_setting(kept: str, names: list[str]) -> None:
    """All points, those without a column, or none; the rows are the same."""
    sent = decoded(request(gauge(UTIL, "%", point(1, gpu=0)), gauge("m", "", point(1))))
    default, points = tables(sent, points=kept)

    assert sorted(row["metric_name"] for row in points) == names
    assert len(default) == 1


def test_all_points_are_there_once() -> None:
    """A point that is left over for two reasons is one row."""
    sent = request(
        *(gauge(name, "", point(value, gpu="0")) for name, value in
          [("DCGM_FI_DEV_FB_FREE", 1.0), ("DCGM_FI_DEV_FB_FREE", 2.0)])
    )  # fmt: skip

    assert len(point_rows(sent)) == 1
    broken = request(gauge("DCGM_FI_DEV_FB_FREE", "", point(None, gpu="0") | {"asDouble": "NaN"}))
    assert len(point_rows(broken)) == 1


def test_only_what_is_all_the_same_is_there_once() -> None:
    """
    Two processes whose resources are equal, or a clock of milliseconds, give two points one time.
    """
    early, late = (point(value, T0, start=start) for value, start in ((1, T0 - 9), (2, T0 - 9)))
    other = point(2, T0, start=T0 - 5)
    sent = request(total("m", "", early, late, other, early, late))

    values = [(row["value"], row["start_time_unix_nano"]) for row in point_rows(sent)]
    assert sorted(values) == [(1, str(T0 - 9)), (2, str(T0 - 9)), (2, str(T0 - 5))]


def test_points_are_in_order_of_time() -> None:
    """Whatever the order of arrival."""
    sent = [request(gauge("m", "", point(n, T0 + n))) for n in (3, 1, 2)]

    assert [row["value_int"] for row in point_rows(*sent)] == [1, 2, 3]


def test_true_and_one_stay_apart() -> None:
    """Attributes of different types are different series."""
    sent = request(
        gauge("m", "", point(1, a=True), point(2, a=1), point(3, a="1"), point(4, a=1.0))
    )

    assert [row["attributes"] for row in point_rows(sent)] == [
        '{"a":true}', '{"a":1}', '{"a":"1"}', '{"a":1.0}',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"), (b"\x00\xff", '"AP8="'), ([1, "a", [None]], '[1,"a",[null]]'), ([], "[]"),
        ({"z": 1, "a": {}}, '{"a":{},"z":1}'), (float("nan"), '"NaN"'),
        (float("-inf"), '"-Infinity"'), ("é/.\u2028", '"é/.\u2028"'), (2**63 - 1, str(2**63 - 1)),
    ],
)  # fmt: skip
def test_every_kind_of_attribute_value_is_kept(value, text: str) -> None:
    """All of OTLP's AnyValue."""
    [row] = point_rows(request(gauge("m", "", point(1, a=value))))

    assert row["attributes"] == f'{{"a":{text}}}'


def test_a_start_that_changes_is_kept_per_point() -> None:
    """Start times are stored where they change, and found again."""
    sent = [request(total("m", "", point(n, T0 + n, start=T0 - n // 2))) for n in range(5)]

    assert [int(row["start_time_unix_nano"]) - T0 for row in point_rows(*sent)] == [
        0,
        0,
        -1,
        -1,
        -2,
    ]
