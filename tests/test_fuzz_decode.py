"""Damaged bodies: each is decoded or refused; nothing else is raised, and memory stays flat."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from google.protobuf.message import DecodeError as ProtobufError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from hubmeter.batch import PointBatch
from hubmeter.decode.otlp_json import JsonDecoder
from hubmeter.decode.otlp_proto import ProtoDecoder
from hubmeter.errors import DecodeError
from hubmeter.ledger import gather, pack
from hubmeter.run import begin_run
from hubmeter.sealing import options_of, tables_of
from hubmeter.settings import load_settings
from mutations import mutated, mutated_fields, mutated_json
from otlp_wire import contents, json_of, random_request

SOAK = int(os.environ.get("SOAK", "1"))
SEED = int(os.environ.get("SOAK_SEED", "20261123"))
BODIES = 10_000 * SOAK
FLATTENED = 500 * SOAK
MOST_GROWTH_MIB = 200
"""Of the process, whose peak the kernel keeps: decoders remember at most about 64 MiB each."""

REFUSED = {"varint", "length", "deep", "groups", "deep lists", "deep objects"}

Decode = Callable[[bytes], PointBatch]


def requests_of(dice: Random) -> list[Any]:
    """Good requests, few of them empty."""
    made = [random_request(dice) for _ in range(400)]
    return [one for one in made if one.ByteSize() > 300] + made[:20]


def proto_bodies(dice: Random) -> Iterator[bytes]:
    """Damaged as bytes, or field by field."""
    bodies = [request.SerializeToString() for request in requests_of(dice)]
    for _ in range(BODIES):
        if dice.random() < 0.6:
            yield mutated_fields(dice.choice(bodies), dice)
        else:
            yield mutated(dice.choice(bodies), dice.choice(bodies), dice)


def json_bodies(dice: Random) -> Iterator[bytes]:
    """Damaged as text, or as a tree."""
    trees = [json_of(request) for request in requests_of(dice)]
    bodies = [json.dumps(tree, ensure_ascii=False).encode() for tree in trees]
    for _ in range(BODIES):
        if dice.random() < 0.6:
            yield mutated_json(dice.choice(trees), dice)
        else:
            yield mutated(dice.choice(bodies), dice.choice(bodies), dice)


@pytest.mark.timeout(60 * SOAK)
@pytest.mark.parametrize("encoding", ["protobuf", "json"])
def test_damaged_bodies_are_decoded_or_refused(encoding: str, report_counts) -> None:
    """Ten thousand, seeded: a batch that the ledger and the tables take, or DecodeError."""
    dice, started, before = Random(SEED), time.monotonic(), _peak_mib()
    decode, bodies = (
        (ProtoDecoder().decode, proto_bodies)
        if encoding == "protobuf"
        else (JsonDecoder().decode_request, json_bodies)
    )
    seen = Seen(decode)
    for body in bodies(dice):
        seen.take(body)
    growth = _peak_mib() - before
    report_counts(
        f"fuzz {encoding}: {dict(seen.counts)}, peak memory +{growth:.0f} MiB, "
        f"{time.monotonic() - started:.1f} s"
    )

    assert seen.counts["decoded"] + seen.counts["refused"] == BODIES
    assert min(seen.counts.values()) > BODIES / 50
    assert growth < MOST_GROWTH_MIB
    _flatten(seen.batches)


@pytest.mark.timeout(60 * SOAK)
def test_damaged_protobuf_is_decoded_as_its_json_is(report_counts) -> None:
    """What protobuf's parser takes says the same in both forms; no body spoils the next."""
    dice, compared = Random(SEED + 1), 0
    bodies = [request.SerializeToString() for request in requests_of(dice)]
    proto, json_decoder = ProtoDecoder(), JsonDecoder()
    for _ in range(BODIES // 4):
        body = mutated_fields(dice.choice(bodies), dice)
        try:
            parsed = ExportMetricsServiceRequest.FromString(body)
        except ProtobufError:
            with pytest.raises(DecodeError, match="no OTLP metrics request in protobuf"):
                proto.decode(body)
            continue
        text = json.dumps(json_of(parsed)).encode()
        assert contents(proto.decode(body)) == contents(json_decoder.decode_request(text))
        compared += 1
    report_counts(f"fuzz: {compared} damaged requests decoded alike in protobuf and JSON")

    assert compared > BODIES / 16


def test_bombs_take_memory_by_their_size() -> None:
    """
    Many empty parts, deep nesting, large numbers, and what is said once for many: 130 times the
    body at worst, decoded and packed, or on the whole road to the journal.
    """
    program = Path(__file__).with_name("decode_bombs.py")
    done = subprocess.run([sys.executable, program], stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)

    assert sum(map(len, found.values())) > 40
    for road, name, (per_byte, what) in (
        (road, *one) for road, bodies in found.items() for one in bodies.items()
    ):
        is_refused = name in REFUSED or (road, name) == ("received", "points")
        assert (road, name, what) == (road, name, "refused" if is_refused else "decoded")
        assert per_byte < 130, (road, name)


class Seen:
    """What became of the bodies."""

    def __init__(self, decode: Decode) -> None:
        self.counts: Counter[str] = Counter()
        self.batches: list[PointBatch] = []
        self._decode = decode

    def take(self, body: bytes) -> None:
        try:
            batch = self._decode(body)
        except DecodeError:
            self.counts["refused"] += 1
            return
        packed = pack(batch)
        width = len(batch.layout.series)
        assert len(packed.values) == width
        assert len(packed.times_unix_nano) in {1, width}
        assert len(packed.starts) == width
        self.counts["decoded"] += 1
        self.counts["with points"] += width > 0
        self.counts["with skipped"] += sum(batch.skipped.values()) > 0
        if width and len(self.batches) < FLATTENED:
            self.batches.append(batch)


def _flatten(batches: list[PointBatch]) -> None:
    """The whole road, ten batches at a time, as of one run."""
    assert len(batches) == FLATTENED
    options = options_of(begin_run(load_settings(points="all"), 0))
    for first in range(0, len(batches), 10):
        some = batches[first : first + 10]
        tables = tables_of(gather(iter(some)), options)
        assert tables["default"].num_rows + tables["points"].num_rows > 0


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
