"""A run that is flattened in parts has the rows of the run as a whole."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from dataclasses import fields
from itertools import groupby, pairwise
from operator import itemgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmeter.batch import Series, attributes_json
from hubmeter.energy import Factors
from hubmeter.errors import DecodeError
from hubmeter.flattening import Options, flatten_points
from hubmeter.openings import START, GpuKey, Opening, PowerEnd, SumEnd, as_json, from_json
from hubmeter.schema import CUMULATIVE_COLUMNS
from hubmeter.tables import default_table, points_table
from makers import (
    CO2,
    COST,
    CUMULATIVE,
    DELTA,
    ENERGY,
    POWER,
    SECOND,
    T0,
    UTIL,
    cells,
    decoded,
    gauge,
    point,
    request,
    resource_metrics,
    tables,
    total,
)

SINCE_BOOT = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
MEMORY = "hw.gpu.memory.usage"
HOUR = Factors()


def flattened(parts, **options):
    """Rows and leftover points of *parts*, each a list of requests; the last closing, skipped."""
    rows, points, skipped, opening = [], [], Counter(), START
    chosen = Options(run_id="run", **options)
    for part in parts:
        some = decoded(*part)
        found = flatten_points(some, chosen, from_json(json.loads(json.dumps(as_json(opening)))))
        rows += default_table(found).to_pylist()
        points += points_table(some, found, chosen.run_id).to_pylist()
        skipped += Counter(found.skipped)
        opening = found.closing
    return rows, points, opening, skipped


def in_parts(*parts, **options):
    """Rows of *parts*, each a list of requests."""
    return flattened(parts, **options)[0]


def at(tick, *metrics, **resource):
    """A request whose points are all of the second *tick*."""
    made = copy.deepcopy(request(*metrics, **resource))
    for scope in made["resourceMetrics"][0]["scopeMetrics"]:
        for metric in scope["metrics"]:
            for kind in {"gauge", "sum"} & metric.keys():
                for one in metric[kind]["dataPoints"]:
                    one["timeUnixNano"] = str(T0 + int(tick * SECOND))
    return made


def energy(tick, value, name=ENERGY, temporality=CUMULATIVE, gpu=0, **attributes):
    """A request with one energy point."""
    unit = "" if name == SINCE_BOOT else "J"
    return at(tick, total(name, unit, point(value, gpu=gpu, **attributes), temporality=temporality))


def power(tick, watts, gpu=0):
    """A request with one power reading."""
    return at(tick, gauge(POWER, "W", point(watts, gpu=gpu)))


def joules(*parts, **options):
    """Only the energy of the rows of *parts*."""
    return [row["energy_joules"] for row in in_parts(*parts, **options)]


def assert_same(found, whole):
    """Equal rows, but for rounding in columns that add up."""
    inexact = {*CUMULATIVE_COLUMNS, "gpu_memory_used_mib"}
    assert len(found) == len(whole)
    for row, expected in zip(found, whole, strict=True):
        for name, value in expected.items():
            if name in inexact and None not in (value, row[name]):
                assert row[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name
            else:
                assert row[name] == value, name


# ------------------------------------------------------------------ counters


def test_a_counter_goes_on() -> None:
    """What a cumulative sum says is what the run has used, in any part."""
    assert joules([energy(0, 40.0)], [energy(1, 100.0)], [energy(2, 101.5)]) == [40, 100, 101.5]


def test_a_counter_that_restarts_at_the_cut_continues() -> None:
    """100, then 2 in the next part, is 102."""
    assert joules(
        [energy(0, 40.0), energy(1, 100.0)], [energy(2, 2.0), energy(3, 5.0)]
    ) == [40, 100, 102, 105]  # fmt: skip


def test_a_counter_that_restarts_just_before_the_cut_continues() -> None:
    """The last point before the cut is the first after the restart."""
    assert joules(
        [energy(0, 100.0), energy(1, 2.0)], [energy(2, 5.0)], [energy(3, 6.0)]
    ) == [100, 102, 105, 106]  # fmt: skip


def test_a_counter_that_restarts_just_after_the_cut_continues() -> None:
    """The first point after the cut is the last before the restart."""
    assert joules(
        [energy(0, 40.0)], [energy(1, 100.0), energy(2, 2.0)], [energy(3, 5.0)]
    ) == [40, 100, 102, 105]  # fmt: skip


def test_a_counter_that_started_anew_at_the_cut_continues_although_it_did_not_fall() -> None:
    """The start time of the part before is known: 100, then 150, is 250."""
    found = joules(
        [at(0, total(ENERGY, "J", point(100.0, gpu=0, start=T0 - SECOND)))],
        [at(2, total(ENERGY, "J", point(150.0, gpu=0, start=T0 + SECOND)))],
    )

    assert found == [100, 250]


def test_start_times_that_overlap_across_a_cut_are_no_restart() -> None:
    """A sender that corrects its start time has not lost what it counted."""
    found = joules(
        [at(0, total(ENERGY, "J", point(100.0, gpu=0, start=T0 - SECOND)))],
        [at(1, total(ENERGY, "J", point(150.0, gpu=0, start=T0 - SECOND // 2)))],
    )

    assert found == [100, 150]


def test_a_counter_that_started_with_its_first_point_is_not_started_anew_by_the_next() -> None:
    """Some senders say so; both points have the same start."""
    parts = [[at(tick, total(ENERGY, "J", point(value, gpu=0, start=T0)))]
             for tick, value in enumerate([100.0, 150.0])]  # fmt: skip

    assert joules(*parts) == [100, 150]


def test_a_device_counter_counts_from_the_first_value_of_the_run() -> None:
    """Not from the first of each part; DCGM counts mJ since the driver was loaded."""
    assert joules(
        [energy(0, 9_000_000, SINCE_BOOT, gpu="0"), energy(1, 9_005_000, SINCE_BOOT, gpu="0")],
        [energy(2, 9_006_000, SINCE_BOOT, gpu="0")],
        [energy(3, 1000, SINCE_BOOT, gpu="0"), energy(4, 3000, SINCE_BOOT, gpu="0")],
    ) == [0, 5, 6, 7, 9]


def test_a_device_counter_that_appears_later_counts_from_its_own_first_value() -> None:
    """What it had counted before is not this run's."""
    parts = [energy(0, 5_000, SINCE_BOOT, gpu="0")], [energy(1, 9_000_000, SINCE_BOOT, gpu="1")]

    assert joules(*parts, [energy(2, 9_001_000, SINCE_BOOT, gpu="1")]) == [0, 0, 1]


