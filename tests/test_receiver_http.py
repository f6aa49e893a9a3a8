"""OTLP/HTTP, case by case, on real sockets. Numbers are those of the receiver's test cases."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import math
import socket
import ssl
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zstandard
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from hubmeter.batch import PointBatch
from hubmeter.deadline import Deadline
from hubmeter.errors import JournalError, SettingsError
from hubmeter.pipeline import Pipeline
from hubmeter.receiver.answers import Status
from hubmeter.receiver.credentials import Tls
from hubmeter.receiver.serving import Address, Doors, Receiver, address_of, refusal
from hubmeter.segment import LOOK_EVERY_S
from hubmeter.settings import Settings
from hubmeter.text import Secret
from makers import T0, gauge, point, request, resource_metrics, total
from receivers import (
    JSON,
    LOGS,
    LOOPBACK,
    PROTOBUF,
    Kept,
    Served,
    ask,
    certificates,
    is_closed,
    one_bad_span_of_two,
    proto,
    read_head,
    read_response,
    text,
    until,
)

BODIES = {PROTOBUF: proto, JSON: text}
both = pytest.mark.parametrize("content_type", [PROTOBUF, JSON])
every_signal = pytest.mark.parametrize("signal", ["metrics", "traces", "logs"])

RESPONSES = {
    "metrics": ExportMetricsServiceResponse,
    "traces": ExportTraceServiceResponse,
    "logs": ExportLogsServiceResponse,
}


@pytest.fixture(name="served", scope="module")
def _served() -> Any:
    with Served() as served:
        yield served


@pytest.fixture(name="kept")
def _kept(served: Served) -> Kept:
    served.kept.batches.clear()
    return served.kept


def test_case_1_protobuf_is_answered_in_protobuf(served: Served, kept: Kept) -> None:
    """200, an empty response message, the same media type."""
    said = served.post(proto(412.5))
    assert (said.status, said.content_type, said.body) == (200, PROTOBUF, b"")
    assert kept.values() == [412.5]


def test_case_2_json_is_answered_in_json(served: Served, kept: Kept) -> None:
    """200, an empty object, the same media type."""
    said = served.post(text(412.5), JSON)
    assert (said.status, said.content_type, said.body) == (200, JSON, b"{}")
    assert kept.values() == [412.5]


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "Application/JSON;charset=UTF-8", "application/json ; a=b"],
)
def test_case_3_a_media_type_may_have_parameters(
    served: Served, kept: Kept, content_type: str
) -> None:
    """And letters of either size."""
    said = served.post(text(1.0), content_type)
    assert (said.status, said.content_type) == (200, JSON)
    assert served.post(proto(2.0), f"{PROTOBUF}; messageType=x").status == 200
    assert kept.values() == [1.0, 2.0]


@both
def test_case_4_gzip_in_one_member_or_several_or_none(
    served: Served, kept: Kept, content_type: str
) -> None:
    """And identity, which is no encoding; in chunks too."""
    body = BODIES[content_type](7.0)
    members = gzip.compress(body[:10]) + gzip.compress(body[10:])
    assert served.post(gzip.compress(body), content_type, Content_Encoding="gzip").status == 200
    assert served.post(members, content_type, Content_Encoding="gzip").status == 200
    assert served.post(body, content_type, Content_Encoding="identity").status == 200
    chunks = [members[:3], members[3:15], members[15:]]
    assert served.post(chunks, content_type, Content_Encoding="gzip").status == 200
    assert kept.values() == [7.0] * 4


@both
def test_case_4_broken_and_unknown_encodings(served: Served, kept: Kept, content_type: str) -> None:
    """Truncated or no gzip at all is a 400; an encoding that we do not have is a 415."""
    body = gzip.compress(BODIES[content_type](7.0))
    for wrong in (body[:-9], body[:12], b"", b"watts", body + b"watts"):
        said = served.post(wrong, content_type, Content_Encoding="gzip")
        assert (said.status, said.content_type, said.error().code) == (400, content_type, 3)
    for encoding in ("br", "snappy", "gzip, gzip"):
        said = served.post(body, content_type, Content_Encoding=encoding)
        assert (said.status, said.content_type, said.error().code) == (415, content_type, 3)
        assert said.headers["Accept-Encoding"] == "gzip, deflate, zstd"
    assert kept.batches == []


@both
def test_case_5_zstd_and_deflate(served: Served, kept: Kept, content_type: str) -> None:
    """One frame, several frames, and both things that are called deflate."""
    body = BODIES[content_type](7.0)
    zstd = zstandard.ZstdCompressor().compress
    raw = zlib.compress(body)[2:-4]
    for compressed, encoding in (
        (zstd(body), "zstd"),
        (zstd(body[:9]) + zstd(body[9:]), "zstd"),
        (zlib.compress(body), "deflate"),
        (raw, "deflate"),
    ):
        assert served.post(compressed, content_type, Content_Encoding=encoding).status == 200
    assert kept.values() == [7.0] * 4
    said = served.post(zstd(body)[:-3], content_type, Content_Encoding="zstd")
    assert (said.status, said.error().code) == (400, 3)


EMPTY = ExportMetricsServiceRequest()
EMPTY.resource_metrics.add().scope_metrics.add()
NO_SCOPE = ExportMetricsServiceRequest()
NO_SCOPE.resource_metrics.add()
EMPTY_JSON = {"resourceMetrics": [{"scopeMetrics": [{"metrics": []}]}]}


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", PROTOBUF),
        (EMPTY.SerializeToString(), PROTOBUF),
        (NO_SCOPE.SerializeToString(), PROTOBUF),
        (b"{}", JSON),
        (b'{"resourceMetrics": []}', JSON),
        (json.dumps(EMPTY_JSON).encode(), JSON),
    ],
)
def test_case_10_an_empty_request_is_a_success(
    served: Served, kept: Kept, body: bytes, content_type: str
) -> None:
    """Without anything to deliver, and without a partial success."""
    said = served.post(body, content_type)
    assert (said.status, said.body) == (200, b"{}" if content_type == JSON else b"")
    assert kept.batches == []


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"\xff\xff\xff", PROTOBUF),
        (proto(1.0)[:-3], PROTOBUF),
        (text(1.0), PROTOBUF),
        (b"{", JSON),
        (b"", JSON),
        (b"[]", JSON),
        (b"7", JSON),
        (b"null", JSON),
        (b"\xff\xfe", JSON),
        (b"[" * 100_000, JSON),
        (proto(1.0), JSON),
    ],
)
@pytest.mark.parametrize("path", ["/v1/metrics", "/v1/traces"])
def test_case_11_what_is_malformed_is_a_400_in_the_same_form(
    served: Served, kept: Kept, body: bytes, content_type: str, path: str
) -> None:
    """With a google.rpc.Status that can be read."""
    said = served.post(body, content_type, path)
    assert (said.status, said.content_type, said.error().code) == (400, content_type, 3)
    assert said.error().message
    assert "Retry-After" not in said.headers
    assert kept.batches == []


@pytest.mark.parametrize("path", ["/v1/metrics", "/v1/traces", "/v1/logs"])
@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH"])
def test_case_12_other_methods_are_a_405_in_plain_text(
    served: Served, path: str, method: str
) -> None:
    """With the method that is allowed."""
    said = served.post(b"", JSON, path, method)
    assert (said.status, said.headers["Allow"]) == (405, "POST")
    assert said.content_type.startswith("text/plain")


def test_case_12_other_types_and_paths(served: Served) -> None:
    """No or another type: 415. Another path: 404."""
    for content_type in (None, "text/plain", "application/octet-stream", "json", "a/b; c", "\xe9"):
        said = served.post(proto(1.0), content_type)
        assert (said.status, said.content_type.split(";")[0]) == (415, "text/plain")
    for path in ("/", "/v1", "/v1/metrics/", "/v1/profiles", "/v2/metrics", "//v1/metrics", "/%00"):
        assert served.post(b"{}", JSON, path).error().code == 5
        assert served.post(b"{}", "text/plain", path).status == 404
    assert served.post(text(1.0), JSON, "/v1/metrics?a=b").status == 200


@both
@every_signal
def test_case_12_traces_are_taken_and_logs_dropped_with_the_response_of_their_kind(
    served: Served, kept: Kept, content_type: str, signal: str
) -> None:
    """200 for each signal; nothing of logs is delivered, or even read."""
    body = b"{}" if content_type == JSON else b""
    said = served.post(body, content_type, f"/v1/{signal}")
    assert (said.status, said.body) == (200, body)
    assert served.post(b"\xff not read", content_type, "/v1/logs").status == 200
    assert kept.batches == []


def test_case_12_that_logs_are_dropped_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """To whoever runs the receiver; senders hear a success."""
    with Served() as served:
        for _ in range(20):
            assert served.post(b"{}", JSON, "/v1/logs").body == b"{}"
        assert served.export(b"", LOGS) == b""
    said = [one.message for one in caplog.records if "logs" in one.message]
    assert said == ["hubmeter: receiver: logs are taken and dropped, as rows have none"]


def test_case_12_a_root_span_is_delivered_as_one_point(served: Served, kept: Kept) -> None:
    """In either form; a span that says nothing of what ran is not."""
    made = ExportTraceServiceRequest()
    spans = made.resource_spans.add().scope_spans.add().spans
    ids = {"trace_id": bytes(range(16)), "start_time_unix_nano": T0}
    spans.add(span_id=b"12345678", name="root", end_time_unix_nano=T0 + 2 * 10**9, **ids)
    spans.add(span_id=b"87654321", parent_span_id=b"12345678", end_time_unix_nano=T0 + 1, **ids)
    as_json = {
        "traceId": bytes(range(16)).hex(),
        "spanId": b"12345678".hex(),
        "startTimeUnixNano": str(T0),
        "endTimeUnixNano": str(T0 + 2 * 10**9),
    }
    body = {"resourceSpans": [{"scopeSpans": [{"spans": [as_json]}]}]}
    assert served.post(made.SerializeToString(), PROTOBUF, "/v1/traces").body == b""
    assert served.post(json.dumps(body).encode(), JSON, "/v1/traces").body == b"{}"
    assert kept.names() == ["hubmeter.span.duration"] * 2
    assert kept.values() == [2.0, 2.0]


def _one_bad_of_ten() -> bytes:
    points = [point(float(number), T0 + number) for number in range(10)]
    points[4]["timeUnixNano"] = "soon"
    return json.dumps(request(gauge("power", "W", *points))).encode()


def test_case_13_one_bad_point_of_ten_is_a_partial_success(served: Served, kept: Kept) -> None:
    """Nine are kept; the sender hears how many are not, and why."""
    said = served.post(_one_bad_of_ten(), JSON)
    partial = json.loads(said.body)["partialSuccess"]
    assert (said.status, partial["rejectedDataPoints"]) == (200, "1")
    assert "timestamp" in partial["errorMessage"]
    assert len(kept.values()) == 9


def test_case_13_a_partial_success_in_protobuf(served: Served) -> None:
    """A metric of no known kind is one that is not used; all others are."""
    made = ExportMetricsServiceRequest.FromString(proto(1.0, 2.0))
    made.resource_metrics[0].scope_metrics[0].metrics.add(name="nothing")
    said = served.post(made.SerializeToString())
    response = ExportMetricsServiceResponse.FromString(said.body)
    assert (said.status, response.partial_success.rejected_data_points) == (200, 1)
    assert response.partial_success.error_message
    assert not ExportMetricsServiceResponse.FromString(served.post(proto(1.0)).body).HasField(
        "partial_success"
    )


def test_case_13_spans_that_cannot_be_used_are_counted(served: Served, kept: Kept) -> None:
    """In either form; one of two spans has no trace, the other is kept."""
    as_json, as_proto = one_bad_span_of_two()
    said = json.loads(served.post(as_json, JSON, "/v1/traces").body)["partialSuccess"]
    assert said["rejectedSpans"] == "1"
    assert "no trace id of 16 bytes (1)" in said["errorMessage"]
    answer = served.post(as_proto, PROTOBUF, "/v1/traces")
    partial = ExportTraceServiceResponse.FromString(answer.body).partial_success
    assert (answer.status, partial.rejected_spans) == (200, 1)
    assert "no trace id of 16 bytes (1)" in partial.error_message
    assert kept.names() == ["hubmeter.span.duration"] * 2


@both
def test_case_14_a_full_journal_is_a_503_with_a_time_to_come_again(content_type: str) -> None:
    """In the request's form, and without a word about our disk."""

    def full(_: PointBatch) -> None:
        raise JournalError("cannot write /secret/place: it is full")

    with Served(full, grpc=None) as served:
        said = served.post(BODIES[content_type](1.0), content_type)
    assert (said.status, said.content_type, said.error().code) == (503, content_type, 14)
    assert said.headers["Retry-After"] == "1"
    assert "secret" not in said.error().message


