"""Files of a Collector's file exporter, in every form, whole and damaged."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from google.protobuf.json_format import ParseDict
from hypothesis import assume, given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from hubmeter.captures import unpacking
from hubmeter.captures.reading import BROKEN, BROKEN_DOCUMENT, TOO_LARGE, CaptureReader
from hubmeter.captures.rotation import backups_beside, captures_in, in_order
from hubmeter.captures.unpacking import CUT_OFF, DAMAGED, ZSTD
from hubmeter.captures.wire import signal_of
from hubmeter.convert import flatten, read_points
from hubmeter.decode.otlp_json import BAD_LINE
from hubmeter.errors import DecodeError
from hubmeter.ledger import Points
from hubmeter.terminal import Progress
from makers import POWER, SECOND, T0, UTIL, gauge, point, request
from observed import undisturbed  # noqa: F401
from orphans import invoke
from real_collector import Collector, needs_collector

RECORDS = 12


def record(number: int) -> dict[str, Any]:
    """A request whose points have *number* as value."""
    time = T0 + number * SECOND
    return request(
        gauge(POWER, "W", point(float(number), time, gpu=0), point(float(number), time, gpu=1)),
        gauge(UTIL, "%", point(float(number), time, gpu=0)),
        resource={"service.name": "agent", "host.name": "h"},
    )


def in_json(one: dict[str, Any]) -> bytes:
    return json.dumps(one, separators=(",", ":")).encode()


def in_protobuf(one: dict[str, Any]) -> bytes:
    return ParseDict(one, ExportMetricsServiceRequest()).SerializeToString()


def prefixed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def line(one: dict[str, Any]) -> bytes:
    return in_json(one) + b"\n"


def framed_line(one: dict[str, Any]) -> bytes:
    """As a rotating exporter writes it: the newline is a frame of its own."""
    return zstd(in_json(one)) + zstd(b"\n")


PARTS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "JSON lines": line,
    "protobuf": lambda one: prefixed(in_protobuf(one)),
    "zstd of protobuf": lambda one: prefixed(zstd(in_protobuf(one))),
    "zstd of JSON": lambda one: prefixed(zstd(in_json(one))),
    "frames of JSON lines": framed_line,
    "frames of protobuf": lambda one: zstd(prefixed(in_protobuf(one))),
}
"""Forms in which each record is on its own: what one is in the file."""

WHOLE: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "members of gzip": lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]),
    "zstd": zstd,
    "gzip of zstd": lambda data: gzip.compress(zstd(data)),
}
"""What may be done to a whole file."""


def values(points: Points) -> list[int]:
    """The numbers of the records whose points are there, all three of each."""
    found = sorted(int(value) for block in points.blocks for value in block.values)
    assert [found.count(number) for number in set(found)] == [3] * (len(found) // 3)
    return sorted(set(found))


def read(source: Any) -> tuple[list[int], dict[str, int]]:
    """Which records are there, and what was skipped."""
    try:
        points = read_points(source)
    except DecodeError as error:
        counts = dict[str, int]()
        for reason in (CUT_OFF, BAD_LINE, BROKEN, DAMAGED, BROKEN_DOCUMENT):
            if f" x {reason}" in str(error):
                counts[reason] = int(str(error).split(f" x {reason}")[0].split()[-1])
        return [], counts
    return values(points), dict(points.skipped)


def joined(form: str, numbers: Iterable[int] = range(RECORDS)) -> bytes:
    return b"".join(PARTS[form](record(number)) for number in numbers)


ALL = list(range(RECORDS))

# -- forms


@pytest.mark.parametrize("form", PARTS)
@pytest.mark.parametrize("whole", WHOLE)
def test_every_form_is_read(form: str, whole: str) -> None:
    """By content, as bytes."""
    assert read(WHOLE[whole](joined(form))) == (ALL, {})


@pytest.mark.parametrize("form", PARTS)
def test_paths_and_open_files_are_read(form: str, tmp_path: Path) -> None:
    """The name says nothing; a pipe gives what it has."""
    (tmp_path / "capture.txt").write_bytes(joined(form))
    assert read(tmp_path / "capture.txt") == read(str(tmp_path / "capture.txt")) == (ALL, {})
    with (tmp_path / "capture.txt").open("rb") as file:
        assert read(file) == (ALL, {})
    assert flatten(io.BytesIO(joined(form))).num_rows == 2 * RECORDS

    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", 0) as source, os.fdopen(writer, "wb", 0) as sink:
        thread = threading.Thread(target=lambda: (sink.write(joined(form)), sink.close()))
        thread.start()
        assert read(source) == (ALL, {})
        thread.join()


@pytest.mark.parametrize("whole", WHOLE)
@pytest.mark.parametrize(
    "document",
    [
        json.dumps([record(n) for n in ALL]).encode(),
        json.dumps([record(n) for n in ALL], indent=2).encode(),
        b"[\n" + b",\n".join(map(in_json, map(record, ALL))) + b"\n]\n",
        json.dumps({"run_id": "r", "resourceMetrics": [
            one for n in ALL for one in record(n)["resourceMetrics"]]}, indent=1).encode(),
        b"\xef\xbb\xbf" + joined("JSON lines").replace(b"\n", b"\r\n"),
        joined("JSON lines").decode().encode("utf-16"),
        b"\n" + joined("JSON lines").rstrip(),
        b"".join(map(in_protobuf, map(record, ALL))),
    ],
    ids=["array", "indented", "line each", "smoltrace", "Windows", "UTF-16", "newline", "message"],
)  # fmt: skip
def test_other_files_with_otlp_are_read(document: bytes, whole: str) -> None:
    """JSON as people store it, and a single protobuf message, which is its parts in a row."""
    assert read(WHOLE[whole](document)) == (ALL, {})


def test_text_that_is_open_as_text_is_refused(tmp_path: Path) -> None:
    """With what to do."""
    (tmp_path / "m.json").write_bytes(joined("JSON lines"))
    with (tmp_path / "m.json").open() as file, pytest.raises(DecodeError, match="binary mode"):
        read_points(file)


def big(numbers: Iterable[int], *, series: int) -> dict[str, Any]:
    """A request with many series."""
    times = [T0 + number * SECOND for number in numbers]
    return request(
        *(gauge(f"m.{i}", "1", *(point(float(i), time, gpu=0) for time in times))
          for i in range(series))
    )  # fmt: skip


@pytest.mark.parametrize("form", ["JSON lines", "protobuf", "zstd of JSON"])
def test_a_record_of_tens_of_megabytes(form: str) -> None:
    """Between small ones. The memory is a few times the record."""
    large = big(range(3), series=500)
    large["resourceMetrics"][0]["resource"] = {
        "attributes": [{"key": "large", "value": {"stringValue": "x" * 40_000_000}}]
    }
    make = PARTS[form]
    points = read_points(make(record(0)) + make(large) + make(record(1)))
    assert sum(len(block.values) for block in points.blocks) == 1506
    assert points.skipped == {}


# -- cut off


@pytest.mark.parametrize("form", PARTS)
def test_a_cut_costs_the_last_record_only(form: str) -> None:
    """Wherever it is."""
    data = joined(form, range(4))
    ends = [len(joined(form, range(number + 1))) for number in range(4)]
    newline = {"JSON lines": 1, "frames of JSON lines": len(zstd(b"\n"))}.get(form, 0)
    checksum = 4 if form.startswith("frames") else 0
    for cut in range(1, len(data), 7 if form == "JSON lines" else 2):
        whole = [number for number, end in enumerate(ends) if end - newline - checksum <= cut]
        is_clean = cut in ends or cut + newline in ends
        found, skipped = read(data[:cut])
        assert found == whole, cut
        if cut > 4 and not (newline > 1 and any(0 < end - cut < newline for end in ends)):
            assert skipped == ({} if is_clean else {CUT_OFF: 1}), cut


@pytest.mark.parametrize("whole", ["gzip", "zstd", "gzip of zstd"])
@pytest.mark.parametrize("form", PARTS)
def test_a_cut_in_a_compressed_file(form: str, whole: str) -> None:
    """What can be unpacked is read, and the cut is counted once."""
    noise = random.Random(1)
    records = [record(n) for n in ALL]
    for one in records:  # else all is one block
        text = "".join(noise.choices("abcdefghijklmnopqrstuvwxyz", k=90_000))
        one["resourceMetrics"][0]["resource"]["attributes"] += [
            {"key": "noise", "value": {"stringValue": text}}
        ]
    data = WHOLE[whole](b"".join(PARTS[form](one) for one in records))
    for share in (0.3, 0.6, 0.95):
        found, skipped = read(data[: int(len(data) * share)])
        assert found == ALL[: len(found)]
        assert RECORDS * share - 4 < len(found) < RECORDS
        assert skipped.pop(CUT_OFF) == 1
        # Frames in frames: after the cut an inner one looks like the next outer one.
        assert not skipped or (whole.endswith("zstd") and form not in {"JSON lines", "protobuf"})


@pytest.mark.parametrize("document", ["indented", "message"])
def test_a_document_that_is_cut_off(document: str) -> None:
    """It is one record: nothing of it is made up."""
    data = {
        "indented": json.dumps([record(n) for n in ALL], indent=2).encode(),
        "message": b"".join(map(in_protobuf, map(record, range(1)))),
    }[document]
    for cut in range(20, len(data) - 1, 197 if document == "indented" else 7):
        found, skipped = read(data[:cut])
        assert (found, sum(skipped.values())) == ([], 1), cut


# -- damaged in the middle


@pytest.mark.parametrize("form", PARTS)
@pytest.mark.parametrize("number", [0, 5, 11])
def test_a_broken_record_costs_itself(form: str, number: int) -> None:
    """Its bytes are overwritten, its length is right."""
    parts = [PARTS[form](record(n)) for n in ALL]
    size = len(parts[number])
    parts[number] = parts[number][:6] + b"\xff" * (size - 16) + parts[number][-10:]
    found, skipped = read(b"".join(parts))
    assert found == [n for n in ALL if n != number]
    assert 1 <= sum(skipped.values()) <= 2


@pytest.mark.parametrize("form", PARTS)
def test_a_collector_that_was_killed_and_went_on(form: str) -> None:
    """With `append: true`, a whole record follows a torn one: only the torn one is lost."""
    parts = [PARTS[form](record(n)) for n in ALL]
    noise = random.Random(2)
    for _ in range(25):
        torn = noise.randrange(RECORDS - 1)
        cut = noise.randrange(2, len(parts[torn]) - 20)
        data = b"".join([*parts[:torn], parts[torn][:cut], *parts[torn + 1 :]])
        found, skipped = read(data)
        assert found == [n for n in ALL if n != torn], (torn, cut)
        assert 1 <= sum(skipped.values()) <= 2


# What the last bytes of a message say
ENDS: dict[str, Callable[[int], dict[str, Any]]] = {
    "double": lambda time: request(gauge(POWER, "W", point(time / 7e9, time))),
    "integer": lambda time: request(gauge(POWER, "W", point(time // 10**9, time))),
    "attribute": lambda time: request(gauge(POWER, "W", point(time / 7e9, time, gpu=0))),
    "several": lambda time: request(gauge(POWER, "W", *(point(0.1, time, gpu=n) for n in "abc"))),
    "address": lambda time: {"resourceMetrics": [
        request(gauge(UTIL, "%", point(0.5, time)))["resourceMetrics"][0]
        | {"schemaUrl": f"https://example.com/{'s' * (time % 97)}"}]},
    "resources": lambda time: {"resourceMetrics": [
        one for host in "ab"
        for one in request(gauge(POWER, "W", point(1.5, time)), resource={"host.name": host})[
            "resourceMetrics"]]},
}  # fmt: skip
MESSAGES: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "protobuf": PARTS["protobuf"],
    "zstd of protobuf": PARTS["zstd of protobuf"],
    "without a checksum": lambda one: prefixed(zstandard.compress(in_protobuf(one))),
    "zstd of JSON": PARTS["zstd of JSON"],
}
"""Records behind their lengths."""


def measured(*files: bytes) -> list[tuple[Any, ...]]:
    """Who measured what and when, record by record."""
    batches = CaptureReader().read(files)
    return [
        (one.layout.series, [*one.times_unix_nano], [*one.values]) for one in batches if one.values
    ]


@given(
    form=st.sampled_from(sorted(MESSAGES)),
    ends=st.lists(st.sampled_from(sorted(ENDS)), min_size=1, max_size=8),
    torn=st.integers(0, 7),
    by=st.integers(1, 20) | st.integers(1, 1000),
)
def test_whole_messages_are_read_and_nothing_else(
    form: str, ends: list[str], torn: int, by: int
) -> None:
    """Any one is torn, by any number of bytes, and others follow in the same file."""
    parts = [MESSAGES[form](ENDS[end](T0 + n * SECOND)) for n, end in enumerate(ends)]
    torn %= len(parts)
    by = min(by, len(parts[torn]))
    # Then they fill it, and no length tells.
    assume(by not in {sum(map(len, parts[torn + 1 : n])) for n in range(torn + 2, len(parts) + 1)})

    whole = parts[:torn] + parts[torn + 1 :]
    data = b"".join([*parts[:torn], parts[torn][:-by], *parts[torn + 1 :]])
    assert measured(data) == measured(b"".join(whole))


@pytest.mark.parametrize("form", MESSAGES)
@pytest.mark.parametrize("end", ENDS)
def test_what_is_behind_a_whole_message_does_not_spoil_it(form: str, end: str) -> None:
    """Noise in the same file, or the next file: a torn end, and a message without a length."""
    one, two = (MESSAGES[form](ENDS[end](T0 + n * SECOND)) for n in range(2))
    single = in_protobuf(ENDS[end](T0 + 2 * SECOND))
    noise = random.Random(7)
    for behind in (b"\n", b"\xff" * 50, b"\0" * 4, *map(noise.randbytes, range(1, 40))):
        assert measured(one + behind) == measured(one), behind
    for by in range(1, 12):
        assert measured(one + two[:-by], two) == measured(one + two)
    assert measured(one, single) == measured(one) + measured(single)


@pytest.mark.parametrize("form", ["protobuf", "zstd of protobuf", "zstd of JSON"])
@pytest.mark.parametrize(
    "length",
    [0, 1, 5000, 2**24, 2**31, 2**32 - 1],
)
def test_a_wrong_length_is_one_loss(form: str, length: int) -> None:
    """Zero, too short, too long, absurd: the reader finds the next genuine message."""
    parts = [PARTS[form](record(n)) for n in ALL]
    parts[4] = length.to_bytes(4, "big") + parts[4][4:]
    assert read(b"".join(parts)) == ([n for n in ALL if n != 4], {DAMAGED: 1})
    parts[11] = length.to_bytes(4, "big") + parts[11][4:]
    found, skipped = read(b"".join(parts))
    assert found == [n for n in ALL if n not in {4, 11}]
    assert sum(skipped.values()) == 2


@pytest.mark.parametrize("form", ["JSON lines", "protobuf", "zstd of protobuf", "zstd of JSON"])
def test_a_file_that_begins_in_the_middle(form: str) -> None:
    """The file before it was removed: only the record that began there is lost."""
    data = joined(form)
    for cut in range(1, len(PARTS[form](record(0))) - 1, 9):
        found, skipped = read(data[cut:])
        assert found == ALL[1:], cut
        assert sum(skipped.values()) == 1


def test_a_file_that_begins_anywhere_in_a_line() -> None:
    """Also with four characters in front of an object, which would be a length of 574 megabytes."""
    first = line(request(gauge(POWER, "W", point(1, T0, a=1, b=2), point(2, T0, a=3))))
    rest = joined("JSON lines", range(3))
    for cut in range(1, len(first) - 1):
        assert read(first[cut:] + rest) == ([0, 1, 2], {BAD_LINE: 1}), first[cut : cut + 9]


def test_a_line_that_goes_on_behind_a_torn_one_may_be_split_too() -> None:
    """Its two parts are in two files, the first of them behind what a killed Collector wrote."""
    torn, whole, last = (line(ENDS["double"](T0 + n * SECOND)) for n in range(3))
    for cut in range(1, len(whole)):
        files = torn[: cut % (len(torn) - 1)] + whole[:cut], whole[cut:] + last
        assert measured(*files) == measured(whole + last), cut


@pytest.mark.parametrize("form", PARTS)
def test_holes_are_one_loss_each(form: str) -> None:
    """Zeros where a disk lost its power."""
    hole = b"\0" * 100_001
    halves = joined(form, range(6)), joined(form, range(6, 12))
    found, skipped = read(hole.join(halves) + hole)
    assert found == ALL or (form == "JSON lines" and found == [n for n in ALL if n != 6])
    assert sum(skipped.values()) == 2


def test_a_hole_does_not_make_up_the_end_of_a_number() -> None:
    """Where a message before it ends in zero, too, these zeros may be of the hole."""
    one, two = (PARTS["protobuf"](ENDS["double"](T0 + n * SECOND)) for n in range(2))
    hole = b"\0" * 5000
    assert measured(one + hole + two) == measured(one + two)
    for by in range(1, 9):
        assert measured(one + two[:-by] + hole + two) == measured(one + two), by


def test_an_empty_request_is_nothing_lost() -> None:
    """A length of zero with a message behind it."""
    assert read(joined("protobuf", [0]) + b"\0\0\0\0" + joined("protobuf", [1])) == ([0, 1], {})


@pytest.mark.parametrize("form", ["frames of JSON lines", "frames of protobuf"])
def test_foreign_frames_are_skipped(form: str) -> None:
    """zstd has frames that are not data."""
    skippable = b"\x5a\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    data = joined(form, [0]) + skippable + joined(form, [1])
    assert read(data) == read(skippable + data) == ([0, 1], {})


def test_damage_in_gzip_costs_the_rest() -> None:
    """It has no marks to go on from."""
    data = bytearray(gzip.compress(joined("JSON lines"), 1))
    data[len(data) // 2] ^= 0xFF
    found, skipped = read(bytes(data))
    assert found == ALL[: len(found)]
    assert sum(skipped.values()) >= 1


@pytest.mark.parametrize("form", ["JSON lines", "protobuf"])
def test_nothing_is_put_together_across_damage(form: str) -> None:
    """The first half of one record and the second half of another could be a third."""
    first, one, two, last = (PARTS[form](record(number)) for number in range(4))
    for place in range(1, len(one) - 1):
        half = bytearray(zstd(first + one[:place]))
        half[-1] ^= 0xFF  # of its checksum
        found, skipped = read(bytes(half) + zstd(two[place:] + last))
        assert (found, bool(skipped)) == ([0, 3], True), place


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\0" * 50, b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd",
                                  b"\0\0\1\0", b"\0\0\1\0\x0a", b"\x0a\x05\x12"])  # fmt: skip
def test_nothing_is_an_error(data: bytes) -> None:
    """One kind of error, in words."""
    with pytest.raises(DecodeError, match=r"empty|no metric data point"):
        read_points(data)


# -- bombs


def test_a_bomb_is_a_broken_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does it fill the memory nor stop the reading."""
    monkeypatch.setattr(unpacking, "MOST_BYTES", 2**22)
    bomb = zstd(b"\0" * 2**23)
    before, after = (prefixed(zstd(in_protobuf(record(n)))) for n in (0, 1))
    assert read(before + prefixed(bomb) + after) == ([0, 1], {BROKEN: 1})


