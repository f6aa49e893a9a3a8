"""
Requests that come again: their answer was lost, but their points were not. Pure.
"""

from __future__ import annotations

import struct
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from hashlib import blake2b
from itertools import chain
from operator import attrgetter
from typing import Any

from .batch import Series, SeriesLayout
from .ledger import Packed

DUPLICATE = "the same point twice, the last one counts"
"""As flattening counts them."""

_said_of = attrgetter(*(one.name for one in fields(Series)))

MOST_TEXT = 2**22
"""Characters of the layouts that are remembered, if it is more than one."""

MOST_BATCHES = 32
"""Of a run. Senders wait for an answer before they send on, some of them in ten connections."""


class Resends:
    """
    Remembers the last batches of a run, so that none is kept a second time.

    Flattening merges what is sent twice, but only within a part. Not thread safe.
    """

    def __init__(self) -> None:
        self._batches: OrderedDict[bytes, None] = OrderedDict()
        self._layouts: dict[SeriesLayout, bytes] = {}
        self._text = 0
        self._last: tuple[Packed | None, bytes] = (None, b"")

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
        with self.adding(packed):
            pass

    @contextmanager
    def adding(self, packed: Packed) -> Iterator[None]:
        """Around keeping *packed*, which may fail."""
        try:
            yield
            self._remember(self._digest(packed))
        finally:
            self._last = (None, b"")

    def has(self, packed: Packed) -> bool:
        """Whether *packed* was kept already; if not, it is held until it is added."""
        is_known = self._digest(packed) in self._batches
        if is_known:
            self._last = (None, b"")
        return is_known

    def forget_layouts(self) -> None:
        """Free what is made again when it is needed."""
        self._layouts.clear()
        self._text = 0

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
        for rare in chain(packed.special.items(), packed.extras.items()):
            digest.update(repr(rare).encode("utf-8", "replace"))
        return digest.digest()

    def _digest_of_layout(self, layout: SeriesLayout) -> bytes:
        found = self._layouts.get(layout)
        if found is None:
            found, text = digest_of(layout)
            if self._text + text > MOST_TEXT:
                self.forget_layouts()
            self._layouts[layout] = found
            self._text += text
        return found


def digest_of(layout: SeriesLayout) -> tuple[bytes, int]:
    """
    A digest that equal series have, and how many characters they say.

    Each text is read once, however many series say it, and each series.
    """
    digest = blake2b(digest_size=16)
    said: dict[Any, int] = {}
    rows: dict[tuple[int, ...], int] = {}
    numbers: dict[int, int] = {}
    text = 0
    for key, series in {id(one): one for one in layout.series}.items():
        row = tuple([said.setdefault(one, len(said)) for one in _said_of(series)])
        numbers[key] = rows.setdefault(row, len(rows))
    for one in said:
        data = repr(one).encode("utf-8", "replace")
        text += len(data)
        digest.update(struct.pack("<Q", len(data)))
        digest.update(data)
    for row in rows:
        digest.update(array("I", row))
    digest.update(array("I", [numbers[id(one)] for one in layout.series]))
    return digest.digest(), text