def test_case_14_the_exporter_comes_again_and_each_point_is_there_once() -> None:
    """An SDK's exporter meets a journal that is full twice."""
    served = Served(grpc=None)
    served.kept.before = _failing(2)
    with served:
        exporter = OTLPMetricExporter(f"{served.url}/v1/metrics")
        reader = PeriodicExportingMetricReader(exporter, export_interval_millis=math.inf)
        provider = MeterProvider([reader], shutdown_on_exit=False)
        provider.get_meter("t").create_gauge("power", "W").set(412.5)
        assert provider.force_flush()
        provider.shutdown()
    assert served.kept.values() == [412.5]


def _failing(times: int) -> Any:
    left = [None] * times

    def fail(_: PointBatch) -> None:
        if left:
            left.pop()
            raise JournalError("full")

    return fail


def test_case_15_a_journal_that_cannot_be_written_then_can(tmp_path: Path) -> None:
    """The sender comes again; its point is in the table once."""
    place = tmp_path / "journals"
    place.write_text("a file where the folder should be")
    pipeline = Pipeline(Settings(journal_dir=str(place), to=str(tmp_path / "data")))
    with Served(pipeline.consume, grpc=None) as served:
        body = text(412.5, name="gen_ai.gpu.power")
        assert served.post(body, JSON).status == 503
        place.unlink()
        time.sleep(LOOK_EVERY_S)
        assert served.post(body, JSON).status == 200
        [row] = pipeline.table().to_pylist()
    assert row["gpu_power_watts"] == 412.5
    assert pipeline.is_journaled()
    pipeline.close(Deadline.after(20))


