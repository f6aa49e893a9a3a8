"""Points at rest: exact, compact, and unaffected by what comes later."""

from __future__ import annotations

import contextlib
import gc
import sys
import tracemalloc
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmeter.batch import Distribution, Extra, PointBatch, Series, SeriesLayout, kinds_of
from hubmeter.ledger import GROUP, MOST_REMEMBERED, Ledger, Packed, _picker, gather, pack
from makers import CO2, COST, POWER, SECOND, T0, TEMP, USED, UTIL, tables

TOTAL = "gen_ai.gpu.memory.total"


def series(name: str, gpu: int = 0) -> Series:
    kind = "sum" if name in (CO2, COST) else "gauge"
    return Series(resource="{}", scope_name="", metric_name=name, unit="", kind=kind,
                  temporality="cumulative" if kind == "sum" else None,
                  attributes=f'{{"gpu_id":"{gpu}"}}')  # fmt: skip


ONE = SeriesLayout((series("m"),))


def batch(*values, time: int = T0, layout: SeriesLayout | None = None, **more) -> PointBatch:
    layout = layout or SeriesLayout(tuple(series("m", gpu) for gpu in range(len(values))))
    return PointBatch(layout=layout, times_unix_nano=(time,), values=values, **more)


def stored(*batches: PointBatch) -> list:
    """What is read back, in order."""
    [block] = gather(iter(batches)).blocks
    width = len(block.layout.series)
    found = []
    for index in range(len(block.values)):
        kinds = [kinds for first, kinds in block.integers if first <= index // width][-1]
        found.append(block.value(index, kinds))
    return found


VALUES = (
    st.none()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.builds(Distribution, count=st.integers(0, 9))
)


@given(st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=8))
def test_values_come_back_as_they_were(values) -> None:
    """Integers of any size, floats, distributions and nothing, with their types."""
    layout = SeriesLayout(tuple(series("m", gpu) for gpu in range(3)))
    expected = [value for three in values for value in three]
    found = stored(*(batch(*three, layout=layout) for three in values))

    assert [(type(value), value) for value in found] == [(type(v), v) for v in expected]


@pytest.mark.parametrize("value", [2**53 - 1, 2**53, 2**53 + 1, -(2**53) - 1, 10**400])
def test_large_integers_are_exact(value: int) -> None:
    """Where float64 ends, they are kept beside it."""
    assert stored(batch(value, 1.5)) == [value, 1.5]


def test_snapshot_does_not_change_any_more() -> None:
    """A reader sees the run as it was when it asked."""
    ledger = Ledger()
    first = batch(
        1, 2**60, start_times_unix_nano=(1, 1), extras={0: Extra(flags=2)}, skipped={"x": 1}
    )
    ledger.append(pack(first))
    snapshot = ledger.snapshot()
    before = tables(snapshot, points="all")
    for step in range(1, 100):
        ledger.append(pack(batch(1.5 * step, None, time=T0 + step * SECOND, layout=first.layout,
                                 start_times_unix_nano=(step, step), extras={1: Extra(flags=1)},
                                 skipped={"x": 1})))  # fmt: skip
    ledger.append(pack(batch(5)))

    assert tables(snapshot, points="all") == before
    assert snapshot.skipped == {"x": 1}
    assert len(ledger.snapshot().blocks) == 2
    assert ledger.batches == 101


def test_reading_a_snapshot_does_not_stop_the_ledger() -> None:
    """A buffer that somebody looks at cannot grow; so nobody looks at ours."""
    ledger = Ledger()
    ledger.append(pack(batch(1.0, layout=ONE)))
    views = [memoryview(block.values) for block in ledger.snapshot().blocks]
    ledger.append(pack(batch(2.0, layout=ONE)))

    assert (ledger.batches, len(views[0])) == (2, 1)


def test_empty_batches_only_count() -> None:
    """A request without a usable point leaves its reasons."""
    ledger = Ledger()
    ledger.append(
        pack(PointBatch(layout=SeriesLayout(()), times_unix_nano=(), values=(), skipped={"x": 2}))
    )

    assert (ledger.batches, ledger.snapshot().blocks, ledger.snapshot().skipped) == (
        0,
        (),
        {"x": 2},
    )


@pytest.mark.parametrize(
    "broken",
    [batch(2.0, time=-1, layout=ONE), batch(2.0, time=2**64, layout=ONE),
     batch(2.0, layout=ONE, start_times_unix_nano=(-1,)), batch("x", layout=ONE)],
)  # fmt: skip
def test_a_batch_is_taken_whole_or_not_at_all(broken: PointBatch) -> None:
    """A batch that cannot be stored leaves no half behind."""
    ledger = Ledger()
    ledger.append(pack(batch(1.0, layout=ONE)))
    with pytest.raises((OverflowError, ValueError, TypeError)):
        ledger.append(pack(broken))
    ledger.append(pack(batch(3.0, time=T0 + SECOND, layout=ONE)))
    _, points = tables(ledger.snapshot())

    assert [row["value"] for row in points] == [1, 3]


def test_shared_and_single_times_are_separate_blocks() -> None:
    """One layout may tell time in two ways."""
    layout = SeriesLayout((series("a"), series("b")))
    both = [batch(1, 2, layout=layout),
            PointBatch(layout=layout, times_unix_nano=[T0 + 1, T0 + 2], values=[3, 4])]  # fmt: skip

    assert [block.shares_time for block in gather(iter(both)).blocks] == [True, False]
    assert len(tables(gather(iter(both)))[1]) == 4