def test_no_piece_of_a_bomb_is_large() -> None:
    """Whole files are unpacked piece by piece."""
    gigabyte = zstandard.ZstdCompressor().compressobj()
    parts = [gigabyte.compress(b" " * 2**24) for _ in range(64)]
    data = b"".join([*parts, gigabyte.flush()])
    pieces = unpacking.unpacked(iter([data]), pytest.fail)
    assert len(data) < 200_000
    assert max(map(len, pieces)) <= 2**18
    data = gzip.compress(gzip.compress(b" " * 2**26))
    assert max(map(len, unpacking.unpacked(iter([data]), pytest.fail))) <= 2**18


def test_a_window_that_would_fill_the_memory_is_refused() -> None:
    """A frame may ask for gigabytes to look back at."""
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = compressor.compress(joined("JSON lines")) + compressor.flush()
    assert read(data) == ([], {DAMAGED: 1})


def test_a_line_without_an_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted, and the next is read."""
    for module in ("reading", "framing"):
        monkeypatch.setattr(f"hubmeter.captures.{module}.MOST_BYTES", 2**20)
    data = joined("JSON lines", [0]) + b"{" * 2**22 + b"\n" + joined("JSON lines", [1])
    assert read(data) == ([0, 1], {TOO_LARGE: 1})


# -- rotation


@pytest.mark.parametrize("form", PARTS)
def test_a_record_that_rotation_split_is_joined(form: str, tmp_path: Path) -> None:
    """Wherever the files meet; also over three files."""
    data = joined(form, range(4))
    names = ["m-2026-01-01T00-00-00.000.json", "m-2026-01-02T00-00-00.000-size.json", "m.json"]
    paths = [tmp_path / name for name in names]
    noise = random.Random(3)
    for _ in range(40):
        first, second = sorted(noise.sample(range(1, len(data)), 2))
        for path, part in zip(
            paths, [data[:first], data[first:second], data[second:]], strict=True
        ):
            path.write_bytes(part)
        if form.startswith("frames"):  # a frame is never split
            continue
        assert read(tmp_path) == (list(range(4)), {}), (first, second)


@pytest.mark.parametrize("make", [line, lambda one: prefixed(in_protobuf(one))])
def test_a_record_in_frames_of_several_files_is_joined(make: Any, tmp_path: Path) -> None:
    """With native compression a large record is cut before it is compressed."""
    data = b"".join(make(record(n)) for n in range(4))
    for cut in range(6, len(data), 31):
        (tmp_path / "m-2026-01-01T00-00-00.000-size.zst").write_bytes(zstd(data[:cut]))
        (tmp_path / "m.zst").write_bytes(zstd(data[cut:]))
        assert read(tmp_path) == (list(range(4)), {}), cut


@pytest.mark.parametrize("first", PARTS)
@pytest.mark.parametrize("second", PARTS)
def test_files_of_different_forms(first: str, second: str, tmp_path: Path) -> None:
    """A torn end is not joined to a whole beginning."""
    paths = [tmp_path / "a", tmp_path / "b"]
    paths[0].write_bytes(joined(first, range(4))[:-30])
    paths[1].write_bytes(joined(second, range(4, 8)))
    found, skipped = read(paths)
    assert found == [0, 1, 2, 4, 5, 6, 7]
    assert sum(skipped.values()) == 1


def test_the_order_is_that_of_rotation() -> None:
    """Backups by time, old and new names, then the file itself; families as they were given."""
    ordered = [
        "x.json",
        "m-2026-01-01T00-00-00.000.json.gz", "m-2026-01-02T00-00-00.000-size.json",
        "m-2026-01-02T00-00-00.001.json", "m.json",
        "a/m-2026-01-01T00-00-00.000-time.json", "a/m.json",
    ]  # fmt: skip
    shuffled = [ordered[0], *reversed(ordered[1:5]), *reversed(ordered[5:]), *ordered]
    assert in_order(map(Path, shuffled)) == list(map(Path, ordered))


def test_a_folder_is_read(tmp_path: Path) -> None:
    """Also what is below; not what is hidden or no telemetry."""
    for number, name in enumerate(
        ["h1/m-2026-01-01T00-00-00.000-size.json", "h1/m.json", "h2/m.bin.gz", "z.zst"]
    ):
        form = list(PARTS)[number]
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(joined(form, [number]))
    (tmp_path / "README.md").write_text("[![badge](x)] captures")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    (tmp_path / ".hidden.json").write_bytes(joined("JSON lines", [9]))
    (tmp_path / "empty.json").touch()
    os.mkfifo(tmp_path / "pipe")
    captures, others = captures_in(tmp_path)
    assert [path.name for path in others] == ["README.md", "rows.parquet"]
    assert len(captures) == 4
    assert read(tmp_path) == ([0, 1, 2, 3], {})


def test_backups_beside_a_file(tmp_path: Path) -> None:
    """Its own only."""
    for name in ("m.json", "m-2026-01-01T00-00-00.000.json", "n-2026-01-01T00-00-00.000.json",
                 "m-2.json"):  # fmt: skip
        (tmp_path / name).touch()
    assert [path.name for path in backups_beside(tmp_path / "m.json")] == [
        "m-2026-01-01T00-00-00.000.json"
    ]
    assert backups_beside(tmp_path / "nowhere" / "m.json") == []


# -- other signals

SPAN = {
    "traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174",
    "name": "task", "kind": 1, "startTimeUnixNano": str(T0), "endTimeUnixNano": str(T0 + SECOND),
}  # fmt: skip
SPANS = {"resourceSpans": [{"resource": {}, "scopeSpans": [{"spans": [SPAN]}]}]}
LOGS = {"resourceLogs": [{"scopeLogs": [
    {"logRecords": [{"timeUnixNano": str(T0), "body": {"stringValue": "hello"}}]}]}]}  # fmt: skip


def in_binary(one: dict[str, Any]) -> bytes:
    """A request of any signal as protobuf; ids as bytes."""
    if "resourceLogs" in one:
        return ParseDict(one, ExportLogsServiceRequest()).SerializeToString()
    if "resourceMetrics" in one:
        return in_protobuf(one)
    message = ExportTraceServiceRequest()
    for scope in one["resourceSpans"][0]["scopeSpans"]:
        spans = message.resource_spans.add().scope_spans.add().spans
        for span in scope["spans"]:
            ids = {"traceId", "spanId"}
            made = ParseDict({k: v for k, v in span.items() if k not in ids}, spans.add())
            made.trace_id = bytes.fromhex(span["traceId"])
            made.span_id = bytes.fromhex(span["spanId"])
    return message.SerializeToString()


def test_signals_are_told_apart() -> None:
    """Requests of all signals look the same but for their items."""
    assert signal_of(in_binary(SPANS)) == "traces"
    assert signal_of(in_binary(LOGS)) == "logs"
    assert signal_of(in_binary(record(1))) == "metrics"
    assert signal_of(b"") == signal_of(b"\x0a\x00") == signal_of(b"\xff" * 20) == "metrics"


@pytest.mark.parametrize("make", [line, lambda one: prefixed(in_binary(one))])
def test_all_signals_in_one_file(make: Callable[[dict[str, Any]], bytes]) -> None:
    """One exporter may serve all pipelines: spans are windows, logs are passed over, in words."""
    said: list[str] = []
    data = b"".join(map(make, [record(0), LOGS, SPANS, LOGS, record(1)]))
    points = read_points(data, say=said.append)

    assert said == ["passed over 2 records of logs"]
    assert points.skipped == {}
    names = {series.metric_name for block in points.blocks for series in block.layout.series}
    assert names == {POWER, UTIL, "hubmeter.span.duration"}

    with pytest.raises(DecodeError, match="found: 1 record of logs"):
        read_points(make(LOGS))


# -- the command line


def test_flatten_reads_several_files_and_says_what_it_left(tmp_path: Path) -> None:
    """Backups that were not given are named; a folder holds all."""
    folder = tmp_path / "captures"
    folder.mkdir()
    backup = "m-2026-01-01T00-00-00.000-size.json"
    data = joined("JSON lines")
    (folder / backup).write_bytes(data[: len(data) // 2 + 9])
    (folder / "m.json").write_bytes(data[len(data) // 2 + 9 :] + line(LOGS) + b'{"resourceM')
    (folder / "notes.txt").write_text("nothing")

    one = invoke("flatten", "captures/m.json")
    assert "1 rotated backup of captures/m.json not read: to read all, give captures/m-*.json" in (
        one.stderr
    )
    assert "skipped 1: a line is not JSON" in one.stderr
    for srcs in (["captures"], ["captures/m.json", f"captures/{backup}"]):
        done = invoke("flatten", *srcs)
        assert (done.returncode, len(done.stdout.splitlines())) == (0, 2 * RECORDS), done.stderr
        assert "rotated" not in done.stderr
        assert "passed over 1 record of logs\n" in done.stderr
        assert "skipped 1: the last record is cut off\n" in done.stderr
    done = invoke("flatten", "captures")
    assert "not read, without OTLP: 1 of the files in captures: notes.txt\n" in done.stderr
    assert "GPU" in invoke("summary", "captures").stdout


def test_what_cannot_be_read_together_is_said(tmp_path: Path) -> None:
    """In one line each."""
    (tmp_path / "m.json").write_bytes(joined("JSON lines"))
    (tmp_path / "empty").mkdir()
    assert invoke("flatten", "-", "m.json").returncode == 2
    done = invoke("flatten", "empty")
    assert (done.returncode, done.stderr) == (
        1,
        "hubmeter: empty: no file with OTLP is in that folder\n",
    )
    (tmp_path / "rows.jsonl").write_bytes(joined("JSON lines"))
    assert invoke("flatten", "m.json", "rows.jsonl", "-o", "rows.jsonl").returncode == 2


@pytest.mark.parametrize("form", PARTS)
def test_stdin_is_read_as_it_comes(form: str) -> None:
    """A real pipe, written piece by piece."""
    data = joined(form)
    with subprocess.Popen(
        [sys.executable, "-m", "hubmeter", "flatten", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        for at in range(0, len(data), 500):
            process.stdin.write(data[at : at + 500])
            process.stdin.flush()
            time.sleep(0.001)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out.count(b"\n")) == (0, 2 * RECORDS), err


def test_ctrl_c_ends_the_reading() -> None:
    """At once, with the usual exit code."""
    with subprocess.Popen(
        [sys.executable, "-m", "hubmeter", "flatten", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        for _ in range(4):  # more than the pipe holds: it is reading
            process.stdin.write(joined("JSON lines") * 100)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, b"interrupted\n")


def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """How much of how much; nothing where nobody looks."""
    monkeypatch.setattr("hubmeter.terminal._PROGRESS_S", 0)
    path = tmp_path / "m.json"
    path.write_bytes(b"x" * 2_400_000)
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal, os.fdopen(ours, "rb") as screen:
        monkeypatch.setattr(sys, "stderr", terminal)
        Progress([path])(b"x" * 1_000_000)
        Progress([io.BytesIO()])(b"x" * 3_000_000)
        # line by line: a terminal hands over what has arrived, not what was written
        shown = [screen.readline() for _ in range(2)]
    assert shown == [b"read 1 of 2 MB\r\n", b"read 3 MB\r\n"]
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    Progress([path])(b"x")
    assert sys.stderr.getvalue() == ""


# -- the real one

EXPORTERS = """
receivers:
  otlp: {protocols: {http: {endpoint: "127.0.0.1:${env:OTLP_PORT}"}}}
