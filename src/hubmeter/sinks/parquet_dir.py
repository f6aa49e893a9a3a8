"""
A dataset in a local folder, as ``datasets.load_dataset`` opens it.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from ..card import card_text
from ..deadline import Deadline
from ..errors import PublishError, PublishRejected, PublishUnavailable
from ..schema import CONFIGS
from ..shard import Shard
from ..whole_files import write_whole

CARD = "README.md"
KEEP = "surrogateescape"


class ParquetDir:
    """
    Publishes shards into *folder*.

    Many processes may share the folder: each file has its own name, appears whole or
    not at all, and is never touched again. Only the card is shared.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def publish(self, shards: Sequence[Shard], deadline: Deadline) -> None:
        """
        Write all files of *shards*, then the card if it must change.

        When this returns, the shards survive a power cut: their journals may be removed.
        A local write is not cut short by *deadline*.

        Raises:
            PublishError: The folder cannot be written, and has none of the files; or
                only the card could not be written.
        """
        rows = sum(shard.rows for shard in shards)
        try:
            files = {path: content for shard in shards for path, content in shard.files.items()}
            placed = {self._folder / path: content for path, content in files.items()}
            write_whole(placed, is_durable=True)
        except OSError as error:
            raise _failure(
                error, f"{rows} rows not written to {self._folder}: {_reason(error)}. "
                "It must be a folder with room and write access (HUBMETER_TO)"
            ) from error  # fmt: skip
        try:
            self._write_card()
        except OSError as error:
            raise _failure(
                error, f"{rows} rows are in {self._folder}, but {CARD}, which tells readers about "
                f"them, could not be written: {_reason(error)}"
            ) from error  # fmt: skip

    def _write_card(self) -> None:
        """Describe what is there; once more if another process added something meanwhile."""
        path = self._folder / CARD
        described: list[Path] | None = None
        while (files := self._files()) != described:
            # Somebody may have written it: whatever it is, its bytes survive.
            existing = path.read_bytes().decode("utf-8", KEEP) if path.exists() else ""
            configs = [c for c in CONFIGS if any(f.parts[1] == c for f in files)]
            names = b"\n".join(map(os.fsencode, files))
            text = card_text(
                f"./{self._folder.name}",  # as seen from where the folder is
                configs=configs,
                contents=f"{len(files)} files, {hashlib.sha256(names).hexdigest()[:12]}",
                existing=existing,
            )
            if text != existing:
                write_whole({path: text.encode("utf-8", KEEP)})
            described = files

    def _files(self) -> list[Path]:
        found = (path.relative_to(self._folder) for path in self._folder.glob("data/*/*/*.parquet"))
        return sorted(found)


def _failure(error: OSError, message: str) -> PublishError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBUSY):
        return PublishUnavailable(message)
    return PublishRejected(message)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
