"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def write_whole(files: Mapping[Path, bytes], *, mode: int = 0o666) -> None:
    """
    All of *files* or none; a reader sees the old file or the new one, also after a crash.

    Args:
        files: Path to content; folders are made.
        mode: Of the files, less what the umask takes away.

    Raises:
        OSError: What was there before still is.
    """
    staged: dict[Path, Path] = {}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            staged[path] = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
            with os.fdopen(os.open(staged[path], flags, mode), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in staged.items():
            temporary.replace(path)
    except BaseException:
        for temporary in staged.values():
            _remove(temporary)
        raise


def _remove(path: Path) -> None:
    # What could not be created often cannot be looked at either: the first error counts.
    with suppress(OSError):
        path.unlink()
