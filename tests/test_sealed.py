"""A sealed shard on disk: what comes back is what went in, or an error."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmeter.errors import JournalError
from hubmeter.journal import sealed_path
from hubmeter.sealed import read_sealed, write_sealed
from hubmeter.shard import Shard

SHARD = Shard(
    name="run-0123456789ab-0000",
    run_id="run \ud800 \u00e4",
    files={
        "data/default/2026-01/run.parquet": b"PAR1" + bytes(range(200)) + b"PAR1",
        "data/points/2026-01/run.parquet": b"",
    },
    rows=3,
    points=2**40,
    received=2**40 + 5,
    rejected={"broken": 5},
)
CLOSING = {"totals": [1.5, None, "x"], "version": 1}


def sealed(folder: Path, shard: Shard = SHARD, closing: object = CLOSING) -> Path:
    path = folder / "a.sealed"
    write_sealed(path, shard, closing)
    return path


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file of any content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def manifest(**changes: object) -> bytes:
    """The manifest of SHARD, changed."""
    plain = {"format": 1, "name": "n", "run_id": "r", "files": [], "rows": 0, "points": 0,
             "received": 0, "rejected": {}, "closing": None}  # fmt: skip
    return json.dumps({**plain, **changes}).encode()


def test_a_shard_comes_back(tmp_path: Path) -> None:
    """With its counts, its bytes, and the totals at its end."""
    path = sealed(tmp_path)

    assert read_sealed(path) == (SHARD, CLOSING)
    assert read_sealed(path)[0].published == 2**40
    assert [one.name for one in tmp_path.iterdir()] == ["a.sealed"]


@given(
    st.dictionaries(st.from_regex(r"data/(default|points)/20[0-9]{2}-0[1-9]/[a-z]{1,9}\.parquet",
                                  fullmatch=True),
                    st.binary(max_size=60), max_size=3),
    st.text(max_size=9), st.integers(0, 2**62),
    st.dictionaries(st.text(max_size=5), st.integers(0, 9), max_size=2),
    st.recursive(st.none() | st.integers() | st.text(max_size=4) | st.floats(allow_nan=False),
                 lambda inner: st.lists(inner, max_size=3)),
)  # fmt: skip
def test_any_shard_comes_back(tmp_path_factory, files, name, count, rejected, closing) -> None:
    """Whatever its names, counts and bytes are."""
    shard = Shard(name=name, run_id=name[::-1], files=files, rows=count, points=count // 2,
                  received=count * 2, rejected=rejected)  # fmt: skip
    path = sealed(tmp_path_factory.mktemp("any"), shard, closing)

    assert read_sealed(path) == (shard, closing)


def test_equal_shards_are_equal_bytes(tmp_path: Path) -> None:
    """No clock is in the file."""
    first = sealed(tmp_path).read_bytes()
    os.utime(tmp_path)

    assert sealed(tmp_path).read_bytes() == first


def test_every_prefix_is_refused(tmp_path: Path) -> None:
    """A file that was cut off says so."""
    path = sealed(tmp_path)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(JournalError, match="is damaged"):
            read_sealed(path)


@pytest.mark.parametrize("pattern", [0x01, 0x20, 0x80, 0xFF])
def test_a_flipped_byte_changes_nothing_or_is_noticed(tmp_path: Path, pattern: int) -> None:
    """Anywhere in the file: the shard as it was, or an error; never another shard."""
    path = sealed(tmp_path)
    content = path.read_bytes()
    noticed = 0
    for offset in range(len(content)):
        damaged = bytearray(content)
        damaged[offset] ^= pattern
        path.write_bytes(damaged)
        try:
            found = read_sealed(path)
        except JournalError:
            noticed += 1
        else:
            assert found == (SHARD, CLOSING), offset
    assert noticed > len(content) / 2


@given(st.binary(max_size=300))
def test_garbage_is_refused(tmp_path_factory, noise: bytes) -> None:
    """No zip at all."""
    path = tmp_path_factory.mktemp("noise") / "a.sealed"
    path.write_bytes(noise)
    with pytest.raises(JournalError):
        read_sealed(path)


@pytest.mark.parametrize(
    "path",
    ["README.md", "data/x/2026-01/a.parquet", "data/default/2026-01/.a.parquet",
     "../../.ssh/authorized_keys", "/etc/passwd", "data/../../x", "..", "", "data\\..\\x", "C:x",
     "a\0b"],
)  # fmt: skip
def test_paths_stay_inside(tmp_path: Path, path: str) -> None:
    """They become paths in a folder or a repository."""
    file = tmp_path / "a.sealed"
    file.write_bytes(zipped({"manifest.json": manifest(files=[path]), path or "x": b"evil"}))
    with pytest.raises(JournalError, match="is no path of a shard"):
        read_sealed(file)
    assert [one.name for one in tmp_path.iterdir()] == ["a.sealed"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (zipped({"x": b""}), "manifest.json"),
        (zipped({"manifest.json": b"{"}), "damaged"),
        (zipped({"manifest.json": b"[]"}), "damaged"),
        (zipped({"manifest.json": b"\xff"}), "damaged"),
        (zipped({"manifest.json": b"[" * 100_000}), "damaged"),
        (zipped({"manifest.json": b"{}"}), "format"),
        (zipped({"manifest.json": manifest(format=2)}), "newer version"),
        (zipped({"manifest.json": manifest(files=["data/x"])}), "data/x"),
        (zipped({"manifest.json": manifest(files=[3])}), "damaged"),
        (zipped({"manifest.json": manifest(files=3)}), "damaged"),
        (zipped({"manifest.json": manifest(rows="many")}), "damaged"),
        (zipped({"manifest.json": manifest(rejected=[])}), "damaged"),
        (zipped({"manifest.json": manifest()}, zipfile.ZIP_DEFLATED), "compressed"),
        (zipped({"manifest.json": manifest(files=["x"]), "x": bytes(2**20)},
                zipfile.ZIP_DEFLATED), "compressed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "zip",
)  # fmt: skip
def test_other_zips_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    """Foreign, newer, incomplete, or of a defective writer."""
    path = tmp_path / "a.sealed"
    path.write_bytes(content)
    with pytest.raises(JournalError, match=reason):
        read_sealed(path)


def test_what_is_not_there(tmp_path: Path) -> None:
    """Not to be mixed up with damage: there may be a journal to make it from."""
    with pytest.raises(FileNotFoundError):
        read_sealed(tmp_path / "a.sealed")


def test_it_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    """Where it cannot be written, an error says why, and what was there stays."""
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match=r"cannot write .*a\.sealed: File exists"):
        write_sealed(tmp_path / "file" / "a.sealed", SHARD)
    path = sealed(tmp_path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_sealed(path, SHARD, closing={1})

    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_its_name(tmp_path: Path) -> None:
    """Beside its journal."""
    assert sealed_path(tmp_path / "20260101T000000Z-0123456789ab-0000.journal") == (
        tmp_path / "20260101T000000Z-0123456789ab-0000.sealed"
    )
