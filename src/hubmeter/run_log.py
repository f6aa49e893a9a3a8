"""
A run that a receiver keeps: its points go to a journal, and nothing of them stays in memory.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from .errors import JournalError
from .journal import JOURNAL, Claim, Replay, read_journal
from .ledger import Packed
from .resends import DUPLICATE, MOST_BATCHES, Resends
from .resting import is_taken, resting_path
from .routing import RunKey
from .run import Run, as_json, segment_name
from .strict_journal import LeftJournal, StrictJournal
from .waiting import part_of, run_of

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
"""How often to see whether the journal is still there."""

FOLLOWED: Mapping[str, Any] = MappingProxyType({"empty_run_unix_nano": None})
"""The end of a part that has a next one: that, or one behind it, says whether the run is empty."""

REMOVED = "lost, somebody removed the journal"


class Place(NamedTuple):
    """
    Where journals are, and where their points shall go.

    Attributes:
        folder: Journal directory.
        to: Destination as it was set, with ``{date}`` still open.
        base: Folder that a relative one starts from.
    """

    folder: Path
    to: str
    base: str
    fsync: bool = False


class Ended(NamedTuple):
    """
    A part of a run that waits to be published.

    Attributes:
        points: In its journal; 0 where nobody has counted them.
        lost: Reason to points that it accounts for, but does not have.
    """

    path: Path
    size_bytes: int
    key: RunKey = RunKey(None, None)
    points: int = 0
    lost: Mapping[str, int] = MappingProxyType({})


class Left(NamedTuple):
    """A part that a receiver did not end. *to*: as in :class:`Place`."""

    key: RunKey
    run: Run
    part: int
    to: str


class RunLog:
    """
    The parts of one run, one after the other. Not thread safe.

    A part begins with its first batch. After :meth:`end` the run is over, or it rests until
    it is :meth:`woken`.

    Args:
        claim: On the journal of *part*, if a dead receiver had begun it.

    Attributes:
        part: Number of the part that is open, or would be next.
        points: In the journal of the open part.
        size_bytes: Of its journal.
        lost: Reason to points of the open part that were received and not kept.
        last_s: When the last batch came, in monotonic time.
    """

    def __init__(
        self, key: RunKey, run: Run, place: Place, *, part: int = 0, claim: Claim | None = None
    ) -> None:
        self.key = key
        self.run = run
        self.part = part
        self.points = 0
        self.lost: Counter[str] = Counter()
        self.last_s = self._began_s = time.monotonic()
        self._place = place
        self._journal: StrictJournal | None = None
        self._claim = claim
        self._asleep_bytes = claim.path.stat().st_size if claim else 0
        self._resends = Resends()
        self._look_again_s = 0.0

    @property
    def size_bytes(self) -> int:
        if self._claim is not None:
            return self._asleep_bytes
        return 0 if self._journal is None else self._journal.size_bytes

    @property
    def layout_bytes(self) -> int:
        """About how much memory the layouts of the open part take, here and when it is sealed."""
        return 0 if self._journal is None else self._journal.layout_bytes

    @property
    def row_bytes(self) -> int:
        """As :class:`StrictJournal` has it."""
        return 0 if self._journal is None else self._journal.row_bytes

    def has_layout(self, packed: Packed) -> bool:
        """Whether *packed* adds nothing to that."""
        return self._journal is not None and self._journal.has(packed.layout)

    @property
    def age_s(self) -> float:
        """How long the open part is open; 0 if it has not begun."""
        return 0.0 if self._journal is None else time.monotonic() - self._began_s

    def has(self, packed: Packed) -> bool:
        """
        Whether *packed* was kept already, in this part or one before: then it is counted.

        Raises:
            JournalError: The journal of a dead receiver cannot be ended.
        """
        self.last_s = time.monotonic()
        self._wake()
        if not self._resends.has(packed):
            return False
        self.lost[DUPLICATE] += len(packed.values)
        return True

    def append(self, packed: Packed) -> None:
        """
        Keep a batch. When this returns, its points survive the process.

        Raises:
            JournalError: Nothing of it is kept.
        """
        if self._journal is None:
            self._open(self._begun(self.part))
        assert self._journal is not None
        with self._resends.adding(packed):
            self._journal.append(packed)
        self.points += len(packed.values) + sum(packed.skipped.values())

    def cut(self) -> Ended | None:
        """
        End the part, and begin the next one. None if nothing was in it.

        Raises:
            JournalError: The part is still open.
        """
        self._wake()
        if self._journal is None:
            return None
        # Before the end of this one: a receiver that is killed in between still has the run.
        following = self._begun(self.part + 1)
        try:
            ended = self._end(self._journal, FOLLOWED)
        except BaseException:
            following.discard()
            raise
        self._open(following)
        return ended

    def finish(self) -> Ended | None:
        """
        End the part, whose next one another run log has.

        Raises:
            JournalError: The part is still open.
        """
        self._wake()
        return None if self._journal is None else self._end(self._journal, FOLLOWED)

    def end(self, *, is_final: bool) -> Ended | None:
        """
        End the part; nothing follows for a while, or ever if it *is_final*.

        Raises:
            JournalError: The part is still open.
        """
        self._wake()
        if self._journal is None and not self.part:
            return None
        if self._journal is None:  # a run that has no row yet gets one
            self._journal = self._begun(self.part)
        if not is_final:  # before the end of this one, as in cut()
            self.rest(self.part + 1, {})
        note = {"empty_run_unix_nano": self.run.started_unix_nano, "final": is_final}
        ended = self._end(self._journal, note)
        if is_final:
            with suppress(OSError):
                resting_path(self._place.folder, self.key).unlink()
        return ended

    @classmethod
    def woken(cls, key: RunKey, place: Place, within_s: float) -> RunLog | None:
        """
        The run *key* with its next part begun; None if it does not rest at *place*.

        Args:
            key: Of the run.
            place: Where it goes on.
            within_s: A run that has rested for so long is over.

        Raises:
            JournalError: It rests on.
        """
        claim = Claim.take(resting_path(place.folder, key))
        if claim is None:
            return None
        with claim:
            run_log = cls._resting(claim.path, place, within_s)
            if run_log is not None:
                run_log.begin()
                with suppress(OSError):
                    claim.path.unlink()
        return run_log

    @classmethod
    def count_lost_at_rest(cls, key: RunKey, place: Place, lost: Mapping[str, int]) -> None:
        """As :meth:`count_lost`, for a run that may come back."""
        claim = Claim.take(resting_path(place.folder, key))
        if claim is not None:
            with claim, suppress(JournalError):
                if run_log := cls._resting(claim.path, place, math.inf):
                    run_log.count_lost(lost)
                    run_log.rest(run_log.part, run_log.lost)

    def begin(self) -> None:
        """
        Begin the next part before its first batch.

        Raises:
            JournalError: It is not begun.
        """
        self._open(self._begun(self.part))
        lost, self.lost = self.lost, Counter()
        self.count_lost(lost)

    def rest(self, part: int, lost: Mapping[str, int]) -> None:
        """
        Note how the run goes on if it comes back.

        Args:
            part: Its next one.
            lost: What that part has to account for.

        Raises:
            JournalError: It is not noted.
        """
        path = resting_path(self._place.folder, self.key)
        with suppress(OSError):
            path.unlink()
        notes = {"resends": self._resends.digests, "rejected": dict(lost)}
        self._written(path, part, notes | {"end": {"final": False}}).close()  # anybody may take it

    def count_lost(self, lost: Mapping[str, int]) -> None:
        """Points that were received are not kept; the next part that ends accounts for them."""
        self.lost.update(lost)
        if self._journal is not None:
            with suppress(JournalError):
                self._journal.note("rejected", dict(lost))

    def release(self) -> None:
        """Let a recovery, or the next receiver, have the open part."""
        if self._journal is not None:
            self._journal.close()
        if self._claim is not None:
            self._claim.release()
        self._journal = self._claim = None

    def _end(self, journal: StrictJournal, note: Mapping[str, Any]) -> Ended:
        lost = dict(self.lost)
        journal.note("end", {**note, "lost": lost})
        journal.close()
        ended = Ended(journal.path, journal.size_bytes, self.key, self.points, lost)
        self._turn_over()
        return ended

    def _turn_over(self) -> None:
        self.part += 1
        self.points = 0
        self.lost.clear()
        self._journal = None
        self._resends.forget_layouts()

    def _begun(self, part: int) -> StrictJournal:
        path = self._place.folder / f"{segment_name(self.run, part)}{JOURNAL}"
        return self._written(path, part, {"resends": self._resends.digests})

    def _open(self, journal: StrictJournal) -> None:
        self._journal, self._began_s = journal, time.monotonic()

    @classmethod
    def _resting(cls, path: Path, place: Place, within_s: float) -> RunLog | None:
        """What :meth:`rest` noted at *path*, if that is still so."""
        try:
            replay, rested_s = read_journal(path), time.time() - path.stat().st_mtime
        except OSError:
            return None
        left, notes = left_by_receiver(replay), replay.contents.notes
        if left is None or (left.to, left.run.base) != (place.to, place.base):
            return None
        if rested_s >= within_s or is_taken(place.folder, segment_name(left.run, left.part)):
            return None
        run_log = cls(left.key, left.run, place, part=left.part)
        run_log._remember(notes)
        run_log.lost.update(notes.get("rejected", {}))
        return run_log

    def _written(self, path: Path, part: int, notes: Mapping[str, Any]) -> StrictJournal:
        """A new journal, which also says what came last before it."""
        with suppress(OSError):  # of a receiver that was killed here
            path.with_name(f".{path.name}.new").unlink()
        header, fsync = self._header(part), self._place.fsync
        journal = StrictJournal.create(path.parent, path.stem, header, fsync=fsync)
        try:
            for kind, note in notes.items():
                if note:
                    journal.note(kind, note)
        except BaseException:
            journal.discard()
            raise
        return journal

    def _look(self) -> None:
        """See whether the journal is still there, now and then."""
        now_s = time.monotonic()
        if self._journal is None or now_s < self._look_again_s:
            return
        self._look_again_s = now_s + LOOK_EVERY_S
        if self._journal.is_there():
            return
        log.warning("hubmeter: the journal %s was removed with %d points; run %s goes on without",
                    self._journal.path, self.points, self.run.run_id)  # fmt: skip
        self._journal.close()
        lost = self.lost + Counter({REMOVED: self.points})
        self._turn_over()
        self.lost = lost

    def _header(self, part: int) -> dict[str, Any]:
        return {"run": as_json(self.run), "part": part, "key": self.key, "to": self._place.to}

    def _wake(self) -> None:
        """Look into the journal of a dead receiver, which is read when it is needed."""
        self._look()
        if self._claim is None:
            return
        try:
            journal = LeftJournal(self._claim, MOST_BATCHES, fsync=self._place.fsync)
        except (OSError, MemoryError) as error:
            log.error("hubmeter: %s cannot be read: %r", self._claim.path, error)  # noqa: TRY400
            self.release()
            self.part += 1
            return
        self._journal, self._claim = journal, None
        self._began_s = -math.inf  # it takes no batches: the next one is for the next part
        self.points = journal.points
        self.lost.update(journal.notes.get("rejected", {}))
        self._remember(journal.notes)
        for packed in journal.batches:
            self._resends.add(packed)

    def _remember(self, notes: Mapping[str, Any]) -> None:
        with suppress(TypeError, ValueError):  # of another version
            self._resends.restore(notes.get("resends", ()))


def left_by_receiver(replay: Replay) -> Left | None:
    """What a journal says about itself; None if no receiver wrote it."""
    run, header = run_of(replay), replay.header or {}
    match header.get("key"), header.get("to"):
        case [str() | None as run_id, str() | None as resource], str(to):
            if run is not None and run.is_received:
                return Left(RunKey(run_id, resource), run, part_of(replay), to)
    return None
