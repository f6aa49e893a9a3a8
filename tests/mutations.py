"""Bodies that were damaged on the way, or made by somebody who means harm."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

SPECIAL = (
    b"\xff" * 9 + b"\x01",  # the largest varint
    b"\xff" * 11,  # a varint that does not end
    b"\x00",
    b"\x80\x00",
    b"\xed\xa0\x80",  # half of a surrogate pair
    b"\xc0\x80",  # zero, written in too many bytes
    b"\x0a" * 40,
    b"\x0a\x00" * 40,  # empty messages
    b"\xfb\x3f" * 30,  # groups that do not end
    b"[" * 60,
    b'{"' * 30,
    b"\\ud800",
    b"1e999",
    b"-",
    b"9" * 50,
    b"NaN",
    b"null",
)

Mutation = Callable[[bytes, bytes, Random], bytes]


def mutated(body: bytes, other: bytes, dice: Random) -> bytes:
    """*body* after one to four accidents; *other* is what it may be mixed with."""
    for _ in range(dice.choice((1, 1, 2, 4))):
        body = dice.choice(MUTATIONS)(body, other, dice)
    return body


def _flip(body: bytes, _other: bytes, dice: Random) -> bytes:
    changed = bytearray(body or b"\0")
    for _ in range(dice.choice((1, 1, 1, 8))):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _truncate(body: bytes, _other: bytes, dice: Random) -> bytes:
    return body[: dice.randrange(len(body) + 1)]


def _insert(body: bytes, _other: bytes, dice: Random) -> bytes:
    at = dice.randrange(len(body) + 1)
    return body[:at] + dice.randbytes(dice.randrange(1, 9)) + body[at:]


def _insert_special(body: bytes, _other: bytes, dice: Random) -> bytes:
    at = dice.randrange(len(body) + 1)
    return body[:at] + dice.choice(SPECIAL) + body[at + dice.randrange(3) :]


def _remove(body: bytes, _other: bytes, dice: Random) -> bytes:
    first, end = _slice(body, dice)
    return body[:first] + body[end:]


def _duplicate(body: bytes, _other: bytes, dice: Random) -> bytes:
    first, end = _slice(body, dice)
    return body[:end] + body[first:end] * dice.randrange(1, 4) + body[end:]


def _splice(body: bytes, other: bytes, dice: Random) -> bytes:
    return body[: dice.randrange(len(body) + 1)] + other[dice.randrange(len(other) + 1) :]


def _random(_body: bytes, _other: bytes, dice: Random) -> bytes:
    return dice.randbytes(dice.randrange(64))


MUTATIONS: tuple[Mutation, ...] = (
    _flip, _flip, _flip, _truncate, _insert, _insert_special, _remove, _duplicate, _splice, _random,
)  # fmt: skip


def _slice(body: bytes, dice: Random) -> tuple[int, int]:
    first = dice.randrange(len(body) + 1)
    return first, first + dice.randrange(min(len(body) - first, 64) + 1)


def mutated_fields(body: bytes, dice: Random) -> bytes:
    """*body*, a protobuf message, in which one to three fields are not what they should be."""
    for _ in range(dice.choice((1, 1, 2, 3))):
        body = _changed_fields(body, dice)
    return body


def _changed_fields(body: bytes, dice: Random) -> bytes:
    """A message in which a field, of it or of a message in it, changed; all lengths are right."""
    fields = list(_fields(body))
    if not fields or dice.random() < 0.1:
        return mutated(body, body, dice)
    at = dice.randrange(len(fields))
    tag, payload = fields[at]
    match dice.randrange(10):
        case 0:
            new = []
        case 1:
            new = [(tag, payload)] * dice.randrange(2, 4)
        case 2:
            new = [(dice.randrange(8, 128), payload)]  # another field, or another type
        case 3:
            new = [(tag, payload), (1023 << 3 | 2, dice.randbytes(3))]
        case _:
            new = [
                (tag, _changed_fields(payload, dice) if tag & 7 == 2 else _flipped(payload, dice))
            ]
    return b"".join(_field(*one) for one in [*fields[:at], *new, *fields[at + 1 :]])


def _flipped(payload: bytes, dice: Random) -> bytes:
    return _flip(payload, b"", dice)


def _fields(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and payload of the fields of a message, as far as it is one."""
    at = 0
    while at < len(body):
        tag, at = _varint(body, at)
        match tag & 7:
            case 0:
                _, end = _varint(body, at)
            case 2:
                size, at = _varint(body, at)
                end = at + size
            case kind:
                end = at + {1: 8, 5: 4}.get(kind, len(body))
        yield tag, body[at:end]
        at = end


def _field(tag: int, payload: bytes) -> bytes:
    size = _as_varint(len(payload)) if tag & 7 == 2 else b""
    return _as_varint(tag) + size + payload


def _varint(body: bytes, at: int) -> tuple[int, int]:
    number, shift = 0, 0
    while at < len(body):
        byte, at = body[at], at + 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    return number, at


def _as_varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


# Values that JSON can say where something else belongs.
WRONG: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, -0.0, 2**53 + 1, 2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**400,
    float("nan"), float("inf"), "", "x", "0", "1e5", "NaN", "-Infinity", "9" * 60, " 7 ", "\0",
    "\ud800", "\udfff\ud800", [], {}, [None], [[]], [{}], {"": None}, {"key": 5}, {"values": [5]},
    {"stringValue": ["x"]}, {"intValue": "x"}, {"arrayValue": {"values": [{"intValue": "1"}]}},
)  # fmt: skip


def mutated_json(document: Any, dice: Random) -> bytes:
    """The text of *document*, in which one to three nodes are not what they should be."""
    for _ in range(dice.choice((1, 1, 2, 3))):
        document = _changed(document, dice)
    text = json.dumps(document, ensure_ascii=dice.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def _changed(node: Any, dice: Random) -> Any:
    """A copy of *node* in which something below it, or itself, is another thing."""
    if not node or not isinstance(node, dict | list) or dice.random() < 0.1:
        return _instead(node, dice)
    if isinstance(node, list):
        at = dice.randrange(len(node))
        return [*node[:at], *_items(node[at], dice), *node[at + 1 :]]
    key = dice.choice(list(node))
    if dice.random() < 0.08:
        return {dice.choice(_names(key)) if name == key else name: node[name] for name in node}
    return {**node, key: _changed(node[key], dice)}


def _items(item: Any, dice: Random) -> list[Any]:
    match dice.randrange(12):
        case 0:
            return []
        case 1:
            return [item] * dice.randrange(2, 5)
        case _:
            return [_changed(item, dice)]


def _names(key: str) -> tuple[str, ...]:
    snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in key)
    return (snake, key.upper(), "", "tomorrow", "asInt", "attributes", "\ud800")


def _instead(node: Any, dice: Random) -> Any:
    match dice.randrange(8):
        case 0:
            return _nested(node, dice)
        case 1:
            return [node]
        case 2:
            return {"key": node, "value": node}
        case _:
            return dice.choice(WRONG)


def _nested(node: Any, dice: Random) -> Any:
    shape = dice.choice(("arrayValue", "kvlistValue", None))
    for _ in range(dice.choice((1, 5, 20, 60))):
        node = [node] if shape is None else {shape: {"values": [{"key": "k", "value": node}]}}
    return node