exporters:
  file/a: {path: a/m.json, create_directory: true}
  file/b: {path: b/m.pb, create_directory: true, format: proto}
  file/c: {path: c/m.json, create_directory: true, compression: zstd}
  file/d: {path: d/m.pb, create_directory: true, format: proto, compression: zstd}
  file/e: {path: e/m.json, create_directory: true, rotation: {max_megabytes: 1}}
  file/f: {path: f/m.pb, create_directory: true, format: proto, rotation: {max_megabytes: 1}}
  file/g: {path: g/m.zst, create_directory: true, compression: zstd, rotation: {max_megabytes: 1}}
  file/h: {path: h/m.json, create_directory: true, append: true}
  file/i: {path: i/m.pb, create_directory: true, format: proto, append: true}
service:
  pipelines:
    metrics:
      receivers: [otlp]
      exporters: [file/a, file/b, file/c, file/d, file/e, file/f, file/g, file/h, file/i]
"""
NATIVE = "--feature-gates=exporter.file.nativeCompression"


def send(collector: Collector, numbers: Iterable[int], *, size: int) -> None:
    """Records with *size* characters of noise."""
    url = f"http://127.0.0.1:{collector.port('OTLP_PORT')}/v1/metrics"
    noise = random.Random(6)
    for number in numbers:
        one = record(number)
        text = "".join(noise.choices("0123456789abcdef", k=size))
        one["resourceMetrics"][0]["resource"]["attributes"] += [
            {"key": "noise", "value": {"stringValue": text}}
        ]
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(url, in_json(one), headers)):
            pass


@needs_collector
@pytest.mark.parametrize("gate", [[], [NATIVE]], ids=["", "native compression"])
def test_what_a_real_collector_writes(gate: list[str], tmp_path: Path) -> None:
    """All its forms, rotated, and after SIGKILL in the middle of a record."""
    many = list(range(40))
    with Collector(EXPORTERS, tmp_path, ports=["OTLP_PORT"]) as collector:
        collector._arguments += gate
        collector.restart()
        send(collector, many, size=90_000)
        collector.stop()
        for folder in "abcdefghi":
            assert read(tmp_path / folder) == (many, {}), folder
        assert (tmp_path / "c/m.json").read_bytes().startswith(ZSTD) == bool(gate)
        assert len(list((tmp_path / "e").iterdir())) > 3
        assert len(list((tmp_path / "f").iterdir())) > 3

        collector.start()
        send(collector, range(40, 43), size=3000)  # its buffer is 4 KiB
        collector.kill()
        torn = {folder: read(tmp_path / folder) for folder in "hi"}
        assert all(sum(skipped.values()) == 1 for _, skipped in torn.values()), torn
        collector.start()
        send(collector, range(43, 46), size=3000)
        collector.stop()
    for folder, (before, _) in torn.items():
        found, skipped = read(tmp_path / folder)
        assert found == [*before, 43, 44, 45]
        assert sum(skipped.values()) == 1


# -- anything


def test_collectors_that_are_killed_again_and_again() -> None:
    """1,500 captures of several lives, rotated and compressed: all that is whole, nothing else."""
    noise = random.Random(8)
    for number in range(1500):
        form = noise.choice(["JSON lines", *MESSAGES])
        whole, data = lives(MESSAGES.get(form, line), noise)
        files = [data]
        cut = noise.randrange(40, len(data))
        # The first bytes of a file say what it is, if they are enough and not a zstd frame's.
        if noise.random() < 0.5 and len(data) - cut > 300 and not data.startswith(ZSTD, cut):
            files = [data[:cut], data[cut:]]
        compressed = map(noise.choice(list(WHOLE.values())), files)
        assert measured(*compressed) == whole, number


def lives(
    make: Callable[[dict[str, Any]], bytes], noise: random.Random
) -> tuple[list[tuple[Any, ...]], bytes]:
    """The whole records of a Collector that was killed and went on in its file, and the file."""
    whole, data = list[tuple[Any, ...]](), b""
    for _ in range(noise.randrange(1, 4)):
        for left in reversed(range(noise.randrange(2, 6))):
            end = noise.choice(list(ENDS))
            made = make(ENDS[end](T0 + noise.randrange(10**9) * SECOND))
            by = 0 if left else noise.choice([0, noise.randrange(2, 12), noise.randrange(2, 999)])
            data += made[: len(made) - by] if by < len(made) else b""
            whole += [] if by else measured(made)
    return whole, data


def test_mutated_files_are_points_or_a_decode_error() -> None:
    """3,000 files: bytes changed, removed, doubled, swapped, also below the compression."""
    noise = random.Random(4)
    sources = [WHOLE[whole](joined(form, range(3))) for form in PARTS for whole in WHOLE]
    read_something = 0
    for number in range(3000):
        data = bytearray(sources[number % len(sources)])
        for _ in range(noise.choice([1, 1, 2, 5])):
            mutate(data, noise)
        try:
            points = read_points(bytes(data))
        except DecodeError:
            continue
        assert points.blocks
        read_something += 1
    assert 1000 < read_something < 2990


def mutate(data: bytearray, noise: random.Random) -> None:
    place, size = noise.randrange(len(data) or 1), noise.choice([1, 2, 4, 50])
    match noise.randrange(6):
        case 0:
            data[place : place + 1] = bytes([noise.randrange(256)])
        case 1:
            del data[place : place + size]
        case 2:
            data[place:place] = noise.randbytes(size)
        case 3:
            data[place:place] = data[place : place + size]
        case 4:
            del data[place:]
        case _:
            data[place : place + 4] = noise.choice([0, 1, 2**20, 2**32 - 1]).to_bytes(4, "big")


def test_files_that_only_look_like_captures() -> None:
    """Headers with noise behind them."""
    noise = random.Random(5)
    heads = [b"{", b"[", b"\n", b"\0\0\1\0\x0a\x80\x02", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd",
             b"\xff\xfe", b"\x50\x2a\x4d\x18", b"\0\0\1\0\x28\xb5\x2f\xfd",
             b'\0\0\0\x40{"']  # fmt: skip
    for number in range(1000):
        data = heads[number % len(heads)] + noise.randbytes(noise.randrange(400))
        with pytest.raises(DecodeError):
            read_points(data)
