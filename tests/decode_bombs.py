"""
Small bodies that want much memory or much time: how much memory each takes, in a process each.

A program: prints JSON of encoding to name to [bytes of memory per byte, what became of it].
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Mapping

from hubmeter.batch import PointBatch
from hubmeter.decode.otlp_json import JsonDecoder
from hubmeter.decode.otlp_proto import ProtoDecoder
from hubmeter.errors import DecodeError
from hubmeter.ledger import pack

SIZE = 2**17
Decode = Callable[[bytes], PointBatch]
LONG = b"x" * SIZE


def nested(*tags_and_body: int | bytes) -> bytes:
    """A protobuf message in a message in a message."""
    *tags, body = tags_and_body
    for tag in reversed(tags):
        body = bytes([tag << 3 | 2]) + varint(len(body)) + body
    return body


def varint(number: int) -> bytes:
    low, high = number & 127, number >> 7
    return bytes([low | 128]) + varint(high) if high else bytes([low])


def empty(field: int) -> bytes:
    """Empty messages, two bytes each."""
    return bytes([field << 3 | 2, 0]) * (SIZE // 2)


def items(text: str) -> str:
    return ",".join([text] * (SIZE // (len(text) + 1)))


def point(text: str, kind: str = "gauge") -> bytes:
    return metric(f'{{"{kind}":{{"dataPoints":[{text}]}}}}')


def metric(text: str) -> bytes:
    return f'{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{text}]}}]}}]}}'.encode()


PROTO = {
    "resources": empty(1),
    "scopes": nested(1, empty(2)),
    "metrics": nested(1, 2, empty(2)),
    "points": nested(1, 2, 2, 5, empty(1)),
    "attributes": nested(1, 2, 2, 5, 1, empty(7)),
    "exemplars": nested(1, 2, 2, 5, 1, empty(5)),
    "array": nested(1, 2, 2, 5, 1, 7, 2, 5, empty(1)),
    "buckets": nested(1, 2, 2, 10, 1, 8, 2, bytes(SIZE)),
    "quantiles": nested(1, 2, 2, 11, 1, empty(6)),
    "name": nested(1, 2, 2, 1, LONG),
    "varint": b"\xff" * SIZE,
    "length": b"\x0a\xff\xff\xff\xff\x07",
    "deep": b"\x0a" * SIZE,
    "groups": b"\x0b" * SIZE,
}
JSON = {
    "resources": b'{"resourceMetrics":[' + items("{}").encode() + b"]}",
    "metrics": metric(items("{}")),
    "points": point(items("{}")),
    "no points": point(items("0")),
    "attributes": point('{"attributes":[' + items("{}") + "]}"),
    "exemplars": point('{"exemplars":[' + items("{}") + "]}"),
    "buckets": point('{"bucketCounts":[' + items("0") + "]}", "histogram"),
    "name": metric('{"name":"' + LONG.decode() + '","gauge":{"dataPoints":[{}]}}'),
    "lists": b'{"a":[' + items("[]").encode() + b"]}",
    "digits": b'{"a":' + b"9" * SIZE + b"}",
    "deep lists": b"[" * SIZE,
    "deep objects": b'{"a":' * (SIZE // 5),
}


def tried(decode: Decode, body: bytes) -> tuple[float, str]:
    before, what = _peak_bytes(), "decoded"
    try:
        pack(decode(body))
    except DecodeError:
        what = "refused"
    return (_peak_bytes() - before) / SIZE, what


def in_child(decode: Decode, body: bytes) -> tuple[float, str]:
    """In a process of its own, whose peak is that of this body."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.write(writer, json.dumps(tried(decode, body)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    return tuple(json.loads(answer)) if answer else (-1, "died")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def all_tried(bodies: Mapping[str, bytes], decode: Decode) -> dict[str, object]:
    return {name: in_child(decode, body) for name, body in bodies.items()}


if __name__ == "__main__":
    found = {
        "protobuf": all_tried(PROTO, ProtoDecoder().decode),
        "json": all_tried(JSON, JsonDecoder().decode_request),
    }
    json.dump(found, sys.stdout)
