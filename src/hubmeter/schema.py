"""
The dataset contract: every config and column, with type, unit and meaning.

One place. The Arrow schema, the Parquet encodings, the card's column table and
the documentation are generated from it. Names and types never change silently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Type: TypeAlias = Literal[
    "string", "bool", "int64", "uint64", "float64", "list<uint64>", "list<float64>", "quantiles"
]

Semantic: TypeAlias = Literal["identity", "time", "gauge", "cumulative", "context", "point"]
"""``cumulative`` columns grow within a run and GPU: take the largest value, never a sum of rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """
    One column of a config.

    Attributes:
        seed: One of the thirteen columns that smoltrace and TraceMind read.
    """

    name: str
    type: Type
    semantic: Semantic
    meaning: str
    unit: str = ""
    seed: bool = False


def _seed(name: str, type_: Type, semantic: Semantic, unit: str, meaning: str) -> Column:
    return Column(name=name, type=type_, semantic=semantic, unit=unit, meaning=meaning, seed=True)


def _float(name: str, unit: str, meaning: str, semantic: Semantic = "gauge") -> Column:
    return Column(name=name, type="float64", semantic=semantic, unit=unit, meaning=meaning)


def _text(name: str, meaning: str, semantic: Semantic = "context") -> Column:
    return Column(name=name, type="string", semantic=semantic, meaning=meaning)


DEFAULT: tuple[Column, ...] = (
    _seed("run_id", "string", "identity", "",
          "the run: resource run.id, else HUBMETER_RUN_ID, else a new UUID"),
    _seed("timestamp", "string", "time", "",
          "UTC, ISO 8601, six fractional digits and +00:00"),
    _seed("timestamp_unix_nano", "string", "time", "ns",
          "nanoseconds since 1970, as OTLP counts"),
    _seed("service_name", "string", "identity", "", "resource service.name"),
    _seed("gpu_id", "string", "identity", "", "NVML index; null: about the run, not one GPU"),
    _seed("gpu_name", "string", "identity", "", "product name"),
    _seed("co2_emissions_gco2e", "float64", "cumulative", "gCO2e",
          "emissions since the run began"),
    _seed("power_cost_usd", "float64", "cumulative", "USD",
          "cost of electricity since the run began"),
    _seed("gpu_utilization_percent", "float64", "gauge", "%", "share of time a kernel ran"),
    _seed("gpu_memory_used_mib", "float64", "gauge", "MiB", "memory in use"),
    _seed("gpu_memory_total_mib", "float64", "gauge", "MiB", "memory installed"),
    _seed("gpu_temperature_celsius", "float64", "gauge", "°C", "core temperature"),
    _seed("gpu_power_watts", "float64", "gauge", "W", "board power"),
    _text("trace_id", "trace that ran at that instant; null: none or several"),
    _text("task_id", "task that ran at that instant; null: none or several"),
    _text("model", "model in use at that instant; null: none or several"),
    _text("agent_type", "agent type that ran at that instant; null: none or several"),
    _float("energy_joules", "J", "energy since the run began", "cumulative"),
    _text("energy_source", "counter: the driver's meter; integrated: from power; null: no energy",
          "identity"),
    _float("gpu_utilization_max_percent", "%", "highest sample of the window"),
    _float("gpu_temperature_max_celsius", "°C", "highest sample of the window"),
    _float("gpu_power_max_watts", "W", "highest sample of the window"),
    _float("gpu_memory_utilization_percent", "%", "share of time memory was read or written"),
    _float("gpu_power_limit_watts", "W", "enforced power limit"),
    _float("gpu_sm_clock_mhz", "MHz", "clock of the streaming multiprocessors"),
    _float("gpu_memory_clock_mhz", "MHz", "clock of the memory"),
    _float("gpu_fan_speed_percent", "%", "fan speed"),
    _text("gpu_throttle_reasons", "active throttle reasons, comma separated; empty: none", "gauge"),
    _float("gpu_ecc_errors_uncorrected", "1", "uncorrected memory errors, as the driver counts"),
    _text("host_name", "host of the GPU", "identity"),
    _text("gpu_uuid", "NVML UUID", "identity"),
)  # fmt: skip
"""Config ``default``: one row per run, resource, instant and GPU."""


