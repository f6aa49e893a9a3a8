"""HTTP/1.1: reads requests, carries out faults, writes answers. Knows nothing of repositories."""

from __future__ import annotations

import socket
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Protocol

from .faults import Fault
from .messages import Answer, RequestInfo

DRIPS_PER_S = 20

NO_FAULT = Fault()


class Host(Protocol):
    """What the server asks of the hub."""

    delay_s: float

    def read(self, method: str, target: str, headers: dict[str, str], body: bytes) -> RequestInfo:
        """The request, with its kind."""

    def choose(self, request: RequestInfo) -> Fault | None:
        """The fault that befalls *request*."""

    def serve(self, request: RequestInfo) -> Answer:
        """The answer of the endpoint."""

    def record(self, request: RequestInfo, status: int | None) -> None:
        """Note what *request* gets; None for no answer."""

    def wait(self, seconds: float | None) -> None:
        """Sleep, but not past the closing of the hub. None: until then."""


class Server(ThreadingHTTPServer):
    """Listens on a free port of 127.0.0.1, one thread for each connection."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(self, host: Host) -> None:
        self.host = host
        self._open: dict[socket.socket, threading.Thread] = {}
        super().__init__(("127.0.0.1", 0), Handler)
        self._loop = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> None:
        """Serve from a thread of its own."""
        self._loop.start()

    def stop(self) -> None:
        """End every connection, also one in the middle of an answer."""
        self.shutdown()
        self._loop.join()
        self.server_close()
        connections = dict(self._open)
        for connection in connections:
            _cut(connection)
        for thread in connections.values():
            thread.join(2)

    def entered(self, connection: socket.socket) -> None:
        """A connection is served by this thread."""
        self._open[connection] = threading.current_thread()

    def left(self, connection: socket.socket) -> None:
        """It is no longer."""
        self._open.pop(connection, None)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is none; the rest is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            traceback.print_exc()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Server
    _headers_buffer: list[bytes]
    _headers_bytes_per_s: float | None = None

    def setup(self) -> None:
        super().setup()
        self.server.entered(self.connection)

    def finish(self) -> None:
        self.server.left(self.connection)
        super().finish()

    def _serve(self) -> None:
        host = self.server.host
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = host.read(self.command, self.path, headers, _read_body(self.rfile, headers))
        fault = host.choose(request) or NO_FAULT
        host.wait(host.delay_s + fault.delay_s)
        if fault.hang or fault.drop_before:
            host.record(request, None)
            host.wait(None if fault.hang else 0)
            self._drop()
            return
        if fault.acts:
            host.serve(request)
        answer = (fault.answer() or host.serve(request)).adding(fault.headers)
        host.record(request, None if fault.drop_after else answer.status)
        if fault.drop_after:
            self._drop()
        else:
            self._send(answer, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _drop(self) -> None:
        self.close_connection = True
        _cut(self.connection)

    def _send(self, answer: Answer, fault: Fault) -> None:
        self._headers_bytes_per_s = fault.slow_headers_bytes_per_s
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self._write(answer.body, fault.slow_body_bytes_per_s)

    def flush_headers(self) -> None:
        """Send what the base class has gathered."""
        head, self._headers_buffer = b"".join(self._headers_buffer), []
        self._write(head, self._headers_bytes_per_s)

    def _write(self, body: bytes, bytes_per_s: float | None) -> None:
        if bytes_per_s is None:
            self.wfile.write(body)
            return
        step = max(1, int(bytes_per_s / DRIPS_PER_S))
        for start in range(0, len(body), step):
            self.wfile.flush()
            self.server.host.wait(step / bytes_per_s)
            self.wfile.write(body[start : start + step])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """The hub keeps its own record."""


def _cut(connection: socket.socket) -> None:
    """End *connection* now, whoever waits on it."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # the other side was faster
        return


def _read_body(stream: BufferedIOBase, headers: dict[str, str]) -> bytes:
    """The whole body, of a given length or in chunks; a part of it is none."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return b"".join(iter(lambda: _read_chunk(stream), b""))
    return _read_exactly(stream, int(headers.get("content-length", 0)))


def _read_chunk(stream: BufferedIOBase) -> bytes:
    """The next chunk, b"" for the last one."""
    line = stream.readline()
    if not line:
        raise ConnectionResetError("the body ends early")
    data = _read_exactly(stream, int(line.partition(b";")[0], 16))
    stream.readline()
    return data


def _read_exactly(stream: BufferedIOBase, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise ConnectionResetError("the body ends early")
    return data
