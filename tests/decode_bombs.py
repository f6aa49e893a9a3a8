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
from pathlib import Path
from tempfile import TemporaryDirectory

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from hubmeter.batch import PointBatch
from hubmeter.decode.otlp_json import JsonDecoder
from hubmeter.decode.otlp_proto import ProtoDecoder
from hubmeter.errors import DecodeError
from hubmeter.fleet import Fleet
from hubmeter.ledger import pack
from hubmeter.receiver.answers import Status
from hubmeter.receiver.intake import Intake
from hubmeter.settings import load_settings
from makers import T0

SIZE = 2**18
Take = Callable[[bytes], str]
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


def series_of_a_long_resource() -> bytes:
    """Each of them belongs to that resource, which is there once."""
    request = ExportMetricsServiceRequest()
    one = request.resource_metrics.add()
    one.resource.attributes.add(key="k").value.string_value = "x" * (SIZE // 2)
    points = one.scope_metrics.add().metrics.add(name="m").gauge.data_points
    for number in range(SIZE // 2 // 22):
        point = points.add(time_unix_nano=T0)
        point.attributes.add(key="i").value.int_value = number
    return request.SerializeToString()


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
TIMED = b"\x0a\x09\x19" + bytes([1] * 8)
RECEIVED = {
    **PROTO,
    "timed points": nested(1, 2, 2, 5, TIMED * (SIZE // len(TIMED))),
    "distributions": nested(1, 2, 2, 10, TIMED * (SIZE // len(TIMED))),
    "series of a long resource": series_of_a_long_resource(),
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


def packed(decode: Callable[[bytes], PointBatch]) -> Take:
    def take(body: bytes) -> str:
        try:
            pack(decode(body))
        except DecodeError:
            return "refused"
        return "decoded"

    return take


def received(body: bytes) -> str:
    """The whole road of a receiver, to the journal."""
    with TemporaryDirectory() as folder:
        settings = load_settings(journal_dir=folder, to=str(Path(folder) / "data"))
        answer = Intake(Fleet(settings).deliver).take("metrics", "protobuf", body)
    return {Status.OK: "decoded", Status.BAD_DATA: "refused"}.get(answer.status, str(answer))


def tried(take: Take, body: bytes) -> tuple[float, str]:
    before = _peak_bytes()
    what = take(body)
    return (_peak_bytes() - before) / max(len(body), SIZE), what


def in_child(take: Take, body: bytes) -> tuple[float, str]:
    """In a process of its own, whose peak is that of this body."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.write(writer, json.dumps(tried(take, body)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    return tuple(json.loads(answer)) if answer else (-1, "died")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def all_tried(bodies: Mapping[str, bytes], take: Take) -> dict[str, object]:
    return {name: in_child(take, body) for name, body in bodies.items()}


if __name__ == "__main__":
    received(nested(1, 2, 2, 5, 1, b""))  # loads what it needs
    found = {
        "protobuf": all_tried(PROTO, packed(ProtoDecoder().decode)),
        "json": all_tried(JSON, packed(JsonDecoder().decode_request)),
        "received": all_tried(RECEIVED, received),
    }
    json.dump(found, sys.stdout)
