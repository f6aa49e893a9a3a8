"""
Which points earlier parts of a received run have: who sends again after a kill groups them anew.

So requests differ, and only their points tell. One file for each part, beside the journals, with
16 bytes for each point: a digest of its series, start time and value, and its time.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from hashlib import blake2b
from itertools import chain, repeat
from pathlib import Path
from typing import TypeAlias

from .batch import Series, SeriesLayout
from .ledger import Packed, only
from .whole_files import write_whole

FOLDER = "arrivals"

MOST_POINTS = 2**17
"""Of a run, the newest: half an hour of 8 GPUs x 7 metrics, or 16 full requests of a Collector."""

_MASK = 2**64 - 1

_Pair: TypeAlias = tuple[int, int]


class Arrivals:
    """
    The points of the parts of a run before *part*.

    Args:
        folder: Journal directory.
        process_id: Of the run.
        part: The part that is to be sealed.
    """

    def __init__(self, folder: Path, process_id: str, part: int) -> None:
        self._path = folder / FOLDER / f"{process_id}-{part:06d}"
        self._digests: dict[SeriesLayout, array[int]] = {}
        files = sorted(self._path.parent.glob(f"{process_id}-*"))
        self._before = [path for path in files if path < self._path]

    def without_known(self, batches: Sequence[Packed]) -> tuple[list[Packed], int]:
        """*batches* without the points that an earlier part has, and how many these are."""
        numbers: array[int] = array("Q", chain.from_iterable(map(_read, self._before)))
        newest = max(numbers[1::2], default=0)
        late = {
            id(one) for one in batches if min(one.times_unix_nano, default=newest + 1) <= newest
        }
        if not late:  # as usual
            return list(batches), 0
        known = set(zip(numbers[::2], numbers[1::2], strict=True))
        kept = [self._new(one, known) if id(one) in late else one for one in batches]
        dropped = sum(len(one.values) for one in batches) - sum(len(one.values) for one in kept)
        return kept, dropped

    def note(self, batches: Sequence[Packed]) -> None:
        """Note that this part has *batches*, if that is possible; what is too old is forgotten."""
        numbers: array[int] = array("Q")
        for packed in reversed(batches):
            if len(numbers) >= 2 * MOST_POINTS:
                break
            numbers.extend(chain.from_iterable(self._pairs(packed)))
        with suppress(OSError):
            write_whole({self._path: numbers.tobytes()}, mode=0o600)
            self._forget_old(MOST_POINTS - len(numbers) // 2)

    def _new(self, packed: Packed, known: Collection[_Pair]) -> Packed:
        pairs = self._pairs(packed)
        places = [place for place, pair in enumerate(pairs) if pair not in known]
        return packed if len(places) == len(pairs) else only(packed, places)

    def _forget_old(self, points: int) -> None:
        for path in reversed(self._before):
            if points <= 0:
                path.unlink(missing_ok=True)
            else:
                points -= path.stat().st_size // 16

    def _pairs(self, packed: Packed) -> list[_Pair]:
        digests = self._digests.get(packed.layout)
        if digests is None:
            digests = array("Q", map(_digest, packed.layout.series))
            self._digests[packed.layout] = digests
        said = zip(
            digests, packed.starts or repeat(0), array("Q", packed.values.tobytes()), strict=False
        )
        times: Iterable[int] = packed.times_unix_nano
        if packed.shares_time:
            times = repeat(*times)
        return [(hash(one) & _MASK, time) for one, time in zip(said, times, strict=False)]


def forget_arrivals(folder: Path, process_id: str) -> None:
    """The run has ended."""
    with suppress(OSError):
        for path in (folder / FOLDER).glob(f"{process_id}-*"):
            path.unlink(missing_ok=True)


def _digest(series: Series) -> int:
    text = repr(series).encode("utf-8", "replace")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


def _read(path: Path) -> array[int]:
    """Digests and times in turn; nothing if it is damaged or gone."""
    numbers: array[int] = array("Q")
    with suppress(OSError, ValueError):
        numbers.frombytes(path.read_bytes())
    return numbers if len(numbers) % 2 == 0 else numbers[:0]