def test_deltas_accumulate_over_parts() -> None:
    """5 + 5 + 5 is 15, wherever the cuts are."""
    parts = [[energy(tick, 5.0, temporality=DELTA)] for tick in range(3)]

    assert joules(*parts) == [5, 10, 15]


def test_a_gauge_fed_by_deltas_goes_on() -> None:
    """Deltas of memory in use lead to the amount in use."""
    parts = [
        [at(tick, total(MEMORY, "By", point(value * 2**20, hw__id="GPU-a"),
                        temporality=DELTA, monotonic=False))]
        for tick, value in enumerate([100, -60, 5])
    ]  # fmt: skip

    assert cells(in_parts(*parts), "gpu_memory_used_mib") == [(100,), (40,), (45,)]


def test_a_sum_that_may_fall_falls() -> None:
    """Cumulative, not monotonic: its value is the amount, in each part."""
    parts = [[at(tick, total(COST, "USD", point(value, gpu=0), monotonic=False))]
             for tick, value in enumerate([3.0, 2.0])]  # fmt: skip

    assert cells(in_parts(*parts), "power_cost_usd") == [(3,), (2,)]


# ------------------------------------------------------------------ several series


def test_an_attribute_set_that_ended_in_an_earlier_part_still_counts() -> None:
    """The column is the sum of all series, and stays as weak as its weakest."""
    found = in_parts(
        [energy(0, 10.0, energy_source="counter")],
        [energy(1, 4.0, energy_source="integrated")],
        [energy(2, 12.0, energy_source="counter")],
    )

    assert cells(found, "energy_joules", "energy_source") == [
        (10, "counter"), (14, "integrated"), (16, "integrated"),
    ]  # fmt: skip


def test_what_ended_in_an_earlier_part_counts_in_the_unit_of_the_column() -> None:
    """Totals are handed on as they were sent, in mJ here."""
    first = [energy(tick, value, SINCE_BOOT, source="x") for tick, value in enumerate([0, 5000])]
    second = [energy(2 + tick, value, SINCE_BOOT, source="y") for tick, value in enumerate([7, 8])]

    assert joules(first, second) == [0, 5, 5, 5.001]


