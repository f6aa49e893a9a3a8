"""OTLP/JSON as the specification, Collectors and smoltrace write it."""

from __future__ import annotations

import copy
import json
import tracemalloc
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
import pytest

from hubmeter.batch import Distribution, PointBatch, Series
from hubmeter.convert import flatten, read_points
from hubmeter.decode.json_values import BAD_ID, BAD_NUMBER, BAD_TIME
from hubmeter.decode.layouts import LayoutCache
from hubmeter.decode.otlp_json import NOT_AN_OBJECT, SNAKE_CASE, JsonDecoder
from hubmeter.errors import DecodeError, SettingsError
from makers import (
    SECOND,
    T0,
    UTIL,
    decoded,
    gauge,
    point,
    request,
    rows,
    sdk_data,
    sdk_gauge,
    sdk_number,
    total,
)
from otlp_wire import contents, json_of, random_request


def decode(*metrics, **envelope):
    return JsonDecoder().decode(request(*metrics, **envelope))


@pytest.mark.parametrize(
    ("sent", "value"),
    [
        ({"asInt": "5"}, 5), ({"asInt": 5}, 5), ({"asInt": 5.0}, 5.0), ({"asInt": "0"}, 0),
        ({"asDouble": 5}, 5.0), ({"asDouble": "5.5"}, 5.5), ({"asDouble": 0}, 0.0),
        ({"asInt": None, "asDouble": 1.5}, 1.5), ({"asInt": "7", "asDouble": None}, 7),
        ({"asInt": None, "asDouble": None}, None), ({}, None), ({"asInt": "5", "flags": 1}, None),
        ({"asInt": str(2**63 - 1)}, 2**63 - 1), ({"asInt": -(2**63)}, -(2**63)),
        ({"asDouble": "Infinity"}, float("inf")), ({"asDouble": "-Infinity"}, float("-inf")),
        ({"asDouble": "-1.5e+3"}, -1500.0), ({"asDouble": "2E-1"}, 0.2), ({"asInt": "+5"}, 5),
    ],
)  # fmt: skip
def test_number(sent, value) -> None:
    """Integers and doubles keep their type; either may be null."""
    [found] = decode(gauge("m", "", {"timeUnixNano": str(T0), **sent})).values

    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text",
    ["1_000", "\uff11\uff12", "\u0663", " 7", "7\n", "1.", ".5", "1_0.5", "1e1_0", "0x10", "--1",
     "inf", "infinity", "nan", "+Infinity"],
)  # fmt: skip
def test_number_that_only_python_can_read_is_none(text: str) -> None:
    """A text is a number as protobuf spells it in JSON, or its point is not used."""
    sent = ({"asDouble": text}, {"asInt": text}, {"asInt": 1, "timeUnixNano": text})
    attributes = {"i": {"intValue": text}, "d": {"doubleValue": text}}
    good = point(2) | {"attributes": [{"key": k, "value": v} for k, v in attributes.items()]}
    batch = decode(gauge("m", "", *({**point(1), **one} for one in sent), good))

    assert list(batch.values) == [2]
    assert batch.skipped == {BAD_NUMBER: 2, BAD_TIME: 1}
    assert json.loads(batch.layout.series[-1].attributes) == {"i": text, "d": text}


@pytest.mark.parametrize("time", [T0, str(T0), 2**64 - 1])
def test_time_is_a_string_or_a_number(time) -> None:
    """64-bit integers come either way."""
    batch = decode(gauge("m", "", {"timeUnixNano": time, "asInt": 1}))

    assert list(batch.times_unix_nano) == [int(time)]


@pytest.mark.parametrize(
    ("word", "temporality"),
    [(1, "delta"), ("1", "delta"), ("AGGREGATION_TEMPORALITY_DELTA", "delta"), (2, "cumulative"),
     (0, "cumulative"), (None, "cumulative"), ("x", "cumulative"), ([], "cumulative")],
)  # fmt: skip
def test_temporality(word, temporality) -> None:
    """Enumerations come as numbers or names; unspecified is read as cumulative."""
    [series] = decode(total("m", "", point(1), temporality=word)).layout.series

    assert series.temporality == temporality


