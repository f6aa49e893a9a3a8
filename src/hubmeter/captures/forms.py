"""What is in a file, by its first bytes. Names of files say nothing that can be trusted. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import Enum

from .unpacking import MOST_BYTES, ZSTD
from .wire import end_of_field, may_be_request

HEAD = 2**16
"""Bytes that are looked at."""

PREFIX = 4
"""Bytes of a length: a big-endian number."""


class Form(Enum):
    """Ways to put records into a file."""

    LINES = "a JSON document per line"
    DOCUMENT = "a JSON document of many lines"
    MESSAGES = "messages behind their lengths"
    MESSAGE = "a single message"


_JSON = re.compile(rb'(?:\xef\xbb\xbf)?\s*(?:\{\s*["}]|\[\s*[\[{\]])')


def form_of(head: bytes | bytearray) -> Form | None:
    """
    The form of a file that begins with *head*.

    Returns:
        None where nothing is known: empty, noise, or the end of a record that began elsewhere.
    """
    if head[:1] == b"\n" and head.strip() and may_be_request(head, 0, MOST_BYTES):
        return Form.MESSAGE  # field 1, a message; the byte is a newline too
    if may_be_message(head):
        return Form.MESSAGES
    if _JSON.match(head):
        return Form.DOCUMENT if _goes_on(bytes(head)) else Form.LINES
    return None


def likely_form(head: bytes | bytearray) -> Form:
    """The form of a file that begins with a damaged record, or with the end of one."""
    place = 0
    while place < len(head):
        place, end = next_message(head, place)
        if 0 < end <= len(head):
            return Form.MESSAGES
        place += 1
    return Form.LINES


def may_be_message(data: bytes | bytearray, place: int = 0) -> bool:
    """Whether a length and as long a message may be at *place*, as far as *data* goes."""
    begin = place + PREFIX
    length = int.from_bytes(data[place:begin], "big")
    if not 0 < length <= MOST_BYTES or len(data) <= begin:
        return False
    if length > FARTHEST and _TEXT.match(data[place:begin]):  # as likely as such a length is not
        return False
    return may_be_request(data, begin, length) or any(
        known.startswith(data[begin : begin + len(known)]) for known in (ZSTD, _JSON_REQUEST)
    )


_JSON_REQUEST = b'{"resource'
_TEXT = re.compile(rb"[\t-\r -~]{4}")

FARTHEST = 2**26
"""Bytes that a doubtful length may lead to: all of them are held."""


def is_one_field(data: bytes | bytearray, place: int) -> bool:
    """
    Whether what may be a message at *place* is compressed, or one field that fills it.

    Then it is hardly anything else, even where its end is not there.
    """
    begin = place + PREFIX
    length = int.from_bytes(data[place:begin], "big")
    return data.startswith(ZSTD, begin) or end_of_field(data, begin) == begin + length


_CANDIDATE = re.compile(rb'(?s)(?=[\x00-\x03]...(?:\x0a|\x28\xb5\x2f\xfd|\{"resource))')
_LEAST = 22
"""Bytes of a message that is looked for; what is smaller has no point, and noise looks like it."""


def next_message(data: bytes | bytearray, place: int) -> tuple[int, int]:
    """
    Where, from *place* on, a message may be, and where it ends; there may be more bytes needed.

    Where none may be, the place from which to look once there are more bytes, and 0.
    """
    for begin in _candidates(data, place):
        length = int.from_bytes(data[begin : begin + PREFIX], "big")
        if _LEAST <= length <= FARTHEST and may_be_message(data, begin):
            return begin, begin + PREFIX + length
    return max(place, len(data) - 2 * PREFIX + 1), 0


def _candidates(data: bytes | bytearray, place: int) -> Iterator[int]:
    while match := _CANDIDATE.search(data, place):
        begin = match.start()
        match = None  # it holds the buffer, which may have to grow
        yield begin
        place = begin + 1


def _goes_on(head: bytes) -> bool:
    """Whether the JSON document of the first line goes on in the second."""
    first, _, rest = head.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")
    second = rest.partition(b"\n")[0]
    # After a line that is cut off, what follows is a document of its own.
    return _is_cut_off(first) and bool(rest) and (first.rstrip() == b"[" or not is_json(second))


def _is_cut_off(line: bytes) -> bool:
    text = line.decode("utf-8", "replace").rstrip()
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text)
    except (ValueError, RecursionError):
        return False
    return False


def is_json(line: bytes | bytearray) -> bool:
    """Whether *line* is an object or an array, and all of it."""
    if not line.rstrip().endswith((b"}", b"]")):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