def test_case_15_a_journal_at_its_limit(tmp_path: Path) -> None:
    """What does not fit is not acknowledged, and so not there."""
    settings = Settings(journal_dir=str(tmp_path), to=str(tmp_path / "to"), journal_limit_mib=0.02)
    pipeline = Pipeline(settings)
    with Served(pipeline.consume, grpc=None) as served:
        answers = [served.post(proto(*range(100), name=f"m{n}")).status for n in range(60)]
    taken = answers.count(200)
    assert 0 < taken < 60
    assert answers == [200] * taken + [503] * (60 - taken)
    assert sum(len(block.values) for block in pipeline.points().blocks) == taken * 100
    pipeline.close(Deadline.after(20))


def test_case_16_a_request_in_flight_is_answered_before_the_receiver_stops() -> None:
    """Its body was still coming, and its points are kept; others find the door closed."""
    served = Served(grpc=None)
    body = proto(412.5)
    with served, served.raw() as connection, served.raw() as idle:
        connection.sendall(_head(len(body)) + body[:20])
        assert until(lambda: served.post(b"", None, "/healthz", "GET").status == 200)
        stopper = threading.Thread(target=served.stop, args=(Deadline.after(10),))
        stopper.start()
        assert until(lambda: _is_refused(served))
        connection.sendall(body[20:])
        assert read_response(connection)[0] == 200
        assert is_closed(connection, 5)
        assert is_closed(idle, 5)
        stopper.join(10)
        assert not stopper.is_alive()
    assert served.kept.values() == [412.5]


