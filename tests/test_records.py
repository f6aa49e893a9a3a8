"""Records of a journal: exact, small, and readable around every damage."""

from __future__ import annotations

import json
import random
import struct
import time
import zlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmeter import frames, layout_records
from hubmeter.batch import Distribution, Extra, PointBatch, Series, SeriesLayout
from hubmeter.errors import DecodeError
from hubmeter.frames import MAGIC, MARKER, PREAMBLE_SIZE, TORN, Framer
from hubmeter.ledger import Ledger, Packed, Points, pack
from hubmeter.records import Contents, Encoder, _little, decode
from makers import SECOND, T0, tables

SALT = 0x5EED
HEADER = {"run": {"run_id": "r"}, "part": 0}
KINDS = ("gauge", "sum", "histogram", "exponential_histogram", "summary")


def record(encoder: Encoder, one: Packed) -> bytes:
    """The record of a batch, as if it had been written."""
    written = encoder.batch(one)
    encoder.confirm()
    return written


def test_a_layout_that_was_not_written_is_announced_again() -> None:
    """An interrupt between encoding and writing costs that batch only."""
    encoder = Encoder(SALT)
    lost = encoder.batch(SMALL[0])
    found = decode(encoder.preamble + record(encoder, SMALL[0]) + record(encoder, SMALL[1]))

    assert lost
    assert len(found.batches) == 2
    assert [damage.size for damage in found.damage] == [0]


def series(name: str, kind: str = "gauge", **more) -> Series:
    temporality = None if kind in ("gauge", "summary") else "cumulative"
    return Series(resource='{"service.name":"s"}', scope_name="t", metric_name=name, unit="1",
                  kind=kind, temporality=temporality,
                  is_monotonic=True if kind == "sum" else None, **more)  # fmt: skip


def layout(width: int, prefix: str = "m") -> SeriesLayout:
    return SeriesLayout(tuple(series(f"{prefix}{place}") for place in range(width)))


def packed(own: SeriesLayout, *values, step: int = 0, **more) -> Packed:
    times = more.pop("times", (T0 + step * SECOND,))
    return pack(PointBatch(layout=own, times_unix_nano=times, values=values, **more))


def journal(batches: Iterable[Packed], salt: int = SALT) -> bytes:
    """A whole file: header, batches, end."""
    return b"".join(pieces(batches, salt))


def pieces(batches: Iterable[Packed], salt: int = SALT) -> list[bytes]:
    """What is written for the preamble, the header, each batch and the end."""
    encoder = Encoder(salt)
    start = [encoder.preamble, encoder.note("header", HEADER)]
    return [*start, *(record(encoder, one) for one in batches), encoder.note("end", {"lost": {}})]


def replayed(batches: Iterable[Packed]) -> Points:
    ledger = Ledger()
    for one in batches:
        ledger.append(one)
    return ledger.snapshot()


def exact(one: Packed) -> tuple:
    """Everything about a batch, so that equal means bit for bit, also of NaN."""
    return (
        one.layout.series,
        one.times_unix_nano.tobytes(),
        one.values.tobytes(),
        one.starts.tobytes(),
        one.kinds,
        [(index, type(value), bits(value)) for index, value in one.special.items()],
        list(one.extras.items()),
        list(one.skipped.items()),
    )


def bits(value) -> object:
    """*value* with floats as their bits."""
    if isinstance(value, Distribution):
        return [(name, bits(getattr(value, name))) for name in Distribution.__slots__]
    if isinstance(value, tuple):
        return [bits(one) for one in value]
    return struct.pack("<d", value) if isinstance(value, float) else (type(value), value)


def same(found: Iterable[Packed], expected: Iterable[Packed]) -> bool:
    return [exact(one) for one in found] == [exact(one) for one in expected]


OWN = layout(2)
SMALL = [
    packed(OWN, 1, 2.5),
    packed(OWN, 2, 3.5, step=1),
    packed(OWN, 2**70, None, step=2, extras={1: Extra(flags=1)}, skipped={"broken": 3}),
    packed(layout(1, "other"), 0.5, step=3, start_times_unix_nano=(T0,)),
    packed(OWN, 7.0, 4.5, step=4),
]