def test_gpus_hosts_and_resources_have_their_own_totals() -> None:
    """The same index on another host or resource is another GPU."""
    sent = [
        {"resourceMetrics": [
            resource_metrics(
                total(ENERGY, "J",
                      *(point(float(step * (gpu + 1)), T0 + tick * SECOND, gpu=gpu, Hostname=host)
                        for gpu in (0, 1) for host in "xy"),
                      temporality=DELTA),
                resource={"service.name": name})
            for step, name in ((1, "a"), (10, "b"))
        ]}
        for tick in range(3)
    ]  # fmt: skip
    found = in_parts(*([one] for one in sent))

    assert_same(found, tables(decoded(*sent))[0])
    assert {(row["service_name"], row["gpu_id"], row["energy_joules"]) for row in found[-8:]} == {
        ("a", "0", 3), ("a", "1", 6), ("b", "0", 30), ("b", "1", 60),
    }  # fmt: skip


def test_a_series_that_appears_in_a_later_part_joins_the_others() -> None:
    """Its first value adds to what the others have grown to."""
    assert joules(
        [energy(0, 10.0, source="x")], [energy(1, 11.0, source="x"), energy(1, 5.0, source="y")]
    ) == [10, 16]  # fmt: skip


def test_a_gpu_that_is_silent_in_a_part_goes_on_after_it() -> None:
    """Its totals are handed through, its rows are not made up."""
    parts = (
        [energy(0, 10.0, gpu=0, temporality=DELTA), power(0, 100.0, gpu=1)],
        [energy(1, 1.0, gpu=2, temporality=DELTA)],
        [energy(2, 5.0, gpu=0, temporality=DELTA), power(2, 100.0, gpu=1)],
    )

    assert cells(in_parts(*parts, factors=HOUR), "gpu_id", "energy_joules") == [
        ("0", 10), ("1", 0), ("2", 1), ("0", 15), ("1", 200),
    ]  # fmt: skip


def test_an_empty_part_changes_nothing() -> None:
    """No row, and the closing is the opening."""
    opening = flattened([[energy(0, 10.0), power(0, 1.0, gpu=1)]], factors=HOUR)[2]
    found = flatten_points(decoded(), Options(run_id="run", factors=HOUR), opening)

    assert found.closing == opening
    assert all(map(len, (opening.sums, opening.power, opening.sent)))
    assert found.times.size == 0
    assert found.gpus == ()


def test_a_metric_that_served_a_column_keeps_it_in_a_part_without_it() -> None:
    """Of two metrics that mean the same, one is the run's: totals do not jump."""
    first = [energy(0, 10.0), energy(0, 1000, "hw.gpu.energy.consumed")]
    rows, points, _, skipped = flattened([first, [energy(1, 7000, "hw.gpu.energy.consumed")]])

    assert cells(rows, "energy_joules") == [(10,), (None,)]
    assert [one["value"] for one in points] == [1000, 7000]
    assert sum(skipped.values()) == 2


def test_a_series_that_only_announced_itself_has_no_end() -> None:
    """A part in which nothing was recorded leaves nothing behind."""
    opening = flattened([[energy(0, None)]])[2]

    assert opening == START


def test_a_gauge_that_counts_is_carried_like_a_counter() -> None:
    """Exporters send energy as a gauge too."""
    parts = [[at(tick, gauge("nvidia_smi_energy_joules", "", point(value, uuid="GPU-a")))]
             for tick, value in enumerate([500.0, 700.0, 10.0])]  # fmt: skip

    assert joules(*parts) == [0, 200, 210]


def test_an_opening_does_not_grow_with_points() -> None:
    """A few numbers per series and GPU."""

    def closing(ticks):
        requests = [one for tick in range(ticks) for one in (energy(tick, 1.0 * tick, gpu=0),
                                                             power(tick, 50.0, gpu=1))]  # fmt: skip
        return flattened([requests], factors=HOUR)[2]

    for size in (2, 200):
        assert (len(closing(size).sums), len(closing(size).power)) == (1, 1)
    assert len(json.dumps(as_json(closing(200)))) < 2 * len(json.dumps(as_json(closing(2))))


# ------------------------------------------------------------------ late points


