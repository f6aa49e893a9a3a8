"""
Undoing a Content-Encoding piece by piece, never beyond a limit. No I/O.

A few kilobytes may stand for many gigabytes. So what a piece of input becomes is asked for in
small pieces, and counted before the next one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from ..errors import DecodeError

PIECE_BYTES = 2**18
"""Of output, at most, for each step."""

ZSTD_STEP_BYTES = 512
"""
Of input: zstandard's interface has no limit for its output. A block is 4 bytes or more and
stands for at most 128 KiB, so a step is at most 16 MiB.
"""

GZIP_STEP_BYTES = 2**12
"""Of input: what follows a member is copied, and a member may have only 20 bytes."""

ZSTD_WINDOW_BYTES = 2**23
"""A frame that demands more memory than this is refused (RFC 9659)."""

GZIP_WBITS, ZLIB_WBITS, RAW_WBITS = 31, 15, -15


class TooLarge(Exception):
    """A body is beyond the limit, compressed or not."""


class UnknownEncoding(ValueError):
    """A Content-Encoding that this package does not undo."""


class Inflater:
    """
    Undoes one Content-Encoding of one body.

    Args:
        encoding: The header's value; empty, ``identity``, ``gzip``, ``deflate`` or ``zstd``.
        most_bytes: Limit for the body as it comes, and as it is after this.

    Raises:
        UnknownEncoding: *encoding* is another, or several.
    """

    def __init__(self, encoding: str, most_bytes: int) -> None:
        try:
            self._codec = _CODECS[encoding.strip().lower()]()
        except KeyError:
            raise UnknownEncoding(encoding) from None
        self._left_in = self._left_out = most_bytes

    def feed(self, data: bytes) -> Iterator[bytes]:
        """
        What *data*, the next part of the body, stands for; also in empty pieces.

        Raises:
            TooLarge: The limit is passed.
            DecodeError: This is not what the encoding's name says.
        """
        self._left_in -= len(data)
        if self._left_in < 0:
            raise TooLarge
        for piece in self._codec.pieces(data):
            self._left_out -= len(piece)
            if self._left_out < 0:
                raise TooLarge
            yield piece

    def finish(self) -> None:
        """
        The body is over.

        Raises:
            DecodeError: The compressed data is not.
        """
        if not self._codec.is_complete():
            raise DecodeError("the compressed data ends too early")


class _Codec(Protocol):
    def pieces(self, data: bytes) -> Iterator[bytes]: ...

    def is_complete(self) -> bool: ...


class _Identity:
    def pieces(self, data: bytes) -> Iterator[bytes]:
        yield data

    def is_complete(self) -> bool:
        return True


class _Members:
    """
    Compressed streams, one after the other (RFC 1952, 2.2; RFC 8878, 3.1).

    Args:
        opened: Makes the decompressor of the next stream.
        inflated: Pieces that it makes of some input.
        step_bytes: Of input at a time.
    """

    def __init__(
        self,
        opened: Callable[[], Any],
        inflated: Callable[[Any, bytes], Iterator[bytes]],
        step_bytes: int,
    ) -> None:
        self._opened = opened
        self._inflated = inflated
        self._step_bytes = step_bytes
        self._stream = opened()

    def pieces(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), self._step_bytes):
            rest = data[start : start + self._step_bytes]
            while rest:
                if self._stream.eof:
                    self._stream = self._opened()
                yield from self._inflated(self._stream, rest)
                rest = self._stream.unused_data

    def is_complete(self) -> bool:
        return bool(self._stream.eof)


class _Deflate:
    """With a zlib header, as RFC 9110 wants it, or without, as some senders have it."""

    def __init__(self) -> None:
        self._head = b""
        self._stream: Any = None

    def pieces(self, data: bytes) -> Iterator[bytes]:
        if self._stream is None:
            self._head = data = self._head + data
            if len(data) < 2:
                return
            self._stream = zlib.decompressobj(ZLIB_WBITS if is_zlib(data) else RAW_WBITS)
        if self._stream.eof and data:
            raise DecodeError("something follows the compressed data")
        yield from _zlib_pieces(self._stream, data)
        if self._stream.unused_data:
            raise DecodeError("something follows the compressed data")

    def is_complete(self) -> bool:
        return self._stream is not None and self._stream.eof


def is_zlib(data: bytes) -> bool:
    """Whether *data* begins as a zlib stream does (RFC 1950, 2.2)."""
    return len(data) >= 2 and data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0


def _zlib_pieces(stream: Any, data: bytes) -> Iterator[bytes]:
    while True:
        try:
            piece = stream.decompress(data, PIECE_BYTES)
        except zlib.error:
            raise DecodeError("the compressed data is broken") from None
        yield piece
        data = stream.unconsumed_tail
        # A full piece may have left something inside, without any input.
        if stream.eof or (not data and len(piece) < PIECE_BYTES):
            return


def _gzip() -> _Codec:
    return _Members(lambda: zlib.decompressobj(GZIP_WBITS), _zlib_pieces, GZIP_STEP_BYTES)


def _zstd() -> _Codec:
    from zstandard import ZstdDecompressor, ZstdError

    def pieces(stream: Any, data: bytes) -> Iterator[bytes]:
        try:
            yield stream.decompress(data)
        except ZstdError:
            raise DecodeError("the compressed data is broken") from None

    decompressor = ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
    return _Members(decompressor.decompressobj, pieces, ZSTD_STEP_BYTES)


_CODECS: Mapping[str, Callable[[], _Codec]] = {
    "": _Identity,
    "identity": _Identity,
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _Deflate,
    "zlib": _Deflate,  # as a Collector calls it
    "zstd": _zstd,
}