# Whatever OTLP can say
FLOATS = st.floats() | st.integers(0, 2**64 - 1).map(
    lambda n: struct.unpack("<d", struct.pack("<Q", n))[0]
)
INTEGERS = st.integers(-(2**63), 2**64 - 1) | st.sampled_from([10**400, 2**53])
COUNTS = st.integers(0, 2**64 - 1)
TEXT = st.text(max_size=6) | st.sampled_from(["\ud800", "\U0001f4a5", 'nan:"', "int:1"])
BUCKETS = st.lists(COUNTS, max_size=4).map(tuple)
HISTOGRAM = st.integers(0, 3).flatmap(
    lambda n: st.builds(
        Distribution,
        count=st.none() | COUNTS,
        sum=st.none() | FLOATS,
        min=st.none() | FLOATS,
        max=st.none() | FLOATS,
        bucket_counts=st.lists(COUNTS, min_size=n + 1, max_size=n + 1).map(tuple),
        explicit_bounds=st.lists(FLOATS, min_size=n, max_size=n).map(tuple),
    )
)
EXPONENTIAL = st.builds(
    Distribution,
    count=COUNTS,
    scale=st.integers(-10, 20),
    zero_count=COUNTS,
    zero_threshold=FLOATS,
    positive_offset=st.integers(-(2**31), 2**31 - 1),
    positive_bucket_counts=BUCKETS,
    negative_offset=st.integers(-(2**31), 2**31 - 1),
    negative_bucket_counts=BUCKETS,
)
SUMMARY = st.builds(
    Distribution,
    count=COUNTS,
    sum=FLOATS,
    quantiles=st.lists(st.tuples(FLOATS, FLOATS), max_size=3).map(tuple),
)
NUMBERS = st.none() | FLOATS | INTEGERS
VALUES = {
    "gauge": NUMBERS,
    "sum": NUMBERS,
    "histogram": st.none() | HISTOGRAM,
    "exponential_histogram": st.none() | EXPONENTIAL,
    "summary": st.none() | SUMMARY,
}


def extras(text: st.SearchStrategy[str]) -> st.SearchStrategy[Extra]:
    return st.builds(Extra, flags=st.integers(0, 2**32 - 1), exemplars=st.none() | text)


SERIES = st.builds(
    lambda name, kind, attribute: series(name, kind, attributes=attribute),
    st.sampled_from("abc"),
    st.sampled_from(KINDS),
    st.sampled_from(["{}", '{"gpu_id":"0"}', '{"gpu_id":"\U0001f4a5"}']),
)
LAYOUTS = st.lists(SERIES, min_size=1, max_size=4, unique=True).map(
    lambda found: SeriesLayout(tuple(found))
)


@st.composite
def batches(draw, values=VALUES, text=TEXT) -> list[Packed]:
    """A run: few layouts that take turns, with and without shared times and start times."""
    layouts = draw(st.lists(LAYOUTS, min_size=1, max_size=3))
    made = []
    for step in range(draw(st.integers(0, 6))):
        own = draw(st.sampled_from(layouts))
        n = len(own.series)
        times = [T0 + step * SECOND + offset for offset in range(draw(st.sampled_from([1, n])))]
        starts = draw(st.sampled_from([(), (T0,) * n, (T0 - step,) * n]))
        held = [draw(values[one.kind]) for one in own.series]
        rare = draw(st.dictionaries(st.integers(0, n - 1), extras(text), max_size=2))
        skipped = draw(st.dictionaries(TEXT, st.integers(1, 9), max_size=1))
        made.append(packed(own, *held, times=times, start_times_unix_nano=starts, extras=rare,
                           skipped=skipped))  # fmt: skip
    return made


# What decoders give and tables take; records take more.
TABLE_VALUES = {**VALUES, "gauge": st.none() | FLOATS | st.integers(-(2**63), 2**63 - 1),
                "sum": st.none() | FLOATS | st.integers(-(2**63), 2**63 - 1)}  # fmt: skip


@given(batches())
def test_batches_come_back_bit_for_bit(made: list[Packed]) -> None:
    """Every kind of value, with its type, its bits and its place."""
    found = decode(journal(made))

    assert same(found.batches, made)
    assert found.damage == ()
    assert found.points == sum(len(one.values) for one in made)
    assert found.notes == {"header": HEADER, "end": {"lost": {}}}