def test_envelope_of_smoltrace() -> None:
    """Its run_id and aggregates stand beside resourceMetrics."""
    sent = {**request(gauge(UTIL, "%", point(1, gpu=0)), run_id="r"), "aggregates": {"x": 1}}

    assert rows(sent)[0]["run_id"] == "r"


def test_unknown_fields_are_ignored() -> None:
    """Tomorrow's fields do not break today."""
    sent = request(gauge("m", "", {**point(1), "tomorrow": {}}) | {"metadata": [{}]})

    assert len(decoded(sent).blocks) == 1


def test_absent_parts_are_empty() -> None:
    """Resource, scope, unit and attributes may be missing altogether."""
    sent = {
        "resourceMetrics": [
            {
                "scopeMetrics": [
                    {
                        "metrics": [
                            {
                                "name": "m",
                                "gauge": {"dataPoints": [{"timeUnixNano": "5", "asInt": 1}]},
                            }
                        ]
                    }
                ]
            }
        ]
    }
    [series] = JsonDecoder().decode(sent).layout.series

    assert (series.resource, series.scope_name, series.unit, series.attributes) == (
        "{}",
        "",
        "",
        "{}",
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"doubleValue": 1}, "1.0"), ({"doubleValue": "NaN"}, '"NaN"'), ({"intValue": 1}, "1"),
        ({"intValue": "x"}, '"x"'), ({"arrayValue": {}}, "[]"), ({"kvlistValue": {}}, "{}"),
        ({"kvlistValue": {"values": None}}, "{}"), ({}, "null"), (None, "null"),
        ({"stringValue": None, "intValue": "2"}, "2"), ({"boolValue": False}, "false"),
    ],
)  # fmt: skip
def test_attribute_value(value, text: str) -> None:
    """Collectors leave out what is empty, and write whole doubles without a point."""
    one = {**point(1), "attributes": [{"key": "a", "value": value}]}
    [series] = decode(gauge("m", "", one)).layout.series

    assert series.attributes == f'{{"a":{text}}}'


def test_of_a_duplicate_attribute_the_last_counts() -> None:
    """OTLP forbids it, senders do it."""
    twice = [{"key": "a", "value": {"intValue": n}} for n in (1, 2)]
    [series] = decode(gauge("m", "", {**point(1), "attributes": twice})).layout.series

    assert series.attributes == '{"a":2}'


def test_order_of_attributes_does_not_matter() -> None:
    """Equal sets are one series."""
    first, second = decode(gauge("m", "", point(1, a=1, b=2), point(2, b=2, a=1))).layout.series

    assert first is second


def test_numbers_that_protobuf_leaves_out_are_zero() -> None:
    """In JSON made from protobuf, a count of 0 is not there."""
    data = {"dataPoints": [{"timeUnixNano": "5"}]}
    batch = decode({"name": "a", "exponentialHistogram": data}, {"name": "b", "histogram": data})

    assert list(batch.values) == [
        Distribution(count=0, scale=0, zero_count=0, zero_threshold=0.0, positive_offset=0,
                     negative_offset=0),
        Distribution(count=0),
    ]  # fmt: skip


def test_minus_zero_keeps_its_sign() -> None:
    """A number is what was sent, to the last bit."""
    data = {"dataPoints": [{"timeUnixNano": "5", "explicitBounds": [-0.0]}]}
    [value] = decode({"name": "h", "histogram": data}).values

    assert str(value.explicit_bounds) == "(-0.0,)"


def test_layouts_repeat() -> None:
    """The same series in the same order share one layout object."""
    decoder = JsonDecoder()
    first, second = (
        decoder.decode(request(gauge(UTIL, "%", point(n, T0 + n, gpu=0)))) for n in (1, 2)
    )

    assert first.layout is second.layout


def test_points_of_one_time_share_it() -> None:
    """One time per collection is stored once."""
    batch = decode(gauge(UTIL, "%", point(1, gpu=0), point(2, gpu=1)))

    assert list(batch.times_unix_nano) == [T0]


