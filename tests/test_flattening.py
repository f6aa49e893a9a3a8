"""The merging rules of the dataset contract, one test each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmeter.batch import PointBatch
from hubmeter.decode.otlp_json import JsonDecoder
from hubmeter.decode.spans import SpanDecoder
from hubmeter.energy import Factors
from hubmeter.flattening import COMPETING, LEFT_OUT, NOT_FINITE, Options, flatten_points
from hubmeter.ledger import Points, gather
from hubmeter.schema import WINDOW_COLUMNS
from hubmeter.streams import DUPLICATE, NO_TIME
from makers import (
    CO2,
    COST,
    DELTA,
    ENERGY,
    POWER,
    SECOND,
    T0,
    TEMP,
    USED,
    UTIL,
    cells,
    decoded,
    gauge,
    key_values,
    point,
    point_rows,
    request,
    resource_metrics,
    rows,
    skipped,
    tables,
    total,
)

MS = SECOND // 1000


def energies(*points, temporality=2, monotonic=True, name=ENERGY):
    return request(total(name, "J", *points, temporality=temporality, monotonic=monotonic))


# ------------------------------------------------------------------ rows


def test_four_gpus_at_one_instant_are_four_rows() -> None:
    """Every data point of a metric counts, not only the first."""
    found = rows(request(gauge(UTIL, "%", *(point(10 * gpu, gpu=gpu) for gpu in range(4)))))

    assert cells(found, "gpu_id", "gpu_utilization_percent") == [
        ("0", 0), ("1", 10), ("2", 20), ("3", 30),
    ]  # fmt: skip


def test_two_hosts_as_two_resources_are_two_rows() -> None:
    """The same GPU index on two hosts at one instant stays two GPUs."""
    parts = [
        resource_metrics(gauge(UTIL, "%", point(value, gpu=0)), resource={"host.name": host})
        for host, value in (("b", 2), ("a", 1))
    ]
    found = rows({"resourceMetrics": parts})

    assert cells(found, "host_name", "gpu_utilization_percent") == [("a", 1), ("b", 2)]


def test_two_hosts_as_attributes_of_one_metric_are_two_rows() -> None:
    """dcgm-exporter names the host in an attribute: it tells GPUs apart."""
    found = rows(
        request(gauge("DCGM_FI_DEV_GPU_UTIL", "",
                      point(1, gpu="0", Hostname="a"), point(2, gpu="0", Hostname="b")))
    )  # fmt: skip

    assert cells(found, "host_name", "gpu_id", "gpu_utilization_percent") == [
        ("a", "0", 1), ("b", "0", 2),
    ]  # fmt: skip


def test_twelve_timestamps_inside_one_metric_are_twelve_rows() -> None:
    """Points of one series are as many instants, even inside one request and one second."""
    points = [point(value, T0 + value * 50 * MS, gpu=0) for value in range(12)]
    found = rows(request(gauge(UTIL, "%", *points)))

    assert [row["gpu_utilization_percent"] for row in found] == list(range(12))
    assert [int(row["timestamp_unix_nano"]) for row in found] == [
        T0 + value * 50 * MS for value in range(12)
    ]


def test_different_resources_at_one_instant_are_two_rows() -> None:
    """Two services that report at the same nanosecond do not mix."""
    parts = [
        resource_metrics(gauge(UTIL, "%", point(1, gpu=0)), resource={"service.name": "a"}),
        resource_metrics(gauge(POWER, "W", point(2.0, gpu=0)), resource={"service.name": "b"}),
    ]
    found = rows({"resourceMetrics": parts})

    assert cells(found, "service_name", "gpu_utilization_percent", "gpu_power_watts") == [
        ("a", 1, None), ("b", None, 2),
    ]  # fmt: skip


def test_one_collection_is_one_row_per_gpu() -> None:
    """Everything of one GPU and instant is in one row, from whichever scope."""
    parts = [
        resource_metrics(gauge(UTIL, "%", point(1, gpu=0), point(2, gpu=1)), scope="a"),
        resource_metrics(gauge(POWER, "W", point(3.0, gpu=0), point(4.0, gpu=1)), scope="b"),
    ]
    found = rows({"resourceMetrics": parts})

    assert cells(found, "gpu_id", "gpu_utilization_percent", "gpu_power_watts") == [
        ("0", 1, 3), ("1", 2, 4),
    ]  # fmt: skip


def test_points_of_two_requests_join_when_their_times_are_equal() -> None:
    """A Collector may split one collection over requests."""
    found = rows(
        request(gauge(UTIL, "%", point(1, gpu=0))), request(gauge(POWER, "W", point(2.0, gpu=0)))
    )

    assert cells(found, "gpu_utilization_percent", "gpu_power_watts") == [(1, 2)]


def test_rows_are_sorted_by_time_then_gpu_without_a_gpu_first() -> None:
    """The order is that of the contract, not that of arrival."""
    found = rows(
        request(gauge(UTIL, "%", point(1, T0 + SECOND, gpu=1), point(1, T0 + SECOND, gpu=0))),
        request(gauge(UTIL, "%", point(1, T0, gpu=1), point(1, T0, gpu=0))),
        request(total(CO2, "gCO2e", point(1.0, T0))),
    )

    assert [(int(row["timestamp_unix_nano"]) - T0, row["gpu_id"]) for row in found] == [
        (0, None), (0, "0"), (0, "1"), (SECOND, "0"), (SECOND, "1"),
    ]  # fmt: skip


def test_no_known_metric_is_no_row() -> None:
    """A table without rows is a table all the same."""
    assert rows(request(gauge("queue.length", "1", point(1)))) == []


def test_a_run_without_gpu_metrics_is_one_row_if_asked() -> None:
    """The run is identified, every metric is null."""
    sent = request(gauge("queue.length", "1", point(1)),
                   resource={"run.id": "r", "service.name": "s", "host.name": "h"})  # fmt: skip
    [row] = rows(sent, empty_run_unix_nano=T0)

    assert (row["run_id"], row["service_name"], row["host_name"]) == ("r", "s", "h")
    assert row["timestamp_unix_nano"] == str(T0)
    assert row["gpu_id"] is None
    assert row["gpu_power_watts"] is None


def test_nothing_at_all_is_one_row_if_asked() -> None:
    """Also a run of which not a single point is known."""
    [row] = rows(empty_run_unix_nano=T0, zero_fill=True)

    assert (row["run_id"], row["gpu_power_watts"], row["energy_joules"]) == ("run", 0.0, None)


# ------------------------------------------------------------------ fold


def test_run_level_point_folds_into_the_only_gpu() -> None:
    """smoltrace's own case: CO2 without a GPU id beside one GPU is one row."""
    found = rows(request(gauge(UTIL, "%", point(7, gpu=0)), total(CO2, "gCO2e", point(1.5))))

    assert cells(found, "gpu_id", "gpu_utilization_percent", "co2_emissions_gco2e") == [
        ("0", 7, 1.5)
    ]


