"""A receiver under load, and under attack: bounded, fair, and there for the next one."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import itertools
import os
import random
import socket
import ssl
import threading
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import zstandard
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector_runs import Hubmeter
from fleet_runs import fleet_in, quiet_end
from hubmeter.deadline import Deadline
from hubmeter.receiver.bodies import Room, collected
from hubmeter.receiver.inflating import Inflater
from makers import T0
from receivers import (
    JSON,
    LOOPBACK,
    METRICS,
    PROTOBUF,
    TRACES,
    Highest,
    Served,
    ask,
    bomb,
    call,
    certificates,
    is_closed,
    proto,
    read_head,
    read_response,
    rss_mib,
    sized,
    text,
    until,
)

SOAK = int(os.environ.get("SOAK", "0"))
SECONDS = 60 * SOAK or 5
SEED = int(os.environ.get("SOAK_SEED", "20261124"))
MUTANTS = 2500 * (SOAK or 1)
"""Of each kind and Content-Encoding: of either 10,000 in `make test`, 100,000 in `make soak`."""

MIB = 2**20
LIMIT = 3 * MIB


@pytest.fixture(name="served", scope="module")
def _served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With runs and journals, as `hubmeter serve` has them; nothing is published."""
    fleet = fleet_in(tmp_path_factory.mktemp("fleet"), most_runs=200, journal_limit_mib=4096)
    with Served(fleet.deliver, most_bytes=LIMIT) as served:
        yield served
    quiet_end(fleet)


ZSTD = zstandard.ZstdCompressor().compress


def head(*fields: str, path: str = "/v1/metrics") -> bytes:
    """Of a request in protobuf."""
    lines = (f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {PROTOBUF}", *fields, "", "")
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "deflate"])
def test_case_6_a_bomb_is_a_413_and_fills_nothing(encoding: str) -> None:
    """10 GiB in a few megabytes, at the limit that is the default."""
    if encoding == "deflate":
        stream = zlib.compressobj(1)
        body = b"".join(stream.compress(bytes(MIB)) for _ in range(400))
    else:
        body = bomb(10) if encoding == "gzip" else ZSTD(bytes(2**26)) * 160
    with Served(grpc=None) as served, served.connection() as connection:
        assert served.post(proto(1.0)).status == 200
        with Highest() as memory:
            said = ask(connection, body, Content_Encoding=encoding)
        assert (said.status, said.error().code) == (413, 8)
        assert "Retry-After" not in said.headers
        assert served.post(proto(2.0)).status == 200
    assert memory.grown_mib < 100
    assert served.kept.values() == [1.0, 2.0]


def test_case_6_a_bomb_by_grpc_is_refused_and_fills_nothing() -> None:
    """10 GiB in 10 MB; and what gRPC itself compressed."""
    body = bomb(10)
    with Served(http=None) as served, served.channel() as channel:
        assert call(channel, proto(1.0)) == b""
        with Highest() as memory:
            _refused_as_too_large(channel, body)
        _refused_as_too_large(channel, bytes(100 * MIB), grpc.Compression.Gzip)
        assert call(channel, proto(2.0)) == b""
    assert memory.grown_mib < 100
    assert served.kept.values() == [1.0, 2.0]


def _refused_as_too_large(channel: grpc.Channel, body: bytes, compression: Any = None) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, body, compression=compression)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_case_7_a_length_over_the_limit_is_refused_without_reading(served: Served) -> None:
    """The answer comes before a byte of the body, and the connection ends."""
    with served.raw() as connection:
        connection.sendall(head(f"Content-Length: {LIMIT + 1}"))
        assert read_response(connection)[0] == 413
        assert is_closed(connection, 10)
    with served.raw() as connection:
        connection.sendall(head(f"Content-Length: {2**63 - 1}"))
        assert read_response(connection)[0] == 413


def test_case_7_a_sender_that_does_not_look_up_still_gets_its_answer(served: Served) -> None:
    """It sends everything first, as many do."""
    with served.connection() as connection:
        said = ask(connection, bytes(4 * LIMIT))
    assert (said.status, said.error().code) == (413, 8)