def test_a_late_point_of_a_counter_is_no_restart() -> None:
    """It is older than what the part before ended with: less is no loss."""
    parts = [energy(0, 10.0), energy(2, 30.0)], [energy(1, 20.0), energy(3, 40.0)], [energy(4, 50)]

    assert joules(*parts) == [10, 30, 20, 40, 50]


def test_a_point_that_is_corrected_after_the_cut_is_no_restart() -> None:
    """The same instant again, with less: the totals after it stay what they are."""
    assert joules(
        [energy(0, 10.0), energy(1, 30.0)], [energy(1, 20.0), energy(2, 40.0)]
    ) == [10, 30, 20, 40]  # fmt: skip


def test_a_part_of_late_points_only_leaves_the_end_where_it_was() -> None:
    """The next part goes on from the last point in time, not in arrival."""
    assert joules(
        [energy(0, 10.0), energy(2, 30.0)], [energy(1, 20.0)], [energy(3, 25.0)]
    ) == [10, 30, 20, 55]  # fmt: skip


def test_a_late_delta_is_part_of_the_total() -> None:
    """Whenever it comes, it was used."""
    deltas = {"temporality": DELTA}

    assert joules(
        [energy(0, 1.0, **deltas), energy(2, 1.0, **deltas)],
        [energy(1, 1.0, **deltas)],
        [energy(3, 1.0, **deltas)],
    ) == [1, 2, 3, 4]


def test_a_late_power_reading_charges_nothing_twice() -> None:
    """The time around it was charged when the reading after it came."""
    found = joules(
        [power(0, 100.0), power(2, 100.0)], [power(1, 900.0), power(3, 100.0)], factors=HOUR
    )

    assert found == [0, 200, 200, 300]


# ------------------------------------------------------------------ derived


def test_power_is_integrated_across_the_cut() -> None:
    """The trapezoid between the parts is charged in the later one."""
    assert joules(
        [power(0, 100.0), power(1, 100.0)], [power(2, 300.0), power(3, 300.0)], factors=HOUR
    ) == [0, 100, 300, 600]


def test_a_long_gap_across_the_cut_is_not_charged() -> None:
    """A part of one reading knows from the parts before what is long."""
    first = [power(tick, 100.0) for tick in range(3)]

    assert joules(first, [power(12, 100.0)], [power(13, 100.0)], factors=HOUR) == [
        0, 100, 200, 200, 300,
    ]  # fmt: skip


def test_parts_of_one_reading_each_are_charged() -> None:
    """A cut after each reading, from the first on."""
    ticks = [0, 1, 2, 3, 6, 10, 11]
    parts = [[power(tick, 100.0)] for tick in ticks]

    assert joules(*parts, factors=HOUR) == [0, 100, 200, 300, 600, 600, 700]


def test_long_gaps_are_long_in_a_part_that_has_no_others() -> None:
    """The typical interval is that of the run so far."""
    first = [power(tick, 100.0) for tick in range(10)]
    parts = first, [power(tick, 100.0) for tick in (20, 40, 60)]

    assert joules(*parts, factors=HOUR)[-3:] == [900, 900, 900]


def test_co2_and_cost_follow_energy_over_parts() -> None:
    """100 W for 1 h is 47.5 g and 0.012 USD, in however many parts."""
    parts = [[power(tick, 100.0) for tick in range(hour, hour + 900, 5)]
             for hour in range(0, 3600, 900)]  # fmt: skip
    last = in_parts(*parts, [power(3600, 100.0)], factors=HOUR)[-1]

    assert last["energy_joules"] == pytest.approx(360_000)
    assert last["energy_source"] == "integrated"
    assert last["co2_emissions_gco2e"] == pytest.approx(47.5)
    assert last["power_cost_usd"] == pytest.approx(0.012)


def test_a_column_that_was_sent_is_not_derived_where_it_is_missing() -> None:
    """CO2 that somebody measured in the first part is null in the second, not an estimate."""
    both = [energy(0, 10.0), at(0, total(CO2, "g", point(7.0, gpu=0)))]
    found = in_parts(both, [energy(1, 20.0)], factors=HOUR)

    assert [row["co2_emissions_gco2e"] for row in found] == [7, None]
    assert found[1]["power_cost_usd"] > 0