def test_run_level_point_has_its_own_first_row_beside_several_gpus() -> None:
    """Nobody knows whose it is, so it is nobody's."""
    found = rows(
        request(gauge(UTIL, "%", point(7, gpu=0), point(8, gpu=1)), total(CO2, "g", point(1.5)))
    )

    assert cells(found, "gpu_id", "gpu_utilization_percent", "co2_emissions_gco2e") == [
        (None, None, 1.5), ("0", 7, None), ("1", 8, None),
    ]  # fmt: skip


def test_fold_asks_at_each_instant_again() -> None:
    """A second GPU that appears later does not change earlier rows."""
    found = rows(
        request(gauge(UTIL, "%", point(1, gpu=0)), total(CO2, "g", point(1.0))),
        request(gauge(UTIL, "%", point(2, T0 + SECOND, gpu=0), point(3, T0 + SECOND, gpu=1)),
                total(CO2, "g", point(2.0, T0 + SECOND))),
    )  # fmt: skip

    assert cells(found, "gpu_id", "co2_emissions_gco2e") == [
        ("0", 1), (None, 2), ("0", None), ("1", None),
    ]  # fmt: skip


def test_fold_never_overwrites() -> None:
    """A run-level value whose cell is taken stays in a row of its own."""
    found = rows(
        request(gauge(UTIL, "%", point(7, gpu=0)),
                total(CO2, "g", point(1.0, gpu=0), point(9.0, source="codecarbon")))
    )  # fmt: skip

    assert cells(found, "gpu_id", "gpu_utilization_percent", "co2_emissions_gco2e") == [
        (None, None, 9), ("0", 7, 1),
    ]  # fmt: skip


def test_fold_stays_on_the_host_that_a_point_names() -> None:
    """A point of host b is not a reading of the GPU of host a."""
    found = rows(
        request(gauge(UTIL, "%", point(7, gpu=0, Hostname="a")),
                total(CO2, "g", point(1.0, Hostname="b")))
    )  # fmt: skip

    assert cells(found, "gpu_id", "host_name", "co2_emissions_gco2e") == [
        (None, "b", 1), ("0", "a", None),
    ]  # fmt: skip


def test_fold_finds_the_one_gpu_of_the_host_that_a_point_names() -> None:
    """With one GPU on each of two hosts, each host has exactly one."""
    found = rows(
        request(gauge(UTIL, "%", point(7, gpu=0, Hostname="a"), point(8, gpu=0, Hostname="b")),
                total(CO2, "g", point(1.0, Hostname="b")))
    )  # fmt: skip

    assert cells(found, "host_name", "co2_emissions_gco2e") == [("a", None), ("b", 1)]


# ------------------------------------------------------------------ alignment


def test_close_points_of_one_request_join() -> None:
    """Through a Collector, readings of one scrape are milliseconds apart."""
    found = rows(
        request(
            gauge(UTIL, "%", point(1, T0, gpu=0)),
            gauge(POWER, "W", point(2.0, T0 + 40 * MS, gpu=0)),
        )
    )

    assert cells(found, "timestamp_unix_nano", "gpu_utilization_percent", "gpu_power_watts") == [
        (str(T0), 1, 2)
    ]