DOCUMENT = [request(gauge(UTIL, "%", point(n, T0 + n * SECOND, gpu=0))) for n in range(3)]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(map(json.dumps, DOCUMENT)),
        "\r\n".join(map(json.dumps, DOCUMENT)) + "\r\n\r\n",
        json.dumps(DOCUMENT),
        json.dumps(DOCUMENT, indent=2),
        "\ufeff" + json.dumps(DOCUMENT),
        " \n" + json.dumps(DOCUMENT),
    ],
    ids=["lines", "crlf", "list", "indented", "bom", "space"],
)
def test_documents_and_lines(text: str, tmp_path) -> None:
    """One document, a list of them, or one per line; as text, bytes or file."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(text.encode())
    expected = flatten(DOCUMENT, run_id="run")

    for source in (text, text.encode(), bytearray(text.encode()), path, str(path), [path]):
        assert flatten(source, run_id="run").equals(expected)


def test_parts_of_a_list_share_their_layout() -> None:
    """A list of dictionaries is as compact as a file."""
    assert len(read_points(DOCUMENT).blocks) == 1
    collections = [sdk_data(sdk_gauge("m", "", sdk_number(n, T0 + n))) for n in range(3)]
    assert [len(block) for block in read_points([*DOCUMENT, *collections]).blocks] == [3, 3]


def test_flatten_tells_what_it_cannot_read() -> None:
    """By type."""
    with pytest.raises(DecodeError, match="float"):
        flatten(1.5)


def test_flatten_knows_its_configs() -> None:
    """A wrong config is named together with the right ones."""
    with pytest.raises(SettingsError, match=r"'rows'.*default, points"):
        flatten(DOCUMENT, config="rows")


def test_flatten_takes_settings() -> None:
    """By name, like every other way in."""
    [row] = flatten(DOCUMENT[0], run_id="r", missing="zero").to_pylist()

    assert (row["run_id"], row["gpu_memory_used_mib"]) == ("r", 0.0)
    assert flatten(DOCUMENT[0], config="points", points="all").num_rows == 1


# ------------------------------------------------------------------ what a receiver gets


def received(body: Any) -> PointBatch:
    """The body of a request, text or what JSON can say."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return JsonDecoder().decode_request(text)


@pytest.mark.parametrize(
    "body", [b"{}", b" {}\n", b"\xef\xbb\xbf{}", {"resourceMetrics": []}, {"tomorrow": [1]},
             {"resourceMetrics": [{}]}, {"resourceMetrics": [{"scopeMetrics": [{}]}]}]
)  # fmt: skip
def test_request_without_points_is_a_success(body) -> None:
    """Also one of which nothing is known but that it is an object."""
    batch = received(body)

    assert (list(batch.values), batch.skipped) == ([], {})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"), (b"{", "not JSON"), (b"\x0a\x05hello", "not JSON"),
        (b'{"a": 1} {"a": 1}', "not JSON"), (b'{"a": "\xff"}', "not UTF-8.*byte 7"),
        ("{}".encode("utf-16"), "not UTF-8"), (b'"\xed\xa0\x80"', "not UTF-8"),
        (b"[]", "not a JSON object"), (b"5", "not a JSON object"), (b"null", "not a JSON object"),
        (b"[" * 100_000, "nested too deeply"), (b'{"a":' * 100_000, "nested too deeply"),
    ],
)  # fmt: skip
def test_body_that_is_no_request_is_refused(body: bytes, reason: str) -> None:
    """The message tells the sender what is wrong with it."""
    with pytest.raises(DecodeError, match=reason):
        received(body)


def test_snake_case_is_not_acknowledged_silently() -> None:
    """Its names are unknown and so ignored, but the sender hears that nothing was taken."""
    sent = {"resource_metrics": request(gauge("m", "", point(1)))["resourceMetrics"]}

    assert received(sent).skipped == {SNAKE_CASE.format("resource_metrics", "resourceMetrics"): 1}
    assert received({"resource_metrics": [], "resourceMetrics": []}).skipped == {}
    assert received({**sent, "resourceMetrics": None}).skipped == received(sent).skipped


@pytest.mark.parametrize(
    "path", ["resourceMetrics", "resourceMetrics.0.scopeMetrics", "resourceMetrics.0.resource",
             "resourceMetrics.0.scopeMetrics.0.metrics", "resourceMetrics.0.scopeMetrics.0.scope",
             "resourceMetrics.0.scopeMetrics.0.metrics.0.gauge.dataPoints"]
)  # fmt: skip
def test_null_is_an_empty_field(path: str) -> None:
    """Go writes null for a slice that is nil, and protobuf's JSON reads it as not set."""
    sent = request(gauge("m", "", point(1)))
    *way, last = path.split(".")
    place: Any = sent
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    place[last] = None

    assert received(sent).skipped == {}


