"""
A dataset in a local folder, as ``datasets.load_dataset`` opens it.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

from ..card import card_text
from ..errors import PublishError
from ..schema import CONFIGS
from ..shard import Shard

CARD = "README.md"


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

    def publish(self, shard: Shard) -> None:
        """
        Write all files of *shard*, then the card if it must change.

        Raises:
            PublishError: The folder cannot be written; none of the files is half there.
        """
        try:
            for path, content in shard.files.items():
                _write_atomically(self._folder / path, content)
            self._write_card()
        except OSError as error:
            reason = error.strerror or error
            raise PublishError(
                f"{shard.rows} rows not written to {self._folder}: {reason}. They stay in memory "
                "(exporter.table()); set HUBMETER_TO to a folder with room and write access"
            ) from error

    def _write_card(self) -> None:
        """Describe what is there; once more if another process added something meanwhile."""
        path = self._folder / CARD
        described: list[Path] | None = None
        while (files := self._files()) != described:
            existing = path.read_text(encoding="utf-8") if path.exists() else ""
            configs = [c for c in CONFIGS if any(f.parts[1] == c for f in files)]
            names = "\n".join(map(str, files)).encode()
            text = card_text(
                self._folder.name,
                configs=configs,
                contents=f"{len(files)} files, {hashlib.sha256(names).hexdigest()[:12]}",
                existing=existing,
            )
            if text != existing:
                _write_atomically(path, text.encode())
            described = files

    def _files(self) -> list[Path]:
        found = (path.relative_to(self._folder) for path in self._folder.glob("data/*/*/*.parquet"))
        return sorted(found)


def _write_atomically(path: Path, content: bytes) -> None:
    """A reader sees the old file or the new one, also after a crash in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