@pytest.mark.parametrize(("apart_ns", "instants"), [(SECOND, 1), (SECOND + 1, 2)])
def test_alignment_window_is_one_second_at_most(apart_ns: int, instants: int) -> None:
    """Where no interval was seen, the window is its widest."""
    found = rows(
        request(
            gauge(UTIL, "%", point(1, T0, gpu=0)),
            gauge(POWER, "W", point(2.0, T0 + apart_ns, gpu=0)),
        )
    )

    assert len(found) == instants


@pytest.mark.parametrize(("apart_ms", "instants"), [(100, 3), (101, 6)])
def test_alignment_window_is_half_the_interval_seen(apart_ms: int, instants: int) -> None:
    """A source that reports each 0.2 s joins points that are 0.1 s apart, and no others."""
    sent = [
        request(gauge(UTIL, "%", point(1, time, gpu=0)),
                gauge(POWER, "W", point(2.0, time + apart_ms * MS, gpu=0)))
        for time in (T0, T0 + 200 * MS, T0 + 400 * MS)
    ]  # fmt: skip

    assert len(rows(*sent)) == instants


def test_interval_is_also_seen_in_requests_that_need_no_alignment() -> None:
    """Collections with one time each say how often the source reports."""
    sent = [request(gauge(UTIL, "%", point(1, T0 + tick * 100 * MS, gpu=0))) for tick in range(5)]
    sent.append(
        request(gauge(UTIL, "%", point(1, T0 + 500 * MS, gpu=0)),
                gauge(POWER, "W", point(2.0, T0 + 600 * MS, gpu=0)))
    )  # fmt: skip

    assert len(rows(*sent)) == 7


def test_close_points_of_two_requests_never_join() -> None:
    """Only equal times say that two requests speak of one instant."""
    found = rows(
        request(gauge(UTIL, "%", point(1, T0, gpu=0))),
        request(gauge(POWER, "W", point(2.0, T0 + 1, gpu=0))),
    )

    assert len(found) == 2


def test_alignment_never_makes_two_points_of_a_series_one() -> None:
    """A point that would be moved onto the one before, sent in another request, stays."""
    found = rows(
        request(gauge(UTIL, "%", point(1, T0, gpu=0))),
        request(
            gauge(POWER, "W", point(5.0, T0, gpu=0)),
            gauge(UTIL, "%", point(2, T0 + 300 * MS, gpu=0)),
        ),
    )

    assert cells(found, "gpu_utilization_percent", "gpu_power_watts") == [(1, 5), (2, None)]


def test_alignment_is_per_resource() -> None:
    """What two resources report in one request are different instants."""
    parts = [
        resource_metrics(gauge(UTIL, "%", point(1, T0 + n, gpu=0)), resource={"host.name": str(n)})
        for n in range(2)
    ]

    assert cells(rows({"resourceMetrics": parts}), "timestamp_unix_nano") == [
        (str(T0),), (str(T0 + 1),),
    ]  # fmt: skip


def test_a_point_without_a_time_does_not_pull_others_along() -> None:
    """Time 0 is no time, and no instant that others could join."""
    sent = request(gauge(UTIL, "%", point(1, 0, gpu=0)), gauge(POWER, "W", point(2.0, 5, gpu=0)))

    assert cells(rows(sent), "timestamp_unix_nano", "gpu_power_watts") == [("5", 2)]
    assert skipped(sent) == {NO_TIME: 1}


def test_points_keep_the_time_that_was_sent() -> None:
    """Alignment is for rows only."""
    sent = request(gauge("a", "", point(1, T0)), gauge("b", "", point(2, T0 + 40 * MS)))

    assert [int(row["timestamp_unix_nano"]) for row in point_rows(sent)] == [T0, T0 + 40 * MS]


# ------------------------------------------------------------------ twice


def test_of_the_same_point_twice_the_last_wins_and_is_counted() -> None:
    """A sender repeats what it believes lost."""
    sent = [request(gauge(UTIL, "%", point(value, gpu=0))) for value in (1, 2)]

    assert cells(rows(*sent), "gpu_utilization_percent") == [(2,)]
    assert skipped(*sent) == {DUPLICATE: 1}


def test_of_the_same_point_twice_in_one_request_the_last_wins() -> None:
    """Also inside one metric."""
    sent = request(gauge(UTIL, "%", point(1, gpu=0), point(2, gpu=0)))

    assert cells(rows(sent), "gpu_utilization_percent") == [(2,)]


def test_a_repeated_delta_counts_once() -> None:
    """A request that is sent again does not make energy."""
    first = energies(point(5.0, gpu=0), temporality=DELTA)
    second = energies(point(3.0, T0 + SECOND, gpu=0), temporality=DELTA)

    assert [row["energy_joules"] for row in rows(first, second, first)] == [5, 8]


# ------------------------------------------------------------------ sums


def test_delta_sums_accumulate() -> None:
    """5 + 5 + 5 is 15, not 5."""
    points = [point(5.0, T0 + tick * SECOND, gpu=0) for tick in range(3)]

    assert cells(rows(energies(*points, temporality=DELTA)), "energy_joules") == [
        (5,),
        (10,),
        (15,),
    ]


def test_counter_that_falls_continues() -> None:
    """100, then 2 after a restart, is 102."""
    points = [
        point(value, T0 + tick * SECOND, gpu=0)
        for tick, value in enumerate([40.0, 100.0, 2.0, 5.0])
    ]

    assert [row["energy_joules"] for row in rows(energies(*points))] == [40, 100, 102, 105]