@given(batches(TABLE_VALUES, st.text(max_size=6)))
def test_replay_gives_the_tables_of_the_live_run(made: list[Packed]) -> None:
    """A ledger that is fed from the file cannot be told from the one of the run."""
    live, later = replayed(made), replayed(decode(journal(made)).batches)

    assert repr(tables(later, points="all")) == repr(tables(live, points="all"))
    assert later.skipped == live.skipped
    assert [block.values.tobytes() for block in later.blocks] == [
        block.values.tobytes() for block in live.blocks
    ]


@pytest.mark.parametrize("bits", [53, 63, 64, 20_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_integers_of_any_size(bits: int, sign: int) -> None:
    """Also those with more digits than Python turns into decimals."""
    value = sign * (1 << bits)
    made = [packed(OWN, value, 1.0), packed(OWN, Distribution(count=value), 1.0)]

    assert same(decode(journal(made)).batches, made)


def test_layouts_and_series_are_one_object_each() -> None:
    """Blocks of a ledger are found by the identity of the layout."""
    found = decode(journal(SMALL)).batches

    assert found[0].layout is found[1].layout is found[4].layout
    assert len(replayed(found).blocks) == len(replayed(SMALL).blocks) == 2


def test_equal_layouts_stay_two() -> None:
    """Two sources that send the same series are two blocks, live and replayed; texts are one."""
    first, second = layout(2), layout(2)
    found = decode(journal([packed(first, 1, 2), packed(second, 3, 4)])).batches

    assert found[0].layout is not found[1].layout
    assert found[0].layout.series[0] is found[1].layout.series[0]


def test_a_batch_with_nothing_but_reasons_is_kept() -> None:
    """What decoders left out is counted after a crash too, and takes no layout record."""
    empty = [packed(SeriesLayout(()), times=(), skipped={"broken": n}) for n in (1, 2)]
    data = journal([*empty, SMALL[0]])

    assert [dict(one.skipped) for one in decode(data).batches[:2]] == [{"broken": 1}, {"broken": 2}]
    assert len(data) < len(journal(SMALL[:1])) + 250


def test_rejected_notes_add_up() -> None:
    """Each says what came since the one before; of other kinds the last one counts."""
    encoder = Encoder(SALT)
    data = encoder.preamble + b"".join(
        encoder.note(kind, value)
        for kind, value in [("rejected", {"x": 1}), ("opening", 1), ("rejected", {"x": 2, "y": 1}),
                            ("opening", 2)]
    )  # fmt: skip

    assert decode(data).notes == {"opening": 2, "rejected": {"x": 3, "y": 1}}


def test_every_prefix_is_readable() -> None:
    """Wherever the machine stopped, the batches before are there."""
    written = pieces(SMALL)
    data = b"".join(written)
    ends = [sum(map(len, written[: 3 + n])) for n in range(len(SMALL))]
    for size in range(len(data)):
        found = decode(data[:size])
        assert same(found.batches, SMALL[: sum(end <= size for end in ends)])
        # nothing is called broken that was only never finished
        assert {damage.reason for damage in found.damage} <= {TORN, "empty file"}
        assert all(d.offset + d.size == size for d in found.damage)


@pytest.mark.parametrize("pattern", [0x01, 0x10, 0x80, 0xFF])
def test_a_flipped_byte_costs_at_most_its_record(pattern: int) -> None:
    """Anywhere in the file, also in its first line; and where there are two copies, nothing."""
    written = pieces(SMALL)
    data = b"".join(written)
    place_of = [place for place, piece in enumerate(written) for _ in piece]
    lost = 0
    for offset, place in enumerate(place_of):
        found = decode(flipped(data, offset, pattern))
        number = place - 2
        others = [one for n, one in enumerate(SMALL) if n != number]
        is_whole = same(found.batches, SMALL)
        assert is_whole or same(found.batches, others), offset
        assert found.notes == {"header": HEADER, "end": {"lost": {}}}
        assert any(d.offset <= offset < d.offset + d.size for d in found.damage), offset
        lost += not is_whole
    batch_bytes = sum(len(record) for record in bare_batches())
    assert lost == batch_bytes


def flipped(data: bytes, offset: int, pattern: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ pattern]) + data[offset + 1 :]


def bare_batches() -> list[bytes]:
    """The batch records of SMALL without their layouts."""
    encoder = Encoder(SALT)
    for one in SMALL:
        record(encoder, one)
    # SMALL[3] is the only one of its layout, so its starts are those that were announced
    return [record(encoder, one) for one in SMALL]


def test_records_come_in_the_order_in_which_they_were_written() -> None:
    """Whatever order a repair of the file system left them in; nothing is missing then."""
    written = pieces(SMALL)
    found = decode(b"".join([*written[:3], *reversed(written[3:])]))

    assert same(found.batches, SMALL)
    assert found.damage == ()


def test_gaps_are_named() -> None:
    """A record that vanished without a trace is missed by its number."""
    written = pieces(SMALL)
    found = decode(b"".join(written[:3] + written[4:]))

    assert same(found.batches, [SMALL[0], *SMALL[2:]])
    [gap] = found.damage
    assert (gap.size, "1 missing" in gap.reason) == (0, True)


def test_batches_of_a_lost_layout_are_named() -> None:
    """If both copies of a layout are gone, its batches are, and the others are not."""
    written = pieces(SMALL)
    last = bare_batches()[3]
    without_layout = written[5][-len(last) :]
    found = decode(b"".join([*written[:5], without_layout, *written[6:]]))

    assert same(found.batches, [*SMALL[:3], SMALL[4]])
    assert "batch of a lost layout" in {damage.reason for damage in found.damage}


WOUNDS = st.lists(
    st.tuples(st.sampled_from(["flip", "insert", "remove", "repeat", "zero", "move"]),
              st.floats(0, 1), st.integers(1, 300), st.binary(max_size=40)),
    min_size=1, max_size=5,
)  # fmt: skip


def wound(data: bytes, kind: str, where: float, size: int, noise: bytes) -> bytes:
    at = int(where * len(data))
    head, piece, tail = data[:at], data[at : at + size], data[at + size :]
    match kind:
        case "flip":
            piece = bytes(b ^ 0x5A for b in piece)
        case "insert":
            piece = noise + piece
        case "remove":
            piece = b""
        case "repeat":
            piece *= 3
        case "zero":
            piece = bytes(len(piece))
        case "move":
            return tail + head + piece
    return head + piece + tail


@given(WOUNDS)
def test_damage_never_raises_and_invents_nothing(wounds: list[tuple]) -> None:
    """Whatever happens to the bytes: what is read was written, in order, once."""
    data = journal(SMALL)
    for one in wounds:
        data = wound(data, *one)
    originals = [exact(one) for one in SMALL]
    found = [originals.index(exact(one)) for one in decode(data).batches]

    assert found == sorted(set(found))


@given(st.binary(max_size=200), st.sampled_from([b"", MAGIC, Encoder(SALT).preamble]))
def test_garbage_never_raises(noise: bytes, head: bytes) -> None:
    """A foreign file has no batches, and damage says so."""
    found = decode(head + noise)

    assert (found.batches, dict(found.notes)) == ([], {})
    assert found.damage


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"\x7fELF" * 30, "not a journal of hubmeter"),
        (b"hubmeter journal 2\n" + bytes(99), "format 2, written by a newer version of hubmeter"),
        (b"hubmeter journal 17\n", "format 17, written by a newer version of hubmeter"),
        (MAGIC + bytes(99), "no readable record"),
        (MAGIC[:5], TORN),
        (MAGIC, TORN),
    ],
)
def test_other_files_are_named(data: bytes, reason: str) -> None:
    """Foreign, newer, empty: one sentence, no exception."""
    found = decode(data)

    assert (found.batches, [damage.reason for damage in found.damage]) == ([], [reason])


