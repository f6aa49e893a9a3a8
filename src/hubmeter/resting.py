"""
Named runs that a receiver ended without knowing whether they were over, for the next receiver.

They go on there as they were: with their next part, and with what is known of the last batches.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from .errors import DecodeError
from .routing import RunKey
from .run import Run, as_json, from_json
from .whole_files import write_whole

log = logging.getLogger(__name__)

FOLDER = "resting"


class Resting(NamedTuple):
    """
    A run between two parts.

    Attributes:
        part: Number of the next one.
        to: Destination as it was set, with ``{date}`` still open.
        digests: Of its last batches.
    """

    key: RunKey
    run: Run
    part: int
    to: str
    digests: tuple[str, ...]


def write_resting(folder: Path, name: str, runs: Iterable[Resting]) -> None:
    """Leave *runs* in the journal directory *folder*. Without that they count from zero again."""
    entries = [{**one._asdict(), "run": as_json(one.run)} for one in runs]
    if not entries:
        return
    try:
        write_whole({folder / FOLDER / f"{name}.json": json.dumps(entries).encode()}, mode=0o600)
    except OSError as error:
        log.warning("hubmeter: sums of %d runs begin at 0 in the next receiver: %s",
                    len(entries), error)  # fmt: skip


def take_resting(folder: Path) -> Iterator[Resting]:
    """What receivers left in *folder*, the oldest first; nobody gets it twice."""
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            text = path.read_text(encoding="utf-8")
            path.unlink()  # whoever removes it has it
            entries = json.loads(text)
        except (OSError, ValueError, RecursionError):
            continue
        for entry in entries if isinstance(entries, list) else ():
            with suppress(DecodeError, TypeError, ValueError, KeyError):
                yield _resting(entry)


def _resting(entry: Any) -> Resting:
    run_id, resource = entry["key"]
    return Resting(
        RunKey(run_id, resource),
        from_json(entry["run"]),
        int(entry["part"]),
        str(entry["to"]),
        tuple(map(str, entry["digests"])),
    )