def test_case_7_chunks_over_the_limit(served: Served) -> None:
    """They are counted as they come."""
    piece = bytes(2**18)
    with served.raw() as connection:
        connection.sendall(head("Transfer-Encoding: chunked"))
        with suppress(ConnectionError):
            for _ in range(LIMIT // len(piece) + 1):
                connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        assert read_response(connection)[0] == 413


@pytest.mark.parametrize("encoding", ["", "gzip", "zstd"])
def test_case_9_exactly_the_limit_is_taken(served: Served, encoding: str) -> None:
    """And a byte more is not; with and without compression, whole and in chunks."""
    compress: Callable[[bytes], bytes] = {"": bytes, "gzip": gzip.compress, "zstd": ZSTD}[encoding]
    for size, status in ((LIMIT, 200), (LIMIT + 1, 413)):
        body = compress(sized(size))
        assert served.post(body, Content_Encoding=encoding).status == status
        chunks = [body[: len(body) // 2], body[len(body) // 2 :]]
        assert served.post(chunks, Content_Encoding=encoding).status == status


def test_case_23_slow_headers_end_in_time() -> None:
    """Of the first request, of a later one, of one that never begins."""
    with Served(grpc=None, slowest_s=0.5) as served:
        started = time.monotonic()
        with served.raw() as silent, served.raw() as dripping, served.raw() as later:
            later.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_response(later)[0] == 200
            later.sendall(b"GET /hea")
            for byte in head("Content-Length: 5")[:-2]:
                with suppress(ConnectionError):
                    dripping.sendall(bytes([byte]))
                time.sleep(0.01)
            for connection in (silent, dripping, later):
                assert is_closed(connection, 10)
        assert 0.5 <= time.monotonic() - started < 5
        with served.raw() as idle:
            idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_response(idle)[0] == 200
            time.sleep(0.7)  # between requests there is more time
            idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_response(idle)[0] == 200


def test_case_23_a_slow_body_ends_in_time() -> None:
    """
    503, and the end of the connection; nothing of it is kept.

    Not 408: with that a sender drops its request (OTLP/HTTP, "Retryable Response Codes").
    """
    with Served(grpc=None, slowest_s=0.5) as served, served.raw() as connection:
        connection.sendall(head("Content-Length: 500"))
        for _ in range(20):
            with suppress(ConnectionError):
                connection.sendall(b"x")
            time.sleep(0.04)
        head_of_answer = read_head(connection)
        assert head_of_answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in head_of_answer
        assert is_closed(connection, 10)
    assert served.kept.batches == []


def test_connections_beyond_the_most_come_again() -> None:
    """They hear 429; when others go there is room."""
    with Served(grpc=None, most_connections=20) as served:
        with ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(served.raw())
            with served.raw() as connection:
                status, *headers = read_head(connection).splitlines()
                assert b" 429 " in status
                assert b"Retry-After: 1" in headers
                assert is_closed(connection, 5)
        assert until(lambda: _status_of_health(served) == 200)


def test_connections_beyond_the_most_do_not_even_begin_with_tls(tmp_path: Path) -> None:
    """They are closed; when others have gone, or have come to an end, there is room."""
    files = replace(certificates(tmp_path), client_ca=None)
    context = ssl.create_default_context(cafile=str(files.certificate))
    with Served(grpc=None, tls=files, most_connections=20) as served:
        with ExitStack() as stack:
            silent = [stack.enter_context(served.raw()) for _ in range(20)]
            assert is_closed(stack.enter_context(served.raw()), 5)
            assert not is_closed(silent[0], 0.1)
        assert until(lambda: _is_healthy(served, context))
        assert all(_is_healthy(served, context) for _ in range(30))


def _is_healthy(served: Served, context: ssl.SSLContext) -> bool:
    assert served.http_address is not None
    connection = http.client.HTTPSConnection(*served.http_address, context=context, timeout=10)
    with closing(connection), suppress(OSError):
        return ask(connection, b"", None, "/healthz", "GET").status == 200
    return False


@pytest.mark.parametrize("doors", [{"http": LOOPBACK, "grpc": None}, {"shared": LOOPBACK}])
def test_connections_that_are_idle_give_way(doors: dict[str, Any]) -> None:
    """The one that has been so for longest; not who has just been answered, or is asking."""
    with Served(most_connections=3, **doors) as served, ExitStack() as stack:
        idle, other, asking = (stack.enter_context(served.raw()) for _ in range(3))
        for connection in (other, idle, other, asking):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_response(connection)[0] == 200
        assert _status_of_health(served) == 429
        time.sleep(1.1)
        asking.sendall(b"GET /hea")
        for gone in (idle, other):
            assert not is_closed(gone, 0.1)
            late = stack.enter_context(served.raw())
            late.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_response(late)[0] == 200
            assert is_closed(gone, 5)
        asking.sendall(b"lthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_response(asking)[0] == 200


def _status_of_health(served: Served) -> int:
    with suppress(ConnectionError):
        return served.post(b"", None, "/healthz", "GET").status
    return 0


def test_large_bodies_in_flight_are_bounded_and_small_ones_are_not_hurt() -> None:
    """Four at the limit have room; the fifth comes again; a hundred small ones see nothing."""
    body = sized(LIMIT)
    with Served(grpc=None, most_bytes=LIMIT) as served, ExitStack() as stack:
        halves = [stack.enter_context(served.raw()) for _ in range(5)]
        for connection in halves:
            connection.sendall(head(f"Content-Length: {LIMIT}") + body[:-10])
        answers = _wait_for_an_answer(halves)
        with ThreadPoolExecutor(20) as pool:
            small = pool.map(lambda _: served.post(proto(*range(1000))).status, range(100))
            assert set(small) == {200}
        refused, others = answers, [one for one in halves if one not in answers]
        assert len(refused) == 1
        assert b"503" in read_head(refused[0]).splitlines()[0]
        for connection in others:
            connection.sendall(body[-10:])
            assert read_response(connection)[0] == 200
        assert served.post(body).status == 200


def _wait_for_an_answer(connections: list[socket.socket]) -> list[socket.socket]:
    import select

    found, _, _ = select.select(connections, [], [], 10)
    time.sleep(0.2)
    return select.select(connections, [], [], 0)[0] or found


def test_many_large_requests_at_once_stay_bounded() -> None:
    """All are answered: taken, or told to come again."""
    body = sized(8 * MIB)
    with Served(grpc=None, most_bytes=8 * MIB) as served:
        served.post(body)
        with Highest() as memory, ThreadPoolExecutor(24) as pool:
            answers = Counter(pool.map(lambda _: served.post(body).status, range(48)))
    assert set(answers) <= {200, 503}
    assert answers[200] >= 4
    assert memory.grown_mib < 4 * 8 + 8 * 8 + 60


def test_grpc_takes_turns_when_many_large_requests_come_at_once() -> None:
    """They wait, or are told to come again; never an error that loses them."""
    body = sized(4 * MIB)
    served = Served(http=None, most_bytes=4 * MIB)
    with served, served.channel() as channel, ThreadPoolExecutor(40) as pool:
        answers = Counter(pool.map(lambda _: _code(channel, body), range(80)))
    assert set(answers) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert answers[grpc.StatusCode.OK] >= 4


def _code(channel: grpc.Channel, body: bytes, method: str = METRICS) -> grpc.StatusCode:
    try:
        call(channel, body, method)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_points_without_a_time_are_not_taken_by_the_thousands(served: Served) -> None:
    """A few are counted as unusable; more than could have a time are refused, and for good."""
    few, many = (
        ExportMetricsServiceRequest.FromString(proto(*range(count))) for count in (500, 20_000)
    )
    for request in (few, many):
        for point in request.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points:
            point.Clear()
    said = served.post(few.SerializeToString())
    partial = ExportMetricsServiceResponse.FromString(said.body).partial_success
    assert (said.status, partial.rejected_data_points) == (200, 500)
    said = served.post(many.SerializeToString())
    assert (said.status, said.error().code) == (400, 3)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_others_have_their_turn_while_a_body_comes_to_nothing(encoding: str) -> None:
    """A megabyte of empty members is as much work as many megabytes of data."""
    body = {"gzip": gzip.compress, "zstd": ZSTD}[encoding](b"") * 50_000
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def chunks() -> AsyncIterator[bytes]:
        yield body

    async def take_in() -> bytes:
        task = asyncio.ensure_future(others())
        with Room(LIMIT).share() as share:
            whole = await collected(chunks(), Inflater(encoding, LIMIT), share)
        task.cancel()
        return whole

    assert asyncio.run(take_in()) == b""
    assert turns > 10


def test_only_small_bodies_are_decoded_between_others() -> None:
    """Of 40 kB nobody knows how long they take."""
    threads: list[str] = []
    with Served(grpc=None) as served:
        served.kept.before = lambda _: threads.append(threading.current_thread().name)
        for size in (1000, 40_000):
            assert served.post(sized(size)).status == 200
    assert threads == ["hubmeter-receiver", "hubmeter-receiver-decoding_0"]


def _traces() -> bytes:
    made = ExportTraceServiceRequest()
    spans = made.resource_spans.add().scope_spans.add().spans
    for number in range(4):
        span = spans.add(name="work", trace_id=bytes(16), span_id=bytes([number] * 8))
        span.start_time_unix_nano, span.end_time_unix_nano = T0, T0 + 10**9
        span.attributes.add(key="gen_ai.request.model").value.string_value = "m"
    return made.SerializeToString()


TRACES_JSON = (
    b'{"resourceSpans":[{"resource":{"attributes":[{"key":"run.id","value":{"stringValue":"r"}}]},'
    b'"scopeSpans":[{"spans":[{"traceId":"5b8efff798038103d269b633813fc60c","spanId":'
    b'"eee19b7ec3c1b174","name":"n","startTimeUnixNano":"1544712660000000000",'
    b'"endTimeUnixNano":"1544712661000000000","attributes":[]}]}]}]}'
)


def mutant(body: bytes, dice: random.Random) -> bytes:
    """*body* with some bytes changed, lost, doubled or cut off."""
    made = bytearray(body)
    for _ in range(dice.randint(1, 6)):
        place = dice.randrange(len(made) + 1)
        match dice.randrange(5):
            case 0:
                made[place : place + 1] = bytes([dice.randrange(256)])
            case 1:
                del made[place : place + dice.randint(1, 8)]
            case 2:
                made[place:place] = dice.randbytes(dice.randint(1, 8))
            case 3:
                made[place:place] = made[place : place + dice.randint(1, 40)]
            case _:
                del made[place:]
    return bytes(made)


SEEDS: dict[str, tuple[str, str, bytes]] = {
    "metrics, protobuf": ("/v1/metrics", PROTOBUF, proto(*range(5), a="b")),
    "metrics, json": ("/v1/metrics", JSON, text(*range(5))),
    "traces, protobuf": ("/v1/traces", PROTOBUF, _traces()),
    "traces, json": ("/v1/traces", JSON, TRACES_JSON),
}
ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": ZSTD,
}


@pytest.mark.timeout(60 * (SOAK or 1))
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", SEEDS)
def test_case_28_mutants_are_taken_or_refused_and_nothing_else(
    served: Served, kind: str, encoding: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Over one connection, broken before or after compression: 200 or 400, never a 5xx."""
    path, content_type, body = SEEDS[kind]
    dice = random.Random(f"{SEED} {kind} {encoding}")
    compress = ENCODINGS[encoding]
    answers: Counter[int] = Counter()
    with served.connection() as connection:
        for number in range(MUTANTS):
            sent = compress(mutant(body, dice)) if number % 4 else mutant(compress(body), dice)
            said = ask(connection, sent, content_type, path, Content_Encoding=encoding)
            assert said.status in (200, 400, 413), (sent, said.body)
            if said.status != 200:
                assert said.error().code in (3, 8)
            answers[said.status] += 1
    assert answers[400] > 0
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("kind", ["metrics, protobuf", "traces, protobuf"])
def test_case_28_mutants_by_grpc(
    served: Served, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """OK or INVALID_ARGUMENT."""
    method = METRICS if kind.startswith("metrics") else TRACES
    dice = random.Random(f"{SEED} {kind}")
    with served.channel() as channel:
        answers = Counter(
            _code(channel, mutant(SEEDS[kind][2], dice), method) for _ in range(MUTANTS)
        )
    assert set(answers) <= {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}
    assert "Traceback" not in caplog.text


def test_case_28_noise_instead_of_http(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """Requests that are broken in their head: never a 5xx, and the next one is served."""
    dice = random.Random(SEED)
    body = proto(1.0)
    good = head(f"Content-Length: {len(body)}") + body
    for _ in range(MUTANTS // 5):
        with served.raw() as connection, suppress(ConnectionError):
            connection.sendall(mutant(good, dice))
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65_536)
            assert not answer or answer[9:10] in b"24"
    assert served.post(body).status == 200
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("doors", [{}, {"shared": LOOPBACK}], ids=["two ports", "one port"])
def test_case_16_what_was_acknowledged_under_load_is_kept_when_the_receiver_stops(
    doors: dict[str, Any],
) -> None:
    """Eight clients send until nobody answers; what was not acknowledged may be there."""
    served = Served(**doors)
    with served, ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(_send_until_nobody_answers, served, n) for n in range(8)]
        assert until(lambda: len(served.kept.batches) > 300)
        served.stop(Deadline.after(10))
        acknowledged = [value for client in clients for value in client.result()]
    kept = Counter(served.kept.values())
    assert set(acknowledged) <= set(kept)
    assert len(kept) - len(acknowledged) <= 8
    assert set(kept.values()) == {1}


def _send_until_nobody_answers(served: Served, client: int) -> list[float]:
    acknowledged: list[float] = []
    with suppress(OSError, http.client.HTTPException, grpc.RpcError), ExitStack() as stack:
        channel = stack.enter_context(served.channel())
        connection = stack.enter_context(served.connection())
        for number in range(1_000_000):
            value = client * 1e6 + number
            if client % 2:
                call(channel, proto(value))
            elif ask(connection, proto(value)).status != 200:
                break
            acknowledged.append(value)
    return acknowledged


@pytest.mark.timeout(180 + 2 * SECONDS)
def test_memory_stays_flat_under_load(tmp_path: Path, report_counts: Callable[[str], None]) -> None:
    """
    Four clients send new points to `hubmeter serve`, one request after the other, half by gRPC.

    Meanwhile parts of their runs are cut and published.
    """
    over, longest_part_s = threading.Event(), str(SECONDS / 5)
    with (
        Hubmeter(tmp_path, HUBMETER_FLUSH_EVERY=longest_part_s).start() as hubmeter,
        ThreadPoolExecutor(4) as pool,
        ExitStack() as stack,
    ):
        stack.callback(over.set)
        clients = [pool.submit(_send, n, hubmeter, over) for n in range(4)]
        time.sleep(max(1.0, SECONDS / 5))
        first, seen = rss_mib(hubmeter.pid), []
        enough, latest = Deadline.after(SECONDS), Deadline.after(SECONDS + 60)
        while not enough.is_over() or not hubmeter.status()["points_published"]:
            assert not latest.is_over(), hubmeter.log
            time.sleep(0.05)
            seen.append(rss_mib(hubmeter.pid))
        over.set()
        requests = sum(client.result() for client in clients)
        status = hubmeter.status()
    grown, at_the_end = max(seen) - first, sum(seen[-10:]) / 10 - first
    report_counts(
        f"load: {requests} requests, {status['points_published']} of"
        f" {status['points_acknowledged']} points published, RSS {first:.0f} MiB,"
        f" {grown:+.1f} at most, {at_the_end:+.1f} at the end"
    )
    assert status["points_acknowledged"] == 100 * requests
    assert grown < 25
    assert at_the_end < 10


def _send(number: int, hubmeter: Hubmeter, over: threading.Event) -> int:
    """How many requests were acknowledged."""
    connection = http.client.HTTPConnection("127.0.0.1", hubmeter.http, timeout=30)
    sent = 0
    with grpc.insecure_channel(hubmeter.target) as channel, closing(connection):
        for body in _collections(f"client-{number}"):
            if over.is_set():
                break
            if number % 2:
                assert ask(connection, gzip.compress(body), Content_Encoding="gzip").status == 200
            else:
                assert call(channel, body) == b""
            sent += 1
    return sent


def _collections(run_id: str) -> Iterator[bytes]:
    """Without end: the same hundred series, a millisecond later each time."""
    made = ExportMetricsServiceRequest()
    resource = made.resource_metrics.add()
    resource.resource.attributes.add(key="run.id").value.string_value = run_id
    metric = resource.scope_metrics.add().metrics.add(name="my.gauge", unit="W")
    for series in range(100):
        point = metric.gauge.data_points.add()
        point.attributes.add(key="series").value.int_value = series
    for tick in itertools.count():
        for point in metric.gauge.data_points:
            point.time_unix_nano, point.as_double = T0 + tick * 10**6, float(tick)
        yield made.SerializeToString()