def test_a_record_of_a_newer_version_is_named() -> None:
    """An unknown type costs itself only."""
    framer, encoder = Framer(SALT), Encoder(SALT)
    encoder._framer = framer
    data = framer.preamble + record(encoder, SMALL[0]) + framer.frame(9, b"news")
    found = decode(data + record(encoder, SMALL[1]))

    assert same(found.batches, SMALL[:2])
    assert [d.reason for d in found.damage] == [
        "unknown record type 9 (written by a newer version?)"
    ]


@pytest.mark.parametrize("kind", [1, 2, 3])
@pytest.mark.parametrize(
    "payload",
    [b"", b"{}", b"[1]", b'["rejected",3]', b'["rejected",{"x":"y"}]', b"[[],[]]", b"\xff" * 40,
     zlib.compress(b"[]"), zlib.compress(b"{}"), b"[" * 9999, zlib.compress(b"[" * 99999),
     struct.pack("<IIIB", 0, 2**31, 1, 7), struct.pack("<IIIB", 0, 0, 0, 4) + b"[]",
     struct.pack("<IIIB", 0, 0, 0, 0) + b"left over"],
)  # fmt: skip
def test_nonsense_with_a_right_checksum_costs_itself(kind: int, payload: bytes) -> None:
    """A writer with a defect cannot keep a reader from the rest."""
    framer, encoder = Framer(SALT), Encoder(SALT)
    encoder._framer = framer
    first = framer.preamble + record(encoder, SMALL[0])
    found = decode(first + framer.frame(kind, payload) + record(encoder, SMALL[1]))

    assert same(found.batches, SMALL[:2])
    assert len(found.damage) == 1


