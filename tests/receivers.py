"""Receivers on free ports, bodies to send them, and clients that show every byte."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from typing_extensions import Self

from hubmeter.batch import PointBatch
from hubmeter.deadline import Deadline
from hubmeter.receiver.credentials import Tls
from hubmeter.receiver.intake import Intake
from hubmeter.receiver.serving import Address, Doors, Receiver
from makers import T0, gauge, point, request

PROTOBUF, JSON = "application/x-protobuf", "application/json"
LOOPBACK = Address("127.0.0.1", 0)
EXPORT = "/opentelemetry.proto.collector.{}Service/Export"
METRICS = EXPORT.format("metrics.v1.Metrics")
TRACES = EXPORT.format("trace.v1.Trace")
LOGS = EXPORT.format("logs.v1.Logs")


@dataclass
class Kept:
    """Batches that were delivered; *before* is called with each, and may raise."""

    batches: list[PointBatch] = field(default_factory=list)
    before: Callable[[PointBatch], None] = lambda _: None

    def deliver(self, batch: PointBatch) -> None:
        self.before(batch)
        self.batches.append(batch)

    def values(self) -> list[Any]:
        """All values, in the order of their arrival."""
        return [value for batch in self.batches for value in batch.values]

    def names(self) -> list[str]:
        """The metric of each value."""
        return [series.metric_name for batch in self.batches for series in batch.layout.series]


class Served(Receiver):
    """A receiver on free ports, whose batches are kept."""

    def __init__(
        self,
        deliver: Callable[[PointBatch], None] | None = None,
        *,
        status: Callable[[], Mapping[str, Any]] = dict,
        keeps_last: bool = False,
        **doors: Any,
    ) -> None:
        self.kept = Kept()
        self.intake = Intake(deliver or self.kept.deliver)
        asked = doors if "shared" in doors else {"http": LOOPBACK, "grpc": LOOPBACK, **doors}
        super().__init__(self.intake, Doors(**asked), status=status, keeps_last=keeps_last)

    @property
    def url(self) -> str:
        return f"http://{self.http_address}"

    @property
    def target(self) -> str:
        return str(self.grpc_address)

    def post(
        self,
        body: Any,
        content_type: str | None = PROTOBUF,
        path: str = "/v1/metrics",
        method: str = "POST",
        **headers: str,
    ) -> Said:
        """One request on a connection of its own; ``Content_Encoding`` names a header."""
        with self.connection() as connection:
            return ask(connection, body, content_type, path, method, **headers)

    @contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        assert self.http_address is not None
        connection = http.client.HTTPConnection(*self.http_address, timeout=30)
        try:
            yield connection
        finally:
            connection.close()

    @contextmanager
    def raw(self) -> Iterator[socket.socket]:
        """A connection to the HTTP door."""
        assert self.http_address is not None
        with socket.create_connection(self.http_address, timeout=30) as connection:
            yield connection

    def export(self, body: bytes, method: str = METRICS, **options: Any) -> bytes:
        """One gRPC request; raises ``grpc.RpcError``."""
        with self.channel() as channel:
            return call(channel, body, method, **options)

    @contextmanager
    def channel(self, **options: Any) -> Iterator[grpc.Channel]:
        with grpc.insecure_channel(self.target, options=list(options.items())) as channel:
            yield channel


@dataclass(frozen=True)
class Said:
    """A response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def content_type(self) -> str:
        return self.headers["Content-Type"]

    def error(self) -> Status:
        """The google.rpc.Status in the body, in either form."""
        if self.content_type == PROTOBUF:
            return Status.FromString(self.body)
        assert self.content_type == JSON
        said = json.loads(self.body)
        return Status(code=said["code"], message=said["message"])


