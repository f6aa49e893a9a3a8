"""
Files of a Collector that rotates: which belong together, and in which order they were written.

``metrics.json`` is the one that is written now. A full one is renamed to
``metrics-2026-01-31T12-00-00.000-size.json``, by older Collectors without ``-size``; people
compress it further.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from .forms import HEAD, form_of
from .unpacking import unpacked
from .window import Window

_BACKUP = re.compile(
    r"(?P<stem>.+)-(?P<time>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3})(?:-[a-z]+)?"
    r"(?P<suffix>(?:\.[^.]+)?)(?:\.gz|\.zst)?"
)
_LAST = "~"
"""Later than any time in a name."""


def in_order(paths: Iterable[Path]) -> list[Path]:
    """
    Each of *paths* once, backups before the file that they were.

    Files that have nothing to do with each other stay in the order given.
    """
    families: dict[Path, set[Path]] = {}
    for path in paths:
        families.setdefault(_family(path), set()).add(path)
    return [path for family in families.values() for path in sorted(family, key=_age)]


def backups_beside(path: Path) -> list[Path]:
    """What was rotated out of *path* and lies in the same folder."""
    try:
        beside = list(path.parent.iterdir())
    except OSError:
        return []
    family = _family(path)
    return in_order(
        other for other in beside if _time(other) != _LAST and _family(other) == family != other
    )


def captures_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """
    Files in *folder* and below that hold telemetry, in order, and those that do not.

    Hidden files and empty ones are neither.

    Raises:
        OSError: A file cannot be read.
    """
    files = [path for path in _files(folder) if path.stat().st_size]
    # A backup may begin in the middle of a record, which is known by its family only.
    families = {_family(path) for path in files if _is_capture(path)}
    captures = [path for path in files if _family(path) in families]
    return in_order(captures), [path for path in files if _family(path) not in families]


def _files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(root, name) for name in sorted(names) if not name.startswith("."))
        found += (path for path in paths if path.is_file())
    return found


def _is_capture(path: Path) -> bool:
    with path.open("rb") as file:
        window = Window(unpacked(iter(lambda: file.read(HEAD), b""), lambda _: None))
        window.fill(HEAD)
        return form_of(window.data) is not None


def _family(path: Path) -> Path:
    """The file that *path* is, or was before it was rotated."""
    if match := _BACKUP.fullmatch(path.name):
        return path.with_name(match["stem"] + match["suffix"])
    return path.with_suffix("") if path.suffix == ".gz" else path


def _time(path: Path) -> str:
    match = _BACKUP.fullmatch(path.name)
    return match["time"] if match else _LAST


def _age(path: Path) -> tuple[str, str]:
    return _time(path), path.name
