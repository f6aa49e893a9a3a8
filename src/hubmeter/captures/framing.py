"""Records in a stream of bytes: lines, and messages behind their lengths."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias, TypeVar

from .forms import FARTHEST, PREFIX, is_json, is_one_field, may_be_message, next_message
from .unpacking import GAP, MOST_BYTES
from .window import HOLE, Window

Decoded = TypeVar("Decoded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """
    One line.

    Attributes:
        content: Without its newline. If longer than `MOST_BYTES`, not all of it.
        joints: Where in it a file ended and the next began.
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
            is_torn = chunk is HOLE
            if is_torn or is_json(line):  # a file may end without a newline
                yield Line(content=bytes(line), joints=tuple(joints), is_ended=not is_torn)
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
    places = sorted({0, len(line.content), *starts})
    return [piece for begin, end in pairwise(places) for piece in _parts(line, begin, end)]


def _parts(line: Line, begin: int, end: int) -> Iterator[bytes]:
    """What is from *begin* to *end*: one record that goes on at joints, or one from each on."""
    joints = [joint for joint in line.joints if begin < joint < end]
    if joints and is_json(line.content[begin:end]):
        joints = []
    for one, other in pairwise([begin, *joints, end]):
        yield line.content[one:other]


Loss: TypeAlias = Literal["record", "stretch", "end"]
"""A record; more than that; the end of the stream in the middle of a record."""


def messages(window: Window, decode: Callable[[bytes], Decoded | None]) -> Iterator[Decoded | Loss]:
    """
    What *decode* makes of each message in *window*; it returns None for what is none.

    A message counts if another follows it, or the end. If neither does, it counts unless another
    begins in it: where a Collector was killed in a message and went on in the same file, the next
    completes the torn one, often to one that can be decoded, with numbers that nobody sent. So
    may zeros, as a disk without power leaves them.

    After a broken message the next is found by its length, if a message is there. Otherwise the
    length is wrong too: then the next place counts at which a length and the lengths inside the
    message agree, and it can be decoded. Everything before that is one loss.

    What cannot be told, as nothing in the format says it: that a message was torn by exactly as
    many bytes as whole messages behind it have, or as the beginning of one that was torn too.
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


def are_whole(data: bytes | bytearray) -> bool:
    """Whether *data* ends where a message does, if all lengths in it are right."""
    place = 0
    while place < len(data):
        place += _size(data, place)
    return place == len(data)


def _size(data: bytes | bytearray, place: int = 0) -> int:
    """Of the message at *place*, with the length in front."""
    return PREFIX + int.from_bytes(data[place : place + PREFIX], "big")


def _message(
    window: Window, decode: Callable[[bytes], Decoded | None]
) -> tuple[Decoded | None, int]:
    """The message at hand, if it is one, and its size with the length in front."""
    window.fill(2 * PREFIX)
    size = _size(window.data)
    if not may_be_message(window.data) or not window.fill(size) or _is_torn(window, size):
        return None, size
    return decode(bytes(memoryview(window.data)[PREFIX:size])), size


def _is_torn(window: Window, size: int) -> bool:
    """Whether the *size* bytes at hand are hardly one message, though their length says so."""
    if _is_followed(window, size):
        return False
    return _ends_in_hole(window, size) or _holds_message(window, size)


def _ends_in_hole(window: Window, size: int) -> bool:
    """Whether zeros, as a disk without power leaves them, may have begun before *size*."""
    return window.data[size - 1 : size + 2 * PREFIX] == bytes(1 + 2 * PREFIX)


def _holds_message(window: Window, size: int) -> bool:
    """Whether a message begins in the *size* bytes at hand, behind their first one."""
    place = 1
    while place < size and window.fill(place + 2 * PREFIX):
        place, end = next_message(window.data, place)
        if end and place < size and _is_likely(window, place):
            return True
        place += bool(end)
    return False


def _is_followed(window: Window, size: int) -> bool:
    """Whether a message is behind the *size* bytes at hand, or nothing."""
    return not window.fill(size + 1) or _is_likely(window, size)


def _is_likely(window: Window, place: int) -> bool:
    """Whether a message begins at *place*, as all says that is there of it."""
    window.fill(place + PREFIX)
    size = _size(window.data, place)
    is_whole = size <= FARTHEST and window.fill(place + size)
    is_possible = may_be_message(window.data, place)
    return is_possible and (is_whole or is_one_field(window.data, place))


def _step_over(window: Window, size: int) -> Loss | None:
    """Drop *size* bytes, if another message, or the end, is behind these, and none in them."""
    is_far = size > FARTHEST or not window.fill(size)
    if is_far or not _is_followed(window, size) or _holds_message(window, size):
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