def test_counter_that_started_anew_continues_although_it_did_not_fall() -> None:
    """A start time after the last point is a restart: 100, then 150, is 250."""
    found = rows(energies(point(100.0, T0, gpu=0, start=T0 - SECOND),
                          point(150.0, T0 + 2 * SECOND, gpu=0, start=T0 + SECOND)))  # fmt: skip

    assert [row["energy_joules"] for row in found] == [100, 250]


def test_counter_that_started_anew_and_fell_continues_once() -> None:
    """Both signs of the same restart are one restart."""
    found = rows(energies(point(100.0, T0, gpu=0, start=T0 - SECOND),
                          point(2.0, T0 + 2 * SECOND, gpu=0, start=T0 + SECOND)))  # fmt: skip

    assert [row["energy_joules"] for row in found] == [100, 102]


def test_start_times_that_overlap_are_no_restart() -> None:
    """A sender that corrects its start time has not lost what it counted."""
    found = rows(energies(point(100.0, T0, gpu=0, start=T0 - SECOND),
                          point(150.0, T0 + SECOND, gpu=0, start=T0 - SECOND // 2)))  # fmt: skip

    assert [row["energy_joules"] for row in found] == [100, 150]


def test_non_monotonic_sum_may_fall() -> None:
    """Memory in use is an UpDownCounter: less is less, not a restart."""
    points = [
        point(value * 2**20, T0 + tick * SECOND, hw__id="GPU-a")
        for tick, value in enumerate([100, 40])
    ]
    found = rows(request(total("hw.gpu.memory.usage", "By", *points, monotonic=False)))

    assert [row["gpu_memory_used_mib"] for row in found] == [100, 40]


def test_non_monotonic_delta_sum_adds_up() -> None:
    """Its deltas lead to the amount in use."""
    points = [
        point(value * 2**20, T0 + tick * SECOND, hw__id="GPU-a")
        for tick, value in enumerate([100, -60])
    ]
    found = rows(
        request(total("hw.gpu.memory.usage", "By", *points, monotonic=False, temporality=DELTA))
    )

    assert [row["gpu_memory_used_mib"] for row in found] == [100, 40]


def test_device_counter_counts_from_its_first_value() -> None:
    """DCGM counts mJ since the driver was loaded, which was not this run."""
    points = [
        point(value, T0 + tick * SECOND, gpu="0")
        for tick, value in enumerate([9_000_000, 9_005_000, 1000])
    ]
    found = rows(request(total("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "", *points)))

    assert [row["energy_joules"] for row in found] == [0, 5, 6]


def test_attribute_sets_of_a_sum_add_up_and_the_source_says_which() -> None:
    """Energy by counter, then integrated: the total is both, the source the weaker one."""
    found = rows(
        energies(point(10.0, T0, gpu=0, energy_source="counter")),
        energies(point(10.0, T0 + SECOND, gpu=0, energy_source="counter"),
                 point(4.0, T0 + SECOND, gpu=0, energy_source="integrated")),
        energies(point(7.0, T0 + 2 * SECOND, gpu=0, energy_source="integrated")),
    )  # fmt: skip

    assert cells(found, "energy_joules", "energy_source") == [
        (10, "counter"), (14, "integrated"), (17, "integrated"),
    ]  # fmt: skip


def test_nothing_integrated_yet_is_counter() -> None:
    """A stream that has not grown has not weakened the total."""
    found = rows(energies(point(10.0, gpu=0, energy_source="counter"),
                          point(0.0, gpu=0, energy_source="integrated")))  # fmt: skip

    assert cells(found, "energy_joules", "energy_source") == [(10, "counter")]


# ------------------------------------------------------------------ competing values


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_of_competing_metrics_the_same_one_serves_whatever_the_order(
    order: tuple[int, ...],
) -> None:
    """Which metric fills a cell does not depend on arrival; the others are in points."""
    sent = [
        request(gauge("DCGM_FI_DEV_POWER_USAGE_INSTANT", "", point(3.0, gpu="0"))),
        request(gauge("DCGM_FI_DEV_POWER_USAGE", "", point(2.0, gpu="0"))),
        request(gauge(POWER, "W", point(1.0, gpu="0"))),
    ]
    sent = [sent[place] for place in order]

    assert cells(rows(*sent), "gpu_power_watts") == [(2,)]
    assert sorted(row["value"] for row in point_rows(*sent)) == [1, 3]
    assert skipped(*sent) == {COMPETING: 2}


def test_attributes_named_like_columns_never_overwrite() -> None:
    """run_id, timestamp and power as attributes of a point are only attributes."""
    hostile = {"run_id": "x", "timestamp": "x", "service_name": "x", "gpu_power_watts": 1.0}
    [row] = rows(
        request(gauge(UTIL, "%", point(7, gpu=0, **hostile)), resource={"service.name": "s"})
    )

    assert (row["run_id"], row["service_name"], row["gpu_power_watts"]) == ("run", "s", None)
    assert row["timestamp"] == "2025-10-27T05:58:15.460017+00:00"


def test_true_and_one_are_different_attribute_values() -> None:
    """Two series that plain Python comparison would mix up add up as two."""
    found = rows(energies(point(1.0, gpu=0, flag=True), point(2.0, gpu=0, flag=1)))

    assert cells(found, "energy_joules") == [(3,)]


# ------------------------------------------------------------------ not finite, not recorded


@pytest.mark.parametrize("broken", ["NaN", "Infinity", "-Infinity"])
def test_values_that_are_not_finite_are_null_counted_and_kept(broken: str) -> None:
    """The row shows that something was read, the points what it was."""
    sent = request(
        gauge(UTIL, "%", point(1, gpu=0)),
        gauge(POWER, "W", point(broken, gpu=0) | {"asDouble": broken}),
    )
    default, points = tables(decoded(sent))

    assert cells(default, "gpu_utilization_percent", "gpu_power_watts") == [(1, None)]
    [kept] = [row["value"] for row in points]
    assert str(kept) == str(float(broken))
    assert skipped(sent) == {NOT_FINITE: 1}


def test_a_value_that_overflows_its_column_is_null() -> None:
    """What is finite in kWh may not be in J."""
    sent = request(total("gen_ai.energy.consumed", "kWh", point(1e305, gpu=0, component="gpu")))

    assert cells(rows(sent), "energy_joules") == [(None,)]
    assert cells(point_rows(sent), "value") == [(1e305,)]


def test_no_recorded_value_is_null_and_not_an_error() -> None:
    """OTLP's flag says that a series ended; its cell is null, its point complete."""
    sent = request(gauge(UTIL, "%", point(5, gpu=0) | {"flags": 1}))

    assert cells(rows(sent), "gpu_id", "gpu_utilization_percent") == [("0", None)]
    assert cells(point_rows(sent), "flags", "value") == [(1, None)]
    assert skipped(sent) == {}


def test_zero_fill_is_for_the_seven_only() -> None:
    """As smoltrace has it: the seed metrics are 0.0, everything else stays null."""
    [row] = rows(request(gauge(TEMP, "Cel", point(50, gpu=0))), zero_fill=True)

    assert row["gpu_temperature_celsius"] == 50
    assert {name for name, value in row.items() if value == 0.0} == {
        "co2_emissions_gco2e", "power_cost_usd", "gpu_utilization_percent",
        "gpu_memory_used_mib", "gpu_memory_total_mib", "gpu_power_watts",
    }  # fmt: skip


def test_missing_is_null_by_default() -> None:
    """Not measured is not 0."""
    [row] = rows(request(gauge(TEMP, "Cel", point(50, gpu=0))))

    assert {name for name, value in row.items() if value is not None} == {
        "run_id", "timestamp", "timestamp_unix_nano", "gpu_id", "gpu_temperature_celsius",
    }  # fmt: skip


# ------------------------------------------------------------------ whose rows


@pytest.mark.parametrize(
    ("resource", "envelope", "expected"),
    [
        ({"run.id": "res"}, "env", "res"),
        ({"run.id": 0}, "env", "0"),
        ({"run.id": ["x"]}, "env", "env"),
        ({"run.id": ""}, "env", "env"),
        ({}, "env", "env"),
        ({}, ["x"], "run"),
        ({}, None, "run"),
    ],
)
def test_run_id_is_the_resources_then_the_envelopes_then_ours(resource, envelope, expected) -> None:
    """In rows and in points alike."""
    sent = request(gauge(UTIL, "%", point(1, gpu=0)), resource=resource, run_id=envelope)
    default, points = tables(decoded(sent), points="all")

    assert {row["run_id"] for row in [*default, *points]} == {expected}


def test_two_runs_in_one_file_are_two_runs() -> None:
    """The run is part of a row's key."""
    found = rows(*(request(gauge(UTIL, "%", point(1, gpu=0)), run_id=name) for name in "ba"))

    assert cells(found, "run_id") == [("a",), ("b",)]


# ------------------------------------------------------------------ derived


HOUR = Factors()


def test_one_hour_of_one_hundred_watts() -> None:
    """100 W for 1 h is 0.1 kWh: 47.5 g and 0.012 USD."""
    points = [point(100.0, T0 + tick * 5 * SECOND, gpu=0) for tick in range(721)]
    last = rows(request(gauge(POWER, "W", *points)), factors=HOUR)[-1]

    assert last["energy_joules"] == pytest.approx(360_000)
    assert last["energy_source"] == "integrated"
    assert last["co2_emissions_gco2e"] == pytest.approx(47.5)
    assert last["power_cost_usd"] == pytest.approx(0.012)


def test_energy_that_was_sent_is_not_integrated_again() -> None:
    """CO2 and cost follow from the energy that was sent."""
    found = rows(
        request(gauge(POWER, "W", point(100.0, gpu=0), point(100.0, T0 + SECOND, gpu=0)),
                total(ENERGY, "J", point(0.0, gpu=0), point(3.6e6, T0 + SECOND, gpu=0))),
        factors=HOUR,
    )  # fmt: skip

    assert cells(found, "energy_joules", "energy_source")[-1] == (3.6e6, "counter")
    assert found[-1]["co2_emissions_gco2e"] == pytest.approx(475)


def test_co2_and_cost_that_were_sent_stay() -> None:
    """What somebody measured is not replaced by an estimate."""
    found = rows(
        request(gauge(POWER, "W", point(100.0, gpu=0), point(100.0, T0 + SECOND, gpu=0)),
                total(CO2, "g", point(7.0, gpu=0)), total(COST, "USD", point(8.0, gpu=0))),
        factors=HOUR,
    )  # fmt: skip

    assert cells(found, "co2_emissions_gco2e", "power_cost_usd", "energy_joules") == [
        (7, 8, 0), (None, None, 100),
    ]  # fmt: skip


def test_run_level_energy_keeps_power_from_being_charged_too() -> None:
    """With energy of the run known, integrating each GPU would count it twice."""
    found = rows(
        request(gauge(POWER, "W", point(100.0, gpu=0), point(100.0, gpu=1)),
                total("gen_ai.energy.consumed", "kWh", point(1.0, component="gpu"))),
        factors=HOUR,
    )  # fmt: skip

    assert cells(found, "gpu_id", "energy_joules") == [(None, 3.6e6), ("0", None), ("1", None)]


def test_energy_announced_without_a_value_was_not_sent() -> None:
    """A series that never recorded a value does not keep power from being integrated."""
    found = rows(
        request(gauge(POWER, "W", point(100.0, gpu=0), point(100.0, T0 + SECOND, gpu=0)),
                total(ENERGY, "J", point(None, gpu=0))),
        factors=HOUR,
    )  # fmt: skip

    assert [row["energy_joules"] for row in found] == [0, 100]


def test_long_gaps_are_not_charged() -> None:
    """Over more than three intervals nobody knows what was drawn."""
    ticks = [0, 1, 2, 3, 6, 10, 11]
    points = [point(100.0, T0 + tick * SECOND, gpu=0) for tick in ticks]
    found = rows(request(gauge(POWER, "W", *points)), factors=HOUR)

    assert [row["energy_joules"] for row in found] == [0, 100, 200, 300, 600, 600, 700]


def test_pue_multiplies_co2_and_cost_but_not_energy() -> None:
    """Energy is the GPU's, CO2 and cost are the data centre's."""
    sent = energies(point(3.6e6, gpu=0))
    [row] = rows(sent, factors=Factors(carbon_g_per_kwh=100, price_usd_per_kwh=1, pue=1.5))

    assert (row["energy_joules"], row["co2_emissions_gco2e"], row["power_cost_usd"]) == (
        3.6e6, pytest.approx(150), pytest.approx(1.5),
    )  # fmt: skip


def test_nothing_is_derived_without_factors() -> None:
    """Null is the default of the pure core."""
    [row] = rows(request(gauge(POWER, "W", point(100.0, gpu=0))))

    assert row["energy_joules"] is None


# ------------------------------------------------------------------ properties

TIMES = st.integers(1, 6).map(lambda tick: tick * 300 * MS)
READINGS = st.lists(
    st.tuples(
        st.sampled_from([UTIL, POWER, USED, TEMP, "DCGM_FI_DEV_FB_FREE", "other"]),
        TIMES,
        st.sampled_from([None, 0, 1]),
        st.floats(allow_nan=False, allow_infinity=False, width=32),
    ),
    unique_by=lambda reading: reading[:3],
    min_size=1,
)
UNITS = {UTIL: "%", POWER: "W", USED: "MiB", TEMP: "Cel"}
COLUMNS = {UTIL: "gpu_utilization_percent", POWER: "gpu_power_watts",
           USED: "gpu_memory_used_mib", TEMP: "gpu_temperature_celsius"}  # fmt: skip


def metric(reading):
    name, time, gpu, value = reading
    return gauge(name, UNITS.get(name, ""), point(value, time, gpu=gpu))


@given(READINGS, st.integers(1, 5))
def test_every_finite_point_is_in_a_cell_or_in_points(readings, per_request) -> None:
    """Rows and points together hold as many values as there were distinct points."""
    batches = [readings[at : at + per_request] for at in range(0, len(readings), per_request)]
    default, points = tables(decoded(*(request(*map(metric, batch)) for batch in batches)))

    in_cells = sorted(row[c] for row in default for c in COLUMNS.values() if row[c] is not None)
    in_points = [row["value"] for row in points]
    assert sorted(in_cells + in_points) == sorted(value for _, _, _, value in readings)
    kept = {name for name, *_ in readings} - COLUMNS.keys()
    assert {row["metric_name"] for row in points} == kept


@given(READINGS, st.randoms())
def test_rows_do_not_depend_on_the_order_of_batches(readings, random) -> None:
    """Whoever replays a run in another order sees the same rows."""
    sent = [request(metric(reading)) for reading in readings]
    shuffled = random.sample(sent, len(sent))

    assert rows(*sent, factors=HOUR) == rows(*shuffled, factors=HOUR)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20), st.integers(1, 19))
def test_delta_and_cumulative_of_one_counter_agree(steps, restart) -> None:
    """Also if the cumulative one restarts in between."""
    deltas = [point(step, T0 + n * SECOND, gpu=0) for n, step in enumerate(steps)]
    cumulative, value = [], 0.0
    for n, step in enumerate(steps):
        value = step if n == restart else value + step
        begun = T0 + restart * SECOND - 1 if n >= restart else T0 - 1
        cumulative.append(point(value, T0 + n * SECOND, gpu=0, start=begun))
    a = [row["energy_joules"] for row in rows(energies(*deltas, temporality=DELTA))]
    b = [row["energy_joules"] for row in rows(energies(*cumulative))]

    assert a == pytest.approx(b)
    assert not any(map(math.isnan, b))


def test_a_gpu_without_any_measured_energy_costs_the_others_nothing() -> None:
    """A counter since boot that never had a value is null, beside one that had."""
    points = [point(None, T0 + i * SECOND, gpu=1) for i in range(3)]
    points += [point(5.0 + i, T0 + i * SECOND, gpu=0) for i in range(3)]
    found = rows(request(total("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "", *points)))

    assert [row["energy_joules"] for row in found if row["gpu_id"] == "0"] == [0, 0.001, 0.002]
    assert {row["energy_joules"] for row in found if row["gpu_id"] == "1"} == {None}


# ------------------------------------------------------------------ windows

TRACE, OTHER = "a" * 32, "b" * 32
AGENT = {"service.name": "agent", "host.name": "h"}


def spans(*found: tuple[Any, ...], resource: Mapping[str, Any] | None = None) -> PointBatch:
    """Root spans of (trace id, start, end in seconds after T0, attributes)."""
    made = [
        {
            "traceId": trace_id,
            "startTimeUnixNano": T0 + int(start * SECOND),
            "endTimeUnixNano": T0 + int(end * SECOND),
            "attributes": key_values(attributes),
        }
        for trace_id, start, end, attributes in found
    ]
    about = {"attributes": key_values(AGENT if resource is None else resource)}
    sent = {"resourceSpans": [{"resource": about, "scopeSpans": [{"spans": made}]}]}
    return SpanDecoder().decode_object(sent)


def together(*sent: Any) -> Points:
    """Points of requests and of batches of windows, in this order."""
    decoder = JsonDecoder()
    return gather(one if isinstance(one, PointBatch) else decoder.decode(one) for one in sent)


def ticking(ticks: int = 5, **resource: Any) -> dict[str, Any]:
    """Two GPUs once a second."""
    points = [
        point(10.0 * tick, T0 + tick * SECOND, gpu=gpu) for tick in range(ticks) for gpu in range(2)
    ]
    return request(gauge(UTIL, "%", *points), resource=resource)


TASK = spans((TRACE, 0.5, 2, {"test.id": "t1", "agent.type": "tool"}),
             (TRACE, 1.5, 1.9, {"llm.model_name": "m"}),
             (OTHER, 3, 3.5, {"test.id": "t2", "gen_ai.request.model": "m"}))  # fmt: skip


def test_rows_say_what_was_running() -> None:
    """Every GPU of the run, whoever reported it; the model only while it was called."""
    found, kept = tables(together(ticking(**{"service.name": "metrics"}), TASK))

    assert cells(found, "gpu_id", *WINDOW_COLUMNS) == [
        *(("0", None, None, None, None), ("1", None, None, None, None)),
        *(("0", TRACE, "t1", None, "tool"), ("1", TRACE, "t1", None, "tool")),
        *(("0", TRACE, "t1", None, "tool"), ("1", TRACE, "t1", None, "tool")),
        *(("0", OTHER, "t2", "m", None), ("1", OTHER, "t2", "m", None)),
        *(("0", None, None, None, None), ("1", None, None, None, None)),
    ]
    assert {row["service_name"] for row in found} == {"metrics"}
    assert len(kept) == 3


def test_windows_are_in_points_complete() -> None:
    """Start, end, seconds, what was said, and who said it."""
    _, kept = tables(together(ticking(), TASK))

    assert cells(kept, "start_time_unix_nano", "timestamp_unix_nano", "value", "service_name") == [
        (str(T0 + 1_500_000_000), str(T0 + 1_900_000_000), 0.4, "agent"),
        (str(T0 + 500_000_000), str(T0 + 2_000_000_000), 1.5, "agent"),
        (str(T0 + 3_000_000_000), str(T0 + 3_500_000_000), 0.5, "agent"),
    ]
    assert kept[0]["attributes"] == f'{{"model":"m","trace_id":"{TRACE}"}}'
    assert kept[0]["resource_attributes"] == '{"host.name":"h","service.name":"agent"}'
    assert {(row["metric_name"], row["unit"], row["kind"]) for row in kept} == {
        ("hubmeter.span.duration", "s", "gauge")
    }


def test_windows_of_another_run_say_nothing() -> None:
    """One receiver takes many runs; a span without a run id belongs to this one."""
    mine = spans((TRACE, 0, 9, {"task_id": "mine"}))
    theirs = spans((OTHER, 0, 9, {"task_id": "theirs"}), resource={"run.id": "theirs"})
    found, _ = tables(together(ticking(2), theirs, mine, ticking(2, **{"run.id": "theirs"})))

    assert {(row["run_id"], row["trace_id"], row["task_id"]) for row in found} == {
        ("run", TRACE, "mine"), ("theirs", OTHER, "theirs"),
    }  # fmt: skip


def test_windows_change_nothing_else_in_a_row() -> None:
    """Spans of the same resource as the GPU's, many a second, before, between and after."""
    sent = [
        request(gauge(UTIL, "%", point(1, T0 + tick * SECOND, gpu=0, gpu_uuid="GPU-a")),
                gauge(POWER, "W", point(100.0, T0 + tick * SECOND + 400 * MS, gpu_uuid="GPU-a")),
                total(CO2, "g", point(1.0 * tick, T0 + tick * SECOND + 10 * MS)),
                gauge("queue", "1", point(tick, T0 + tick * SECOND)), resource=AGENT)
        for tick in range(4)
    ]  # fmt: skip
    calls = spans(*((TRACE, n / 100, n / 100 + 0.005, {"model": "m"}) for n in range(400)))
    plain, kept = tables(together(*sent), factors=Factors())

    for around in ([calls, *sent], [*sent, calls], [*sent[:2], calls, *sent[2:]]):
        found, also_kept = tables(together(*around), factors=Factors())
        nulls = dict.fromkeys(WINDOW_COLUMNS)
        assert [row | nulls for row in found] == plain
        assert [r for r in also_kept if r["metric_name"] == "queue"] == kept
        assert cells(found, "model") == [("m",)] * 4
        assert len(also_kept) == 400 + 4


def test_windows_alone_make_no_row() -> None:
    """A run that has no GPU is a run without rows, whatever ran."""
    found, kept = tables(together(TASK))

    assert (found, len(kept)) == ([], 3)


def test_an_empty_run_is_identified_by_who_sent_metrics() -> None:
    """Spans identify it only if nobody did; what ran at its instant is known all the same."""
    metrics = request(gauge("queue", "1", point(1)), resource={"service.name": "s"})
    [row] = tables(together(TASK, metrics), empty_run_unix_nano=T0 + SECOND)[0]
    [other] = tables(together(TASK), empty_run_unix_nano=T0)[0]

    assert (row["service_name"], row["task_id"], row["gpu_id"]) == ("s", "t1", None)
    assert (other["service_name"], other["host_name"], other["task_id"]) == ("agent", "h", None)


def test_a_span_that_is_sent_twice_is_one_window() -> None:
    """A sender repeats what it believes lost."""
    once = tables(together(ticking(), TASK))
    twice = together(TASK, ticking(), TASK)

    assert tables(twice) == once
    assert flatten_points(twice, Options(run_id="run")).skipped == {DUPLICATE: 3}


def test_windows_of_equal_words_and_end_all_count() -> None:
    """Clocks are coarse: a call and what it called may end at once."""
    nested = spans((TRACE, 0.5, 3, {"model": "m"}), (TRACE, 2.5, 3, {"model": "m"}))

    assert cells(tables(together(ticking(), nested))[0][::2], "model") == [
        (None,), ("m",), ("m",), ("m",), (None,),
    ]  # fmt: skip


def test_points_that_nobody_keeps_label_rows_all_the_same() -> None:
    """HUBMETER_POINTS is about the other config."""
    points = together(ticking(), TASK)
    found, kept = tables(points, points="none")

    assert cells(found, *WINDOW_COLUMNS) == cells(tables(points)[0], *WINDOW_COLUMNS)
    assert kept == []
    assert flatten_points(points, Options(run_id="run", points="none")).skipped == {LEFT_OUT: 3}


def test_a_window_labels_the_part_that_it_came_in() -> None:
    """A span arrives when it ends; rows of a part that ended before are published."""
    first = flatten_points(together(ticking(2)), Options(run_id="run"))
    points = together(ticking(5), TASK)

    assert first.labels == {}
    assert flatten_points(points, Options(run_id="run"), first.closing).labels.keys() == {
        *WINDOW_COLUMNS
    }


def test_only_our_own_metric_is_a_window() -> None:
    """A gauge of the same name from elsewhere is a gauge: it says nothing about rows."""
    same_name = gauge(
        "hubmeter.span.duration", "s", point(9.0, T0 + 9 * SECOND, start=1, trace_id=TRACE)
    )
    found, kept = tables(together(ticking(), request(same_name)))

    assert cells(found, "trace_id") == [(None,)] * 10
    assert len(kept) == 1


@pytest.mark.parametrize("words", [{}, {"trace_id": 5}, {"trace_id": TRACE, "model": ["m"]}])
def test_windows_that_somebody_else_made_cost_nothing(words: Mapping[str, Any]) -> None:
    """Whatever attributes and times they have: no exception, and the rows are there."""
    made = gauge("hubmeter.span.duration", "s",
                 point(1.0, T0 + SECOND, start=0, **words), point(1.0, T0, start=T0 + 1, **words),
                 point(1.0, T0 + 3 * SECOND, start=T0 + SECOND, **words))  # fmt: skip
    found, kept = tables(together(request(made, scope="hubmeter"), ticking()))

    trace_id = str(words["trace_id"]) if words else None
    assert cells(found[::2], "trace_id", "model") == [
        (None, None), *3 * [(trace_id, None)], (None, None),
    ]  # fmt: skip
    assert len(kept) == 3
