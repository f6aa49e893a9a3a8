"""OTLP/gRPC, case by case, and one port for both protocols, with real clients."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import (
    OTLPMetricExporter as HttpExporter,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from hubmeter.batch import PointBatch
from hubmeter.deadline import Deadline
from hubmeter.errors import JournalError
from hubmeter.receiver.connections import Crowd
from hubmeter.receiver.credentials import Tls
from hubmeter.receiver.doors import Address
from hubmeter.receiver.one_port import PREFACE, FirstBytes
from hubmeter.text import Secret
from receivers import (
    JSON,
    LOGS,
    LOOPBACK,
    METRICS,
    TRACES,
    Kept,
    Served,
    ask,
    call,
    certificates,
    is_closed,
    one_bad_span_of_two,
    proto,
    read_response,
    retry_delay_s,
    rpc_status,
    sized,
    text,
    until,
)

MIB = 2**20
GZIP = grpc.Compression.Gzip
DEFLATE = grpc.Compression.Deflate
Code = grpc.StatusCode

OWN_CONNECTION = {"grpc.use_local_subchannel_pool": 1}
"""Else the channels of one process share one."""


@pytest.fixture(name="served", scope="module")
def _served() -> Any:
    with Served() as served:
        yield served


@pytest.fixture(name="kept")
def _kept(served: Served) -> Kept:
    served.kept.batches.clear()
    return served.kept


def refused(served: Served, body: bytes, method: str = METRICS, **options: Any) -> grpc.RpcError:
    """The error that the request ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        served.export(body, method, **options)
    return caught.value


def exported(exporter: Any, watts: float = 412.5) -> None:
    """One point through an exporter of the SDK, which is shut down then."""
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=math.inf)
    provider = MeterProvider([reader], resource=Resource({"run.id": "r1"}), shutdown_on_exit=False)
    provider.get_meter("t").create_gauge("power", "W").set(watts, {"gpu_id": "0"})
    assert provider.force_flush()
    provider.shutdown()


@pytest.mark.parametrize("compression", [None, GZIP, DEFLATE])
def test_case_26_requests_with_and_without_compression(
    served: Served, kept: Kept, compression: Any
) -> None:
    """All three signals; the answer is an empty message."""
    body = proto(*range(1000))
    for method in (METRICS, TRACES, LOGS):
        sent = body if method == METRICS else b""
        assert served.export(sent, method, compression=compression) == b""
    assert kept.values() == list(range(1000))


def test_case_10_an_empty_message_is_a_success(served: Served, kept: Kept) -> None:
    """Nothing is delivered."""
    assert served.export(b"") == b""
    assert kept.batches == []


@pytest.mark.parametrize("body", [b"\xff\xff", proto(1.0)[:-3], text(1.0), b"\x1f\x8bno gzip"])
def test_case_11_what_is_malformed_is_an_invalid_argument(
    served: Served, kept: Kept, body: bytes
) -> None:
    """A sender does not come again with it."""
    error = refused(served, body)
    assert error.code() is Code.INVALID_ARGUMENT
    assert error.details()
    assert (rpc_status(error).code, retry_delay_s(error)) == (3, None)
    assert kept.batches == []


def test_case_13_a_partial_success(served: Served, kept: Kept) -> None:
    """Unset if all is well, else the number and the reason."""
    made = ExportMetricsServiceRequest.FromString(proto(1.0))
    made.resource_metrics[0].scope_metrics[0].metrics.add(name="nothing")
    said = ExportMetricsServiceResponse.FromString(served.export(made.SerializeToString()))
    assert said.partial_success.rejected_data_points == 1
    assert said.partial_success.error_message
    assert kept.values() == [1.0]


def test_case_13_spans_that_cannot_be_used_are_counted(served: Served, kept: Kept) -> None:
    """One of two has no trace."""
    _, body = one_bad_span_of_two()
    said = ExportTraceServiceResponse.FromString(served.export(body, TRACES)).partial_success
    assert said.rejected_spans == 1
    assert "no trace id of 16 bytes (1)" in said.error_message
    assert kept.names() == ["hubmeter.span.duration"]


def test_case_14_a_full_journal_is_unavailable_with_retry_info() -> None:
    """With a time after which to come again, and without a word about our disk."""

    def full(_: PointBatch) -> None:
        raise JournalError("cannot write /secret/place: it is full")

    with Served(full, http=None) as served:
        error = refused(served, proto(1.0))
    assert error.code() is Code.UNAVAILABLE
    assert (rpc_status(error).code, retry_delay_s(error)) == (14, 1.0)
    assert "secret" not in error.details()


