"""What was running at an instant: hand cases, and a loop that asks each window."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmeter.schema import WINDOW_COLUMNS
from hubmeter.windows import NULL, Windows, running_at

NOTHING = (None, None, None, None)


def windows_of(*found) -> tuple[Windows, list[str]]:
    """Windows of (start, end, trace, task, model, agent type), and the texts of their numbers."""
    texts = sorted({text for one in found for text in one[2:] if text is not None})
    numbers = [
        [NULL if text is None else texts.index(text) for text in (*one[2:], None, None, None)[:4]]
        for one in found
    ]
    columns = np.array(numbers, dtype=np.int64).reshape(-1, 4).T
    return Windows(
        starts=np.array([one[0] for one in found], dtype=np.uint64),
        ends=np.array([one[1] for one in found], dtype=np.uint64),
        numbers=dict(zip(WINDOW_COLUMNS, columns, strict=True)),
    ), texts


def ran(times, *found) -> list[tuple[str | None, ...]]:
    """Trace, task, model and agent type at each of *times*."""
    windows, texts = windows_of(*found)
    columns = running_at(np.array(times, dtype=np.uint64), windows)
    assert tuple(columns) == WINDOW_COLUMNS
    rows = zip(*(columns[name].tolist() for name in WINDOW_COLUMNS), strict=True)
    return [tuple(None if n == NULL else texts[n] for n in row) for row in rows]


def asked_one_by_one(at: int, found) -> tuple[str | None, ...]:
    """The rule in its own words."""
    active = [one for one in found if one[0] <= at <= one[1]]
    traces = {one[2] for one in active}
    said: list[str | None] = [traces.pop() if len(traces) == 1 else None]
    for place in (3, 4, 5):
        by_trace = {one[2]: {o[place] for o in active if o[2] == one[2]} for one in active}
        named = [texts - {None} for texts in by_trace.values()]
        agreed = set().union(*named)
        is_one = len(agreed) == 1 and all(named)
        said.append(agreed.pop() if is_one else None)
    return tuple(said)


def test_start_and_end_are_part_of_a_window() -> None:
    """A reading at the very instant of either belongs to it."""
    assert ran([9, 10, 15, 20, 21], (10, 20, "t", "a", "m", "code")) == [
        NOTHING, *3 * [("t", "a", "m", "code")], NOTHING,
    ]  # fmt: skip


def test_a_window_of_no_length_is_an_instant() -> None:
    """Start and end may be the same nanosecond."""
    assert ran([9, 10, 11], (10, 10, "t")) == [NOTHING, ("t", None, None, None), NOTHING]


def test_nested_spans_of_a_trace_are_one_thing() -> None:
    """The root names the task, a child the model: both hold while the child runs."""
    nested = (0, 100, "t", "a"), (20, 40, "t", None, "m"), (30, 60, "t", None, "m")

    assert ran([10, 25, 35, 50, 70], *nested) == [
        ("t", "a", None, None), *3 * [("t", "a", "m", None)], ("t", "a", None, None),
    ]  # fmt: skip


def test_two_models_of_one_trace_are_no_model() -> None:
    """The trace and its task are still one."""
    found = (0, 100, "t", "a"), (10, 50, "t", None, "m"), (40, 60, "t", None, "n")

    assert ran([45, 55], *found) == [("t", "a", None, None), ("t", "a", "n", None)]


def test_of_two_traces_none_is_named() -> None:
    """What overlaps cannot be told apart; before and after it can."""
    found = (0, 60, "t", "a", "m", "code"), (50, 99, "u", "b", "n", "tool")

    assert ran([40, 50, 55, 60, 61], *found) == [
        ("t", "a", "m", "code"), *3 * [NOTHING], ("u", "b", "n", "tool"),
    ]  # fmt: skip


def test_two_traces_share_what_both_say() -> None:
    """Two tasks at once on the same model: the model is known."""
    found = (0, 60, "t", "a", "m", "code"), (0, 60, "u", "b", "m", "code")

    assert ran([30], *found) == [(None, None, "m", "code")]


def test_a_trace_that_says_nothing_may_run_something_else() -> None:
    """While a second trace is active, the task of the first is not the only one for sure."""
    found = (0, 60, "t", "a", "m"), (20, 40, "u")

    assert ran([10, 30, 50], *found) == [
        ("t", "a", "m", None), NOTHING, ("t", "a", "m", None),
    ]  # fmt: skip


def test_a_task_that_spans_two_traces_is_one_task() -> None:
    """Each of them names it, in whichever of its spans."""
    found = (0, 60, "t", "a"), (0, 60, "u"), (10, 50, "u", "a")

    assert [said[1] for said in ran([5, 30, 55], *found)] == [None, "a", None]


def test_adjacent_windows_are_both_active_where_they_meet() -> None:
    """Both include that instant, so nobody knows."""
    assert ran([10, 11], (0, 10, "t", "a"), (10, 20, "u", "b")) == [
        NOTHING, ("u", "b", None, None),
    ]  # fmt: skip


def test_a_long_window_outlasts_the_short_ones_in_it() -> None:
    """Of one key, what ends first does not end all."""
    found = (0, 100, "t", "a"), (10, 20, "t", "a"), (30, 40, "t", "a"), (35, 37, "u", "b")

    assert [said[1] for said in ran([25, 36, 50, 100], *found)] == ["a", None, "a", "a"]


def test_without_windows_nothing_ran() -> None:
    """Nor without rows is there anything to say."""
    assert ran([1, 2]) == [NOTHING, NOTHING]
    assert ran([], (0, 9, "t")) == []


def test_times_are_told_apart_to_the_nanosecond() -> None:
    """A float64 could not: it has 256 ns steps by now."""
    late = 2**63 + 1

    assert [said[0] for said in ran([late - 1, late, late + 1, 2**64 - 1], (late, late, "t"))] == [
        None, "t", None, None,
    ]  # fmt: skip


instants = st.integers(1, 12)
texts = st.sampled_from([None, "a", "b", "c"])
some_windows = st.lists(
    st.tuples(instants, instants, st.sampled_from("tuv"), texts, texts, texts).map(
        lambda one: (min(one[:2]), max(one[:2]), *one[2:])
    ),
    max_size=8,
)


@given(some_windows)
def test_the_sweep_says_what_each_window_says(found) -> None:
    """At every instant, also before the first and after the last."""
    at = range(14)

    assert ran(at, *found) == [asked_one_by_one(one, found) for one in at]


@given(some_windows, st.randoms())
def test_the_order_of_arrival_does_not_matter(found, random) -> None:
    """Spans come as they end, and from several processes; some come twice."""
    shuffled = found + found[:2]
    random.shuffle(shuffled)

    assert ran(range(14), *shuffled) == ran(range(14), *found)


@pytest.mark.parametrize("spread", [1, 10**6])
def test_many_rows_and_windows_take_no_time(spread: int) -> None:
    """100,000 rows and 10,000 windows: measured at 0.05 s; a loop would take minutes."""
    random = np.random.default_rng(0)
    starts = np.sort(random.integers(1, 10**9, 10_000)).astype(np.uint64)
    numbers = {name: random.integers(-1, 400, starts.size) for name in WINDOW_COLUMNS}
    numbers["trace_id"] += 1
    windows = Windows(starts=starts, ends=starts + np.uint64(10**6 * spread), numbers=numbers)
    times = np.sort(random.integers(1, 10**9, 100_000)).astype(np.uint64)

    began = time.process_time()
    running_at(times, windows)

    assert time.process_time() - began < 1