def test_number_of_a_hundred_thousand_digits_spoils_itself_only() -> None:
    """Python refuses to read it."""
    good = json.dumps(request(gauge("m", "", point(1))))[:-1]
    batch = received(f'{good},"tomorrow":{"9" * 100_000}}}'.encode())

    assert list(batch.values) == [1]


@pytest.mark.parametrize(
    ("sent", "value"),
    [(2**53 + 1, 2**53 + 1), (str(2**53 + 1), 2**53 + 1), ("-1", -1), (2**64 - 1, 2**64 - 1)],
)
def test_integers_beyond_a_double_are_exact(sent, value) -> None:
    """As numbers and as strings."""
    assert list(received(request(gauge("m", "", point(None) | {"asInt": sent}))).values) == [value]


def test_counts_reach_to_the_end_of_64_bits() -> None:
    """Unsigned, either way."""
    data = {"dataPoints": [{"count": str(2**64 - 1), "bucketCounts": [2**64 - 1, "0"]}]}
    [value] = received(request({"name": "h", "histogram": data})).values

    assert value == Distribution(count=2**64 - 1, bucket_counts=(2**64 - 1, 0))


def test_bytes_are_base64() -> None:
    """In JSON as they come."""
    one = {**point(1), "attributes": [{"key": "a", "value": {"bytesValue": "AP8="}}]}

    assert received(request(gauge("m", "", one))).layout.series[0].attributes == '{"a":"AP8="}'


@pytest.mark.parametrize(
    "identifier", ["abc", "0" * 31, "0" * 33, "g" * 32, "0" * 16, "AAAAAAAAAAAAAAAAAAAAAA==", 5, []]
)
def test_identifier_that_is_not_one_costs_its_point(identifier) -> None:
    """Hexadecimal of the right length; the batch goes on, the sender hears of it."""
    bad = {**point(1), "exemplars": [{"traceId": identifier, "asInt": "1"}]}
    batch = received(request(gauge("m", "", bad, point(2))))

    assert (list(batch.values), batch.skipped) == ([2], {BAD_ID: 1})


@pytest.mark.parametrize("identifier", ["AB" * 16, "ab" * 16, "", None])
def test_identifier_in_either_case_or_none(identifier) -> None:
    """Kept in lower case; what is empty is not there."""
    one = {**point(1), "exemplars": [{"traceId": identifier}]}
    [extra] = received(request(gauge("m", "", one))).extras.values()

    [exemplar] = json.loads(extra.exemplars)
    assert exemplar.get("traceId") == ("ab" * 16 if identifier else None)


# ------------------------------------------------------------------ what is remembered


def test_series_for_ever_do_not_fill_the_memory() -> None:
    """A sender that puts request numbers into attributes or names; long texts count as many."""
    cache = LayoutCache(most_bytes=1_000_000)
    tracemalloc.start()
    for n in range(3000):
        name, attributes = ((f"{n}", f"{n}"), (f"{n:30000}", ""), ("", f"{n:30000}"))[n % 3]
        one = Series(resource="{}", scope_name="", metric_name=name, unit="", kind="gauge",
                     attributes=attributes)  # fmt: skip
        found = cache.series(one)
        assert (found, cache.layout([found]).series) == (one, (one,))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert held < 1_800_000


ENDLESS = {
    "attributes": lambda text: request(gauge("m", "", point(1, request=text))),
    "names": lambda text: request(gauge(text, "", point(1))),
    "units": lambda text: request(gauge("m", text, point(1))),
    "runs": lambda text: request(gauge("m", "", point(1)), run_id=text),
    "scopes": lambda text: request(gauge("m", "", point(1)), scope=text),
    "resources": lambda text: request(gauge("m", "", point(1)), resource={"pod": text}),
    "resources without points": lambda text: request(resource={"pod": text}),
    "metrics without points": lambda text: request(gauge(text, "")),
    "few names in new pairs": lambda text: request(gauge(text[-2:], text[-4:-2])),
    "broken points": lambda text: request(gauge("m", "", point("x", request=text))),
}


