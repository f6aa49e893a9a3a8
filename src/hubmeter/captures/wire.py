"""
What tells protobuf messages of OTLP apart, and from noise, without decoding them. Pure.

All requests have one field, 1: what resources reported (``ResourceMetrics``, ``ResourceSpans``,
``ResourceLogs``). In it, and in the scopes in it, field 2 has the items. Only the fields of the
items differ. See opentelemetry-proto, ``metrics.proto``, ``trace.proto`` and ``logs.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

Signal: TypeAlias = Literal["metrics", "traces", "logs", "profiles"]

_FIRST, _SECOND = 0x0A, 0x12
"""Tags of fields 1 and 2, where those are messages."""

_IN_A_RESOURCE = frozenset((0x0A, 0x12, 0x1A, 0xC2))
"""First bytes of the tags there: the resource, its scopes, the schema, fields of old versions."""

_TAGS: dict[int, Signal] = {
    0x39: "traces", 0x41: "traces",  # fixed64: Span.start_time_unix_nano, end_time_unix_nano
    0x09: "logs", 0x59: "logs", 0x10: "logs",  # LogRecord's times, and severity_number
    0x19: "profiles", 0x21: "profiles",  # Profile's time and, in newer versions, duration
}  # fmt: skip
"""Tags that only one kind of item has. A metric has neither numbers nor times of its own."""


def signal_of(body: bytes) -> Signal:
    """What a request reports, by its first item; metrics, if it has none or is no message."""
    try:
        begin, end = next(_items(body), (0, 0))
        tags = (tag for tag, _, _ in _fields(body, begin, end))
        return next((_TAGS[tag] for tag in tags if tag in _TAGS), "metrics")
    except ValueError:
        return "metrics"


def may_be_request(data: bytes | bytearray, begin: int, length: int) -> bool:
    """
    Whether a request of *length* bytes may start at *begin*, as far as *data* goes.

    The lengths that its fields state must add up to its own: noise hardly does that.
    """
    place, end = begin, begin + length
    try:
        while place < min(end, len(data)):
            size, inner = _varint(data, place + 1)
            if data[place] != _FIRST or inner + size > end:
                return False
            if size and inner < len(data) and data[inner] not in _IN_A_RESOURCE:
                return False
            place = inner + size
    except EOFError:
        return data[place] == _FIRST
    except ValueError:
        return False
    return place >= len(data) or place == end


def end_of_field(data: bytes | bytearray, place: int) -> int:
    """
    Where the field of a request that begins at *place* ends, by the length that it states.

    0 where none is there.
    """
    try:
        size, inner = _varint(data, place + 1)
    except ValueError:
        return 0
    return inner + size


def _items(body: bytes) -> Iterator[tuple[int, int]]:
    """Where the metrics, spans or log records are."""
    for tag, begin, end in _fields(body, 0, len(body)):
        if tag == _FIRST:
            for scope_tag, scope_begin, scope_end in _fields(body, begin, end):
                if scope_tag == _SECOND:
                    for item_tag, *place in _fields(body, scope_begin, scope_end):
                        if item_tag == _SECOND:
                            yield place[0], place[1]


def _fields(body: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """
    Tag, begin and end of each field of a message.

    Raises:
        ValueError: It is no message.
    """
    place = begin
    while place < end:
        tag, place = _varint(body, place)
        match tag & 7:
            case 0:
                after = _varint(body, place)[1]
            case 1:
                after = place + 8
            case 2:
                size, place = _varint(body, place)
                after = place + size
            case 5:
                after = place + 4
            case _:
                raise ValueError("no such wire type")
        if after > end:
            raise ValueError("a field is longer than its message")
        yield tag, place, after
        place = after


class _End(EOFError, ValueError):
    """The bytes end in the middle."""


def _varint(data: bytes | bytearray, place: int) -> tuple[int, int]:
    """A number of 7 bits per byte, lowest first, and the place after it."""
    value = 0
    for shift, byte in enumerate(data[place : place + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, place + shift + 1
    if place + 10 > len(data):
        raise _End("a number is cut off")
    raise ValueError("a number is longer than ten bytes")
