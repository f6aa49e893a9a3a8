"""
OTLP/HTTP on aiohttp: paths, headers, limits and the forms of answers. No decoding.

aiohttp reads HTTP; routing, decompression and bodies are ours, so that nothing is taken in
before it is clear that it is wanted, and nothing beyond the limits.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from functools import partial
from socket import socket
from ssl import SSLContext
from typing import Any, cast

from aiohttp import StreamReader, web

from ..deadline import Deadline
from ..errors import DecodeError
from .answers import MEDIA_TYPES, Answer, Form, Refused, Reply, Signal, Status, http_reply
from .bodies import Desk, NoRoom, Room, collected, no_room
from .connections import Connection, Crowd, TlsListener
from .credentials import is_allowed
from .doors import Address, Doors, listening
from .inflating import Inflater, TooLarge, UnknownEncoding
from .problems import Problems

PATHS: Mapping[str, Signal] = {
    "/v1/metrics": "metrics",
    "/v1/traces": "traces",
    "/v1/logs": "logs",
}

HEALTH, READINESS = "/healthz", "/readyz"

IDLE_S = 600.0
"""A connection without a request for so long is closed; senders open another."""

LINGER_S = 2.0
"""So long what a refused sender still sends is thrown away: else it might not see the answer."""

CUT_OFF_S = 0.1
"""For handlers to notice that the time is over. For aiohttp 0 would be without end."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HttpDoor:
    """
    Serves HTTP in the running loop.

    Attributes:
        crowd: The connections.

    Args:
        status: What ``/readyz`` shows to those with the token; ``"ready": False`` in it makes
            that a 503, for all.
    """

    def __init__(
        self,
        doors: Doors,
        desk: Desk,
        room: Room,
        problems: Problems,
        status: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._doors = doors
        self._desk = desk
        self._room = room
        self._problems = problems
        self._status = status
        self.crowd = Crowd(doors.most_connections)
        self._is_draining = False
        self._in_flight = 0
        self._all_answered = asyncio.Event()
        self._connections = web.Server(self._respond)
        self._listeners: list[asyncio.AbstractServer | TlsListener] = []

    async def open(
        self, address: Address, protocol: Callable[[], asyncio.BaseProtocol] | None = None
    ) -> Address:
        """
        Listen; returns *address* with the port that it is.

        Args:
            address: Where.
            protocol: What each connection speaks; by default :meth:`connection`.

        Raises:
            OSError: It is in use, or cannot be used.
        """
        loop = asyncio.get_running_loop()
        connect = None if self._doors.tls is None else self._by_tls(self._doors.tls.http())
        for one in (sockets := listening(address)):
            if connect is not None:
                most = self._doors.most_connections
                self._listeners.append(TlsListener(one, most, connect, self._problems))
            else:
                made = await loop.create_server(protocol or self.connection, sock=one)
                self._listeners.append(made)
        return Address(address.host, sockets[0].getsockname()[1])

    def _by_tls(self, context: SSLContext) -> Callable[[socket], Coroutine[Any, Any, object]]:
        return partial(
            asyncio.get_running_loop().connect_accepted_socket,
            self.connection,
            ssl=context,
            ssl_handshake_timeout=self._doors.slowest_s,
        )

    def connection(self) -> asyncio.BaseProtocol:
        """What one connection speaks."""
        return Connection(
            self._connections,
            crowd=self.crowd,
            slowest_s=self._doors.slowest_s,
            problems=self._problems,
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
            access_log=None,
            auto_decompress=False,
        )

    async def close(self, deadline: Deadline) -> None:
        """Nothing new; what is in flight is answered until *deadline*."""
        self._is_draining = True
        for listener in self._listeners:
            listener.close()
        if self._in_flight:
            await _until(self._all_answered, deadline)
        self._connections.pre_shutdown()
        await self._connections.shutdown(CUT_OFF_S)

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = cast(Connection, request.protocol)
        connection.begin()
        self._in_flight += 1
        try:
            reply = await self._reply(request)
        finally:
            connection.end()
            self._in_flight -= 1
            if self._is_draining and not self._in_flight:
                self._all_answered.set()
        headers = {**reply.headers, "Server": "hubmeter"}
        response = web.Response(status=reply.status, body=reply.body, headers=headers)
        if self._is_draining:
            response.force_close()
        return response

    async def _reply(self, request: web.BaseRequest) -> Reply:
        if request.path in (HEALTH, READINESS):
            return self._health(request)
        signal = PATHS.get(request.path)
        form = MEDIA_TYPES.get(request.content_type)
        headers: Mapping[str, str] = {}
        try:
            answer = await self._answer(request, signal, form)
        except Refused as refused:
            answer, headers = refused.answer, refused.headers
        if answer.status not in (Status.OK, Status.UNAVAILABLE):  # said where it happens
            self._problems.note(f"HTTP {answer.status.http}", answer.message)
        reply = http_reply(answer, signal, None if answer.status is Status.BAD_METHOD else form)
        reply.headers.update(headers)
        return reply

    async def _answer(
        self, request: web.BaseRequest, signal: Signal | None, form: Form | None
    ) -> Answer:
        if signal is None:
            raise Refused(Status.NOT_FOUND, f"send to one of {', '.join(PATHS)}")
        if request.method != "POST":
            raise Refused(Status.BAD_METHOD, "send with POST", headers={"Allow": "POST"})
        if not is_allowed(request.headers.get("Authorization", ""), self._doors.token):
            words = "the bearer token is wrong or missing"
            headers = {"WWW-Authenticate": "Bearer"}
            raise Refused(Status.UNAUTHENTICATED, words, headers=headers)
        if form is None:
            known = " or ".join(MEDIA_TYPES)
            raise Refused(Status.UNSUPPORTED, f"the Content-Type must be {known}")
        with self._room.share() as share:
            try:
                body = await collected(self._chunks(request), self._inflater(request), share)
            except TooLarge:
                return self._too_large()
            except NoRoom:
                return no_room(self._problems)
            except DecodeError as error:
                return Answer(status=Status.BAD_DATA, message=str(error))
            return await self._desk.take(signal, form, body)

    def _inflater(self, request: web.BaseRequest) -> Inflater:
        try:
            return Inflater(request.headers.get("Content-Encoding", ""), self._doors.most_bytes)
        except UnknownEncoding:
            accepted = {"Accept-Encoding": "gzip, deflate, zstd"}
            words = "the Content-Encoding must be gzip, deflate or zstd, or none"
            raise Refused(Status.UNSUPPORTED, words, headers=accepted) from None

    async def _chunks(self, request: web.BaseRequest) -> AsyncIterator[bytes]:
        """The body as it comes, if it is not too long and not too slow."""
        if (request.content_length or 0) > self._doors.most_bytes:
            raise TooLarge
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport:
            request.transport.write(CONTINUE)
        deadline = Deadline.after(self._doors.slowest_s)
        while not request.content.at_eof():
            yield await self._chunk(request.content, deadline)

    async def _chunk(self, content: StreamReader, deadline: Deadline) -> bytes:
        if content.is_eof():  # all of it is here already
            return content.read_nowait()
        try:
            return await asyncio.wait_for(content.readany(), deadline.remaining_s())
        except asyncio.TimeoutError:
            words = "the body did not come in time"
            raise Refused(Status.TOO_SLOW, words, retry_after_s=1.0) from None
        except (web.RequestPayloadError, ConnectionError):
            raise Refused(Status.BAD_DATA, "the body is broken off, or no HTTP") from None

    def _too_large(self) -> Answer:
        most = self._doors.most_bytes
        words = f"more than {most} bytes, counted before and after decompression"
        return Answer(status=Status.TOO_LARGE, message=words)

    def _health(self, request: web.BaseRequest) -> Reply:
        if request.method not in ("GET", "HEAD"):
            answer = Answer(status=Status.BAD_METHOD, message="ask with GET")
            reply = http_reply(answer)
            reply.headers["Allow"] = "GET, HEAD"
            return reply
        if request.path == HEALTH:
            return Reply(200, {"Content-Type": "text/plain; charset=utf-8"}, b"ok\n")
        status = {"ready": True, **self._status()}
        if self._is_draining:
            status["ready"] = False
        if not is_allowed(request.headers.get("Authorization", ""), self._doors.token):
            status = {"ready": status["ready"]}  # the rest may have names of repositories
        body = json.dumps(status, default=str).encode()
        code = 200 if status["ready"] else Status.UNAVAILABLE.http
        return Reply(code, {"Content-Type": "application/json"}, body)


async def _until(event: asyncio.Event, deadline: Deadline) -> None:
    try:
        await asyncio.wait_for(event.wait(), deadline.remaining_s())
    except asyncio.TimeoutError:
        return