def test_energy_that_was_sent_keeps_power_from_being_integrated_later() -> None:
    """Not in a part without energy either."""
    found = joules([energy(0, 10.0), power(0, 100.0)], [power(1, 100.0)], factors=HOUR)

    assert found == [10, None]


def test_energy_of_the_run_keeps_power_from_being_charged_in_later_parts() -> None:
    """With energy of the run known, integrating a GPU would count it twice."""
    of_run = total("gen_ai.energy.consumed", "kWh", point(1.0, component="gpu"))
    first = [at(0, of_run), power(0, 100.0, gpu=0), power(0, 100.0, gpu=1)]

    assert joules(first, [power(1, 100.0, gpu=0)], factors=HOUR) == [3.6e6, None, None, None]


def test_a_run_level_point_that_folded_was_sent_for_that_gpu_only() -> None:
    """Another GPU that appears later has its own cost derived."""
    first = [energy(0, 3.6e6, gpu=0), at(0, total(COST, "USD", point(7.0)))]
    second = [energy(1, 3.6e6, gpu=0), energy(1, 3.6e6, gpu=1)]
    found = in_parts(first, second, factors=HOUR)

    assert [row["power_cost_usd"] for row in found] == [7, None, pytest.approx(0.12)]
    assert_same(found, tables(decoded(*first, *second), factors=HOUR)[0])


def test_energy_derived_for_the_run_on_one_host_was_not_sent_for_another() -> None:
    """Two hosts whose power names no GPU: both are integrated."""
    parts = [[at(tick, gauge(POWER, "W", *(point(100.0, Hostname=host) for host in "ab")))]
             for tick in range(2)]  # fmt: skip

    assert joules(*parts, factors=HOUR) == [0, 0, 100, 100]


# ------------------------------------------------------------------ properties


def summed(name, unit, **options):
    """A metric of the stream's one point."""
    return lambda one: total(name, unit, one, **options)


def measured(name, unit):
    """Likewise a gauge."""
    return lambda one: gauge(name, unit, one)


DELTAS = (
    ("a", summed(CO2, "g", temporality=DELTA), {"gpu": 0}),
    ("a", summed(CO2, "g", temporality=DELTA), {"gpu": 1}),
    ("c", summed(MEMORY, "By", temporality=DELTA, monotonic=False), {"hw__id": "GPU-a"}),
)
STREAMS = (
    *DELTAS,
    ("a", summed(ENERGY, "J"), {"gpu": 0, "energy_source": "counter"}),
    ("a", summed(ENERGY, "J"), {"gpu": 0, "energy_source": "integrated"}),
    ("a", summed(COST, "USD", monotonic=False), {}),
    ("a", measured(UTIL, "%"), {"gpu": 0}),
    ("b", summed(SINCE_BOOT, ""), {"gpu": "0", "Hostname": "x"}),
    ("b", summed(SINCE_BOOT, ""), {"gpu": "0", "Hostname": "y"}),
    ("c", measured("queue.length", "1"), {}),
)
GROWS, FALLS, STARTS_ANEW, BREAKS = "grows", "falls", "starts anew", "breaks"
EVENTS = st.dictionaries(
    st.integers(0, len(STREAMS) - 1),
    st.tuples(st.floats(0, 1e6), st.sampled_from([GROWS, GROWS, FALLS, STARTS_ANEW, BREAKS])),
)
RUNS = st.lists(EVENTS, min_size=1, max_size=12)
CUTS = st.lists(st.integers(0, 12), max_size=4)


def sent_by(run):
    """One request per tick of *run*; streams that count go on from what they had."""
    values, starts = [9e6] * len(STREAMS), [T0 - 1] * len(STREAMS)
    for tick, events in enumerate(run):
        parts = []
        for number, (step, event) in sorted(events.items()):
            resource, made, attributes = STREAMS[number]
            time = T0 + tick * SECOND
            if event == STARTS_ANEW:
                starts[number] = time - SECOND
            goes_on = event == GROWS and number >= len(DELTAS)
            values[number] = step + (values[number] if goes_on else 0.0)
            value = None if event == BREAKS else values[number]
            one = made(point(value, time, start=starts[number], **attributes))
            parts.append(resource_metrics(one, resource={"service.name": resource}))
        yield {"resourceMetrics": parts}


