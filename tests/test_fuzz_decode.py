"""
Damaged bodies: each is kept in a journal or refused, and nothing else; memory stays flat.

They come as the doors hand them over; `test_receiver_limits.py` sends others through the doors.
"""

from __future__ import annotations

import json
import os
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

from fleet_runs import fleet_in, quiet_end
from hubmeter.batch import PointBatch
from hubmeter.deadline import Deadline
from hubmeter.decode.otlp_json import JsonDecoder
from hubmeter.decode.otlp_proto import ProtoDecoder
from hubmeter.errors import DecodeError
from hubmeter.fleet import Fleet
from hubmeter.ledger import gather, pack
from hubmeter.receiver.answers import Form, Signal, Status
from hubmeter.receiver.intake import Intake
from hubmeter.run import begin_run
from hubmeter.sealing import options_of, tables_of
from hubmeter.settings import load_settings
from mutations import mutated, mutated_fields, mutated_json
from otlp_wire import contents, json_of, random_request, random_traces
from receivers import Highest

SOAK = int(os.environ.get("SOAK", "1"))
SEED = int(os.environ.get("SOAK_SEED", "20261123"))
BODIES = 10_000 * SOAK
"""Of each kind: 10,000 in `make test`, 100,000 in `make soak`."""

FLATTENED = 500 * SOAK
MOST_GROWTH_MIB = 100
"""Decoders remember at most about 64 MiB each."""

REFUSED = {"varint", "length", "deep", "groups", "deep lists", "deep objects"}


def requests_of(dice: Random, make: Callable[[Random], Any] = random_request) -> list[Any]:
    """Good requests, few of them empty."""
    made = [make(dice) for _ in range(400)]
    return [one for one in made if one.ByteSize() > 300] + made[:20]


def proto_bodies(dice: Random, requests: list[Any]) -> Iterator[bytes]:
    """Damaged as bytes, or field by field."""
    bodies = [request.SerializeToString() for request in requests]
    for _ in range(BODIES):
        if dice.random() < 0.6:
            yield mutated_fields(dice.choice(bodies), dice)
        else:
            yield mutated(dice.choice(bodies), dice.choice(bodies), dice)


def json_bodies(dice: Random, requests: list[Any]) -> Iterator[bytes]:
    """Damaged as text, or as a tree."""
    trees = [json_of(request) for request in requests]
    bodies = [json.dumps(tree, ensure_ascii=False).encode() for tree in trees]
    for _ in range(BODIES):
        if dice.random() < 0.6:
            yield mutated_json(dice.choice(trees), dice)
        else:
            yield mutated(dice.choice(bodies), dice.choice(bodies), dice)


@pytest.fixture(name="fleet")
def _fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Keeps what is taken, as `hubmeter serve` does; damaged ids make many runs."""
    fleet = fleet_in(tmp_path, run_id="r", most_runs=20, journal_limit_mib=4096)
    yield fleet
    quiet_end(fleet)


@pytest.mark.timeout(120 * SOAK)
@pytest.mark.parametrize("form", ["protobuf", "json"])
@pytest.mark.parametrize("signal", ["metrics", "traces"])
def test_damaged_bodies_are_kept_or_refused(
    signal: Signal, form: Form, fleet: Fleet, report_counts
) -> None:
    """
    Ten thousand of each kind, seeded: 200 and it is in a journal, or 400; never a 5xx.

    All that was kept can be published.
    """
    dice, started = Random(SEED), time.monotonic()
    requests = requests_of(dice, random_request if signal == "metrics" else random_traces)
    bodies = (proto_bodies if form == "protobuf" else json_bodies)(dice, requests)
    seen = Seen(fleet)
    with Highest() as memory:
        for body in bodies:
            seen.take(signal, form, body)
    report_counts(
        f"fuzz {signal} {form}: {dict(seen.counts)}, {fleet.status()['runs_open']} runs open, "
        f"memory +{memory.grown_mib:.0f} MiB, {time.monotonic() - started:.1f} s"
    )

    assert seen.counts["OK"] + seen.counts["BAD_DATA"] == BODIES
    assert min(seen.counts.values()) > BODIES / 50
    assert fleet.status()["points_acknowledged"] == seen.points
    assert memory.grown_mib < MOST_GROWTH_MIB
    _flatten(seen.batches)
    assert fleet.close(Deadline.after(60 * SOAK)), fleet.status()


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
    """
    What became of bodies that were handed to an intake, whose batches a fleet keeps.

    Attributes:
        counts: Of answers, by their name, and of what was in them.
        points: That are acknowledged.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.counts: Counter[str] = Counter()
        self.points = 0
        self.batches: list[PointBatch] = []
        self._fleet = fleet
        self._intake = Intake(self._deliver)

    def take(self, signal: Signal, form: Form, body: bytes) -> None:
        answer = self._intake.take(signal, form, body)
        assert answer.status in (Status.OK, Status.BAD_DATA), (answer, body)
        self.counts[answer.status.name] += 1
        self.counts["with unusable parts"] += answer.rejected > 0

    def _deliver(self, batch: PointBatch) -> None:
        packed = pack(batch)
        width = len(batch.layout.series)
        assert len(packed.values) == width
        assert len(packed.times_unix_nano) in {1, width}
        assert len(packed.starts) == width
        self._fleet.deliver(batch)
        self.points += width
        self.counts["with points"] += width > 0
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