def ask(
    connection: http.client.HTTPConnection,
    body: Any,
    content_type: str | None = PROTOBUF,
    path: str = "/v1/metrics",
    method: str = "POST",
    **headers: str,
) -> Said:
    """One request; an iterable *body* is sent in chunks."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if content_type is not None:
        named["Content-Type"] = content_type
    connection.request(method, path, body=body, headers=named)
    response = connection.getresponse()
    return Said(response.status, dict(response.headers), response.read())


def call(
    channel: grpc.Channel,
    body: bytes,
    method: str = METRICS,
    *,
    timeout: float = 20,
    metadata: Any = (),
    compression: Any = None,
) -> bytes:
    """One gRPC request with the bytes as they are."""
    made = channel.unary_unary(method)
    return made(body, timeout=timeout, metadata=metadata, compression=compression)


def rpc_status(error: grpc.RpcError) -> Status | None:
    """The google.rpc.Status in the trailing metadata."""
    found = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    return None if found is None else Status.FromString(found)


def retry_delay_s(error: grpc.RpcError) -> float | None:
    """The RetryInfo in that."""
    status = rpc_status(error)
    for detail in status.details if status else ():
        info = RetryInfo()
        if detail.Unpack(info):
            return info.retry_delay.ToNanoseconds() / 1e9
    return None


def proto(*values: float, name: str = "power", **resource: str) -> bytes:
    """A request with one gauge point for each of *values*."""
    made = ExportMetricsServiceRequest()
    resource_metrics = made.resource_metrics.add()
    for key, value in resource.items():
        resource_metrics.resource.attributes.add(key=key).value.string_value = value
    metric = resource_metrics.scope_metrics.add().metrics.add(name=name, unit="W")
    for number, value in enumerate(values):
        metric.gauge.data_points.add(time_unix_nano=T0 + number, as_double=value)
    return made.SerializeToString()


def text(*values: float, name: str = "power") -> bytes:
    """The same in OTLP/JSON."""
    points = [point(value, T0 + number) for number, value in enumerate(values)]
    return json.dumps(request(gauge(name, "W", *points))).encode()


def one_bad_span_of_two() -> tuple[bytes, bytes]:
    """A request with two root spans, one of which has no trace: in OTLP/JSON and in protobuf."""
    made = ExportTraceServiceRequest()
    spans = made.resource_spans.add().scope_spans.add().spans
    for trace_id in (bytes(range(16)), b"short"):
        spans.add(trace_id=trace_id, start_time_unix_nano=T0, end_time_unix_nano=T0 + 10**9)
    as_json = [
        {"traceId": span.trace_id.hex(), "startTimeUnixNano": str(T0),
         "endTimeUnixNano": str(T0 + 10**9)}
        for span in spans
    ]  # fmt: skip
    body = {"resourceSpans": [{"scopeSpans": [{"spans": as_json}]}]}
    return json.dumps(body).encode(), made.SerializeToString()


def sized(size: int) -> bytes:
    """A good request in protobuf of exactly *size* bytes, 100 or more."""
    made = ExportMetricsServiceRequest.FromString(proto(1.0))
    metric = made.resource_metrics[0].scope_metrics[0].metrics[0]
    metric.description = "x" * size
    metric.description = "x" * (2 * size - made.ByteSize())
    metric.name += "x" * (size - made.ByteSize())  # lengths may have become shorter
    body = made.SerializeToString()
    assert len(body) == size
    return body


def bomb(gib: float, level: int = 9) -> bytes:
    """*gib* GiB of zeros in gzip members, about 1 MB for each."""
    member = gzip.compress(bytes(2**26), level)
    return member * round(gib * 16)


def certificates(folder: Path) -> Tls:
    """A self-signed certificate for 127.0.0.1, which also signs itself as a sender's."""
    files = Tls(
        certificate=folder / "cert.pem", key=folder / "key.pem", client_ca=folder / "cert.pem"
    )
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", files.key, "-out", files.certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return files


def read_head(connection: socket.socket) -> bytes:
    """What comes until an empty line, or the end."""
    found = b""
    while b"\r\n\r\n" not in found and (byte := connection.recv(1)):
        found += byte
    return found


def read_response(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of a response with Content-Length."""
    head = read_head(connection).decode()
    fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
    length, body = int(fields["content-length"]), b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    return int(head.split(" ")[1]), body


def is_closed(connection: socket.socket, within_s: float) -> bool:
    """Whether the other side closes; what it still says is read."""
    connection.settimeout(within_s)
    try:
        while connection.recv(65_536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


def rss_mib(process: int | str = "self") -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


class Highest:
    """The highest resident memory while it is watched, above that at the beginning."""

    def __enter__(self) -> Self:
        self.first = self.mib = rss_mib()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.mib = max(self.mib, rss_mib())

    @property
    def grown_mib(self) -> float:
        return self.mib - self.first


def until(claim: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether *claim* becomes true in time."""
    deadline = Deadline.after(seconds)
    while not claim():
        if deadline.is_over():
            return False
        time.sleep(0.01)
    return True
