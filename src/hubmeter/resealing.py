"""
What a journal says, as a shard: the one that is sealed beside it, or one made anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from .arrivals import Arrivals
from .errors import DecodeError
from .journal import Replay, sealed_path
from .ledger import Ledger, Packed, Points
from .openings import START, Opening, as_json, from_json
from .resends import DUPLICATE
from .run import Run
from .sealed import read_sealed, write_sealed
from .sealing import seal_segment
from .shard import Shard
from .waiting import part_of


def shard_of(
    replay: Replay, run: Run, before: Opening | None, *, has_rows: bool, is_kept: bool
) -> tuple[Shard | None, Opening]:
    """
    The shard of a segment that has ended, and the totals after it.

    Args:
        replay: Its journal.
        run: Whose segment it is.
        before: Totals of the segment before; the journal's own word counts more.
        has_rows: An earlier segment has rows: the run is not empty.
        is_kept: Seal it on disk; then the shard comes without its bytes.
    """
    sealed = sealed_path(replay.path)
    with suppress(OSError, DecodeError):  # damaged, or not there
        shard, closing = read_sealed(sealed)
        return replace(shard, files={}), from_json(closing)
    notes = replay.contents.notes
    batches, repeated = _new_batches(replay, run, is_kept=is_kept)
    made, ending = seal_segment(
        _points(batches),
        run,
        _opening(notes, before),
        part=part_of(replay),
        empty_run_unix_nano=None if has_rows or notes.get("rows") else _empty_run(replay, run),
        lost=Counter(_lost(notes)) + Counter({DUPLICATE: repeated}),
    )
    if made is not None and is_kept:
        with suppress(OSError):  # then the bytes stay in memory
            write_sealed(sealed, made, as_json(ending))
            made = replace(made, files={})
    return made, ending


def size_of(path: Path, shard: Shard | None) -> int:
    """Bytes of the Parquet files of *shard*, which belongs to the journal at *path*."""
    if shard is None or shard.files:
        return sum(map(len, shard.files.values())) if shard else 0
    return sealed_path(path).stat().st_size


def end_of(replay: Replay) -> Mapping[str, Any]:
    """What the owner said at the end; empty if nothing."""
    end = replay.contents.notes.get("end")
    return end if isinstance(end, Mapping) else {}


def _new_batches(replay: Replay, run: Run, *, is_kept: bool) -> tuple[list[Packed], int]:
    """The batches without points that an earlier part has, and how many these are."""
    batches = replay.contents.batches
    if not run.is_received:  # its program does not send again
        return batches, 0
    arrivals = Arrivals(replay.path.parent, run.process_id, part_of(replay))
    kept, repeated = arrivals.without_known(batches)
    if is_kept and not end_of(replay).get("final"):
        arrivals.note(batches)  # before it is sealed: then nobody comes here again
    return kept, repeated


def _points(batches: Iterable[Packed]) -> Points:
    ledger = Ledger()
    for packed in batches:
        ledger.append(packed)
    return ledger.snapshot()


def _opening(notes: Mapping[str, Any], before: Opening | None) -> Opening:
    with suppress(DecodeError):
        if "opening" in notes:
            return from_json(notes["opening"])
    return before or START


def _empty_run(replay: Replay, run: Run) -> int | None:
    """When a run without rows gets its one row; a killed run gets it too, if it had points."""
    if replay.has_ended:
        time_unix_nano = end_of(replay).get("empty_run_unix_nano")
        return time_unix_nano if isinstance(time_unix_nano, int) else None
    if part_of(replay) or not replay.contents.batches:
        return None
    return run.started_unix_nano


def _lost(notes: Mapping[str, Any]) -> dict[str, int]:
    """Reason to number of points that were received but not kept; in the end, or one by one."""
    end = notes.get("end")
    lost = (end.get("lost") if isinstance(end, Mapping) else None) or notes.get("rejected")
    counts = lost if isinstance(lost, Mapping) else {}
    return {reason: n for reason, n in counts.items() if isinstance(n, int) and n > 0}
