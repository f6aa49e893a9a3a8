"""The next bytes of a stream, as many as somebody needs to see at once."""

from __future__ import annotations

from collections.abc import Iterator


class Hole(bytes):
    """No bytes: in their place some are missing, and nothing may be put together across it."""


HOLE = Hole()


class Window:
    """
    Looks ahead in *chunks* without taking. What is before a hole ends there, as the stream does.

    Attributes:
        data: What was looked at and not dropped. No view of it may be kept.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.data = bytearray()
        self._chunks = chunks
        self._is_at_hole = False

    def fill(self, size: int) -> bool:
        """Whether there are *size* bytes; they are in *data* then."""
        while len(self.data) < size and not (self._is_at_hole and self.data):
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self.data += chunk
            self._is_at_hole = chunk is HOLE
        return len(self.data) >= size

    def drop(self, size: int) -> None:
        """Be done with the first *size* bytes of *data*."""
        del self.data[:size]

    def rest(self) -> Iterator[bytes]:
        """All that was not dropped."""
        if self.data:
            yield bytes(self.data)
            self.data.clear()
        if self._is_at_hole:
            yield HOLE
        yield from self._chunks