def _is_refused(served: Served) -> bool:
    try:
        with served.raw():
            return False
    except ConnectionRefusedError:
        return True


def _head(length: int, *more: str, path: str = "/v1/metrics") -> bytes:
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: x",
        f"Content-Type: {PROTOBUF}",
        f"Content-Length: {length}",
        *more,
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def test_case_16_a_request_that_is_not_whole_in_time_is_not_acknowledged() -> None:
    """The sender hears nothing, and keeps what it has."""
    served = Served(grpc=None)
    with served, served.raw() as connection:
        connection.sendall(_head(100) + b"x" * 20)
        time.sleep(0.1)
        started = time.monotonic()
        served.stop(Deadline.after(0.3))
        assert time.monotonic() - started < 3
        assert connection.recv(1000) == b""
    assert served.kept.batches == []


def test_nothing_is_left_when_the_receiver_has_stopped() -> None:
    """No thread, no listening port; a second stop is nothing."""
    before = set(threading.enumerate())
    served = Served()
    with served:
        served.post(proto(*range(100)))
        served.export(proto(1.0))
        names = {thread.name for thread in threading.enumerate()}
        assert "hubmeter-receiver" in names
    served.stop(Deadline.after(1))
    assert until(lambda: {one for one in threading.enumerate() if _is_ours(one)} <= before)
    for address in (served.http_address, served.grpc_address):
        assert address is not None
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


def _is_ours(thread: threading.Thread) -> bool:
    return "hubmeter" in thread.name or "asyncio" in thread.name


def test_case_18_unknown_fields_snake_case_and_words_for_numbers(
    served: Served, kept: Kept
) -> None:
    """Unknown fields are nothing; snake_case is one of them, and said; enum words are taken."""
    body = request(gauge("power", "W", {**point(1.0), "color": "red"}), resource={"a": "b"})
    assert served.post(json.dumps({**body, "more": {}}).encode(), JSON).body == b"{}"
    snake = json.dumps({"resource_metrics": []}).encode()
    assert "resourceMetrics" in str(json.loads(served.post(snake, JSON).body)["partialSuccess"])
    summed = total("energy", "J", point(2.0))
    summed["sum"]["aggregationTemporality"] = "AGGREGATION_TEMPORALITY_DELTA"
    assert served.post(json.dumps(request(summed)).encode(), JSON).body == b"{}"
    unknown = proto(3.0) + b"\xba\x06\x03abc"  # field 103
    assert served.post(unknown).body == b""
    assert kept.values() == [1.0, 2.0, 3.0]
    assert kept.batches[-2].layout.series[0].temporality == "delta"


@pytest.mark.parametrize(
    ("sent", "value"),
    [
        ({"asInt": "9007199254740993"}, 2**53 + 1),
        ({"asInt": 9007199254740993}, 2**53 + 1),
        ({"asInt": str(2**63 - 1)}, 2**63 - 1),
        ({"asInt": str(-(2**63))}, -(2**63)),
        ({"asDouble": "NaN"}, math.nan),
        ({"asDouble": "-Infinity"}, -math.inf),
        ({"asDouble": 1}, 1.0),
    ],
)
def test_case_18_numbers_arrive_as_they_are(
    served: Served, kept: Kept, sent: dict[str, Any], value: Any
) -> None:
    """As text or as numbers, beyond 2^53, and those that are words."""
    body = request(gauge("n", "1", {**point(None), **sent}))
    assert served.post(json.dumps(body).encode(), JSON).body == b"{}"
    assert repr(kept.values()) == repr([value])


def test_case_18_identifiers_and_bytes(served: Served, kept: Kept) -> None:
    """Hexadecimal in either case, base64 for bytes."""
    exemplar = {"timeUnixNano": str(T0), "asDouble": 1.0, "spanId": "AbCdEf0123456789"}
    exemplar["traceId"] = "0123456789ABCDEF0123456789abcdef"
    raw = {"key": "raw", "value": {"bytesValue": base64.b64encode(b"\x00\xff").decode()}}
    sent = {**point(1.0), "exemplars": [exemplar]}
    sent["attributes"].append(raw)
    assert served.post(json.dumps(request(gauge("n", "1", sent))).encode(), JSON).body == b"{}"
    [batch] = kept.batches
    assert "0123456789abcdef0123456789abcdef" in str(batch.extras[0].exemplars).lower()
    assert json.loads(batch.layout.series[0].attributes) == {"raw": "AP8="}


@pytest.mark.parametrize("trace_id", ["0123456789abcdef", "g" * 32, "0" * 33])
def test_case_18_identifiers_of_a_wrong_length(served: Served, kept: Kept, trace_id: str) -> None:
    """A partial success: the point or span that has one is not used, all others are."""
    exemplar = {"timeUnixNano": str(T0), "asDouble": 1.0, "traceId": trace_id}
    sent = request(gauge("n", "1", {**point(1.0), "exemplars": [exemplar]}, point(2.0)))
    answer = served.post(json.dumps(sent).encode(), JSON)
    said = json.loads(answer.body)["partialSuccess"]
    assert (answer.status, said["rejectedDataPoints"]) == (200, "1")
    assert "an exemplar has a trace or span id that is not one (1)" in said["errorMessage"]
    assert kept.values() == [2.0]

    times = {"startTimeUnixNano": str(T0), "endTimeUnixNano": str(T0 + 1)}
    spans = {"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": trace_id, **times}]}]}]}
    answer = served.post(json.dumps(spans).encode(), JSON, "/v1/traces")
    assert answer.status == 200
    assert json.loads(answer.body)["partialSuccess"]["rejectedSpans"] == "1"


