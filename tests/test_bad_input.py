"""Whatever arrives: no exception, the rest survives, and what does not is counted."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmeter.batch import TOO_DEEP
from hubmeter.convert import flatten, read_points
from hubmeter.decode.json_values import BAD_NUMBER, BAD_TIME
from hubmeter.decode.otlp_json import (
    BAD_LINE,
    NOT_A_REQUEST,
    NOT_AN_OBJECT,
    SNAKE_CASE,
    UNKNOWN_KIND,
)
from hubmeter.energy import Factors
from hubmeter.errors import DecodeError
from makers import (
    SECOND,
    T0,
    UTIL,
    cells,
    decoded,
    gauge,
    key_values,
    point,
    request,
    resource_metrics,
    skipped,
    tables,
    total,
)

WITNESS = resource_metrics(
    gauge(UTIL, "%", point(77, T0 + 5 * SECOND, gpu="witness")),
    resource={"service.name": "witness"}, scope="witness",
)  # fmt: skip


def everything() -> dict[str, Any]:
    """A request with every kind of metric and attribute value."""
    times = {"timeUnixNano": str(T0), "startTimeUnixNano": str(T0 - 1)}
    exemplar = {
        "filteredAttributes": key_values({"a": 1}),
        "timeUnixNano": str(T0),
        "asInt": "1",
        "spanId": "eee19b7ec3c1b174",
        "traceId": "5b8efff798038103d269b633813fc60c",
    }
    kinds = {
        "histogram": {"count": "1", "sum": 1, "min": 1, "max": 1, "bucketCounts": ["1"],
                      "explicitBounds": [1.0], "exemplars": [exemplar], "flags": 0},
        "exponentialHistogram": {"count": "1", "scale": 1, "zeroCount": "0", "zeroThreshold": 0.5,
                                 "positive": {"offset": 1, "bucketCounts": ["1"]},
                                 "negative": {"offset": 1, "bucketCounts": ["1"]}},
        "summary": {"count": "1", "sum": 1, "quantileValues": [{"quantile": 0.5, "value": 1}]},
    }  # fmt: skip
    metrics = [
        gauge(UTIL, "%", point(1, gpu=0, a=[1, {"b": None}], gpu_name="x", c=b"1", d=True, e=1.5)),
        total("gen_ai.gpu.energy", "J", point(1.0, gpu=0, start=T0 - 1)),
        gauge("m", "", point(2**60)),
        *({"name": kind, kind: {"aggregationTemporality": 2, "dataPoints": [{**times, **one}]}}
          for kind, one in kinds.items()),
    ]  # fmt: skip
    resource = {"service.name": "s", "run.id": "r", "host.name": "h"}
    return request(*metrics, resource=resource, run_id="envelope")


def replaced(node: Any, value: Any) -> Iterator[Any]:
    """Copies of *node*, each with one of its descendants replaced by *value*, or removed."""
    children = node.items() if isinstance(node, dict) else enumerate(node)
    for key, child in children:
        changed = copy.copy(node)
        changed[key] = value
        yield changed
        if isinstance(child, dict | list):
            for inner in replaced(child, value):
                changed = copy.copy(node)
                changed[key] = inner
                yield changed


def removed(node: Any) -> Iterator[Any]:
    """Copies of *node*, each without one of its descendants."""
    for key, child in list(node.items() if isinstance(node, dict) else enumerate(node)):
        changed = copy.copy(node)
        del changed[key]
        yield changed
        if isinstance(child, dict | list):
            for inner in removed(child):
                changed = copy.copy(node)
                changed[key] = inner
                yield changed


def assert_survives(broken: Any) -> None:
    """The witness in the next resource, and in the next request, is there."""
    if isinstance(broken, dict) and isinstance(broken.get("resourceMetrics"), list):
        broken = {**broken, "resourceMetrics": [*broken["resourceMetrics"], WITNESS]}
        sent = [broken]
    else:
        sent = [broken, {"resourceMetrics": [WITNESS]}]
    default, points = tables(decoded(*sent), points="all", factors=Factors(), zero_fill=True)

    assert [row["gpu_utilization_percent"] for row in default if row["gpu_id"] == "witness"] == [77]
    assert [row["value"] for row in points if row["scope_name"] == "witness"] == [77]
    json.dumps(default)


WRONG = [
    None,
    [],
    {},
    "x",
    5,
    -1,
    1e999,
    True,
    [None],
    [[]],
    {"a": None},
    2**70,
    "\ud800",
    [5],
    [{}],
]


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_any_node_may_be_wrong(value: Any) -> None:
    """Each node of a good request in turn: never an exception, other points survive."""
    for broken in replaced(everything(), value):
        assert_survives(broken)


def test_any_node_may_be_missing() -> None:
    """Each node of a good request in turn."""
    for broken in removed(everything()):
        assert_survives(broken)


def test_siblings_of_a_broken_point_survive() -> None:
    """A broken point costs itself only."""
    broken = {**point(1, gpu=0), "timeUnixNano": "soon"}
    sent = request(gauge(UTIL, "%", broken, point(2, gpu=1)))

    assert cells(tables(decoded(sent))[0], "gpu_id") == [("1",)]
    assert skipped(sent) == {BAD_TIME: 1}


@pytest.mark.parametrize("time", ["x", "1.5", 1.5, -1, str(2**64), True, [1], {}, 1e999])
def test_time_that_is_not_an_integer_is_counted(time: Any) -> None:
    """There is no row that the point could be in."""
    assert skipped(request(gauge(UTIL, "%", point(1) | {"timeUnixNano": time}))) == {BAD_TIME: 1}


@pytest.mark.parametrize(
    "value",
    [{"asDouble": "x"}, {"asDouble": True}, {"asInt": "x"}, {"asInt": [1]}, {"asInt": 2**70},
     {"asInt": True}, {"asDouble": {}}, {"asDouble": 10**400}],
)  # fmt: skip
def test_value_that_is_not_a_number_is_counted(value: Any) -> None:
    """Nothing is made of it."""
    assert skipped(request(gauge(UTIL, "%", point(None) | value))) == {BAD_NUMBER: 1}


@pytest.mark.parametrize(
    "field",
    [{"count": -1}, {"count": 2**64}, {"count": 0.5}, {"scale": 2**31}, {"positive": "x"},
     {"positive": {"offset": 2**63}}, {"zeroCount": "x"}, {"flags": 2**32}, {"flags": -1},
     {"positive": {"bucketCounts": [None]}}, {"positive": {"bucketCounts": "12"}}],
)  # fmt: skip
def test_histogram_that_cannot_be_is_counted(field: Any) -> None:
    """Numbers that no OTLP message holds do not get into the table."""
    data = {"dataPoints": [{"timeUnixNano": str(T0), **field}]}

    assert skipped(request({"name": "m", "exponentialHistogram": data})) == {BAD_NUMBER: 1}


@pytest.mark.parametrize("quantiles", [["x"], [None], "x", 5, {}])
def test_quantiles_are_not_invented(quantiles: Any) -> None:
    """What is no quantile is not the quantile 0."""
    data = {"dataPoints": [{"timeUnixNano": str(T0), "quantileValues": quantiles}]}

    assert skipped(request({"name": "m", "summary": data})) == {BAD_NUMBER: 1}


def test_unknown_kind_of_metric_is_counted() -> None:
    """A metric of tomorrow does not break today."""
    assert skipped(request({"name": "m", "sketch": {"dataPoints": [{}]}})) == {UNKNOWN_KIND: 1}


def test_null_is_an_empty_list_and_no_object() -> None:
    """ProtoJSON reads null as a field that is not set, and Go writes it; as an item it is wrong."""
    sent = {"resourceMetrics": [None, {"scopeMetrics": None, "resource": 5}, {"scopeMetrics": 5}]}

    assert skipped(sent) == {
        NOT_AN_OBJECT.format("an item of resourceMetrics"): 1,
        NOT_AN_OBJECT.format("scopeMetrics"): 1,
        NOT_AN_OBJECT.format("resource"): 1,
    }


def test_something_else_is_not_a_request() -> None:
    """Traces, lists, numbers: counted."""
    assert skipped({"resourceSpans": []}, [], 5, None) == {NOT_A_REQUEST: 4}


def test_snake_case_is_counted_with_the_right_word() -> None:
    """Python's field names are not OTLP/JSON's; the reason says what to write."""
    inner = {"resourceMetrics": [{"scope_metrics": []}]}

    assert skipped({"resource_metrics": []}, inner) == {
        SNAKE_CASE.format("resource_metrics", "resourceMetrics"): 1,
        SNAKE_CASE.format("scope_metrics", "scopeMetrics"): 1,
    }
    with pytest.raises(DecodeError, match="write resourceMetrics"):
        read_points({"resource_metrics": []})


@pytest.mark.parametrize("bad", [b"{", b"\xff\xfe\xfd", b'{"a": \xff}', b"[" * 5000])
def test_a_broken_line_costs_itself(bad: bytes) -> None:
    """As a Collector leaves it when it is killed, or worse."""
    good = json.dumps(request(gauge(UTIL, "%", point(1, gpu=0)))).encode()
    points = read_points(b"\n".join([good, bad, b"", good.replace(b'"0"', b'"1"')]))

    assert len(tables(points)[0]) == 2
    assert points.skipped == {BAD_LINE: 1}


def test_lines_end_with_newlines_only() -> None:
    """Other line separators may stand inside a JSON string."""
    text = "a\u2028b\x85c\x0bd"
    line = json.dumps(request(gauge("m", "", point(1, note=text))), ensure_ascii=False)
    points = read_points(f"{line}\r\n{line}\r\n")

    assert json.loads(tables(points)[1][0]["attributes"]) == {"note": text}
    assert points.skipped == {}


@pytest.mark.parametrize(
    "empty", [b"", b" \n\n", "{}", "[]", b"5", b"\xff", {"resourceMetrics": []}, []]
)
def test_nothing_to_read_is_a_decode_error(empty: Any) -> None:
    """A file without a point is said so, in one kind of error."""
    with pytest.raises(DecodeError):
        flatten(empty)


def test_empty_file_is_a_decode_error(tmp_path) -> None:
    """Also as a path."""
    path = tmp_path / "metrics.json"
    path.touch()
    with pytest.raises(DecodeError, match="empty"):
        flatten(path)


@pytest.mark.parametrize("depth", [20, 90, 300, 3000])
@pytest.mark.parametrize("shape", ["arrayValue", "kvlistValue"])
def test_deeply_nested_attributes(depth: int, shape: str) -> None:
    """What nobody means is cut, not crashed on."""
    value: Any = {"intValue": 1}
    for _ in range(depth):
        value = {
            shape: {"values": [value if shape == "arrayValue" else {"key": "k", "value": value}]}
        }
    one = {**point(1, gpu=0), "attributes": [{"key": "gpu_id", "value": {"stringValue": "0"}},
                                             {"key": "deep", "value": value}]}  # fmt: skip
    [row] = tables(decoded(request(gauge(UTIL, "%", one))), points="all")[1]

    assert TOO_DEEP in row["attributes"]


@pytest.mark.parametrize("depth", [90, 300, 900, 5000, 100_000])
def test_deep_nesting_anywhere(depth: int) -> None:
    """In text, where a name or a number belongs, or where nothing is known."""
    deep = "[" * depth + "]" * depth
    for key in ("name", "unit", "exemplars", "gauge", "unknown"):
        one = f'{{"timeUnixNano":5,"asInt":1,"{key}":{deep}}}'
        metric = f'{{"name":"m","{key}":{deep},"gauge":{{"dataPoints":[{one}]}}}}'
        resource = f'{{"scopeMetrics":[{{"metrics":[{metric}]}}]}}'
        text = f'{{"run_id":{deep},"resourceMetrics":[{resource}]}}'
        good = json.dumps({"resourceMetrics": [WITNESS]})
        default, _ = tables(read_points(f"{text}\n{good}"))
        assert [row["gpu_id"] for row in default] == ["witness"]


def test_text_that_is_not_unicode_is_made_so() -> None:
    """JSON can say lone surrogates; Parquet cannot."""
    sent = request(
        gauge(UTIL + "\ud800", "\ud801", point(1, gpu=0, note="\ud802")),
        gauge(UTIL, "%", point(1, gpu=0, gpu_name="\ud803")),
        run_id="\ud804",
        resource={"service.name": "\ud805"},
        scope="\ud806",
    )
    default, points = tables(decoded(sent), points="all")

    assert cells(default, "run_id", "gpu_name", "service_name") == [("?", "?", "?")]
    assert points[0]["metric_name"] == UTIL + "?"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "resourceMetrics",
                    "scopeMetrics",
                    "metrics",
                    "gauge",
                    "sum",
                    "histogram",
                    "dataPoints",
                    "asInt",
                    "asDouble",
                    "timeUnixNano",
                    "attributes",
                    "key",
                    "value",
                    "name",
                    "summary",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=30,
)


@given(JSON)
def test_any_json_is_survived(sent: Any) -> None:
    """No shape of JSON raises."""
    assert_survives(sent)


@given(st.binary(max_size=60))
def test_any_bytes_are_survived(data: bytes) -> None:
    """Bytes are read, or refused with our own error."""
    try:
        read_points(data)
    except DecodeError:
        return