@pytest.mark.parametrize("is_delta", [False, True])
def test_memory_per_row(is_delta: bool) -> None:
    """Eight GPUs with seven metrics: less than 100 bytes for each row."""
    names = (UTIL, USED, TOTAL, TEMP, POWER, CO2, COST)
    layout = SeriesLayout(tuple(series(name, gpu) for gpu in range(8) for name in names))
    collections, values = 2000, [float(n) for n in range(56)]
    ledger = Ledger()
    gc.collect()
    tracemalloc.start()
    try:
        for n in range(collections):
            start = T0 + n * SECOND if is_delta else T0
            starts = tuple(start if one.kind == "sum" else 0 for one in layout.series)
            times = (T0 + n * SECOND,)
            ledger.append(pack(PointBatch(layout=layout, times_unix_nano=times, values=values,
                                          start_times_unix_nano=starts)))  # fmt: skip
        del starts
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert ledger.batches == collections
    assert used / (collections * 8) < (150 if is_delta else 100)


def test_start_times_are_compared_by_value() -> None:
    """Whatever sequence a decoder makes of them, equal ones are stored once."""
    starts = [(1,), [1], array("Q", [1])]
    [block] = gather(
        batch(n, layout=ONE, start_times_unix_nano=s) for n, s in enumerate(starts)
    ).blocks

    assert len(block.starts) == 1


def test_batches_come_out_as_they_were_taken() -> None:
    """From any mix of layouts, ways to tell time, start times, kinds and rare values."""
    layout = SeriesLayout((series("a"), series("b")))
    made = [
        pack(one)
        for one in (
            batch(1, 2.5, layout=layout),
            batch(None, 2**60, layout=layout, time=T0 + 1, extras={1: Extra(flags=2)}),
            batch(3.0, layout=ONE, start_times_unix_nano=(7,)),
            PointBatch(
                layout=layout, times_unix_nano=[T0 + 1, T0 + 2], values=[3, Distribution(count=1)]
            ),
            batch(1, 2, layout=layout, time=T0 + 2, start_times_unix_nano=(1, 2)),
        )
    ]
    ledger = Ledger()
    for one in made:
        ledger.append(one)
    found = ledger.packed()

    assert [str(one) for one in found] == [str(one) for one in made]
    assert all(one.layout is other.layout for one, other in zip(found, made, strict=True))


def test_an_interrupted_append_costs_that_batch_only() -> None:
    """A signal handler may raise anywhere; what was taken before and after stays exact."""
    layout = SeriesLayout((series("a"), series("b")))
    ledger = Ledger()
    ledger.append(pack(batch(1, None, layout=layout)))
    taken = {T0, T0 + 5000}
    for lines in range(1, 2000):  # a group takes many lines
        with contextlib.suppress(KeyboardInterrupt):
            _interrupted_after(lines, ledger, pack(batch(2**60, 2, layout=layout, time=T0 + lines)))
            taken.add(T0 + lines)
    ledger.append(pack(batch(None, 3, layout=layout, time=T0 + 5000)))
    [block] = ledger.snapshot().blocks
    values = [block.value(index, b"\1\1") for index in range(len(block.values))]

    times = block.times_unix_nano
    assert len(times) == len(set(times)) == len(block)
    assert taken <= set(times)
    assert values[:2] == [1, None]
    assert values[-2:] == [None, 3]
    assert set(zip(values[2:-2:2], values[3:-2:2], strict=True)) == {(2**60, 2)}


@pytest.mark.parametrize("others", [0, 1, GROUP - 1, GROUP, 2 * GROUP + 5])
def test_what_waits_for_its_block_counts_and_is_read(others: int) -> None:
    """Groups cannot be seen from outside: neither in counts nor in points, nor in their order."""
    ledger = Ledger(7)
    layouts = [SeriesLayout((series("a"),)), SeriesLayout((series("b"),))]
    for number in range(others + 1):
        ledger.append(
            pack(batch(number, layout=layouts[number % 2], time=T0 + number, skipped={"x": 1}))
        )
    first, again = ledger.snapshot(), ledger.snapshot()

    assert (ledger.batches, ledger.points) == (others + 8, others + 1)
    assert ledger.skipped == first.skipped == {"x": others + 1}
    assert [list(packed.values) for packed in ledger.packed() if packed.values] == [
        [number] for number in range(others + 1)
    ]
    assert [block.layout for block in first.blocks] == layouts[: others + 1]
    assert first == again


def _interrupted_after(lines: int, ledger: Ledger, one: Packed) -> None:
    """Append *one*, but raise after so many lines of it."""
    left = lines

    def trace(_, event, __):
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        ledger.append(one)
    finally:
        sys.settrace(None)


def test_wide_batches_leave_nothing_behind() -> None:
    """What is remembered of batches has no limit but their number."""
    before = [cache.cache_info().currsize for cache in (kinds_of, _picker)]
    for width in (MOST_REMEMBERED + 1, MOST_REMEMBERED + 2):
        layout = SeriesLayout((series("m"),) * width)
        wide = PointBatch(layout=layout, times_unix_nano=(T0,), values=[1] * width)
        assert pack(wide).kinds == b"\x01" * width
    assert [cache.cache_info().currsize for cache in (kinds_of, _picker)] == before