def _all_kinds() -> bytes:
    made = ExportMetricsServiceRequest()
    metrics = made.resource_metrics.add().scope_metrics.add().metrics
    at = {"time_unix_nano": T0, "start_time_unix_nano": T0 - 5}
    metrics.add(name="g").gauge.data_points.add(as_int=1, **at)
    total_of = metrics.add(name="s").sum
    total_of.aggregation_temporality, total_of.is_monotonic = 1, True
    total_of.data_points.add(as_double=2.5, **at)
    total_of.data_points.add(flags=1, **at)
    histogram = metrics.add(name="h").histogram
    histogram.aggregation_temporality = 2
    histogram.data_points.add(
        count=3, sum=6, bucket_counts=[1, 2], explicit_bounds=[2], min=1, max=3, **at
    )
    exponential = metrics.add(name="e").exponential_histogram
    exponential.aggregation_temporality = 2
    found = exponential.data_points.add(count=2**64 - 1, sum=5, scale=3, zero_count=1, **at)
    found.positive.offset = -2
    found.positive.bucket_counts.extend([1, 2])
    quantiles = metrics.add(name="q").summary.data_points.add(count=2, sum=3, **at)
    quantiles.quantile_values.add(quantile=0.5, value=1.5)
    return made.SerializeToString()


def test_case_19_all_kinds_of_points(served: Served, kept: Kept) -> None:
    """Both kinds of values, and a point that says that it has none."""
    assert served.post(_all_kinds()).body == b""
    [batch] = kept.batches
    kinds = [series.kind for series in batch.layout.series]
    assert kinds == ["gauge", "sum", "sum", "histogram", "exponential_histogram", "summary"]
    one, two, none, histogram, exponential, summary = batch.values
    assert (one, two, none) == (1, 2.5, None)
    assert (histogram.bucket_counts, histogram.max) == ((1, 2), 3)
    assert (exponential.count, exponential.positive_offset) == (2**64 - 1, -2)
    assert summary.quantiles == ((0.5, 1.5),)


def test_case_20_delta_and_cumulative_and_their_start_times(served: Served, kept: Kept) -> None:
    """They arrive as they were sent: a reset and an overlap are not undone on the way."""
    starts = [T0 - 9, T0 - 9, T0 + 1, T0 - 20]
    points = [point(n, T0 + n, start=start) for n, start in enumerate(starts)]
    sums = (total("c", "J", *points), total("d", "J", *points, temporality=1))
    assert served.post(json.dumps(request(*sums)).encode(), JSON).body == b"{}"
    [batch] = kept.batches
    assert list(batch.start_times_unix_nano) == starts * 2
    temporalities = [series.temporality for series in batch.layout.series]
    assert temporalities == ["cumulative"] * 4 + ["delta"] * 4


def test_case_21_times_at_the_ends_of_the_world(served: Served, kept: Kept) -> None:
    """The far future is a time; without one a point makes no row, and the sender hears that."""
    far = 2**64 - 1
    points = [point(1.0, 0), point(2.0, far), {"asDouble": 3.0}, point(4.0, -1)]
    said = json.loads(
        served.post(json.dumps(request(gauge("g", "1", *points))).encode(), JSON).body
    )
    assert said["partialSuccess"]["rejectedDataPoints"] == "3"
    assert "a point has no timestamp (2)" in said["partialSuccess"]["errorMessage"]
    [batch] = kept.batches
    assert list(batch.times_unix_nano) == [0, far, 0]  # counted with their run
    assert served.post(struct.pack("<B", 0)).status == 400


def test_case_22_attributes_of_all_kinds(served: Served, kept: Kept) -> None:
    """Arrays, maps, bytes, nothing, keys with dots and slashes; of one key the last counts."""
    named = {"a.b/c": [1, "x", None], "map": {"k": True}, "raw": b"\x01", "é": "雪", "none": None}
    body = request(gauge("g", "1", point(1.0)))
    body["resourceMetrics"] = [resource_metrics(gauge("g", "1", point(1.0)), resource=named)]
    twice = body["resourceMetrics"][0]["resource"]["attributes"]
    twice += [{"key": "é", "value": {"stringValue": "last"}}]
    assert served.post(json.dumps(body).encode(), JSON).body == b"{}"
    resource = json.loads(kept.batches[0].layout.series[0].resource)
    assert resource == {
        "a.b/c": [1, "x", None], "map": {"k": True}, "raw": "AQ==", "é": "last", "none": None
    }  # fmt: skip


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_case_27_the_exporters_of_the_sdk(served: Served, kept: Kept, compression: Any) -> None:
    """Metrics, traces and logs, as they come from Python."""
    options = {"compression": compression, "timeout": 10}
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(f"{served.url}/v1/metrics", **options), export_interval_millis=math.inf
    )
    resource = Resource({"run.id": "r1"})
    meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    meters.get_meter("t").create_gauge("power", "W").set(412.5, {"gpu_id": "0"})
    assert meters.force_flush()
    meters.shutdown()
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    spans = OTLPSpanExporter(f"{served.url}/v1/traces", **options)
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    with tracers.get_tracer("t").start_as_current_span("work"):
        pass
    tracers.shutdown()
    _log_once(OTLPLogExporter(f"{served.url}/v1/logs", **options))
    assert kept.names() == ["power", "hubmeter.span.duration"]
    assert kept.values()[0] == 412.5
    assert {json.loads(batch.layout.series[0].resource)["run.id"] for batch in kept.batches} == {
        "r1"
    }


