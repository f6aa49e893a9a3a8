"""
Publish what ended processes left in a journal directory: each segment once.

Safe beside live runs and beside another recovery: a segment is locked while it is
worked on. Safe to repeat: names and bytes of a shard are frozen before the first try.
"""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field, replace
from glob import escape
from itertools import count
from pathlib import Path

from .arrivals import FOLDER as ARRIVALS
from .arrivals import forget_arrivals
from .attempts import GIVEN_UP, attempt, in_groups, without_given_up
from .deadline import Deadline
from .destinations import Destination, Sink, commits, destination_of, sink_of
from .errors import PublishError, fresh
from .journal import Claim, Replay, read_journal, says_end, sealed_path, segments
from .openings import START
from .receipts import receipt_of, write_receipt
from .resealing import end_of, shard_of, size_of
from .resting import FOLDER as RESTING
from .run import Run, working_folder
from .sealed import read_sealed
from .settings import safe_name
from .shard import Shard
from .totals import FOLDER as TOTALS
from .totals import Totals, forget_totals, prune, read_totals, write_totals
from .waiting import is_received, part_of, process_of, run_of, torn_and_damage

log = logging.getLogger(__name__)

MOST_CLAIMED = 196
"""Segments that are locked at a time: each is an open file, and some systems allow 256."""

PATIENCE_S, POLL_S = 0.5, 0.05
"""For all segments together: whoever only looks at a journal has it for a moment."""