def test_case_14_the_exporter_comes_again_and_each_point_is_there_once() -> None:
    """It waits as long as it is told."""
    served = Served(http=None)
    left = [None, None]

    def full(_: PointBatch) -> None:
        if left:
            left.pop()
            raise JournalError("full")

    served.kept.before = full
    with served:
        started = time.monotonic()
        exported(OTLPMetricExporter(served.target, insecure=True))
        assert time.monotonic() - started > 1.5
    assert served.kept.values() == [412.5]


def test_case_8_and_9_the_limit() -> None:
    """Exactly the limit is taken; more is RESOURCE_EXHAUSTED and never comes again."""
    limit = 3 * MIB
    with Served(http=None, most_bytes=limit) as served:
        for compression in (None, GZIP):
            assert served.export(sized(limit), compression=compression) == b""
            error = refused(served, sized(limit + 1), compression=compression)
            assert error.code() is Code.RESOURCE_EXHAUSTED
            assert retry_delay_s(error) is None
        assert served.export(proto(2.0)) == b""
    assert served.kept.values() == [1.0, 1.0, 2.0]


def test_case_26_unknown_services_and_methods_are_unimplemented(served: Served) -> None:
    """And nothing is read of them."""
    for method in ("/a.B/Export", METRICS + "s", METRICS.replace("v1", "v2"), "/x", METRICS[:-1]):
        assert refused(served, proto(1.0), method).code() is Code.UNIMPLEMENTED