def _log_once(exporter: Any) -> None:
    loggers = LoggerProvider(shutdown_on_exit=False)
    loggers.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    loggers.get_logger("t").emit(body="dropped", severity_text="INFO")
    loggers.shutdown()


def test_case_23_a_hundred_clients_at_once(served: Served, kept: Kept) -> None:
    """Each with a connection of its own and ten requests; none is told to come again."""

    def send(client: int) -> list[int]:
        with served.connection() as connection:
            bodies = [proto(client * 100.0 + number) for number in range(10)]
            return [ask(connection, body).status for body in bodies]

    with ThreadPoolExecutor(100) as pool:
        answers = [status for found in pool.map(send, range(100)) for status in found]
    assert answers == [200] * 1000
    assert sorted(kept.values()) == [c * 100.0 + n for c in range(100) for n in range(10)]


def test_case_23_keep_alive_and_pipelining(served: Served, kept: Kept) -> None:
    """Requests that did not wait for answers are answered in order."""
    bodies = [proto(1.0), b"\xff", proto(2.0), proto(3.0)]
    with served.raw() as connection:
        connection.sendall(b"".join(_head(len(body)) + body for body in bodies))
        assert [read_response(connection)[0] for _ in bodies] == [200, 400, 200, 200]
        connection.sendall(_head(len(bodies[0])) + bodies[0])
        assert read_response(connection)[0] == 200
    assert kept.values() == [1.0, 2.0, 3.0, 1.0]


def test_http_1_0_is_answered_and_closed(served: Served) -> None:
    """Without keep-alive."""
    body = proto(1.0)
    with served.raw() as connection:
        connection.sendall(_head(len(body)).replace(b"HTTP/1.1", b"HTTP/1.0") + body)
        assert read_response(connection)[0] == 200
        assert is_closed(connection, 5)


def test_case_24_a_port_in_use_is_an_error_that_says_which(served: Served) -> None:
    """For both doors; whatever was opened before is closed again."""
    assert served.http_address is not None
    assert served.grpc_address is not None
    for taken in (served.http_address, served.grpc_address):
        for doors in (Doors(http=taken), Doors(grpc=taken), Doors(shared=taken)):
            with pytest.raises(OSError, match=f"{taken}.*in use"):
                Receiver(Served().intake, doors).start()
    free = Served(http=LOOPBACK, grpc=served.grpc_address)
    with pytest.raises(OSError, match="in use"):
        free.start()
    assert free.http_address is not None
    assert _is_refused(free)


@pytest.mark.parametrize("host", ["::1", "localhost"])
def test_case_24_ipv6_and_names(host: str) -> None:
    """A name listens wherever it points to."""
    place = Address(host, 0)
    with Served(http=place, grpc=place) as served:
        assert served.post(proto(1.0)).status == 200
        served.export(proto(2.0))
        if host == "localhost":
            assert served.http_address is not None
            with socket.create_connection(("127.0.0.1", served.http_address.port)):
                pass
    assert served.kept.values() == [1.0, 2.0]


def test_case_24_addresses() -> None:
    """What can be written, and what cannot."""
    assert address_of("127.0.0.1:4318") == Address("127.0.0.1", 4318)
    assert address_of("[::1]:4318") == Address("::1", 4318)
    assert str(Address("::1", 4318)) == "[::1]:4318"
    assert address_of("localhost:0") == Address("localhost", 0)
    assert address_of("off") is None
    for wrong in (":4318", "4318", "::1:4318", "[::1]", "a:b", "a:70000", "[a]x:1", "a:-1", "a:٣"):
        with pytest.raises(SettingsError, match="host:port"):
            address_of(wrong)
    with pytest.raises(OSError, match="no address of this machine"):
        Receiver(Served().intake, Doors(http=Address("192.0.2.1", 0), is_insecure=True)).start()
    with pytest.raises(OSError, match="not known"):
        Receiver(Served().intake, Doors(http=Address("a.invalid", 0), is_insecure=True)).start()


def test_case_24_an_address_that_others_reach_needs_a_token(tmp_path: Path) -> None:
    """Or certificates of senders, or the word that it shall be so."""
    everywhere = Address("0.0.0.0", 0)
    for door in ("http", "grpc", "shared"):
        assert "HUBMETER_SERVE_TOKEN" in str(refusal(Doors(**{door: everywhere})))
        assert refusal(Doors(**{door: everywhere}, token=Secret("x"))) is None
        assert refusal(Doors(**{door: everywhere}, is_insecure=True)) is None
        assert refusal(Doors(**{door: Address("::1", 0)})) is None
    for name in ("example.org", "::", "localhost.example.org", "10.0.0.1"):
        assert refusal(Doors(http=Address(name, 0)))
    files = Tls(certificate=tmp_path, key=tmp_path, client_ca=tmp_path)
    assert refusal(Doors(http=everywhere, tls=files)) is None
    assert refusal(Doors(shared=LOOPBACK, tls=files))
    with pytest.raises(SettingsError, match="reached from other machines"):
        Served(http=everywhere).start()


