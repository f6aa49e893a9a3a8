"""
A receiver: its doors, in one asyncio loop, in a thread of its own.

Signals are the caller's. Nothing of it is left when :meth:`Receiver.stop` returns.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..deadline import Deadline
from ..errors import SettingsError
from .bodies import AT_ONCE, Desk, Room
from .doors import Address, Doors, address_of, refusal
from .http_door import HttpDoor
from .intake import Intake
from .one_port import FirstBytes

if TYPE_CHECKING:
    from .grpc_door import GrpcDoor

__all__ = ["Address", "Doors", "Receiver", "address_of", "refusal"]

LOOPBACK = Address("127.0.0.1", 0)

VOICE = "GRPC_VERBOSITY"

STOP_S = 5.0
"""For requests in flight, where nobody says how long."""

LAST_WORDS_S = 0.5
"""To send the last answers. What is not decoded by then is not kept: its sender sends it again."""


class Receiver:
    """
    Serves OTLP until it is stopped; a context manager.

    Attributes:
        http_address: Where it listens, with the port that was free where 0 was asked for.
        grpc_address: Likewise. With a shared port both are the same.

    Args:
        status: What ``/readyz`` shows beside ``ready``. Called in the loop: it must be quick.
        keeps_last: Keep also what is decoded too late for an answer, as its sender has no other
            receiver to send it to.
    """

    def __init__(
        self,
        intake: Intake,
        doors: Doors,
        *,
        status: Callable[[], Mapping[str, Any]] = dict,
        keeps_last: bool = False,
    ) -> None:
        self.http_address: Address | None = None
        self.grpc_address: Address | None = None
        self._intake = intake
        self._doors = doors
        self._status = status
        self._keeps_last = keeps_last
        self._opened: Future[None] = Future()
        self._stop_by: Future[Deadline] = Future()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="hubmeter-receiver", daemon=True)

    def start(self) -> None:
        """
        Open the doors. When this returns, senders may come.

        Raises:
            OSError: An address cannot be used; the message says why and what to do.
            SettingsError: These doors must not be opened.
        """
        if reason := refusal(self._doors):
            raise SettingsError(reason)
        self._thread.start()
        try:
            self._opened.result()
        except BaseException:
            self.stop(Deadline.after(0))
            raise

    def stop(self, deadline: Deadline) -> None:
        """Answer what is in flight, until *deadline*, then close everything."""
        with self._lock:
            if not self._stop_by.done():
                self._stop_by.set_result(deadline)
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Receiver:  # noqa: PYI034
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop(Deadline.after(STOP_S))

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._opened.done():
                raise
            self._opened.set_exception(error)

    async def _serve(self) -> None:
        asyncio.get_running_loop().set_exception_handler(self._note)
        doors, problems = self._doors, self._intake.problems
        desk, room = Desk(self._intake), Room(AT_ONCE * doors.most_bytes)
        http = HttpDoor(doors, desk, room, problems, self._status)
        grpc = None
        if doors.grpc is not None or doors.shared is not None:
            grpc = _grpc_door()(doors, desk, room, problems)
        deadline = Deadline.after(0)
        try:
            await self._open(http, grpc)
            self._opened.set_result(None)
            deadline = await asyncio.wrap_future(self._stop_by)
        finally:
            if not self._keeps_last:
                last_s = max(0.0, deadline.remaining_s() - LAST_WORDS_S)
                asyncio.get_running_loop().call_later(last_s, self._intake.close)
            await asyncio.gather(*(door.close(deadline) for door in (http, grpc) if door))
            await http.crowd.disperse()
            desk.close()

    async def _open(self, http: HttpDoor, grpc: GrpcDoor | None) -> None:
        doors = self._doors
        if doors.http is not None:
            self.http_address = await http.open(doors.http)
        if grpc is None:
            return
        self.grpc_address = inside = await grpc.open(doors.grpc or LOOPBACK)
        if doors.shared is not None:
            first = partial(
                FirstBytes, http.connection, inside, crowd=http.crowd, slowest_s=doors.slowest_s
            )
            self.http_address = self.grpc_address = await http.open(doors.shared, first)

    def _note(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What asyncio would log for each connection."""
        if isinstance(context.get("exception"), BlockingIOError):
            return  # grpc wakes all loops of a process, and all but one find nothing
        self._intake.problems.note("a connection failed", str(context.get("message", "")))


def _grpc_door() -> type[GrpcDoor]:
    """
    Loaded only where it is wanted, and without its voice.

    gRPC's C core writes a line to stderr for each connection that is wrong. It asks the
    environment about that when it is loaded, and never again.
    """
    is_ours = VOICE not in os.environ
    if is_ours:
        os.environ[VOICE] = "NONE"
    try:
        from .grpc_door import GrpcDoor
    finally:
        if is_ours:
            del os.environ[VOICE]
    return GrpcDoor
