"""Records in a stream of bytes: lines, and messages behind their lengths."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias, TypeVar

from .forms import FARTHEST, PREFIX, is_json, may_be_message, next_message
from .unpacking import GAP, MOST_BYTES
from .window import Window

Decoded = TypeVar("Decoded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """
    One line.

    Attributes:
        content: Without its newline. If longer than `MOST_BYTES`, not all of it.
        joints: Where in it a file ended and the next began, or something is missing.
        is_ended: A newline followed.
    """

    content: bytes
    joints: tuple[int, ...] = ()
    is_ended: bool = True


def lines(chunks: Iterator[bytes]) -> Iterator[Line]:
    """The lines of *chunks*. They end with newlines only: others may stand in JSON."""
    line, joints = bytearray(), list[int]()
    for chunk in chunks:
        if chunk == GAP:
            if is_json(line):  # a file that ends without a newline
                yield Line(content=bytes(line), joints=tuple(joints))
                line, joints = bytearray(), []
            elif line:
                joints.append(len(line))
            continue
        first, *others = chunk.split(b"\n")
        if len(line) <= MOST_BYTES:
            line += first
        if others:
            yield Line(content=bytes(line), joints=tuple(joints))
            yield from (Line(content=content) for content in others[:-1])
            line, joints = bytearray(others[-1]), []
    yield Line(content=bytes(line), joints=tuple(joints), is_ended=False)


_NEW_RECORD = re.compile(rb'\{"resource(?:Metrics|Spans|Logs)"')


def pieces_of(line: Line) -> list[bytes]:
    """
    What *line*, which is not JSON, may consist of: whole records beside torn ones.

    A Collector that was killed in a line goes on in the same line after its restart. Inside a
    string there would be backslashes, so this finds beginnings of records only.
    """
    starts = {match.start() for match in _NEW_RECORD.finditer(line.content)}
    places = sorted({0, len(line.content), *line.joints, *starts})
    return [line.content[begin:end] for begin, end in pairwise(places)]


Loss: TypeAlias = Literal["record", "stretch", "end"]
"""A record; more than that; the end of the stream in the middle of a record."""


def messages(window: Window, decode: Callable[[bytes], Decoded | None]) -> Iterator[Decoded | Loss]:
    """
    What *decode* makes of each message in *window*; it returns None for what is none.

    After a broken message the next is found by its length, if a message is there. Otherwise the
    length is wrong too, as where a Collector was killed and went on in the same file: then the
    next place counts at which a length and the lengths inside the message agree, and it can be
    decoded. Everything before that is one loss.
    """
    while window.fill(1):
        found, size = _message(window, decode)
        if found is not None:
            window.drop(size)
            yield found
            continue
        loss: Loss | None = _step_over(window, size)
        if loss == "stretch":
            is_cut = _is_cut_off(window, size)
            loss = "end" if not _find_message(window, decode) and is_cut else "stretch"
        if loss is not None:
            yield loss


def _message(
    window: Window, decode: Callable[[bytes], Decoded | None]
) -> tuple[Decoded | None, int]:
    """The message at hand, if it is one, and its size with the length in front."""
    window.fill(2 * PREFIX)
    size = PREFIX + int.from_bytes(window.data[:PREFIX], "big")
    if not may_be_message(window.data) or not window.fill(size):
        return None, size
    return decode(bytes(memoryview(window.data)[PREFIX:size])), size


def _step_over(window: Window, size: int) -> Loss | None:
    """Drop *size* bytes, if after these there is another message, or the end."""
    if size > FARTHEST or not window.fill(size):
        return "stretch"
    if window.fill(size + 2 * PREFIX) and not may_be_message(window.data, size):
        return "stretch"
    if size < len(window.data) < size + 2 * PREFIX:
        return "stretch"
    window.drop(size)
    return "record" if size > PREFIX else None  # an empty request is nothing to lose


def _is_cut_off(window: Window, size: int) -> bool:
    if not window.fill(PREFIX + 1):
        return True
    return may_be_message(window.data) and not window.fill(size)


def _find_message(window: Window, decode: Callable[[bytes], object | None]) -> bool:
    """Drop what is before the next message, but at least one byte."""
    window.drop(1)
    place = 0
    while window.fill(place + 2 * PREFIX):
        place, end = next_message(window.data, place)
        if end and _is_message(window, place, end, decode):
            window.drop(place)
            return True
        place += bool(end)
        if place > FARTHEST:
            window.drop(place)
            place = 0
    window.drop(len(window.data))
    return False


def _is_message(
    window: Window, place: int, end: int, decode: Callable[[bytes], object | None]
) -> bool:
    """Whether it still may be a message now that all of it is there, and is one."""
    if not window.fill(end) or not may_be_message(window.data, place):
        return False
    return decode(bytes(memoryview(window.data)[place + PREFIX : end])) is not None
