"""
Requests that come again: their answer was lost, but their points were not. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b

from .batch import SeriesLayout
from .ledger import Packed

DUPLICATE = "the same point twice, the last one counts"
"""As flattening counts them."""

MOST_BATCHES = 32
"""Of a run. Senders wait for an answer before they send on, some of them in ten connections."""


class Resends:
    """
    Remembers the last batches of a run, so that none is kept a second time.

    Flattening merges what is sent twice, but only within a part. Not thread safe.

    Attributes:
        series: How many series the layouts have that are remembered.
    """

    def __init__(self) -> None:
        self._batches: OrderedDict[bytes, None] = OrderedDict()
        self._layouts: dict[SeriesLayout, bytes] = {}
        self._last: tuple[Packed | None, bytes] = (None, b"")
        self.series = 0

    @property
    def digests(self) -> list[str]:
        """What :meth:`restore` takes."""
        return [digest.hex() for digest in self._batches]

    def restore(self, digests: Iterable[str]) -> None:
        """
        Remember what another one remembered.

        Raises:
            TypeError, ValueError: *digests* are no such thing.
        """
        for digest in digests:
            self._remember(bytes.fromhex(digest))

    def add(self, packed: Packed) -> None:
        """*packed* is kept."""
        self._remember(self._digest(packed))

    def has(self, packed: Packed) -> bool:
        """Whether *packed* was kept already."""
        return self._digest(packed) in self._batches

    def forget_layouts(self) -> None:
        """Free what is made again when it is needed."""
        self._layouts.clear()
        self.series = 0

    def _remember(self, digest: bytes) -> None:
        self._batches[digest] = None
        if len(self._batches) > MOST_BATCHES:
            self._batches.popitem(last=False)

    def _digest(self, packed: Packed) -> bytes:
        """Asked twice of each batch: whether it was kept, and once it is."""
        if self._last[0] is not packed:
            self._last = (packed, self._digested(packed))
        return self._last[1]

    def _digested(self, packed: Packed) -> bytes:
        digest = blake2b(self._digest_of_layout(packed.layout), digest_size=8)
        for numbers in (packed.times_unix_nano, packed.starts, packed.values):
            digest.update(numbers)
        digest.update(packed.kinds)
        if packed.special or packed.extras:
            digest.update(repr((packed.special, packed.extras)).encode("utf-8", "replace"))
        return digest.digest()

    def _digest_of_layout(self, layout: SeriesLayout) -> bytes:
        found = self._layouts.get(layout)
        if found is None:
            text = repr(layout.series).encode("utf-8", "replace")
            found = self._layouts[layout] = blake2b(text, digest_size=16).digest()
            self.series += len(layout.series)
        return found
