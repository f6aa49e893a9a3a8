"""
Which runs wait in a journal directory: their process has ended, and they are not published.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from .deadline import Deadline
from .errors import DecodeError
from .gpus import owner_of
from .journal import Claim, Replay, peek, segments
from .owners import is_alive
from .records import TORN
from .run import Run, from_json
from .text import counted, printable

NAMED = 3
"""Runs that a message names; the others are counted."""

LONGEST_WAIT_S, POLL_S = 600.0, 0.2


def waiting_text(folder: Path) -> str:
    """One sentence about what waits in *folder*; empty if nothing does. Live runs do not wait."""
    found = list(_waiting(folder))
    runs = list(dict.fromkeys(run for run in found if run is not None))
    unreadable = found.count(None)
    without = f"{counted(unreadable, 'file')} without a readable beginning" if unreadable else ""
    return "; ".join(filter(None, (_named(runs), without)))


def _waiting(folder: Path) -> Iterator[str | None]:
    """The run of each journal that nobody holds; None if that cannot be read."""
    with suppress(OSError):  # nobody can read the folder: others say so
        for path in segments(folder):
            claim = Claim.take(path)
            if claim is not None:
                with claim, suppress(OSError):
                    if is_received(path) and not is_orphan(path):
                        continue  # its receiver is about to publish it
                    yield _run_id(path)


def _named(runs: list[str]) -> str:
    if not runs:
        return ""
    named = ", ".join(printable(run) for run in runs[:NAMED])
    others = f" and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
    waits = "runs wait" if len(runs) > 1 else "run waits"
    return f"{len(runs)} earlier {waits} to be published ({named}{others})"


def run_of(replay: Replay) -> Run | None:
    """The run that a journal says it belongs to; None if its header is lost."""
    try:
        return from_json((replay.header or {}).get("run"))
    except DecodeError:
        return None


def _run_id(path: Path) -> str | None:
    """As far as the beginning of the journal tells it, else its name; None if that says nothing."""
    replay = peek(path, only_notes=False)
    if not replay.contents.notes and not replay.contents.batches:
        return None
    run = run_of(replay)
    default = run.run_id if run else path.stem
    series = next((b.layout.series[0] for b in replay.contents.batches if b.values), None)
    return (owner_of(series, default)[0] if series else None) or default


def is_received(path: Path) -> bool:
    """Whether a receiver keeps the journal at *path*."""
    try:
        run = run_of(peek(path))
    except OSError:
        return False
    return run is not None and run.is_received


def is_orphan(path: Path) -> bool:
    """Whether the process that wrote the journal at *path* has ended, as far as can be known."""
    try:
        owner, written_s = peek(path).owner, path.stat().st_mtime
    except OSError:
        return False
    return owner is None or not is_alive(owner, last_written_s_ago=time.time() - written_s)


def in_handfuls(paths: Sequence[Path], most: int, *, is_mixed: bool) -> Iterator[list[Path]]:
    """
    *paths* in lists of at most *most*; what goes to one destination is together if it fits.

    Args:
        paths: Of journals. Those of one process keep their order.
        most: Segments of a list.
        is_mixed: Where each goes is in its header; else all go to one destination.
    """
    groups: dict[object, list[Path]] = defaultdict(list)
    for path in paths:
        groups[_address_in(path) if is_mixed and len(paths) > most else None].append(path)
    handful: list[Path] = []
    for group in groups.values():
        for piece in (group[first : first + most] for first in range(0, len(group), most)):
            if len(handful) + len(piece) > most:
                yield handful
                handful = []
            handful += piece
    if handful:
        yield handful


def _address_in(path: Path) -> object:
    """What decides where the journal at *path* goes; None if it does not say."""
    run = None
    with suppress(OSError):
        run = run_of(peek(path))
    return run and (run.to, run.base, run.private)


def torn_and_damage(replay: Replay) -> tuple[list[str], list[str]]:
    """Sentences about a record that was not finished, if there is one, and about damage."""
    said: dict[bool, list[str]] = {True: [], False: []}
    for one in replay.contents.damage:
        words = f"{replay.path.name}: {one.reason}, {one.size} bytes at {one.offset}"
        said[one.reason == TORN].append(words)
    return said[True], said[False]


def part_of(replay: Replay) -> int:
    """Number of the segment."""
    part = (replay.header or {}).get("part")
    return part if isinstance(part, int) and part >= 0 else 0


def process_of(path: Path) -> str:
    """The process id in the name of a journal."""
    parts = path.stem.split("-")
    return parts[-2] if len(parts) >= 3 else ""


def wait_for(folder: Path, process_id: str) -> None:
    """Return when no segment of that process is in live hands any more, or after a while."""
    deadline = Deadline.after(LONGEST_WAIT_S)
    while not deadline.is_over():
        mine = [path for path in segments(folder) if process_of(path) == process_id]
        if all(_is_free(path) for path in mine):
            return
        time.sleep(POLL_S)


def _is_free(path: Path) -> bool:
    claim = Claim.take(path)
    if claim is None:
        return not path.exists()
    claim.release()
    return True
