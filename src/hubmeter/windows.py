"""
What ran when: windows of traces and tasks, and what they say about an instant. Pure.

A window is a span that says what ran, as a data point (:mod:`hubmeter.decode.spans`). Windows
are never rows: they label the rows of their run, whichever resource reported either.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .batch import Series
from .conventions import text_of
from .gpus import owner_of
from .ledger import Block, Points
from .schema import WINDOW_COLUMNS, WINDOW_METRIC, WINDOW_SCOPE

Times: TypeAlias = NDArray[np.uint64]
Numbers: TypeAlias = NDArray[np.int64]

NULL = -1

_TRACE, *_LABELS = WINDOW_COLUMNS


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """
    A text column.

    Attributes:
        words: Distinct texts.
        of_row: Place in *words*, one per row; -1 is null.
    """

    words: Sequence[str]
    of_row: Numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """
    The windows of a run, as columns.

    Attributes:
        starts: Nanoseconds, never after the end.
        ends: Nanoseconds; a window includes both.
        numbers: For each of ``WINDOW_COLUMNS`` the number of each window's text, -1 where
            it says nothing. Each window has a trace.
    """

    starts: Times
    ends: Times
    numbers: Mapping[str, Numbers]


def is_window(series: Series) -> bool:
    """Whether the points of *series* are windows."""
    return (
        series.metric_name == WINDOW_METRIC
        and series.scope_name == WINDOW_SCOPE
        and series.kind == "gauge"
    )


def holds_windows(block: Block) -> bool:
    """Whether *block* has windows and nothing else, as it is where spans were decoded."""
    return bool(block.layout.series) and all(map(is_window, block.layout.series))


def labels(
    points: Points, default_run_id: str, times: Times, run_ids: Sequence[str], owners: Numbers
) -> dict[str, Words]:
    """
    The four columns of rows at *times*; empty if *points* hold no window.

    Each row has in *owners* the place of its run in *run_ids*. Only the windows in *points*
    count: of a run that is flattened in parts, a span labels the rows of the part in which
    it arrived.
    """
    texts: dict[str, list[str]] = {column: [] for column in WINDOW_COLUMNS}
    of_row = {column: np.full(times.size, NULL) for column in WINDOW_COLUMNS}
    by_run = _windows_by_run(points, default_run_id, texts)
    for run_id, windows in by_run.items():
        is_here = np.array([one == run_id for one in run_ids], dtype=bool)[owners]
        for column, numbers in running_at(times[is_here], windows).items():
            of_row[column][is_here] = numbers
    if not by_run:
        return {}
    return {name: Words(words=texts[name], of_row=of_row[name]) for name in WINDOW_COLUMNS}


def running_at(times: Times, windows: Windows) -> dict[str, Numbers]:
    """
    What was running at each of *times*: a number for each of ``WINDOW_COLUMNS``, or -1.

    The trace is the only one that has an active window; spans of one trace are one thing.
    A task, model or agent type is the only one that active windows name. Windows that name
    none do not matter while a single trace is active. While several are, each of them must
    name it: else one of them may have run something else.
    """
    traces = _active(windows.numbers[_TRACE], windows, times)
    result = {_TRACE: np.where(traces.count == 1, traces.total, NULL)}
    for column in _LABELS:
        named = windows.numbers[column]
        values = _active(named, windows, times)
        namers = _active(np.where(named == NULL, NULL, windows.numbers[_TRACE]), windows, times)
        is_one = (values.count == 1) & (namers.count == traces.count)
        result[column] = np.where(is_one, values.total, NULL)
    return result


@dataclass(frozen=True, slots=True)
class _Active:
    """At each instant, how many distinct keys are active, and their sum: the key if it is one."""

    count: Numbers
    total: Numbers


def _active(keys: Numbers, windows: Windows, times: Times) -> _Active:
    """The keys, -1 is none, that are active at *times*: begun by then, and not ended before."""
    is_named = keys != NULL
    keys, starts, ends = _merged(keys[is_named], windows.starts[is_named], windows.ends[is_named])
    begun, begun_keys = _until(starts, keys, times, "right")
    ended, ended_keys = _until(ends, keys, times, "left")
    return _Active(begun - ended, begun_keys - ended_keys)


def _until(edges: Times, keys: Numbers, times: Times, side: str) -> tuple[Numbers, Numbers]:
    """How many of *edges* there are up to each of *times*, and the sum of their keys."""
    order = np.argsort(edges)
    count = np.searchsorted(edges[order], times, side=side)  # type: ignore[call-overload]
    return count, np.concatenate([[0], np.cumsum(keys[order])])[count]


def _merged(keys: Numbers, starts: Times, ends: Times) -> tuple[Numbers, Times, Times]:
    """The same with overlapping intervals of one key united, so that a key is active once."""
    order = np.lexsort((starts, keys))
    keys, starts, ends = keys[order], starts[order], ends[order]
    distinct, ranks = np.unique(ends, return_inverse=True)
    # The latest end so far of each key: a later key outranks all ends of those before.
    offsets = keys * distinct.size
    latest = distinct[np.maximum.accumulate(ranks + offsets) - offsets]
    is_first = np.ones(keys.size, dtype=bool)
    is_first[1:] = (keys[1:] != keys[:-1]) | (starts[1:] > latest[:-1])
    return keys[is_first], starts[is_first], latest[np.append(is_first[1:], True)[: keys.size]]


@dataclass(slots=True)
class _Found:
    """Windows of a run while they are collected."""

    starts: list[Times] = field(default_factory=list)
    ends: list[Times] = field(default_factory=list)
    numbers: list[list[int]] = field(default_factory=list)


def _windows_by_run(
    points: Points, default_run_id: str, texts: Mapping[str, list[str]]
) -> dict[str, Windows]:
    """
    The windows in *points*, by run. Of what is sent twice, once is enough, and twice no harm.

    *texts* gets the words that the numbers of the windows stand for.
    """
    found: dict[str, _Found] = defaultdict(_Found)
    known = {column: _Numbering(words) for column, words in texts.items()}
    for series, starts, ends in _spans(points):
        named = json.loads(series.attributes)
        numbers = [known[column].number(text_of(named.get(column))) for column in WINDOW_COLUMNS]
        is_sound = (starts > 0) & (starts <= ends)
        if numbers[0] == NULL or not is_sound.any():
            continue
        run = found[owner_of(series, default_run_id)[0]]
        run.starts.append(starts[is_sound])
        run.ends.append(ends[is_sound])
        run.numbers += [numbers] * int(is_sound.sum())
    return {run_id: _windows(run) for run_id, run in found.items()}


def _windows(run: _Found) -> Windows:
    columns = np.array(run.numbers, dtype=np.int64).T
    return Windows(
        starts=np.concatenate(run.starts),
        ends=np.concatenate(run.ends),
        numbers=dict(zip(WINDOW_COLUMNS, columns, strict=True)),
    )


class _Numbering:
    """Numbers words in order of appearance."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._number_of: dict[str, int] = {}

    def number(self, word: str | None) -> int:
        if word is None:
            return NULL
        number = self._number_of.setdefault(word, len(self._words))
        if number == len(self._words):
            self._words.append(word)
        return number


def _spans(points: Points) -> Iterator[tuple[Series, Times, Times]]:
    """Start and end times of each series of windows."""
    for block in points.blocks:
        places = [n for n, series in enumerate(block.layout.series) if is_window(series)]
        if not places:
            continue
        shape = len(block), len(block.layout.series)
        ends = np.frombuffer(block.times_unix_nano, dtype=np.uint64).reshape(len(block), -1)
        ends, starts = np.broadcast_to(ends, shape), _starts(block)
        for place in places:
            yield block.layout.series[place], starts[:, place], ends[:, place]


def _starts(block: Block) -> Times:
    """Batches x points."""
    width = len(block.layout.series)
    changes = np.array([list(own) or [0] * width for _, own in block.starts], dtype=np.uint64)
    firsts = [first for first, _ in block.starts]
    return np.repeat(changes, np.diff([*firsts, len(block)]), axis=0)