@pytest.mark.parametrize("sent", ENDLESS.values(), ids=ENDLESS)
@pytest.mark.parametrize("width", [0, 5_000])
def test_no_part_of_a_request_fills_the_memory(sent, width: int) -> None:
    """Whatever is new in each request, and also if no series comes of it."""
    decoder = JsonDecoder(most_bytes=60_000)
    decoder.decode(request(gauge("m", "", point(1, gpu=0))))
    tracemalloc.start()
    for n in range(1500 if not width else 300):
        decoder.decode(sent(f"ä{n:{width or 4}}"))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert most < 120_000


def broken(document: Any, dice: Random) -> Any:
    """A copy of *document* in which a few things are others, or null."""
    copied = copy.deepcopy(document)
    places = [*_places(copied)]
    for _ in range(dice.choice((0, 0, 1, 2))):
        if places:
            parent, key = dice.choice(places)
            parent[key] = dice.choice((None, 5, True, 1.0, "x", [], [None], {}, {"values": 1}))
    return copied


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All of what is inside *value*, by what it is in."""
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in keys:
        yield value, key
        yield from _places(value[key])


@pytest.mark.parametrize("most_bytes", [2**26, 20_000])
def test_a_decoder_that_remembers_says_what_one_that_does_not_says(most_bytes: int) -> None:
    """Of 2,000 requests, some of them broken, each twice; what is counted counts each time."""
    dice = Random(0)
    decoder = JsonDecoder(most_bytes)
    for _ in range(2000):
        body = json.dumps(broken(json_of(random_request(dice)), dice)).encode()
        expected = contents(JsonDecoder().decode_request(body))

        assert contents(decoder.decode_request(body)) == expected
        assert contents(decoder.decode_request(body)) == expected


def test_all_that_makes_series_different_is_remembered() -> None:
    """Series that differ in one thing only, from one decoder, are as many and stay so."""
    one = point(1, gpu=0)
    decoder = JsonDecoder()
    sent = [
        request(total("m", "J", one)), request(total("n", "J", one)), request(total("m", "s", one)),
        request(total("m", "J", one, temporality=1)),
        request(total("m", "J", one, monotonic=False)),
        request(gauge("m", "J", one)), request(total("m", "J", point(1, gpu=1))),
        request(total("m", "J", one), run_id="r"), request(total("m", "J", one), scope="s"),
        request(total("m", "J", one), resource={"gpu_id": "0"}),
    ]  # fmt: skip
    layouts = [decoder.decode(each).layout for each in sent * 2]

    assert len({layout.series for layout in layouts}) == len(set(layouts)) == len(sent)


def test_what_is_broken_in_attributes_counts_each_time() -> None:
    """Only the rest of them can be known."""
    decoder = JsonDecoder()
    pairs = [None, {"key": "a", "value": {"intValue": 1}}]
    sent = request(gauge("m", "", {**point(1), "attributes": pairs}))
    for _ in range(3):
        batch = decoder.decode(sent)

        assert batch.skipped == {NOT_AN_OBJECT.format("an item of attributes"): 1}
        assert batch.layout.series[0].attributes == '{"a":1}'


def test_equal_values_of_other_types_are_told_apart() -> None:
    """To Python 1 is True, and to marshal bytes in a row are what they stand for."""
    decoder = JsonDecoder()
    values = [1, True, 1.0, "1", None, 0, False, 0.0, -0.0, [1], [True], [[1]], "\ud800", "?",
              b"\0" * 8, bytearray(8), np.float64(0), np.int64(0)]  # fmt: skip
    for value in values * 2:
        one = {**point(1), "attributes": [{"key": "a", "value": {"value": value}}]}
        sent = request(gauge("m", "", one))

        assert contents(decoder.decode(sent)) == contents(JsonDecoder().decode(sent))


def test_what_repeats_is_one_object() -> None:
    """Until it is forgotten, and after that again."""
    cache, layouts = LayoutCache(most_bytes=2_000), []
    for number in range(1, 61):
        first, second, _ = (
            cache.series(
                Series(resource="{}", scope_name="", metric_name=name, unit="", kind="sum")
            )
            for name in ("m", "m", f"{number}")
        )
        assert first is second
        layouts.append(cache.layout([first]))

    assert 2 < len(set(layouts)) < 30
