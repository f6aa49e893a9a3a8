"""Undoing a Content-Encoding: everything that is right, nothing beyond the limit."""

from __future__ import annotations

import gzip
import random
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from hubmeter.errors import DecodeError
from hubmeter.receiver.inflating import PIECE_BYTES, Inflater, TooLarge, UnknownEncoding
from receivers import Highest, bomb

MIB = 2**20


def _raw(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


def _zstd_without_size(data: bytes) -> bytes:
    stream = zstandard.ZstdCompressor().compressobj()
    return stream.compress(data) + stream.flush()


WAYS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "none": ("", bytes),
    "identity": ("identity", bytes),
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("X-GZip ", gzip.compress),
    "deflate, zlib": ("deflate", zlib.compress),
    "deflate, raw": ("deflate", _raw),
    "zlib": ("zlib", zlib.compress),
    "zstd": ("zstd", zstandard.ZstdCompressor().compress),
    "zstd, size unknown": ("zstd", _zstd_without_size),
}
COMPRESSED = [way for way in WAYS if way not in ("none", "identity")]
DICE = random.Random(4)
MIXED = DICE.randbytes(300_000) + bytes(MIB) + b"watts" * 50_000


def _inflated(encoding: str, parts: Iterable[bytes], most: int = 64 * MIB) -> bytes:
    inflater = Inflater(encoding, most)
    whole = b"".join(piece for part in parts for piece in inflater.feed(part))
    inflater.finish()
    return whole


def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 7, 4096, 10**9])
@pytest.mark.parametrize("way", WAYS)
def test_what_was_compressed_comes_back_however_it_is_cut(way: str, size: int) -> None:
    """Input arrives as the network likes it."""
    encoding, compress = WAYS[way]
    data = MIXED[:2000] + MIXED[-2000:] if size < 100 else MIXED
    assert _inflated(encoding, _cut(compress(data), size)) == data


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("size", [1, 100, 10**9])
def test_case_4_several_members_are_one_body(encoding: str, size: int) -> None:
    """Members of gzip and frames of zstd follow each other; empty and skippable ones too."""
    compress = WAYS[encoding][1]
    body = compress(b"one ") + compress(b"") + compress(b"two")
    if encoding == "zstd":
        body = b"\x50\x2a\x4d\x18\x03\0\0\0abc" + body
    assert _inflated(encoding, _cut(body, size)) == b"one two"


@pytest.mark.parametrize("way", COMPRESSED)
def test_case_4_a_body_that_ends_too_early_is_refused(way: str) -> None:
    """Wherever it is cut off."""
    encoding, compress = WAYS[way]
    body = compress(b"watts " * 20)
    for end in range(len(body)):
        with pytest.raises(DecodeError, match=r"too early|broken"):
            _inflated(encoding, [body[:end]])


@pytest.mark.parametrize("way", COMPRESSED)
def test_what_is_not_compressed_is_refused(way: str) -> None:
    """Neither text nor noise, and nothing after the end."""
    encoding, compress = WAYS[way]
    for body in (b"no, this is text", b"\xff" * 50, compress(b"watts") + b"no more"):
        with pytest.raises(DecodeError):
            _inflated(encoding, [body])


@pytest.mark.parametrize("way", WAYS)
def test_case_9_exactly_the_limit_is_taken_and_a_byte_more_is_not(way: str) -> None:
    """The limit counts what comes out."""
    encoding, compress = WAYS[way]
    data = bytes(3 * PIECE_BYTES)
    assert _inflated(encoding, _cut(compress(data), 65_536), len(data)) == data
    with pytest.raises(TooLarge):
        _inflated(encoding, _cut(compress(data + b"x"), 65_536), len(data))


@pytest.mark.parametrize("way", COMPRESSED)
def test_the_limit_counts_what_comes_in_too(way: str) -> None:
    """What is larger compressed than it is: a body of nothing but empty members, or of noise."""
    encoding, compress = WAYS[way]
    with pytest.raises(TooLarge):
        _inflated(encoding, [compress(DICE.randbytes(10_000))], 10_000)


def _zeros_in_zstd(gib: int) -> bytes:
    return zstandard.ZstdCompressor().compress(bytes(2**26)) * (gib * 16)


def _zeros_in_zlib(mib: int) -> bytes:
    stream = zlib.compressobj(1)
    return b"".join(stream.compress(bytes(MIB)) for _ in range(mib)) + stream.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", lambda: bomb(10)),
        ("zstd", lambda: _zeros_in_zstd(10)),
        ("deflate", lambda: _zeros_in_zlib(500)),
        ("zstd", lambda: zstandard.ZstdCompressor().compress(bytes(2**29))),
    ],
    ids=["gzip, 10 GiB", "zstd, 10 GiB", "deflate, 500 MiB", "zstd, 512 MiB in one frame"],
)
def test_case_6_a_bomb_is_noticed_at_the_limit(encoding: str, body: Callable[[], bytes]) -> None:
    """Whoever throws the pieces away needs memory for one of them."""
    made = body()
    inflater = Inflater(encoding, 64 * MIB)
    count = 0
    with Highest() as memory, suppress(TooLarge):
        for piece in inflater.feed(made):
            count += len(piece)
        pytest.fail("the bomb went off")
    assert 48 * MIB <= count <= 64 * MIB
    assert memory.grown_mib < 60


def test_a_zstd_frame_cannot_order_gigabytes() -> None:
    """A window of more than 8 MiB is refused before it is made (RFC 9659)."""
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(DecodeError):
        _inflated("zstd", [stream.compress(b"watts") + stream.flush()])


def test_very_many_tiny_members_take_no_time() -> None:
    """Each member must not copy all that follow it."""
    body = gzip.compress(b"") * 50_000
    started = time.process_time()
    assert _inflated("gzip", _cut(body, 2**18)) == b""
    assert time.process_time() - started < 2


@pytest.mark.parametrize("encoding", ["br", "snappy", "compress", "gzip, gzip", "gzip,zstd", "x"])
def test_other_encodings_are_not_known(encoding: str) -> None:
    """Nor several at once, with which bombs hide in bombs."""
    with pytest.raises(UnknownEncoding):
        Inflater(encoding, 100)


@given(
    st.sampled_from(COMPRESSED),
    st.binary(max_size=300),
    st.integers(0, 400),
    st.integers(0, 255),
    st.integers(1, 50),
)
def test_damage_is_refused_or_undone_and_nothing_else(
    way: str, data: bytes, place: int, byte: int, size: int
) -> None:
    """Whatever a byte becomes: there is a body, or there is none."""
    encoding, compress = WAYS[way]
    body = bytearray(compress(data))
    body[place % len(body)] = byte
    with suppress(DecodeError, TooLarge):
        _inflated(encoding, _cut(bytes(body), size), 10_000)
