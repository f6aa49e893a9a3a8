"""
Connections of the HTTP door: how many, how long they may take to say what they want, and what
they hear who do not speak HTTP.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, cast

from aiohttp import web

from .problems import Problems

TOO_MANY = (
    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n"
    b"Connection: close\r\n\r\n"
)


TOO_MANY_AT_A_TIME = "too many connections at a time"

ACCEPTING_AGAIN_S = 1.0
"""After the last descriptor was taken."""

ACCEPTING_TURNS = 5
"""Of the loop, until a socket that was accepted is a connection."""

LEAVING_TURNS = 100
"""Of the loop, at most, until a connection that was cut off has left; TLS takes some."""


ANSWERED_S = 1.0
"""After that the answer to a request is with its sender, or at least with the kernel."""


class Crowd:
    """The connections that there are, and whether another one is too many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._here: set[asyncio.BaseTransport] = set()
        self._idle: dict[asyncio.BaseTransport, float] = {}

    def enter(self, transport: asyncio.BaseTransport) -> bool:
        """One more, if it is not here yet; whether there is room for it, or one gives way."""
        self._here.add(transport)
        return len(self._here) <= self._most or self._one_gives_way()

    def leave(self, transport: asyncio.BaseTransport) -> None:
        self._here.discard(transport)
        self.wake(transport)

    def rest(self, transport: asyncio.BaseTransport) -> None:
        """It has its answer, or will have it in a moment, and nothing more to say for now."""
        if transport in self._here:
            self._idle[transport] = time.monotonic()

    def wake(self, transport: asyncio.BaseTransport) -> None:
        """It says something."""
        self._idle.pop(transport, None)

    def _one_gives_way(self) -> bool:
        for transport, since_s in self._idle.items():  # the first one, for longest
            if since_s + ANSWERED_S > time.monotonic():
                return False
            self.leave(transport)
            cast(asyncio.Transport, transport).abort()  # TLS would wait for a goodbye
            return True
        return False

    async def disperse(self) -> None:
        """Cut off who is left, and who was just accepted. No more are accepted by now."""
        for turn in range(LEAVING_TURNS):
            if turn > ACCEPTING_TURNS and not self._here:
                return
            for transport in list(self._here):
                cast(asyncio.Transport, transport).abort()
            await asyncio.sleep(0)


class TlsListener:
    """
    Accepts connections that are to speak TLS: asyncio would take in any number of them, and show
    them only when they do.

    Args:
        listening: Its socket, which it closes.
        most: As many may be on their way to TLS.
        connect: What makes a connection of a socket, and takes its time.
    """

    def __init__(
        self,
        listening: socket.socket,
        most: int,
        connect: Callable[[socket.socket], Coroutine[Any, Any, object]],
        problems: Problems,
    ) -> None:
        self._socket = listening
        self._most = most
        self._connect = connect
        self._problems = problems
        self._begun: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.ensure_future(self._accept())

    def close(self) -> None:
        """No more; who is on the way does not arrive."""
        self._accepting.cancel()
        self._accepting.add_done_callback(lambda _: self._socket.close())
        for one in self._begun:
            one.cancel()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._socket)
            except ConnectionError:  # who came has gone
                continue
            except OSError as error:  # no descriptor is left
                self._problems.note("no connection can be accepted", str(error))
                await asyncio.sleep(ACCEPTING_AGAIN_S)
                continue
            if len(self._begun) >= self._most:
                self._problems.note(TOO_MANY_AT_A_TIME)
                accepted.close()
            else:
                self._begun.add(task := asyncio.ensure_future(self._begin(accepted)))
                task.add_done_callback(self._begun.discard)

    async def _begin(self, accepted: socket.socket) -> None:
        with suppress(OSError):  # it speaks something else, or nothing in time
            await self._connect(accepted)


def send_away(transport: asyncio.BaseTransport) -> None:
    """A connection too many is told to come again."""
    if isinstance(transport, asyncio.Transport):
        transport.write(TOO_MANY)
    transport.close()


class Connection(web.RequestHandler):
    """
    aiohttp's connection, with a time limit for the headers of each request, and without its log.
    """

    __slots__ = ("_crowd", "_hurry", "_in_request", "_place", "_problems", "_slowest_s")

    def __init__(
        self,
        server: web.Server,
        *,
        crowd: Crowd,
        slowest_s: float,
        problems: Problems,
        **options: Any,
    ) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._crowd = crowd
        self._slowest_s = slowest_s
        self._problems = problems
        self._hurry: asyncio.TimerHandle | None = None
        self._in_request = False

    def begin(self) -> None:
        """The headers of a request are here."""
        self._in_request = True
        self._crowd.wake(self._place)
        self._stop_waiting()

    def end(self) -> None:
        """It is answered; the next one may begin."""
        self._in_request = False
        self._crowd.rest(self._place)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._wait_for_headers()
        self._place = transport
        if not self._crowd.enter(transport):
            self._problems.note(TOO_MANY_AT_A_TIME)
            send_away(transport)
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._crowd.leave(self._place)
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._hurry is None and not self._in_request:
            self._crowd.wake(self._place)
            self._wait_for_headers()
        super().data_received(data)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no HTTP is not repeated in the answer, nor in a traceback."""
        if status < 500:
            self._problems.note("what came is no HTTP")
        else:
            self._problems.note("an answer could not be made", type(exc).__name__, exc)
            status = 503
        response = web.Response(status=status, text="not understood\n")
        response.force_close()
        return response

    def log_exception(self, *arguments: Any, **options: Any) -> None:
        self._problems.note("a connection failed", error=options.get("exc_info"))

    def _wait_for_headers(self) -> None:
        loop = asyncio.get_running_loop()
        self._hurry = loop.call_later(self._slowest_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._hurry is not None:
            self._hurry.cancel()
            self._hurry = None

    def _give_up(self) -> None:
        self._hurry = None
        self._problems.note("the headers of a request did not come in time")
        self.force_close()