def test_case_26_a_deadline_that_is_over(served: Served, kept: Kept) -> None:
    """The sender gives up; the next request is served."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(_: PointBatch) -> None:
        begun.set()
        go_on.wait(10)

    kept.before = slow
    large = proto(*range(60_000))
    assert refused(served, large, timeout=0.5).code() is Code.DEADLINE_EXCEEDED
    assert begun.wait(10)
    go_on.set()
    kept.before = lambda _: None
    assert served.export(proto(1.0)) == b""
    assert len(kept.batches) == 2  # who sends it again, sends it twice


def test_case_26_keepalive_pings_are_tolerated(served: Served, kept: Kept) -> None:
    """Ten a second, with and without requests: no GOAWAY for too many pings."""
    options = {
        "grpc.keepalive_time_ms": 100,
        "grpc.keepalive_timeout_ms": 5000,
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.max_pings_without_data": 0,
        "grpc.http2.min_time_between_pings_ms": 50,  # else a client of gRPC sends none so soon
        "grpc.http2.min_sent_ping_interval_without_data_ms": 50,
    }
    with served.channel(**options) as channel:
        states: list[Any] = []
        call(channel, proto(0.0))
        channel.subscribe(states.append)
        time.sleep(4)
        call(channel, proto(1.0))
    assert kept.values() == [0.0, 1.0]
    assert grpc.ChannelConnectivity.TRANSIENT_FAILURE not in states
    assert grpc.ChannelConnectivity.IDLE not in states


def test_case_26_a_stream_without_a_message(served: Served, kept: Kept) -> None:
    """A client that says nothing is told so; a second message of one request is not read."""
    with served.channel() as channel:
        stream = channel.stream_unary(METRICS)
        with pytest.raises(grpc.RpcError) as caught:
            stream(iter(()), timeout=10)
        assert caught.value.code() is Code.INVALID_ARGUMENT
        assert stream(iter([proto(1.0), proto(2.0)]), timeout=10) == b""
    assert kept.values() == [1.0]


def test_a_message_that_does_not_come_in_time() -> None:
    """Its turn goes to others."""
    silent = threading.Event()

    def nothing() -> Any:
        silent.wait(20)
        yield b""

    with Served(http=None, slowest_s=0.3) as served, served.channel() as channel:
        stream = channel.stream_unary(METRICS)
        calls = [stream.future(nothing(), timeout=20) for _ in range(40)]
        try:
            assert {one.exception().code() for one in calls} == {Code.DEADLINE_EXCEEDED}
        finally:
            silent.set()
        assert call(channel, proto(1.0)) == b""


def test_one_client_that_says_nothing_does_not_hold_up_the_others() -> None:
    """Of one connection only some requests are taken in at a time."""
    served = Served(http=None)
    with served, served.channel(**OWN_CONNECTION) as bad, _silence(bad, 100):
        time.sleep(0.5)
        for value in range(3):
            assert served.export(proto(float(value)), timeout=5) == b""
    assert served.kept.values() == [0.0, 1.0, 2.0]


def test_many_clients_that_say_nothing_let_others_go_first() -> None:
    """They are told to come again, as soon as somebody else comes."""
    with Served(http=None, slowest_s=6) as served, ExitStack() as stack:
        silent = []
        for _ in range(20):
            channel = stack.enter_context(served.channel(**OWN_CONNECTION))
            silent += stack.enter_context(_silence(channel, 2))
        time.sleep(0.5)
        for value in range(3):
            assert served.export(proto(float(value)), timeout=5) == b""
        errors = [one.exception() for one in silent]
    assert served.kept.values() == [0.0, 1.0, 2.0]
    sent_away = [error for error in errors if error.code() is Code.UNAVAILABLE]
    assert sent_away
    assert {retry_delay_s(error) for error in sent_away} == {1.0}


@contextmanager
def _silence(channel: grpc.Channel, count: int) -> Iterator[list[Any]]:
    """*count* requests that do not come to their message."""
    over = threading.Event()

    def nothing() -> Any:
        over.wait(60)
        yield b""

    calls = [channel.stream_unary(METRICS).future(nothing(), timeout=60) for _ in range(count)]
    try:
        yield calls
    finally:
        over.set()
        for one in calls:
            one.cancel()


def test_requests_beyond_the_most_come_again() -> None:
    """While a thousand wait: RESOURCE_EXHAUSTED with a time, which senders repeat."""
    over = threading.Event()

    def nothing() -> Any:
        over.wait(60)
        yield b""

    with Served(http=None, slowest_s=300) as served, ExitStack() as stack:
        own = {"grpc.use_local_subchannel_pool": 1}
        channels = [stack.enter_context(served.channel(**own)) for _ in range(12)]
        silent = [one.stream_unary(METRICS).future(nothing()) for one in channels * 2]
        time.sleep(0.5)
        waiting = [one.unary_unary(METRICS).future(proto(1.0)) for one in channels * 92]
        try:
            assert until(lambda: sum(one.done() for one in waiting) >= 50, 30)
            errors = [one.exception() for one in waiting if one.done()]
        finally:
            over.set()
        answers = [one.exception() is None for one in waiting if one.exception() not in errors]
        for one in silent:
            one.cancel()
    assert {error.code() for error in errors} == {Code.RESOURCE_EXHAUSTED}
    assert {retry_delay_s(error) for error in errors} == {1.0}
    assert sum(answers) > 900


def test_a_connection_that_is_no_http_2() -> None:
    """It is closed, at once or in time."""
    with Served(http=None, slowest_s=0.5) as served:
        assert served.grpc_address is not None
        for sent in (
            b"",
            b"GET / HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\0" * 99,
        ):
            with socket.create_connection(served.grpc_address) as connection:
                connection.sendall(sent)
                assert is_closed(connection, 10)
        assert served.export(proto(1.0)) == b""


def test_case_24_a_bearer_token(caplog: pytest.LogCaptureFixture) -> None:
    """UNAUTHENTICATED without it, before a message is read; it is never said."""
    with Served(http=None, token=Secret("s3cr3t-t0k3n")) as served:
        for words in (
            (),
            (("authorization", "Bearer wrong"),),
            (("authorization", "s3cr3t-t0k3n"),),
        ):
            error = refused(served, proto(1.0), metadata=words)
            assert error.code() is Code.UNAUTHENTICATED
            assert "s3cr3t" not in error.details()
        words = (("authorization", "Bearer s3cr3t-t0k3n"),)
        assert served.export(proto(1.0), metadata=words) == b""
        exported(
            OTLPMetricExporter(
                served.target, insecure=True, headers={"authorization": "Bearer s3cr3t-t0k3n"}
            )
        )
    assert served.kept.values() == [1.0, 412.5]
    assert "s3cr3t" not in caplog.text


def test_case_24_tls_with_and_without_certificates_of_senders(tmp_path: Path) -> None:
    """Real exporter; whoever comes without TLS, or without a certificate, is not heard."""
    files = certificates(tmp_path)
    authority, key = files.certificate.read_bytes(), files.key.read_bytes()
    plain = Tls(certificate=files.certificate, key=files.key)
    alone = grpc.ssl_channel_credentials(authority)
    known = grpc.ssl_channel_credentials(authority, key, authority)
    for tls, credentials in ((plain, alone), (files, known)):
        with Served(http=None, tls=tls) as served:
            exported(OTLPMetricExporter(served.target, credentials=credentials))
            assert refused(served, proto(1.0)).code() is Code.UNAVAILABLE
            if tls is files:
                channel = grpc.secure_channel(served.target, alone)
                with channel, pytest.raises(grpc.RpcError) as caught:
                    call(channel, proto(1.0))
                assert caught.value.code() is Code.UNAVAILABLE
        assert served.kept.values() == [412.5]


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, GZIP])
def test_case_27_the_exporters_of_the_sdk(served: Served, kept: Kept, compression: Any) -> None:
    """Metrics, traces and logs, as they come from Python."""
    options = {"insecure": True, "compression": compression, "timeout": 10}
    exported(OTLPMetricExporter(served.target, **options))
    tracers = TracerProvider(resource=Resource({"run.id": "r1"}), shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(served.target, **options)))
    with tracers.get_tracer("t").start_as_current_span("work"):
        pass
    tracers.shutdown()
    loggers = LoggerProvider(shutdown_on_exit=False)
    loggers.add_log_record_processor(
        SimpleLogRecordProcessor(OTLPLogExporter(served.target, **options))
    )
    loggers.get_logger("t").emit(body="dropped", severity_text="INFO")
    loggers.shutdown()
    assert kept.names() == ["power", "hubmeter.span.duration"]
    assert kept.values()[0] == 412.5
    resources = [json.loads(batch.layout.series[0].resource) for batch in kept.batches]
    assert [one["run.id"] for one in resources] == ["r1", "r1"]


def test_case_23_a_hundred_clients_at_once(served: Served, kept: Kept) -> None:
    """Each with a channel of its own and ten requests; none is told to come again."""

    def send(client: int) -> None:
        with served.channel(**OWN_CONNECTION) as channel:
            for number in range(10):
                assert call(channel, proto(client * 100.0 + number)) == b""

    with ThreadPoolExecutor(100) as pool:
        list(pool.map(send, range(100)))
    assert sorted(kept.values()) == [c * 100.0 + n for c in range(100) for n in range(10)]


def test_case_16_what_is_in_flight_is_answered_before_the_receiver_stops() -> None:
    """And what comes after it finds nobody."""
    begun, go_on = threading.Event(), threading.Event()
    served = Served(http=None)

    def slow(_: PointBatch) -> None:
        begun.set()
        go_on.wait(10)

    served.kept.before = slow
    with served, ThreadPoolExecutor(2) as pool:
        large = pool.submit(served.export, proto(*range(60_000)))
        assert begun.wait(10)
        stopping = pool.submit(served.stop, Deadline.after(10))
        assert until(lambda: _is_unavailable(served))
        go_on.set()
        assert large.result() == b""
        stopping.result()
    assert len(served.kept.batches[0].values) == 60_000


def _is_unavailable(served: Served) -> bool:
    try:
        served.export(proto(1.0), timeout=0.5)
    except grpc.RpcError as error:
        return error.code() is Code.UNAVAILABLE
    return False


def test_each_kind_of_problem_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """A hundred wrong requests are not a hundred lines; nothing of grpc's own."""
    with Served(http=None) as served, served.channel() as channel:
        for _ in range(50):
            with pytest.raises(grpc.RpcError):
                call(channel, b"\xff")
    said = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(said) == 2
    assert served.intake.problems.counts() == {"gRPC INVALID_ARGUMENT": 50}