@both
def test_case_24_a_bearer_token(content_type: str, caplog: pytest.LogCaptureFixture) -> None:
    """401 without it, in the request's form; health needs none. It is never said."""
    with Served(grpc=None, token=Secret("s3cr3t-t0k3n")) as served:
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cr3t-t0k3n"},
                      {"Authorization": "Basic s3cr3t-t0k3n"}, {"Authorization": "Bearer \xff"},
                      {"Authorization": "Bearer s3cr3t-t0k3n2"}):  # fmt: skip
            said = served.post(BODIES[content_type](1.0), content_type, **given)
            assert (said.status, said.error().code) == (401, 16)
            assert said.headers["WWW-Authenticate"] == "Bearer"
            assert b"s3cr3t" not in said.body
        for scheme in ("Bearer", "bearer"):
            words = {"Authorization": f"{scheme} s3cr3t-t0k3n"}
            assert served.post(BODIES[content_type](1.0), content_type, **words).status == 200
        assert served.post(b"", None, "/healthz", "GET").status == 200
    assert served.kept.values() == [1.0, 1.0]
    assert "s3cr3t" not in caplog.text
    assert len([one for one in caplog.records if one.levelno >= logging.WARNING]) == 1


def test_case_24_tls_with_and_without_certificates_of_senders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real exporter; whoever comes without TLS, or without a certificate, is not heard."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # would be trusted instead
        monkeypatch.delenv(name, raising=False)
    files = certificates(tmp_path)
    plain = Tls(certificate=files.certificate, key=files.key)
    for tls, more in ((plain, {}), (files, _client(files))):
        with Served(grpc=None, tls=tls) as served:
            exporter = OTLPMetricExporter(
                f"https://{served.http_address}/v1/metrics",
                certificate_file=str(files.certificate),
                **more,
            )
            reader = PeriodicExportingMetricReader(exporter, export_interval_millis=math.inf)
            provider = MeterProvider([reader], shutdown_on_exit=False)
            provider.get_meter("t").create_gauge("power", "W").set(412.5)
            assert provider.force_flush()
            provider.shutdown()
            with served.raw() as connection:
                connection.sendall(_head(0))
                assert is_closed(connection, 5)
            if tls is files:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    _speak_tls(served, files.certificate)
        assert served.kept.values() == [412.5]


def _client(files: Tls) -> dict[str, str]:
    return {
        "client_certificate_file": str(files.certificate),
        "client_key_file": str(files.key),
    }


def _speak_tls(served: Served, authority: Path) -> None:
    context = ssl.create_default_context(cafile=str(authority))
    with (
        served.raw() as connection,
        context.wrap_socket(connection, server_hostname="127.0.0.1") as secure,
    ):
        secure.sendall(_head(0))
        if not secure.recv(100):
            raise ConnectionError


def test_case_24_tls_files_that_are_none(tmp_path: Path) -> None:
    """An error before anybody comes."""
    (tmp_path / "no.pem").write_text("no certificate")
    for name in ("no.pem", "nowhere.pem"):
        files = Tls(certificate=tmp_path / name, key=tmp_path / name)
        with pytest.raises(OSError):
            Served(grpc=None, tls=files).start()


def test_case_25_expect_100_continue(served: Served, kept: Kept) -> None:
    """The sender hears that it may go on; or, at once, that it need not."""
    body = proto(1.0)
    with served.raw() as connection:
        connection.sendall(_head(len(body), "Expect: 100-continue"))
        assert read_head(connection).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert read_response(connection)[0] == 200
        connection.sendall(_head(2**40, "Expect: 100-continue"))
        assert read_response(connection)[0] == 413
    with served.raw() as connection:
        connection.sendall(_head(10, "Expect: 100-continue", path="/v2/metrics"))
        assert read_response(connection)[0] == 404
    assert kept.values() == [1.0]


def test_health_and_readiness() -> None:
    """Alive is one thing; ready another, with what the caller says of itself."""
    state: dict[str, Any] = {"runs": 3}
    with Served(grpc=None, status=lambda: state) as served:
        said = served.post(b"", None, "/healthz", "GET")
        assert (said.status, said.body) == (200, b"ok\n")
        assert served.post(b"", None, "/healthz", "HEAD").body == b""
        assert served.post(b"", None, "/healthz", "POST").status == 405
        said = served.post(b"", None, "/readyz", "GET")
        assert (said.status, json.loads(said.body)) == (200, {"ready": True, "runs": 3})
        state["ready"] = False
        assert served.post(b"", None, "/readyz", "GET").status == 503


def test_what_stands_behind_readiness_is_for_those_with_the_token() -> None:
    """Names of repositories are nobody else's business; a probe has no token."""
    state: dict[str, Any] = {"ready": False, "failure": "me/secret-project: 403"}
    with Served(grpc=None, token=Secret("s3cr3t-t0k3n"), status=lambda: state) as served:
        said = served.post(b"", None, "/readyz", "GET")
        assert (said.status, json.loads(said.body)) == (503, {"ready": False})
        words = {"Authorization": "Bearer s3cr3t-t0k3n"}
        assert json.loads(served.post(b"", None, "/readyz", "GET", **words).body) == state


def test_readiness_ends_when_the_receiver_drains() -> None:
    """A connection that is open hears it, while a request is still on its way."""
    served = Served(grpc=None)
    with served, served.raw() as slow, served.raw() as asking:
        slow.sendall(_head(10) + b"x")
        asking.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_response(asking)[0] == 200
        stopper = threading.Thread(target=served.stop, args=(Deadline.after(2),))
        stopper.start()
        assert until(lambda: _is_refused(served))
        asking.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        status, body = read_response(asking)
        assert (status, json.loads(body)) == (503, {"ready": False})
        slow.close()
        stopper.join(10)