def _point(name: str, type_: Type, meaning: str, semantic: Semantic = "point") -> Column:
    return Column(name=name, type=type_, semantic=semantic, meaning=meaning)


POINTS: tuple[Column, ...] = (
    _point("run_id", "string", "the run"),
    _point("timestamp", "string", "UTC, ISO 8601, six fractional digits and +00:00", "time"),
    _point("timestamp_unix_nano", "string", "nanoseconds since 1970", "time"),
    _point("start_time_unix_nano", "string", "start of a sum, histogram or span; null: unknown",
           "time"),
    _point("service_name", "string", "resource service.name"),
    _point("metric_name", "string", "as sent"),
    _point("unit", "string", "as sent (UCUM)"),
    _point("kind", "string", "gauge, sum, histogram, exponential_histogram or summary"),
    _point("temporality", "string", "delta or cumulative"),
    _point("is_monotonic", "bool", "of sums"),
    _point("scope_name", "string", "instrumentation scope"),
    _point("value", "float64", "of gauges and sums; null: none recorded"),
    _point("value_int", "int64", "the same, exact, where it was sent as an integer"),
    _point("count", "uint64", "number of measurements"),
    _point("sum", "float64", "sum of measurements"),
    _point("min", "float64", "smallest measurement"),
    _point("max", "float64", "largest measurement"),
    _point("bucket_counts", "list<uint64>", "histogram buckets"),
    _point("explicit_bounds", "list<float64>", "upper bounds of all buckets but the last"),
    _point("scale", "int64", "exponential histogram: base is 2**(2**-scale)"),
    _point("zero_count", "uint64", "exponential histogram: measurements around zero"),
    _point("zero_threshold", "float64", "exponential histogram: width of the zero bucket"),
    _point("positive_offset", "int64", "exponential histogram: index of the first positive bucket"),
    _point("positive_bucket_counts", "list<uint64>", "exponential histogram: positive buckets"),
    _point("negative_offset", "int64", "exponential histogram: index of the first negative bucket"),
    _point("negative_bucket_counts", "list<uint64>", "exponential histogram: negative buckets"),
    _point("quantiles", "quantiles", "summary: quantile and value"),
    _point("flags", "int64", "OTLP data point flags; 1: no recorded value"),
    _point("attributes", "string", "attributes of the data point, JSON"),
    _point("resource_attributes", "string", "attributes of the resource, JSON"),
    _point("exemplars", "string", "exemplars, JSON"),
)  # fmt: skip
"""Config ``points``: complete data points that have no column in ``default``."""

WINDOW_METRIC, WINDOW_SCOPE, WINDOW_UNIT = "hubmeter.span.duration", "hubmeter", "s"
"""
What a span that says what ran is in ``points``: a gauge of its seconds, with its start and end.

Its attributes are named as the columns that are made of it: :data:`WINDOW_COLUMNS`.
"""

WINDOW_COLUMNS = ("trace_id", "task_id", "model", "agent_type")

CONFIGS: dict[str, tuple[Column, ...]] = {"default": DEFAULT, "points": POINTS}

SEED_COLUMNS: tuple[str, ...] = tuple(column.name for column in DEFAULT if column.seed)
"""The thirteen columns, in the order that smoltrace and TraceMind expect."""

SEED_METRICS: tuple[str, ...] = tuple(
    column.name for column in DEFAULT if column.seed and column.type == "float64"
)
"""The seven seed metrics: what ``HUBMETER_MISSING=zero`` fills."""

CUMULATIVE_COLUMNS: frozenset[str] = frozenset(
    column.name for column in DEFAULT if column.semantic == "cumulative"
)

FLOAT_COLUMNS: tuple[str, ...] = tuple(c.name for c in DEFAULT if c.type == "float64")