def forgery(salt: int) -> bytes:
    """A whole batch, with numbers that the real file has not reached."""
    encoder = Encoder(salt)
    for _ in range(9):
        encoder.note("opening", None)
    return record(encoder, packed(layout(1, "forged"), 1.0))


def test_text_cannot_imitate_a_record() -> None:
    """A frame in an attribute or a note stays text, even beside damage: the salt is secret."""
    stolen = forgery(SALT + 1)
    own = SeriesLayout((series("m", attributes=f'{{"a":"{stolen.decode("latin-1")}"}}'),))
    encoder = Encoder(SALT)
    raw = encoder._framer.frame(1, stolen)  # unescaped, in the open
    data = encoder.preamble + raw + record(encoder, packed(own, 1.0))
    start = data.index(raw)
    for offset in (None, *range(start, start + len(raw), 7)):
        found = decode(data if offset is None else flipped(data, offset, 0xFF))
        assert same(found.batches, [packed(own, 1.0)])
    known = data.replace(stolen, forgery(SALT))  # had it not been secret
    assert len(decode(flipped(known, start, 0xFF)).batches) == 2


def test_values_cannot_imitate_a_record() -> None:
    """Measured values are bytes that anybody can choose."""
    forged = forgery(SALT + 1)
    doubles = array("d", forged + bytes(-len(forged) % 8))
    own = layout(len(doubles))
    made = [packed(own, *doubles, step=step) for step in range(2)]
    written = pieces(made)
    data = b"".join(written)
    for offset in range(len(data) - len(written[-1]) - len(written[-2]), len(data), 5):
        found = decode(flipped(data, offset, 1)).batches
        assert same(found, made) or same(found, made[:1])


def test_layouts_that_churn_do_not_repeat_texts() -> None:
    """A thousand series of which one is new cost a few bytes beside the values."""
    names = [series(f"metric.{n}", attributes=f'{{"uuid":"{random.Random(n).random()}"}}')
             for n in range(1100)]  # fmt: skip
    made = [packed(SeriesLayout(tuple(names[n : n + 1000])), *range(1000)) for n in range(50)]
    encoder = Encoder(SALT)
    sizes = [len(record(encoder, one)) for one in made]

    assert max(sizes[1:]) < 8000 + 700 < sizes[0]
    assert same(decode(journal(made)).batches, made)


def test_reading_is_linear() -> None:
    """A file full of markers, or of copies of a long frame's head, is not read again and again."""
    head = Encoder(SALT).note("opening", "x" * 2**20)[:21]
    for filler in (MARKER * 2**17, head * 2**16):
        encoder = Encoder(SALT)
        long = encoder.note("opening", "x" * 2**20)
        started = time.perf_counter()
        found = decode(encoder.preamble + filler + long + record(encoder, SMALL[0]) + filler)
        assert time.perf_counter() - started < 8
        assert same(found.batches, SMALL[:1])


