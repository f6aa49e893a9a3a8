"""
What the rows of a dataset say, GPU by GPU and run by run. Numbers only, no text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1
IDLE_BELOW_PERCENT = 10.0
GAP_FACTOR = 3
"""A pause of more than this many typical intervals is a gap."""
FEW_RESTARTS = 0.1
"""Per row: fewer falls of a total are processes one after the other, more are side by side."""
TREND_POINTS = 40
KJ_AS_WH = 3.6
"""genai_otel before 1.40 multiplied kW by seconds and called it Wh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSummary:
    """
    One GPU of one run; None where nothing was measured.

    Attributes:
        gpu_id: None for what was reported about the run as a whole.
        gaps: Pauses in the rows that are much longer than the usual interval.
        idle_percent: Share of rows with utilization below 10 %.
        energy_joules: Grown since the run began, like CO2 and cost.
        restarts: How often they fell: then several processes share this run and GPU.
        utilization_trend: Of each row; of more than forty rows, means over forty equal times.
    """

    run_id: str
    service_name: str | None
    host_name: str | None
    gpu_id: str | None
    gpu_name: str | None
    rows: int
    first: str
    last: str
    duration_s: float
    gaps: int
    restarts: int
    utilization_mean_percent: float | None
    utilization_p95_percent: float | None
    idle_percent: float | None
    memory_peak_mib: float | None
    memory_total_mib: float | None
    temperature_max_celsius: float | None
    power_mean_watts: float | None
    power_max_watts: float | None
    energy_joules: float | None
    energy_source: str | None
    co2_gco2e: float | None
    cost_usd: float | None
    utilization_trend: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over GPUs, or what the run reports as a whole, whichever is more."""

    runs: int
    gpus: int
    rows: int
    energy_joules: float | None
    co2_gco2e: float | None
    cost_usd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Of a dataset: one entry per run and GPU, in order of run, then GPU."""

    gpus: tuple[GpuSummary, ...]
    totals: Totals
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain data with ``schema_version``, for machines."""
        return {
            "schema_version": SCHEMA_VERSION,
            "totals": asdict(self.totals),
            "gpus": [asdict(gpu) for gpu in self.gpus],
            "notes": list(self.notes),
        }


def summarize(table: pa.Table) -> Summary:
    """
    Summarize rows of the ``default`` config.

    Args:
        table: Rows of any number of runs, in any order.
    """
    columns = {name: table[name] for name in table.column_names}
    keys = list(zip(*(columns[k].to_pylist() for k in _KEY), strict=True))
    times = columns["timestamp_unix_nano"].cast("uint64").to_numpy()
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    order = sorted(groups, key=lambda key: (int(times[groups[key]].min()), *map(str, key)))
    gpus = tuple(_summarize_gpu(table.take(groups[key]), times[groups[key]]) for key in order)
    return Summary(gpus=gpus, totals=totals(gpus), notes=tuple(_notes(gpus)))


_CUMULATIVE = ("energy_joules", "co2_emissions_gco2e", "power_cost_usd")
_KEY = ("run_id", "service_name", "host_name", "gpu_id", "gpu_uuid")


def by_run(summary: Summary) -> list[tuple[str, Totals]]:
    """Totals of each run, in order of start."""
    runs = dict.fromkeys(gpu.run_id for gpu in summary.gpus)
    return [(run, totals([gpu for gpu in summary.gpus if gpu.run_id == run])) for run in runs]


def totals(gpus: Sequence[GpuSummary]) -> Totals:
    """Sums over *gpus*, which may belong to several runs."""
    return Totals(
        runs=len({gpu.run_id for gpu in gpus}),
        gpus=sum(gpu.gpu_id is not None for gpu in gpus),
        rows=sum(gpu.rows for gpu in gpus),
        energy_joules=_total(gpus, "energy_joules"),
        co2_gco2e=_total(gpus, "co2_gco2e"),
        cost_usd=_total(gpus, "cost_usd"),
    )


def _total(gpus: Sequence[GpuSummary], field: str) -> float | None:
    wholes: dict[str, float] = defaultdict(float)
    parts: dict[str, float] = defaultdict(float)
    for gpu in gpus:
        value = getattr(gpu, field)
        if value is not None:
            (wholes if gpu.gpu_id is None else parts)[gpu.run_id] += value
    runs = {*wholes, *parts}
    return sum(max(wholes[run], parts[run]) for run in runs) if runs else None


def _summarize_gpu(rows: pa.Table, times: NDArray[np.uint64]) -> GpuSummary:
    order = np.argsort(times, kind="stable")
    rows, times = rows.take(order), times[order]

    def floats(name: str) -> NDArray[np.float64]:
        values: NDArray[np.float64] = rows[name].to_numpy()
        return values[~np.isnan(values)]

    utilization = floats("gpu_utilization_percent")
    duration_s = float(times[-1] - times[0]) / 1e9
    watts = floats("gpu_power_watts")
    return GpuSummary(
        **{name: rows[name][0].as_py() for name in _KEY if name != "gpu_uuid"},
        gpu_name=next((name for name in rows["gpu_name"].to_pylist() if name), None),
        rows=rows.num_rows,
        first=rows["timestamp"][0].as_py(),
        last=rows["timestamp"][-1].as_py(),
        duration_s=duration_s,
        gaps=_gaps(times),
        restarts=max(int((np.diff(floats(name)) < 0).sum()) for name in _CUMULATIVE),
        utilization_mean_percent=_mean(utilization),
        utilization_p95_percent=float(np.percentile(utilization, 95)) if utilization.size else None,
        idle_percent=_mean(100.0 * (utilization < IDLE_BELOW_PERCENT)),
        memory_peak_mib=_highest(floats("gpu_memory_used_mib")),
        memory_total_mib=_highest(floats("gpu_memory_total_mib")),
        temperature_max_celsius=_highest(
            floats("gpu_temperature_max_celsius"), floats("gpu_temperature_celsius")
        ),
        power_mean_watts=_mean(watts),
        power_max_watts=_highest(floats("gpu_power_max_watts"), watts),
        energy_joules=_grown(floats("energy_joules")),
        energy_source=next((s for s in reversed(rows["energy_source"].to_pylist()) if s), None),
        co2_gco2e=_grown(floats("co2_emissions_gco2e")),
        cost_usd=_grown(floats("power_cost_usd")),
        utilization_trend=_trend(times, rows["gpu_utilization_percent"].to_numpy()),
    )


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if values.size else None


def _highest(*columns: NDArray[np.float64]) -> float | None:
    highest = [float(values.max()) for values in columns if values.size]
    return max(highest) if highest else None


def _grown(totals: NDArray[np.float64]) -> float | None:
    """
    What a cumulative column came to.

    Where it falls now and then, one process followed another in the same run: their
    totals add up. Where it falls all the time, they ran side by side: the highest counts.
    """
    falls = np.flatnonzero(np.diff(totals) < 0)
    if falls.size > FEW_RESTARTS * totals.size:
        return _highest(totals)
    return float(totals[[*falls, -1]].sum()) if totals.size else None


def _gaps(times: NDArray[np.uint64]) -> int:
    steps = np.diff(times)
    return int((steps > GAP_FACTOR * np.median(steps)).sum()) if steps.size else 0


def _trend(times: NDArray[np.uint64], values: NDArray[np.float64]) -> tuple[float | None, ...]:
    if times.size <= TREND_POINTS:
        return tuple(None if np.isnan(value) else float(value) for value in values)
    span = float(times[-1] - times[0]) * (1 + 1e-12) + 1.0
    part = ((times - times[0]).astype(float) / span * TREND_POINTS).astype(int)
    return tuple(_mean(values[(part == i) & ~np.isnan(values)]) for i in range(TREND_POINTS))


def _notes(gpus: Sequence[GpuSummary]) -> Iterator[str]:
    for gpu in gpus:
        if gpu.restarts:
            yield (
                f"{_name(gpu)}: energy, CO2 or cost fell {gpu.restarts} times: several "
                f"processes share run {gpu.run_id}. One after the other they are added, "
                "side by side the highest counts"
            )
        ratio = _counted_kj_as_wh(gpu)
        if ratio is not None:
            yield (
                f"{_name(gpu)}: CO2 and cost are {ratio:.1f} times what its power gives; "
                "genai_otel before 1.40 counted kJ as Wh: divide both by 3.6"
            )


def _name(gpu: GpuSummary) -> str:
    return "the run as a whole" if gpu.gpu_id is None else f"GPU {gpu.gpu_id}"


def _counted_kj_as_wh(gpu: GpuSummary) -> float | None:
    """How far CO2 is off, if CO2 and cost both show genai_otel's error with its factors."""
    if gpu.energy_source != "integrated" or not (gpu.energy_joules and gpu.co2_gco2e):
        return None
    kwh = gpu.energy_joules / 3.6e6
    ratios = gpu.co2_gco2e / (kwh * 475), (gpu.cost_usd or 0) / (kwh * 0.12)
    is_error = all(abs(ratio / KJ_AS_WH - 1) < 0.15 for ratio in ratios)
    return ratios[0] if is_error else None