def cut(requests, cuts):
    """*requests* in parts; *cuts* may be equal, and so a part empty."""
    places = [0, *sorted(min(place, len(requests)) for place in cuts), len(requests)]
    return [requests[begin:end] for begin, end in pairwise(places)]


def assert_parts_are_the_whole(requests, cuts, **options):
    """Rows, leftover points and counts of what was left out."""
    rows, points, closing, skipped = flattened(cut(requests, cuts), **options)
    whole_rows, whole_points, whole_closing, whole_skipped = flattened([requests], **options)
    assert_same(rows, whole_rows)
    assert sorted(map(repr, points)) == sorted(map(repr, whole_points))
    assert skipped == whole_skipped
    assert closing.sums.keys() == whole_closing.sums.keys()
    assert closing.sent == whole_closing.sent
    for series, end in whole_closing.sums.items():
        assert closing.sums[series] == pytest.approx(end, rel=1e-9, abs=1e-9)


@given(RUNS, CUTS)
def test_sums_in_parts_are_the_sums_of_the_whole(run, cuts) -> None:
    """Whatever grows, falls, starts anew, appears or ends, wherever the cuts are."""
    assert_parts_are_the_whole(list(sent_by(run)), cuts)


@given(RUNS, CUTS)
def test_what_is_derived_in_parts_is_what_is_derived_from_the_whole(run, cuts) -> None:
    """Where each column is sent from the first instant on, or never."""
    run[0] = dict.fromkeys(range(len(STREAMS)), (1.0, GROWS))
    requests = list(sent_by(run))
    for tick, one in enumerate(requests):
        watts = gauge(POWER, "W", point(10.0 * tick, T0 + tick * SECOND, gpu=1))
        one["resourceMetrics"].append(resource_metrics(watts, resource={"service.name": "a"}))
        one["resourceMetrics"].append(resource_metrics(watts, resource={"service.name": "d"}))

    assert_parts_are_the_whole(requests, cuts, factors=HOUR)


READINGS = st.lists(st.tuples(st.floats(0, 700), st.booleans()), max_size=12)


def readings_of(gpu, interval_ns, readings):
    """Time, GPU and watts of each reading; up to one gap in three is long."""
    time = T0
    for number, (watts, is_long) in enumerate(readings):
        time += interval_ns * (0 if not number else 10 if is_long and number % 3 == 0 else 1)
        yield time, gpu, watts


