"""The next bytes of a stream, as many as somebody needs to see at once."""

from __future__ import annotations

from collections.abc import Iterator


class Window:
    """
    Looks ahead in *chunks* without taking.

    Attributes:
        data: What was looked at and not dropped. No view of it may be kept.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.data = bytearray()
        self._chunks = chunks

    def fill(self, size: int) -> bool:
        """Whether there are *size* bytes; they are in *data* then."""
        while len(self.data) < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self.data += chunk
        return True

    def drop(self, size: int) -> None:
        """Be done with the first *size* bytes of *data*."""
        del self.data[:size]

    def rest(self) -> Iterator[bytes]:
        """All that was not dropped."""
        if self.data:
            yield bytes(self.data)
            self.data.clear()
        yield from self._chunks
