"""
One port for HTTP/1.1 and gRPC: the first bytes of a connection say which it speaks.

HTTP/1.1 goes on with the HTTP door's own protocol. gRPC has no such protocol to hand over to, so
its bytes go to the gRPC door's port on the loopback interface and back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from .connections import Crowd, send_away
from .doors import Address

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""With which each HTTP/2 connection begins (RFC 9113, 3.4)."""


class FirstBytes(asyncio.Protocol):
    """
    A connection until it is clear what it speaks.

    Args:
        http: Makes the protocol of an HTTP/1.1 connection.
        grpc: Where gRPC is served.
        crowd: All connections; one that speaks gRPC is there with both ends of its pipe.
        slowest_s: A connection that says nothing for so long is closed.
    """

    def __init__(
        self,
        http: Callable[[], asyncio.BaseProtocol],
        grpc: Address,
        *,
        crowd: Crowd,
        slowest_s: float,
    ) -> None:
        self._http = http
        self._grpc = grpc
        self._crowd = crowd
        self._slowest_s = slowest_s
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        loop = asyncio.get_running_loop()
        self._hurry = loop.call_later(self._slowest_s, self._transport.abort)
        if not self._crowd.enter(transport):
            send_away(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._hurry.cancel()
        self._crowd.leave(self._transport)

    def data_received(self, data: bytes) -> None:
        self._head += data
        if not PREFACE.startswith(self._head[: len(PREFACE)]):
            self._hurry.cancel()
            self._continue_as_http()
        elif len(self._head) >= len(PREFACE):
            self._hurry.cancel()
            self._transport.pause_reading()
            self._task = asyncio.ensure_future(self._continue_as_grpc())

    def _continue_as_http(self) -> None:
        self._crowd.leave(self._transport)  # its own protocol enters it
        protocol = cast(asyncio.Protocol, self._http())
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(self._head)

    async def _continue_as_grpc(self) -> None:
        outer, inner = PipeEnd(self._crowd), PipeEnd(self._crowd)
        outer.peer, inner.peer = inner, outer
        outer.transport = self._transport
        try:
            await asyncio.get_running_loop().create_connection(lambda: inner, *self._grpc)
        except OSError:
            self._transport.abort()
            return
        inner.transport.write(self._head)
        if self._transport.is_closing():
            inner.transport.abort()
        else:
            self._transport.set_protocol(outer)
            self._transport.resume_reading()


class PipeEnd(asyncio.Protocol):
    """
    One end of a pipe: what it hears, its peer says, no faster than it can.

    Attributes:
        is_over: It heard the end. The other direction may go on.
    """

    peer: PipeEnd
    transport: asyncio.Transport

    def __init__(self, crowd: Crowd) -> None:
        self.is_over = False
        self._crowd = crowd

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._crowd.enter(transport)

    def data_received(self, data: bytes) -> None:
        self.peer.transport.write(data)

    def eof_received(self) -> bool:
        self.is_over = True
        if self.peer.is_over or self.peer.transport.is_closing():
            self.peer.transport.close()
            return False
        self.peer.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        self.peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.leave(self.transport)
        self.peer.transport.close()
