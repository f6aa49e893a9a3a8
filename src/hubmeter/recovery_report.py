"""
What a recovery did, as lines for people and as data for machines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any

from .recovery import Found, Recovery
from .text import counted

SHOWN = 20
"""Lines of one kind; the others are counted."""


def as_json(result: Recovery) -> dict[str, Any]:
    """Plain data with ``schema_version``."""
    return {
        "schema_version": 1,
        "segments": [_found_json(one) for one in result.published],
        "kept": [_found_json(one) for one in result.kept],
        "failures": [str(failure) for failure in result.failures],
        "left": [{"file": path.name, "reason": reason} for path, reason in result.left],
        "live": result.live,
        "damage": result.damage,
        "torn": result.torn,
    }


def recovery_text(result: Recovery, journal_dir: Path, *, is_rehearsal: bool) -> Iterator[str]:
    """One line per segment, then what went wrong, then the sum."""
    yield from _shortened([_line(one) for one in result.published])
    yield from _shortened([f"not readable: {text}" for text in result.damage])
    yield from _shortened([f"not finished when it was killed: {text}" for text in result.torn])
    for path, reason in result.left:
        yield f"left in {journal_dir}: {path.name}: {reason}"
    for failure in result.failures:
        again = failure.command.format(f" {quote(str(journal_dir))}")
        yield f"not published: {str(failure).rstrip('.')}. Try again: {again}"
    yield _sum(result, journal_dir, is_rehearsal=is_rehearsal)


def _sum(result: Recovery, journal_dir: Path, *, is_rehearsal: bool) -> str:
    shards = [one.shard for one in result.published if one.shard is not None]
    held = f"{counted(result.live, 'segment')} {'is' if result.live == 1 else 'are'} held"
    by = "by a live process: a run that goes on, or who publishes it just now"
    live = f"; {held} {by}" if result.live else ""
    kept = f"; {len(result.kept)} stay in the journal" if result.kept else ""
    if not (result.published or result.failures or result.left):
        return f"nothing waits in {journal_dir}{live}"
    points, rows = sum(shard.received for shard in shards), sum(shard.rows for shard in shards)
    rejected = sum(sum(shard.rejected.values()) for shard in shards)
    verb = "would publish" if is_rehearsal else "published"
    return (
        f"{verb} {len(shards)} segments: {rows} rows; {points} data points received, "
        f"{points - rejected} published, {rejected} rejected{kept}{live}"
    )


def _line(one: Found) -> str:
    if one.shard is None:
        return f"{one.path.stem}: nothing to publish"
    shard = one.shard
    return f"{shard.run_id}  {shard.rows} rows, {shard.points} other points  -> {one.destination}"


def _shortened(lines: list[str]) -> list[str]:
    rest = len(lines) - SHOWN
    return lines if rest <= 0 else [*lines[:SHOWN], f"and {rest} more"]


def _found_json(one: Found) -> dict[str, Any]:
    shard = one.shard
    return {
        "segment": one.path.stem,
        "run_id": shard.run_id if shard else one.run.run_id,
        "destination": str(one.destination) if shard else None,
        "rows": shard.rows if shard else 0,
        "points": shard.points if shard else 0,
        "received": shard.received if shard else 0,
        "published": shard.published if shard else 0,
        "rejected": dict(shard.rejected) if shard else {},
    }