LOST_HEADER = (
    "its header is lost, so nobody knows its run and destination; choose one with --to,"
    " in a journal directory of its own if need be"
)
NOT_OURS = "this user may not write it: recover it as the user who ran the program"
NEWER = "newer version"
DAMAGED = "damaged"
"""Folder for journals that had unreadable records, after the others were published."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """
    A claimed segment that can be published.

    Attributes:
        shard: Without its bytes if they are on disk, or if nobody will publish it; None if
            there is nothing to publish.
        size_bytes: Of the Parquet files.
        totals: Where the run stands after it.
        is_final: Its receiver said that the run has ended.
    """

    path: Path
    run: Run
    destination: Destination
    shard: Shard | None
    size_bytes: int
    is_damaged: bool
    totals: Totals
    is_final: bool

    @property
    def files(self) -> int:
        """Parquet files: one for each config that has rows."""
        return 0 if self.shard is None else self.shard.number_of_files


@dataclass(slots=True)
class Recovery:
    """
    What a recovery did, or would do.

    Attributes:
        published: Segments that arrived.
        kept: Segments whose destination did not take them; they stay in the journal.
        failures: One for each destination that failed.
        left: Segments that cannot be published or removed, with the reason.
        live: How many segments belong to running processes.
        damage: What could not be read, one sentence each.
        torn: Records that were not finished, likewise: nobody was told that they are kept.
    """

    published: list[Found] = field(default_factory=list)
    kept: list[Found] = field(default_factory=list)
    failures: list[PublishError] = field(default_factory=list)
    left: list[tuple[Path, str]] = field(default_factory=list)
    live: int = 0
    damage: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)


def recover(
    folder: Path,
    *,
    to: str | None = None,
    private: bool | None = None,
    process_id: str | None = None,
    only_received: bool = False,
    is_rehearsal: bool = False,
    budget_s: float = 600.0,
    say: Say = print,
) -> Recovery:
    """
    Publish everything in *folder* whose process has ended.

    Args:
        folder: Journal directory.
        to: Destination instead of those that the runs had.
        private: Whether repositories must be, instead of what the runs were told.
        process_id: Only the segments of that process.
        only_received: Only what receivers have ended, also those that live; a receiver that
            comes back goes on with what a killed one has not ended.
        is_rehearsal: Read and count, but write and publish nothing.
        budget_s: Seconds for each commit.
        say: Is told about the progress.
    """
    result = Recovery()
    reader = _Reader(to, private, result, is_rehearsal=is_rehearsal)
    claim = reader.claim_ended if only_received else reader.claim
    publisher = _Publisher(budget_s, result, say)
    wanted = [path for path in segments(folder) if process_id in (None, process_of(path))]
    if only_received:
        wanted = [path for path in wanted if is_received(path)]
        wanted, given_up = without_given_up(wanted)
        result.left += [(path, GIVEN_UP) for path in given_up]
    numbers = count(1)
    for some in in_groups(wanted, MOST_CLAIMED, is_mixed=to is None):
        with ExitStack() as claims:
            claimed = [path for path in some if claim(path, claims)]
            found: list[Found] = []
            for path, number in zip(claimed, numbers, strict=False):
                say(f"reading {number} of {len(wanted)}: {path.stem}")
                found += reader.read(path)
            if is_rehearsal:
                result.published += found
            else:
                for commit in _commits(found):
                    publisher.publish(commit)
    if not is_rehearsal:
        for notes in (TOTALS, RESTING, ARRIVALS):
            prune(folder / notes)
    return result


class _Reader:
    """Claims and seals segments, in order: a segment starts from the totals of the one before."""

    def __init__(
        self, to: str | None, private: bool | None, result: Recovery, *, is_rehearsal: bool
    ) -> None:
        self._to = to
        self._private = private
        self._result = result
        self._is_rehearsal = is_rehearsal
        self._patience = Deadline.after(PATIENCE_S)
        self._held: set[str] = set()  # processes
        self._totals: dict[str, Totals] = {}

    def claim(self, path: Path, claims: ExitStack) -> bool:
        """Whether the segment at *path* is ours now; its totals may hang on one that is not."""
        process_id = process_of(path)
        claim = None if process_id in self._held else self._taken(path)
        if claim is not None:
            claims.enter_context(claim)
        elif path.exists() and not _is_writable(path):
            self._result.left.append((path, NOT_OURS))
        elif path.exists():  # else another recovery was faster
            self._result.live += 1
            self._held |= {process_id} - {""}
        return claim is not None

    def claim_ended(self, path: Path, claims: ExitStack) -> bool:
        """The same for a segment that may be open: that is left at once."""
        process_id = process_of(path)
        with suppress(OSError), ExitStack() as held:
            claim = None if process_id in self._held else Claim.take(path)
            if claim is not None:
                held.enter_context(claim)
                if says_end(path) or sealed_path(path).exists():
                    claims.push(held.pop_all())
                    return True
        self._result.live += 1
        self._held.add(process_id)
        return False

    def _taken(self, path: Path) -> Claim | None:
        claim = Claim.take(path)
        while claim is None and _is_writable(path) and not self._patience.is_over():
            time.sleep(min(POLL_S, self._patience.remaining_s()))
            claim = Claim.take(path)
        return claim

    def read(self, path: Path) -> list[Found]:
        """What can be published of the claimed segment at *path*; others do not suffer from it."""
        try:
            with nullcontext() if self._is_rehearsal else attempt(path):
                return list(self._found(path))
        except Exception as error:
            log.debug("hubmeter: %s cannot be read", path, exc_info=True)
            why = error.strerror if isinstance(error, OSError) else ""
            self._result.left.append((path, why or f"nothing can be made of it: {error!r}"))
            return []

    def _found(self, path: Path) -> Iterator[Found]:
        replay = read_journal(path)
        run = run_of(replay) or _stranger(path)
        if self._private is not None:
            run = replace(run, private=self._private)
        if why_not := _why_not(replay, has_destination=bool(run.to or self._to)):
            self._result.left.append((path, why_not))
            return
        torn, damage = torn_and_damage(replay)
        self._result.torn += torn
        self._result.damage += damage
        before = self._before(path, run, part_of(replay))
        has_rows = before is not None and before.has_rows
        shard, closing = shard_of(
            replay, run, before and before.closing,
            has_rows=has_rows, is_kept=not self._is_rehearsal,
        )  # fmt: skip
        has_rows = has_rows or bool(shard and shard.rows)
        totals = Totals(part_of(replay), closing, has_rows)
        self._totals[process_of(path) or path.stem] = totals
        size_bytes = size_of(path, shard)
        if shard is not None and self._is_rehearsal:
            shard = replace(shard, files={})
        run_id = shard.run_id if shard else run.run_id
        base = run.base if self._to is None else working_folder()
        yield Found(
            path=path,
            run=run,
            destination=destination_of(self._to or run.to, run_id, base),
            shard=shard,
            size_bytes=size_bytes,
            is_damaged=bool(damage),
            totals=totals,
            is_final=bool(end_of(replay).get("final")),
        )

    def _before(self, path: Path, run: Run, part: int) -> Totals | None:
        """Where the run stood: as read just now, or as noted when a part was published."""
        process_id = process_of(path)
        read = self._totals.get(process_id or path.stem)
        noted = read_totals(path.parent, run.process_id, part)
        return max(filter(None, (read, noted)), key=lambda one: one.part, default=None)


def _is_writable(path: Path) -> bool:
    return os.access(path, os.R_OK | os.W_OK)


def _why_not(replay: Replay, *, has_destination: bool) -> str:
    """Why a journal has to stay; empty if it can be published, or has nothing to publish."""
    if replay.contents.batches:
        return "" if has_destination else LOST_HEADER
    newer = (d.reason for d in replay.contents.damage if replay.header is None)
    return next((f"{why}; upgrade it, then recover again" for why in newer if NEWER in why), "")


def _stranger(path: Path) -> Run:
    """A run of which only the points are known. Its name is that of the file: they differ."""
    return Run(
        run_id=f"recovered-{path.stem}",
        process_id=safe_name(path.stem),
        started_unix_nano=time.time_ns(),
        to="",
        base="",
    )


def _commits(found: Sequence[Found]) -> Iterator[list[Found]]:
    """Groups for one destination each, as large as a commit may be."""
    groups: dict[tuple[Destination, bool], list[Found]] = defaultdict(list)
    for one in found:
        groups[one.destination, one.run.private].append(one)
    for group in groups.values():
        yield from commits(group, lambda one: (one.files, one.size_bytes))


class _Publisher:
    """Publishes commits. A destination that failed is not asked again."""

    def __init__(self, budget_s: float, result: Recovery, say: Say) -> None:
        self._budget_s = budget_s
        self._result = result
        self._say = say
        self._sinks: dict[tuple[Destination, bool], Sink | None] = {}

    def publish(self, commit: list[Found]) -> None:
        """Publish and remove the segments in *commit*, or keep them all."""
        filled = [one for one in commit if one.shard is not None]
        if filled and not self._has_taken(filled):
            self._result.kept += filled
            return
        latest = {one.run.process_id: one for one in commit}
        last = {process_of(path): path for path in segments(commit[0].path.parent)}
        goes_on = [one for one in latest.values() if not _is_over(one, last)]
        unnoted = [one for one in goes_on if not _has_noted(one)]
        # The last part first: if we are killed now, those that stay have their totals.
        for one in reversed(commit):
            try:
                _finish(one)
            except OSError as error:
                why = f"published, but it cannot be removed: {error.strerror or error}"
                self._result.left.append((one.path, why))
        for one in unnoted:  # the disk was full, and has room now
            if not _has_noted(one):
                log.warning(
                    "hubmeter: run %s: the sums of its next part begin at 0", one.run.run_id
                )
        for one in latest.values():
            if one not in goes_on:
                forget_totals(one.path.parent, one.run.process_id)
                if one.run.is_received:
                    forget_arrivals(one.path.parent, one.run.process_id)
        self._result.published += commit

    def _has_taken(self, filled: list[Found]) -> bool:
        destination, is_private = filled[0].destination, filled[0].run.private
        key = destination, is_private
        if key not in self._sinks:
            self._sinks[key] = sink_of(destination, private=is_private, pooled=True)
        sink = self._sinks[key]
        if sink is None:
            return False
        most = f"for {self._budget_s:g} s at most"
        self._say(f"publishing {len(filled)} segments to {destination}, {most}")
        try:
            sink.publish([_loaded(one) for one in filled], Deadline.after(self._budget_s))
        except OSError as error:  # all that sinks and sealed files raise
            self._result.failures.append(fresh(error))
            self._sinks[key] = None
            return False
        return True


def _loaded(one: Found) -> Shard:
    assert one.shard is not None
    return one.shard if one.shard.files else read_sealed(sealed_path(one.path))[0]


def _is_over(one: Found, last: Mapping[str, Path]) -> bool:
    """
    Whether no part of the run follows; *last* has the last journal of each process.

    A receiver says so. Of another process some may have come after the list was made.
    """
    if one.run.is_received:
        return one.is_final
    return last.get(one.run.process_id, one.path) <= one.path


def _has_noted(one: Found) -> bool:
    """Whether the next part of the run will find the totals of this one."""
    if one.totals.closing == START and not one.totals.has_rows:
        return True
    try:
        write_totals(one.path.parent, one.run.process_id, one.totals)
    except OSError as error:
        log.debug("hubmeter: no totals of %s: %s", one.path, error)
        return False
    return True


def _finish(one: Found) -> None:
    """The receipt stays; a damaged journal too, beside the others."""
    if one.shard is not None:
        receipt = receipt_of(one.path.stem, one.shard, str(one.destination), time.time_ns())
        write_receipt(one.path.parent, receipt)
    # Before its journal, without which nobody would look for it. Others were killed writing it.
    sealed = sealed_path(one.path)
    for stale in (sealed, *sealed.parent.glob(f".{escape(sealed.name)}.*.tmp")):
        stale.unlink(missing_ok=True)
    if one.is_damaged:
        kept = one.path.parent / DAMAGED / one.path.name
        kept.parent.mkdir(exist_ok=True)
        one.path.replace(kept)
    else:
        one.path.unlink(missing_ok=True)
