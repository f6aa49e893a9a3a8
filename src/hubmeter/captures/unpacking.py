"""
Compressed bytes as they were before: gzip, zstd, and text in UTF-16.

Nothing grows without bound: a piece of input makes a piece of output. What is cut off or damaged
is told to *lost*, and whatever can still be read follows, after a `HOLE`.
"""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Any

from .window import HOLE, Window

CUT_OFF = "the last record is cut off"
DAMAGED = "a stretch of the file is damaged"

MOST_BYTES = 2**30
"""Of one record, unpacked. A Collector's are kilobytes to some tens of megabytes."""

GAP = b""
"""Stands in a stream where a file ends; a `HOLE` equals it, but no other piece."""

_PIECE = 2**18
_WINDOW = 2**27
"""Of zstd: how far back a frame may refer, which is memory; ``zstd -d`` has the same limit."""
_BLOCK = 2**17
"""Of zstd: no block is larger, packed or not (RFC 8878, 3.1.1.2.4)."""

GZIP = b"\x1f\x8b\x08"
ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"
"""Of a zstd frame that is not data, after a first byte 50 to 5f."""
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

Lost = Callable[[str], None]


def unpacked(chunks: Iterator[bytes], lost: Lost, layers: int = 3) -> Iterator[bytes]:
    """*chunks* without compression, which may be in several layers, as in a gzip of a .zst."""
    window = Window(chunks)
    window.fill(len(ZSTD))
    head = bytes(window.data[:4])
    if head.startswith(GZIP):
        inner = _gunzipped(window.rest(), lost)
    elif head == ZSTD or _is_skippable(head):
        inner = _unzstd(window, lost)
    elif head.startswith(_UTF_16):  # what a redirection in PowerShell makes
        inner = _utf_8(window.rest())
    else:
        layers, inner = 0, window.rest()
    yield from unpacked(inner, lost, layers - 1) if layers else inner


def unpacked_record(body: bytes) -> bytes:
    """
    What one record is that was compressed alone with zstd.

    Raises:
        ValueError: It is damaged, cut off or larger than `MOST_BYTES`.
    """
    pieces: list[bytes] = []
    window, size = Window(iter([body])), 0
    try:
        for piece in _frame(window):
            size += len(piece)
            if size > MOST_BYTES:
                raise ValueError("larger than the limit")
            pieces.append(piece)
    except (_zstd_error(), EOFError) as error:
        raise ValueError(str(error)) from error
    if window.data:
        raise ValueError("longer than its frame")
    return b"".join(pieces)


def _gunzipped(chunks: Iterator[bytes], lost: Lost) -> Iterator[bytes]:
    member: Any = None
    for chunk in chunks:
        packed = chunk
        while packed:
            if member is None:
                member = zlib.decompressobj(31)
            before = member.copy()
            try:
                piece = member.decompress(packed, _PIECE)
            except zlib.error:
                yield from _before_damage(before, packed)
                lost(DAMAGED)  # its bits have no marks at which a reader could go on
                yield HOLE
                return
            if piece:
                yield piece
            packed = member.unconsumed_tail
            if member.eof:
                packed, member = member.unused_data.lstrip(b"\0"), None
    if member is not None:
        if piece := member.flush():
            yield piece
        if not member.eof:
            lost(CUT_OFF)
            yield HOLE


def _before_damage(member: Any, packed: bytes) -> Iterator[bytes]:
    with suppress(zlib.error):
        for at in range(0, len(packed), 16):
            if piece := member.decompress(packed[at : at + 16]):
                yield piece


def _unzstd(window: Window, lost: Lost) -> Iterator[bytes]:
    """Frame after frame. After damage, from the next frame that begins in what is left."""
    while window.fill(1):
        try:
            window.fill(8)
            if _is_skippable(window.data):
                _skip(window)
            else:
                yield from _frame(window)
        except (_zstd_error(), EOFError) as error:
            lost(CUT_OFF if isinstance(error, EOFError) else DAMAGED)
            yield HOLE
            if not _is_at_next_frame(window):
                return


def _is_at_next_frame(window: Window) -> bool:
    """Drop what is before the next frame; not the bytes at hand, they are broken."""
    window.drop(1)
    while window.fill(len(ZSTD)):
        place = window.data.find(ZSTD)
        if place >= 0:
            window.drop(place)
            return True
        window.drop(len(window.data) - len(ZSTD) + 1)
    return False


def _is_skippable(head: bytes | bytearray) -> bool:
    return head[1:4] == _SKIPPABLE and 0x50 <= head[0] <= 0x5F


def _skip(window: Window) -> None:
    left = 8 + int.from_bytes(window.data[4:8], "little")
    while left:
        if not window.fill(1):
            raise EOFError("a frame is cut off")
        size = min(left, len(window.data))
        window.drop(size)
        left -= size


def _frame(window: Window) -> Iterator[bytes]:
    """
    One frame, block by block, so that no input makes more than a block of output.

    Raises:
        EOFError: It is cut off. What was complete is out; the rest is still in *window*.
        ZstdError: It is damaged. Likewise.
    """
    from zstandard import ZstdDecompressor

    frame = ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
    for size in _blocks(window):
        piece = frame.decompress(bytes(window.data[:size]))
        window.drop(size)
        if piece:
            yield piece


def _blocks(window: Window) -> Generator[int, None, None]:
    """
    Sizes of the parts of a frame, each of which is at the beginning of *window* then.

    The header, the blocks and the checksum (RFC 8878, 3.1.1).
    """
    _need(window, 5)
    if window.data[:4] != ZSTD:
        raise _zstd_error()("not a frame")
    descriptor = window.data[4]
    is_single, has_checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
    content_size = (is_single, 2, 4, 8)[descriptor >> 6]
    yield _need(window, 5 + (not is_single) + (0, 1, 2, 4)[descriptor & 3] + content_size)
    is_last = 0
    while not is_last:
        _need(window, 3)
        header = int.from_bytes(window.data[:3], "little")
        is_last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if size > _BLOCK:
            raise _zstd_error()("a block is too large")
        yield _need(window, 3 + (1 if kind == 1 else size))
    if has_checksum:
        yield _need(window, 4)


def _need(window: Window, size: int) -> int:
    if not window.fill(size):
        raise EOFError("a frame is cut off")
    return size


def _zstd_error() -> type[Exception]:
    from zstandard import ZstdError

    return ZstdError


def _utf_8(chunks: Iterator[bytes]) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder("utf-16")("replace")
    for chunk in chunks:
        if text := decoder.decode(chunk):
            yield text.encode("utf-8", "surrogatepass")