QUIET = """
import os, socket, sys
from pathlib import Path
from hubmeter.receiver.credentials import Tls
from hubmeter.receiver.intake import Intake
from hubmeter.receiver.serving import Address, Doors, Receiver
LOOPBACK = Address("127.0.0.1", 0)
with Receiver(Intake(print), Doors(http=LOOPBACK)):
    loaded = "grpc" in sys.modules
tls = Tls(certificate=Path(sys.argv[1]), key=Path(sys.argv[2]))
with Receiver(Intake(print), Doors(grpc=LOOPBACK, tls=tls)) as receiver:
    for _ in range(3):
        with socket.create_connection(receiver.grpc_address) as connection:
            connection.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
            connection.recv(10)
print(loaded, os.environ.get("GRPC_VERBOSITY"))
"""


def test_grpc_is_loaded_where_it_is_wanted_and_writes_nothing_to_stderr(tmp_path: Path) -> None:
    """Its own log has a line for each wrong connection; ours has one for each kind."""
    files = certificates(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", QUIET, files.certificate, files.key],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("False None\n", 0)
    assert done.stderr == ""


def test_two_receivers_in_one_process() -> None:
    """Each has a loop of its own."""
    with Served() as one, Served() as other:
        for served in (one, other, one):
            assert served.export(proto(1.0)) == b""
            assert served.post(proto(2.0)).status == 200
    assert (len(one.kept.batches), len(other.kept.batches)) == (4, 2)


def test_one_port_for_both() -> None:
    """Real exporters of both kinds, and health, at one address."""
    with Served(shared=LOOPBACK) as served:
        assert served.http_address == served.grpc_address
        exported(OTLPMetricExporter(served.target, insecure=True), 1.0)
        exported(HttpExporter(f"{served.url}/v1/metrics"), 2.0)
        exported(OTLPMetricExporter(served.target, insecure=True, compression=GZIP), 3.0)
        assert served.post(text(4.0), JSON).status == 200
        assert served.post(b"", None, "/readyz", "GET").status == 200
        assert served.export(sized(20 * MIB)) == b""
        assert served.post(sized(20 * MIB)).status == 200
    assert served.kept.values() == [1.0, 2.0, 3.0, 4.0, 1.0, 1.0]


def test_one_port_byte_by_byte() -> None:
    """However slowly it comes, HTTP is HTTP; P is not yet gRPC."""
    body = proto(1.0)
    head = (
        f"PUT /v1/metrics HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: application/x-protobuf\r\n\r\n"
    )
    with Served(shared=LOOPBACK) as served, served.raw() as connection:
        for sent, status in ((head, 405), (head.replace("PUT", "POST"), 200)):
            for byte in sent.encode():
                connection.sendall(bytes([byte]))
            connection.sendall(body)
            assert read_response(connection)[0] == status
    assert served.kept.values() == [1.0]


def test_one_port_closes_who_says_nothing_or_goes() -> None:
    """In time; and nothing of a connection is left."""
    with Served(shared=LOOPBACK, slowest_s=0.4) as served:
        for sent in (b"", b"PRI * HT", b"POST /v1/met", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
            with served.raw() as connection:
                connection.sendall(sent)
                assert is_closed(connection, 10)
        with served.raw() as connection:
            connection.sendall(b"PRI")
        assert served.export(proto(1.0)) == b""
        assert served.post(proto(2.0)).status == 200
    assert served.kept.values() == [1.0, 2.0]


def test_one_port_with_a_hundred_clients() -> None:
    """Half of them speak gRPC."""

    def send(client: int) -> None:
        if client % 2:
            with served.channel(**OWN_CONNECTION) as channel:
                for _ in range(5):
                    call(channel, proto(float(client)))
        else:
            with served.connection() as connection:
                assert {ask(connection, proto(float(client))).status for _ in range(5)} == {200}

    with Served(shared=LOOPBACK) as served, ThreadPoolExecutor(100) as pool:
        list(pool.map(send, range(100)))
    assert sorted(served.kept.values()) == [float(c) for c in range(100) for _ in range(5)]


async def _piped(serve: Any, speak: Callable[[Address], Any]) -> Any:
    """What *speak* says of a connection that ends at *serve* behind one port."""
    crowd = Crowd(100)
    writers: list[asyncio.StreamWriter] = []

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await serve(reader, writer)

    inside = await asyncio.start_server(served, "127.0.0.1", 0)
    first = partial(
        FirstBytes,
        asyncio.Protocol,
        Address(*inside.sockets[0].getsockname()),
        crowd=crowd,
        slowest_s=10,
    )
    outside = await asyncio.get_running_loop().create_server(first, "127.0.0.1", 0)
    try:
        place = Address(*outside.sockets[0].getsockname())
        return await asyncio.get_running_loop().run_in_executor(None, speak, place)
    finally:
        inside.close()
        outside.close()
        await crowd.disperse()
        for writer in writers:
            writer.close()
            await writer.wait_closed()


def test_one_port_does_not_fill_the_memory_for_who_does_not_read() -> None:
    """What one side does not take, the other may not send."""

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader.feed_eof()  # nothing is read any more
        writer.transport.pause_reading()

    def flood(place: Address) -> int:
        with socket.create_connection(place, timeout=1) as connection:
            connection.sendall(PREFACE)
            sent = 0
            with suppress(TimeoutError):
                while sent < 500 * MIB:
                    sent += connection.send(bytes(MIB))
            return sent

    assert asyncio.run(_piped(deaf, flood)) < 30 * MIB


def test_one_port_lets_each_direction_end_by_itself() -> None:
    """An answer that begins when the question is over arrives whole, and then the end."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"at once ")
        asked = await reader.read()
        writer.write(asked * 2)
        writer.close()

    def ask_and_end(place: Address) -> bytes:
        with socket.create_connection(place, timeout=10) as connection:
            connection.sendall(PREFACE + bytes(4 * MIB))
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65_536), b""))

    heard = asyncio.run(_piped(answer, ask_and_end))
    assert heard == b"at once " + (PREFACE + bytes(4 * MIB)) * 2