def test_health_is_quick_while_a_large_request_is_decoded() -> None:
    """And small requests wait without stopping it."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(_: PointBatch) -> None:
        begun.set()
        go_on.wait(10)

    served = Served(slow, grpc=None)
    with served, ThreadPoolExecutor(2) as pool:
        large = pool.submit(served.post, proto(*range(100_000)))
        assert begun.wait(10)
        small = pool.submit(served.post, proto(1.0))
        times = []
        for _ in range(20):
            started = time.monotonic()
            assert served.post(b"", None, "/healthz", "GET").status == 200
            times.append(time.monotonic() - started)
        assert not small.done()
        go_on.set()
        assert (large.result().status, small.result().status) == (200, 200)
    assert sorted(times)[10] < 0.1


@pytest.mark.parametrize(("door", "keeps_last"), [("http", False), ("grpc", False), ("http", True)])
def test_what_cannot_be_answered_any_more_is_not_kept(door: str, keeps_last: bool) -> None:
    """Else its sender would have it twice: there and in the next receiver, if one follows."""
    served = Served(keeps_last=keeps_last)
    bodies = {"http": text, "grpc": proto}
    body = bodies[door](*range(300_000))
    before = set(threading.enumerate())
    with served, ThreadPoolExecutor(1) as pool:
        send = {"http": lambda: served.post(body, JSON), "grpc": lambda: served.export(body)}
        large = pool.submit(send[door])
        assert until(lambda: any("-decoding" in one.name for one in _new(before)), 30)
        served.stop(Deadline.after(0.2))
        assert large.exception(30) is not None
    assert len(served.kept.values()) == (300_000 if keeps_last else 0)


def _new(before: set[threading.Thread]) -> set[threading.Thread]:
    """Threads that are not of another test's receiver."""
    return set(threading.enumerate()) - before


def test_what_comes_as_the_receiver_ends_may_come_again() -> None:
    """It is refused, while there is still time to say so."""
    served = Served(grpc=None)
    with served, served.raw() as slow, served.raw() as last:
        slow.sendall(_head(10) + b"x")
        last.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_response(last)[0] == 200
        stopper = threading.Thread(target=served.stop, args=(Deadline.after(2),))
        stopper.start()
        body = proto(1.0)
        time.sleep(1.7)
        last.sendall(_head(len(body)) + body)
        assert read_response(last)[0] == 503
        slow.close()
        stopper.join(10)
    assert served.kept.batches == []


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"watts\r\n\r\n",
        b"POST\r\n\r\n",
        b"POST /v1/metrics HTTP/9.9\r\n\r\n",
        b"POST /v1/metrics HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/metrics HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/metrics HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v1/metrics HTTP/1.1\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
        b"POST /v1/metrics HTTP/1.1\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
        b"POST /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /v1/metrics HTTP/1.1\r\nA\x00: b\r\n\r\n",
        b"POST http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
        _head(5).replace(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"zz\r\nwatts\r\n",
        b"\r\n" * 50_000,
        bytes(100_000),
    ],
    ids=lambda sent: repr(sent[:24]),
)
def test_what_is_no_http_is_a_4xx_and_the_end(
    served: Served, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Never a 5xx, nothing of it in the answer, no traceback; the next one is served."""
    with served.raw() as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(65_536), b""))
        except ConnectionError:
            answer = b""
    assert answer == b"" or answer[:10] in (b"HTTP/1.1 4", b"HTTP/1.0 4")
    assert b"watts" not in answer
    assert "Traceback" not in caplog.text
    assert served.post(proto(1.0)).status == 200


def test_each_kind_of_problem_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand wrong requests are not a thousand lines."""
    with Served(grpc=None) as served, served.connection() as connection:
        for _ in range(100):
            assert ask(connection, b"\xff").status == 400
            assert ask(connection, b"", path="/nowhere").status == 404
    said = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(said) == 6
    assert served.intake.problems.counts() == {"HTTP 400": 100, "HTTP 404": 100}


def test_what_nobody_foresaw_is_a_503_and_a_single_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The request is not lost, and the receiver goes on."""

    def wrong(_: PointBatch) -> None:
        raise ZeroDivisionError("/secret/place")

    with Served(wrong) as served:
        said = [served.post(proto(1.0)) for _ in range(5)]
    assert {one.status for one in said} == {503}
    assert said[0].headers["Retry-After"] == "1"
    assert b"secret" not in said[0].body
    assert caplog.text.count("Traceback") == 1


def test_messages_are_text_and_short(served: Served) -> None:
    """Whatever a sender puts into its request, an answer does not steer a terminal."""
    body = json.dumps({"resourceMetrics": [], "\x1b[2J": "\x07" * 5000}).encode() + b"\x1b[2J"
    said = served.post(body, JSON)
    assert said.status == 400
    assert said.error().message.isprintable()
    assert len(said.error().message) <= 500


def test_answers_cover_all_codes() -> None:
    """Each status has a code of HTTP and one of gRPC."""
    assert {one.http for one in Status} == {200, 400, 401, 404, 405, 413, 415, 429, 503}
    assert {one.grpc for one in Status} == {0, 3, 4, 5, 8, 12, 14, 16}
