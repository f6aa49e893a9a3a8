"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

_CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM})
"""What file systems say that cannot sync a folder, or whose folders sync themselves."""


def write_whole(
    files: Mapping[Path, bytes], *, mode: int = 0o666, is_durable: bool = False
) -> None:
    """
    All of *files* or none; a reader sees the old file or the new one, also after a crash.

    Args:
        files: Path to content; folders are made.
        mode: Of the files, less what the umask takes away.
        is_durable: When this returns, a power cut leaves the new files. Else it leaves, for a
            while, the old ones or the new ones.

    Raises:
        OSError: What was there before still is; or folders could not be synced.
    """
    staged: dict[Path, Path] = {}
    changed: set[Path] = set()
    try:
        for path, content in files.items():
            changed |= make_folder(path.parent)
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
    if is_durable:
        sync_folders(changed)


def make_folder(folder: Path, *, mode: int = 0o777) -> set[Path]:
    """
    Make *folder*, and those above it that are missing.

    Returns:
        What to sync so that a new file in *folder* survives a power cut: it, and those that
        have a new folder.
    """
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    return {folder, *(one.parent for one in missing)}


def sync_folders(folders: Iterable[Path]) -> None:
    """
    The names of all files in *folders* survive a power cut, if the file system knows how.

    Raises:
        OSError: The disk is broken.
    """
    for folder in folders:
        try:
            fd = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno not in _CANNOT_SYNC:
                raise


def _remove(path: Path) -> None:
    # What could not be created often cannot be looked at either: the first error counts.
    with suppress(OSError):
        path.unlink()