@given(READINGS, READINGS, CUTS)
def test_energy_from_power_in_parts_is_that_of_the_whole(slow, fast, cuts) -> None:
    """Each GPU has its interval, and gaps over which nothing is charged."""
    readings = sorted([*readings_of(0, SECOND, slow), *readings_of(1, SECOND // 3, fast)])
    instants = [
        request(gauge(POWER, "W", *(point(watts, time, gpu=gpu) for _, gpu, watts in some)))
        for time, some in groupby(readings, itemgetter(0))
    ]

    assert_same(in_parts(*cut(instants, cuts), factors=HOUR), in_parts(instants, factors=HOUR))


GAUGES = st.lists(st.dictionaries(st.sampled_from([0, 1, None]), st.floats(0, 100)), max_size=8)


@given(GAUGES, CUTS)
def test_without_sums_parts_are_the_whole_bit_for_bit(run, cuts) -> None:
    """Nothing is handed on, and nothing changes."""
    requests = [at(tick, *(gauge(UTIL, "%", point(value, gpu=gpu)) for gpu, value in some.items()))
                for tick, some in enumerate(run)]  # fmt: skip
    rows, points, closing, _ = flattened(cut(requests, cuts))

    assert (rows, points) == tables(decoded(*requests))
    assert closing == START


# ------------------------------------------------------------------ JSON

NUMBERS = st.floats(allow_nan=False)
TIMES = st.integers(0, 2**64 - 1)
TEXTS = st.text(max_size=5)
ATTRIBUTES = st.dictionaries(TEXTS, TEXTS | st.integers() | st.booleans(), max_size=2).map(
    attributes_json
)
SERIES = st.builds(
    Series,
    resource=ATTRIBUTES,
    scope_name=TEXTS,
    scope=ATTRIBUTES,
    metric_name=TEXTS,
    unit=TEXTS,
    kind=st.sampled_from(["gauge", "sum"]),
    temporality=st.sampled_from([None, "delta", "cumulative"]),
    is_monotonic=st.none() | st.booleans(),
    attributes=ATTRIBUTES,
    run_id=st.none() | TEXTS,
)
GPUS = st.builds(GpuKey, TEXTS, ATTRIBUTES, st.none() | TEXTS, st.none() | TEXTS)
OPENINGS = st.builds(
    Opening,
    sums=st.dictionaries(SERIES, st.builds(SumEnd, NUMBERS, NUMBERS, TIMES, TIMES), max_size=3),
    power=st.dictionaries(
        GPUS, st.builds(PowerEnd, NUMBERS, NUMBERS, TIMES, NUMBERS, TIMES), max_size=3
    ),
    sent=st.dictionaries(GPUS, st.frozensets(st.sampled_from(sorted(CUMULATIVE_COLUMNS)))),
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
GARBAGE = st.recursive(SCALARS, lambda some: st.lists(some) | st.dictionaries(TEXTS, some))


def written(opening):
    """*opening* as JSON that any reader takes: no bare NaN or Infinity."""
    return json.dumps(as_json(opening), allow_nan=False)


@given(OPENINGS)
def test_an_opening_survives_json_to_the_last_bit(opening) -> None:
    """Floats and integers alike, also what JSON has no number for."""
    found = from_json(json.loads(written(opening)))

    assert found == opening
    assert written(found) == written(opening)


def test_a_total_that_is_no_number_survives_json() -> None:
    """Infinity times nothing is that."""
    series = Series(resource="{}", scope_name="", metric_name="m", unit="", kind="sum")
    opening = Opening({series: SumEnd(math.nan, math.inf, 0, 1)}, {})
    [end] = from_json(json.loads(written(opening))).sums.values()

    assert math.isnan(end.total)
    assert end.value == math.inf


@given(GARBAGE)
def test_garbage_is_no_opening(value) -> None:
    """Whatever JSON can say."""
    with pytest.raises(DecodeError):
        from_json(value)


def leaves(value, path=()):
    """Where in nested *value* there is something that is not a container."""
    items = enumerate(value) if isinstance(value, list) else getattr(value, "items", list)()
    for key, item in items:
        yield (*path, key)
        yield from leaves(item, (*path, key))


@given(OPENINGS, GARBAGE, st.data())
def test_a_broken_place_is_a_decode_error_or_still_an_opening(opening, garbage, data) -> None:
    """No other error escapes, and what is read can be written and read again."""
    value = as_json(opening)
    *path, last = data.draw(st.sampled_from(list(leaves(value))))
    place = value
    for key in path:
        place = place[key]
    place[last] = garbage
    try:
        found = from_json(value)
    except DecodeError:
        return
    assert written(from_json(json.loads(written(found)))) == written(found)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        *((field.name, 1) for field in fields(Series)),
        ("resource", "[]"),
        ("attributes", "{"),
        ("kind", "histogramm"),
        ("kind", ["sum"]),
        ("temporality", "daily"),
        ("is_monotonic", "yes"),
        ("run_id", 0),
        ("unheard_of", "x"),
    ],
)
def test_a_series_with_a_wrong_field_is_no_opening(field, wrong) -> None:
    """Each field has its type; none is new."""
    series = Series(resource="{}", scope_name="", metric_name="m", unit="", kind="sum")
    value = as_json(Opening({series: SumEnd(1.0, 2.0, 3, 4)}, {}))
    value["sums"][0][0][field] = wrong

    with pytest.raises(DecodeError):
        from_json(value)


@pytest.mark.parametrize("end", [
    [1.0, 2.0, 3], [1.0, 2.0, 3, 4, 5], ["1", 2.0, 3, 4], [1.0, None, 3, 4], [1.0, 2.0, -3, 4],
    [1.0, 2.0, 3, 2**64], [1.0, 2.0, 3.0, 4], [True, 2.0, 3, 4], [1.0, 2.0, 3, True],
    [10**400, 2.0, 3, 4],
])  # fmt: skip
def test_an_end_with_a_wrong_number_is_no_opening(end) -> None:
    """Times are what fixed64 holds, totals are numbers."""
    series = Series(resource="{}", scope_name="", metric_name="m", unit="", kind="sum")
    value = as_json(Opening({series: SumEnd(1.0, 2.0, 3, 4)}, {}))
    value["sums"][0][1:] = end

    with pytest.raises(DecodeError, match="totals"):
        from_json(value)
