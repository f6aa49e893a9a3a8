"""
A sealed shard as one file beside its journal: a zip that anybody can open.

What is inside is read, never extracted; its paths are not trusted.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import JournalError
from .schema import CONFIGS
from .shard import Shard
from .whole_files import write_whole

FORMAT = 1
MANIFEST = "manifest.json"

_SHARD_FILE = re.compile(
    rf"data/(?:{'|'.join(CONFIGS)})/\d{{4}}-\d{{2}}/[A-Za-z0-9][A-Za-z0-9_.-]*\.parquet", re.ASCII
)

# What zipfile raises about files that are damaged, or no zip.
_DAMAGED = (zipfile.BadZipFile, zlib.error, KeyError, TypeError, ValueError, AttributeError,
            EOFError, NotImplementedError, OverflowError, RuntimeError)  # fmt: skip


def write_sealed(path: Path, shard: Shard, closing: Any = None) -> None:
    """
    Write *shard* and *closing*, any JSON, to *path*; equal shards give equal bytes.

    Raises:
        JournalError: What was there before still is.
    """
    try:
        write_whole({path: _packed(shard, closing)}, mode=0o600)
    except OSError as error:
        raise JournalError(
            f"cannot write {path}: {error.strerror or error}. Free some space there; the journal"
            " beside it has the points"
        ) from error


def read_sealed(path: Path) -> tuple[Shard, Any]:
    """
    What :func:`write_sealed` wrote to *path*.

    Raises:
        JournalError: It is damaged, or written by a newer version.
        OSError: It cannot be read, or is not there.
    """
    content = path.read_bytes()
    try:
        return _unpacked(content)
    except _DAMAGED as error:
        raise JournalError(
            f"{path} is damaged: {error}. Remove it: it is made again from the journal beside it"
        ) from error


def _packed(shard: Shard, closing: Any) -> bytes:
    manifest = {
        "format": FORMAT,
        "name": shard.name,
        "run_id": shard.run_id,
        "files": list(shard.files),
        "rows": shard.rows,
        "points": shard.points,
        "received": shard.received,
        "rejected": dict(shard.rejected),
        "closing": closing,
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(MANIFEST), json.dumps(manifest))
        for path, content in shard.files.items():
            archive.writestr(zipfile.ZipInfo(path), content)
    return buffer.getvalue()


def _unpacked(content: bytes) -> tuple[Shard, Any]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        manifest = json.loads(_member(archive, MANIFEST))
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, written by a newer version")
        files = {path: _member(archive, _safe(path)) for path in manifest["files"]}
    return _shard(manifest, files), manifest["closing"]


def _shard(manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> Shard:
    return Shard(
        name=str(manifest["name"]),
        run_id=str(manifest["run_id"]),
        files=files,
        rows=int(manifest["rows"]),
        points=int(manifest["points"]),
        received=int(manifest["received"]),
        rejected={str(reason): int(n) for reason, n in manifest["rejected"].items()},
    )


def _member(archive: zipfile.ZipFile, path: str) -> bytes:
    """The bytes of a member, whose checksum zipfile compares."""
    found = archive.getinfo(path)
    if found.compress_type != zipfile.ZIP_STORED:  # nothing here can unfold to more than it is
        raise ValueError(f"{path!r} is compressed")
    return archive.read(found)


def _safe(path: str) -> str:
    """*path* if it is one that a shard has; it becomes a path in a repository or a folder."""
    if not _SHARD_FILE.fullmatch(path):
        raise ValueError(f"{path!r} is no path of a shard")
    return path
