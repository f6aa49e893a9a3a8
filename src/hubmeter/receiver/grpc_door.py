"""
OTLP/gRPC on grpc.aio: methods, metadata and the forms of answers. No decoding.

Messages come as the bytes they are, compressed ones too: decompression is ours, and bounded.
Requests are read as streams of one message, which is the same on the wire: so a wrong token is
answered, and a turn is waited for, before a message is taken in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any
from weakref import WeakValueDictionary

import grpc
from grpc.aio import EOF, Server, ServicerContext

from ..deadline import Deadline
from ..errors import DecodeError
from .answers import (
    Answer,
    Refused,
    Signal,
    Status,
    export_response,
    grpc_details,
)
from .bodies import Desk, NoRoom, Room, collected, no_room
from .credentials import is_allowed
from .doors import Address, Doors, check_free
from .inflating import Inflater, TooLarge, is_zlib
from .problems import Problems

SERVICES: Mapping[str, Signal] = {
    "opentelemetry.proto.collector.metrics.v1.MetricsService": "metrics",
    "opentelemetry.proto.collector.trace.v1.TraceService": "traces",
    "opentelemetry.proto.collector.logs.v1.LogsService": "logs",
}

AT_ONCE = 16
"""Messages that are taken in at a time; how big they will be is not known before."""

OF_ONE = 4
"""Likewise of one connection: none has all turns."""

MOST_REQUESTS = 1000
"""At a time; most of them wait for their turn."""

STREAMS = 128
"""Of one connection at a time."""

PATIENCE = 1 / 6
"""
Of the time for a message. After that a turn is taken away if somebody waits for it: who says
nothing must not stop who has something to say.
"""

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Gate:
    """
    Lets so many through at a time.

    Attributes:
        waiting: Who came and is not through yet.
    """

    def __init__(self, most: int) -> None:
        self.waiting = 0
        self._turns = asyncio.Semaphore(most)

    async def __aenter__(self) -> None:
        self.waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self.waiting -= 1

    async def __aexit__(self, *_: object) -> None:
        self._turns.release()


class GrpcDoor:
    """Serves gRPC in the running loop."""

    def __init__(self, doors: Doors, desk: Desk, room: Room, problems: Problems) -> None:
        self._doors = doors
        self._desk = desk
        self._room = room
        self._problems = problems
        self._gate = Gate(AT_ONCE)
        self._gates: WeakValueDictionary[str, Gate] = WeakValueDictionary()
        self._requests = 0
        self._server: Server | None = None

    async def open(self, address: Address) -> Address:
        """
        Listen at *address*; returns it with the port that it is.

        Raises:
            OSError: It is in use, or cannot be used.
        """
        if address.port:
            check_free(address)
        self._server = server = grpc.aio.server(options=_options(self._doors))
        server.add_generic_rpc_handlers(
            [_service(name, signal, self._export) for name, signal in SERVICES.items()]
        )
        try:
            if self._doors.tls is None:
                port = server.add_insecure_port(str(address))
            else:
                port = server.add_secure_port(str(address), self._doors.tls.grpc())
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from error
        await server.start()
        return Address(address.host, port)

    async def close(self, deadline: Deadline) -> None:
        """Nothing new; what is in flight is answered until *deadline*."""
        if self._server is not None:
            await self._server.stop(deadline.remaining_s())
            self._server = None

    async def _export(self, signal: Signal, context: ServicerContext[Any, Any]) -> bytes:
        try:
            answer = await self._answer(signal, context)
        except Refused as refused:
            answer = refused.answer
        if answer.status is not Status.OK:
            code = _CODES[answer.status.grpc]
            if answer.status is not Status.UNAVAILABLE:  # said where it happens
                self._problems.note(f"gRPC {code.name}", answer.message)
            details = grpc_details(answer)
            await context.abort(code, answer.message, trailing_metadata=details)  # raises
        return export_response(answer, signal)

    async def _answer(self, signal: Signal, context: ServicerContext[Any, Any]) -> Answer:
        metadata = dict(context.invocation_metadata() or ())
        if not is_allowed(str(metadata.get("authorization", "")), self._doors.token):
            raise Refused(Status.UNAUTHENTICATED, "the bearer token is wrong or missing")
        if self._requests >= MOST_REQUESTS:
            words = "too many requests at a time"
            return Answer(status=Status.BUSY, message=words, retry_after_s=1.0)
        gate = self._gates.setdefault(context.peer(), Gate(OF_ONE))
        self._requests += 1
        try:
            async with gate, self._gate:
                return await self._taken(signal, context)
        finally:
            self._requests -= 1

    async def _taken(self, signal: Signal, context: ServicerContext[Any, Any]) -> Answer:
        message = await self._message(context)
        with self._room.share() as share:
            inflater = Inflater(encoding_of(message), self._doors.most_bytes)
            try:
                body = await collected(_once(message), inflater, share)
            except TooLarge:
                words = f"more than {self._doors.most_bytes} bytes after decompression"
                return Answer(status=Status.TOO_LARGE, message=words)
            except NoRoom:
                return no_room(self._problems)
            except DecodeError as error:
                return Answer(status=Status.BAD_DATA, message=str(error))
            return await self._desk.take(signal, "protobuf", body)

    async def _message(self, context: ServicerContext[Any, Any]) -> bytes:
        message = await self._in_time(asyncio.ensure_future(context.read()))
        if message is EOF:  # if it cannot be read, gRPC has said so already
            words = "there is no message, or it is too large, or not compressed by gzip or deflate"
            raise Refused(Status.BAD_DATA, words)
        assert isinstance(message, bytes)
        return message

    async def _in_time(self, reading: asyncio.Future[Any]) -> Any:
        slowest_s = self._doors.slowest_s
        deadline = Deadline.after(slowest_s)
        try:
            while not deadline.is_over():
                patience_s = min(PATIENCE * slowest_s, deadline.remaining_s())
                if (await asyncio.wait({reading}, timeout=patience_s))[0]:
                    return reading.result()
                if self._gate.waiting:
                    words = "the message did not come while others waited"
                    self._problems.note(f"gRPC: {words}, senders come again")
                    raise Refused(Status.UNAVAILABLE, words, retry_after_s=1.0)
        finally:
            reading.cancel()
        raise Refused(Status.TOO_SLOW, "the message did not come in time")


def _service(name: str, signal: Signal, export: Any) -> Any:
    """The service *name*; gRPC itself answers UNIMPLEMENTED to what no service has."""

    async def serve(_messages: Any, context: ServicerContext[Any, Any]) -> bytes:
        answer: bytes = await export(signal, context)
        return answer

    handler = grpc.stream_unary_rpc_method_handler(serve)
    return grpc.method_handlers_generic_handler(name, {"Export": handler})


def encoding_of(message: bytes) -> str:
    """
    How *message* is compressed; gRPC knows, and does not tell.

    No request begins like this: gzip's first byte is no protobuf, and zlib's would be a field 15.
    """
    if message.startswith(b"\x1f\x8b"):
        return "gzip"
    return "deflate" if is_zlib(message) and message[0] == 0x78 else ""


async def _once(message: bytes) -> AsyncIterator[bytes]:
    yield message


def _options(doors: Doors) -> list[tuple[str, Any]]:
    """Arguments of gRPC Core (grpc/impl/channel_arg_names.h)."""
    return [
        ("grpc.so_reuseport", 0),  # else two receivers would share a port, at random
        ("grpc.max_receive_message_length", doors.most_bytes),
        ("grpc.per_message_decompression", 0),
        ("grpc.max_concurrent_streams", STREAMS),
        ("grpc.max_allowed_incoming_connections", doors.most_connections),
        ("grpc.server_handshake_timeout_ms", round(doors.slowest_s * 1000)),
        ("grpc.keepalive_time_ms", 60_000),  # who is gone without a word is noticed
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
        ("grpc.http2.max_ping_strikes", 0),  # pings are welcome
    ]
