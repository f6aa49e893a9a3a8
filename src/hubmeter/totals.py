"""
What received runs had grown to: their parts are published one by one, by process after process.

One small file for each run and receiver, beside the journals.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from .errors import DecodeError
from .openings import Opening, as_json, from_json
from .whole_files import write_whole

FOLDER = "totals"

MOST_FILES = 10_000
"""A run that is forgotten counts from zero if it ever comes back."""

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


class Totals(NamedTuple):
    """Where a run stands after *part*. *has_rows*: that part, or one before it, made a row."""

    part: int
    closing: Opening
    has_rows: bool


def write_totals(folder: Path, process_id: str, totals: Totals) -> None:
    """
    Note *totals* in the journal directory *folder*, beside those of the last publication.

    These stay as long: who is killed now may have to seal a part again that is older.

    Raises:
        OSError: What was there before still is.
    """
    path = folder / FOLDER / f"{process_id}.json"
    before = [one for one in _entries(path) if one.get("part", 0) < totals.part][-1:]
    latest = {**totals._asdict(), "closing": as_json(totals.closing)}
    write_whole({path: json.dumps([*before, latest]).encode()}, mode=0o600, is_durable=True)


def read_totals(folder: Path, process_id: str, part: int) -> Totals | None:
    """How the last part before *part* ended that is noted in *folder*; None if there is none."""
    for entry in reversed(_entries(folder / FOLDER / f"{process_id}.json")):
        with suppress(*_UNREADABLE, DecodeError):
            if entry["part"] < part:
                return Totals(entry["part"], from_json(entry["closing"]), bool(entry["has_rows"]))
    return None


def forget_totals(folder: Path, process_id: str) -> None:
    """The run has ended."""
    with suppress(OSError):
        (folder / FOLDER / f"{process_id}.json").unlink()


def prune(folder: Path) -> None:
    """Keep the newest files in *folder*."""
    with suppress(OSError):  # another one prunes, too
        found = list(folder.iterdir())
        if len(found) > MOST_FILES:
            for old in sorted(found, key=lambda path: path.stat().st_mtime_ns)[:-MOST_FILES]:
                old.unlink(missing_ok=True)


def _entries(path: Path) -> list[Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return sorted(entries, key=lambda entry: int(entry["part"]))
    except _UNREADABLE:
        return []
