"""
Bodies of requests on their way in: piece by piece, in time, and not too many at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from .answers import Answer, Form, Signal, not_now
from .inflating import Inflater
from .intake import Intake
from .problems import Problems

FREE_BYTES = 2**16
"""Of each body: so a big one never makes a small one wait."""

AT_ONCE = 4
"""As many bodies at the limit may be in memory."""

SMALL_BYTES = 2**15
"""What is no bigger is decoded at once, in a few milliseconds; whatever is in it, not in many."""

BREATH_BYTES, PIECE_BYTES = 2**20, 2**8
"""After so much, others have their turn. An empty piece takes as long as some bytes."""


class NoRoom(Exception):
    """Too many bytes are in memory already."""


def no_room(problems: Problems) -> Answer:
    """The answer to that."""
    words = "too many large requests at a time"
    problems.note(f"{words}, senders come again")
    return not_now(words)


class Room:
    """Bytes of bodies that may be in memory."""

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes

    @contextmanager
    def share(self) -> Iterator[Share]:
        """What one body takes, until the request is answered."""
        share = Share(self)
        try:
            yield share
        finally:
            self._left += share.taken

    def _take(self, count: int) -> None:
        if count > self._left:
            raise NoRoom
        self._left -= count


class Share:
    """
    The part of a room that one body has.

    Attributes:
        taken: Bytes, without the free ones.
    """

    __slots__ = ("_free", "_room", "taken")

    def __init__(self, room: Room) -> None:
        self.taken = 0
        self._free = FREE_BYTES
        self._room = room

    def take(self, count: int) -> None:
        """
        Make room for *count* more.

        Raises:
            NoRoom: There is none.
        """
        free = min(self._free, count)
        self._room._take(count - free)  # noqa: SLF001
        self._free -= free
        self.taken += count - free


async def collected(chunks: AsyncIterator[bytes], inflater: Inflater, share: Share) -> bytes:
    """
    The whole body.

    Raises:
        TooLarge: Beyond the limit.
        NoRoom: With what else is in memory.
        DecodeError: Not what its encoding says.
    """
    pieces: list[bytes] = []
    breath = BREATH_BYTES
    async for chunk in chunks:
        for piece in inflater.feed(chunk):
            if piece:
                share.take(len(piece))
                pieces.append(piece)
            breath -= len(piece) + PIECE_BYTES
            if breath < 0:
                breath = BREATH_BYTES
                await asyncio.sleep(0)
    inflater.finish()
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Desk:
    """
    Where bodies are handed to an intake: small ones at once, big ones in a thread of its own.

    While that thread is busy all go through it: the loop must not wait for the intake.
    """

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hubmeter-receiver-decoding")
        self._in_thread = 0

    async def take(self, signal: Signal, form: Form, body: bytes) -> Answer:
        """As :meth:`Intake.take`."""
        if len(body) <= SMALL_BYTES and not self._in_thread:
            return self._intake.take(signal, form, body)
        self._in_thread += 1
        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(self._thread, self._intake.take, signal, form, body)
        job.add_done_callback(self._done)
        return await asyncio.shield(job)  # who hangs up does not undo what is being delivered

    def _done(self, _job: object) -> None:
        self._in_thread -= 1

    def close(self) -> None:
        """Wait for what is being decoded."""
        self._thread.shutdown(wait=True)
