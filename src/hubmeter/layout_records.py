"""
What the record of a layout says: series that are new to the file, each text once. No files here.

::

    {"layout": its number, "runs": [[number of a series, how many follow one another], ...],
     "first": number of the first new series, "fields": what is said of each,
     "texts": what is said, each once, "new": [[numbers of texts], ...],
     "starts": start times, "kinds": which values are integers, of its first batch}
"""

from __future__ import annotations

import json
import zlib
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import fields
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

from .batch import Series, SeriesLayout
from .errors import DecodeError
from .frames import LONGEST

_FIELDS = tuple(one.name for one in fields(Series))
_said_of = attrgetter(*_FIELDS)

SERIES_BYTES, PLACE_BYTES = 400, 16
"""About what a series takes in memory beside its texts, and its place in a layout."""


class Known(NamedTuple):
    """A layout that the file has, with what its batches need not repeat."""

    number: int
    layout: SeriesLayout
    starts: array[int]
    kinds: bytes


class Announced(NamedTuple):
    """
    A layout that the file shall have.

    Attributes:
        new: The number of each series that the file does not have yet.
        size_bytes: About what remembering this takes.
    """

    known: Known
    new: Mapping[Series, int]
    payload: bytes
    size_bytes: int


def announced(known: Known, seen: Mapping[Series, int]) -> Announced:
    """
    The record of *known*, for a file that has the series *seen* with their numbers.

    Raises:
        DecodeError: It would be too long.
    """
    # By their ids first: a layout may have one series a million times, and hashing takes long.
    distinct = {id(one): one for one in known.layout.series}
    unseen = dict.fromkeys(one for one in distinct.values() if one not in seen)
    new = {series: number for number, series in enumerate(unseen, len(seen))}
    numbers = {key: new[one] if one in new else seen[one] for key, one in distinct.items()}
    said: dict[str | bool | None, int] = {}
    rows = [[said.setdefault(one, len(said)) for one in _said_of(series)] for series in new]
    text = _json(
        {
            "layout": known.number,
            "fields": _FIELDS,
            "first": len(seen),
            "texts": list(said),
            "new": rows,
            "runs": _runs(numbers[id(one)] for one in known.layout.series),
            "starts": list(known.starts),
            "kinds": known.kinds.hex(),
        }
    )
    if len(text) > LONGEST:
        raise DecodeError(f"names and attributes of {len(text)} bytes are more than {LONGEST}")
    places = PLACE_BYTES * len(known.layout.series)
    return Announced(known, new, zlib.compress(text), len(text) + SERIES_BYTES * len(new) + places)


def read_layout(payload: memoryview, series: dict[int, Series]) -> Known:
    """
    The layout that *payload* says; its new series are added to *series*.

    Raises:
        ValueError, TypeError, LookupError, zlib.error: It is of another version.
    """
    note = json.loads(_unpacked(payload))
    texts = note.get("texts")  # before there were any, series had them themselves
    for number, row in enumerate(note["new"], note["first"]):
        said = row if texts is None else [texts[one] for one in row]
        series[number] = Series(**dict(zip(note["fields"], said, strict=True)))
    numbers = chain.from_iterable(range(first, first + n) for first, n in note["runs"])
    layout = SeriesLayout(tuple(series[number] for number in numbers))
    starts, kinds = array("Q", note["starts"]), bytes.fromhex(note["kinds"])
    return Known(note["layout"], layout, starts, kinds)


def _runs(numbers: Iterable[int]) -> list[list[int]]:
    """*numbers* as [first, how many] of those that follow one another."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == sum(runs[-1]):
            runs[-1][1] += 1
        else:
            runs.append([number, 1])
    return runs


def _unpacked(payload: memoryview) -> bytes:
    inflater = zlib.decompressobj()
    text = inflater.decompress(payload, LONGEST)
    if not inflater.eof:
        raise ValueError("incomplete, or too long")
    return text


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