def test_copies_beyond_reason_are_not_read() -> None:
    """A stretch that is in the file twice changes nothing."""
    data = journal(SMALL)
    doubled = data + data[PREAMBLE_SIZE:]

    assert same(decode(doubled).batches, SMALL)
    assert decode(doubled).damage == ()


@pytest.mark.parametrize("copies", [(0, 1), (0, 2), (1, 2)])
def test_one_salt_of_three_is_enough(copies: tuple[int, int]) -> None:
    """Damage at the very beginning does not cost the file."""
    data = journal(SMALL)
    for copy in copies:
        data = flipped(data, len(MAGIC) + 4 * copy, 0xFF)

    assert same(decode(data).batches, SMALL)
    assert [d.offset for d in decode(data).damage] == [0]


def test_what_cannot_be_encoded_changes_nothing() -> None:
    """A batch that OTLP could not send is refused; the next one, of the same layout, is whole."""
    encoder = Encoder(SALT)
    broken = SMALL[0]._replace(skipped={"x": {1, 2}})
    with pytest.raises(TypeError):
        record(encoder, broken)
    with pytest.raises(TypeError):
        encoder.note("opening", {1})
    found = decode(encoder.preamble + record(encoder, SMALL[0]))

    assert (same(found.batches, SMALL[:1]), found.damage) == (True, ())


@pytest.mark.parametrize("module", [frames, layout_records], ids=["batch", "layout"])
def test_what_is_too_long_for_a_record_changes_nothing(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the sender's fault, and no number is used for it: the next record leaves no gap."""
    encoder = Encoder(SALT)
    with monkeypatch.context() as patch:
        patch.setattr(module, "LONGEST", 200)
        with pytest.raises(DecodeError, match=r"bytes (is longer|are more) than 200"):
            record(encoder, packed(layout(25), *range(25)))
    found = decode(encoder.preamble + record(encoder, SMALL[0]))

    assert (same(found.batches, SMALL[:1]), found.damage) == (True, ())


def test_a_layout_says_each_text_once() -> None:
    """A long resource does not cost its length again for each of its series."""
    resource, encoder = f'{{"a":"{"x" * 10**5}"}}', Encoder(SALT)
    own = SeriesLayout(tuple(replace(series(f"m{n}"), resource=resource) for n in range(100)))
    data = encoder.preamble + record(encoder, packed(own, *range(100)))

    assert 10**5 < encoder.layout_bytes < 2 * 10**5
    assert same(decode(data).batches, [packed(own, *range(100))])


def test_a_layout_that_has_each_text_in_each_series_is_read() -> None:
    """As they were written at first."""
    names = [one.name for one in fields(Series)]
    said = [[getattr(one, name) for name in names] for one in OWN.series]
    note = {"layout": 0, "fields": names, "first": 0, "new": said, "runs": [[0, 2]],
            "starts": [], "kinds": "0000"}  # fmt: skip
    written, encoder = packed(OWN, 1.5, 2.5), Encoder(SALT)
    batch = record(encoder, written).split(MARKER)[-1]
    framer = Framer(SALT)
    found = decode(
        framer.preamble + framer.frame(2, zlib.compress(json.dumps(note).encode())) + MARKER + batch
    )

    assert (same(found.batches, [written]), found.damage) == (True, ())


def test_bytes_do_not_depend_on_the_machine() -> None:
    """On a big endian machine numbers are turned on their way into the file, and back."""
    numbers = array("Q", [1, 2**63])

    assert _little(numbers, "big").tobytes() == struct.pack(">QQ", 1, 2**63)[::1]
    assert _little(_little(numbers, "big"), "big") == numbers
    assert _little(numbers, "little") is numbers


@pytest.mark.parametrize(("width", "most"), [(56, 8.8), (7, 14.1)])
def test_size_per_point(width: int, most: float) -> None:
    """Eight bytes are the value; the rest is shared by a batch."""
    own = layout(width)
    encoder = Encoder(SALT)
    record(encoder, packed(own, *range(width)))

    assert len(record(encoder, packed(own, *range(width), step=1))) / width < most


def test_contents_are_plain() -> None:
    """An untouched file has nothing to report."""
    found: Contents = decode(journal(SMALL))
    read: Sequence[Packed] = found.batches

    assert (len(read), found.damage, found.points) == (5, (), 9)
