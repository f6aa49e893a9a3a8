"""
Rows of one GPU as columns: what folds into them, and what follows from them. Pure.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from .conventions import text_of
from .energy import Factors
from .gpus import Gpu, Reporter
from .openings import GpuKey, Opening, PowerEnd
from .schema import CUMULATIVE_COLUMNS
from .streams import Floats, Times

COUNTER, INTEGRATED = 1.0, 2.0
ENERGY_SOURCES = {COUNTER: "counter", INTEGRATED: "integrated"}

GAP_FACTOR = 3
"""Power is integrated over gaps of at most this many typical intervals."""


@dataclass(slots=True)
class Sheet:
    """Rows of one GPU: its times, and its columns on them."""

    gpu: Gpu
    times: Times
    columns: dict[str, Floats] = field(default_factory=dict)

    @property
    def key(self) -> GpuKey:
        return GpuKey(*self.gpu.reporter, self.gpu.host_name, self.gpu.gpu_id)

    def column(self, name: str) -> Floats:
        if name not in self.columns:
            self.columns[name] = np.full(self.times.size, np.nan)
        return self.columns[name]

    def read(self, name: str) -> Floats:
        found = self.columns.get(name)
        return np.full(self.times.size, np.nan) if found is None else found

    def has(self, name: str) -> bool:
        return name in self.columns and not np.isnan(self.columns[name]).all()

    def where(self, keep: NDArray[np.bool_]) -> Sheet:
        columns = {name: values[keep] for name, values in self.columns.items()}
        return Sheet(self.gpu, self.times[keep], columns)


def fold_loose(sheets: list[Sheet]) -> list[Sheet]:
    """The sheets of one reporter, with what belongs to its only GPU moved there."""
    with_gpu = [sheet for sheet in sheets if sheet.gpu.gpu_id is not None]
    result = list(with_gpu)
    for loose in (sheet for sheet in sheets if sheet.gpu.gpu_id is None):
        candidates = [sheet for sheet in with_gpu if _may_share_host(loose.gpu, sheet.gpu)]
        present = np.zeros(loose.times.size, dtype=int)
        for sheet in candidates:
            present += np.isin(loose.times, sheet.times)
        moved = np.zeros(loose.times.size, dtype=bool)
        for sheet in candidates:
            moved |= _move(loose, sheet, present == 1)
        result.append(loose.where(~moved))
    return result


def _may_share_host(loose: Gpu, gpu: Gpu) -> bool:
    """A point that names its host belongs there; one that has only its resource's may not."""
    resource_host = text_of(json.loads(loose.reporter[1]).get("host.name"))
    return loose.host_name in (None, resource_host, gpu.host_name)


def _move(loose: Sheet, sheet: Sheet, alone: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Move rows of *loose* that *alone* marks and that take no occupied cell of *sheet*."""
    here = alone & np.isin(loose.times, sheet.times)
    rows = np.searchsorted(sheet.times, loose.times[here])
    for name, values in loose.columns.items():
        if name in sheet.columns:
            here_free = np.isnan(sheet.columns[name][rows]) | np.isnan(values[here])
            here[np.flatnonzero(here)[~here_free]] = False
            rows = rows[here_free]
    for name, values in loose.columns.items():
        sent = ~np.isnan(values[here])
        sheet.column(name)[rows[sent]] = values[here][sent]
    return here


def derive(sheets: list[Sheet], factors: Factors | None, opening: Opening) -> Opening:
    """
    Compute what a reporter did not send, GPU by GPU, from what it did.

    Returns:
        *opening* with what the *sheets* have sent and where their power ends.
    """
    sent, power = _sent(sheets, opening.sent), dict(opening.power)
    about_the_run: dict[Reporter, set[str]] = defaultdict(set)
    for key, columns in sent.items():
        if key.gpu_id is None:
            about_the_run[key.run_id, key.resource] |= columns
    for sheet in sheets:
        _derive_memory_total(sheet)
        if factors is not None:
            known = sent.get(sheet.key, frozenset()) | about_the_run[sheet.gpu.reporter]
            if "energy_joules" not in known and sheet.has("gpu_power_watts"):
                power[sheet.key] = _integrate(sheet, power.get(sheet.key))
            _charge(sheet, known, factors)
    return replace(opening, sent=sent, power=power)


def _sent(
    sheets: Iterable[Sheet], before: Mapping[GpuKey, frozenset[str]]
) -> dict[GpuKey, frozenset[str]]:
    """The cumulative columns that were sent for each GPU, now or *before*."""
    sent = dict(before)
    for sheet in sheets:
        columns = frozenset(column for column in CUMULATIVE_COLUMNS if sheet.has(column))
        if columns:
            sent[sheet.key] = columns | sent.get(sheet.key, frozenset())
    return sent


def _derive_memory_total(sheet: Sheet) -> None:
    """dcgm-exporter sends parts: the total is used + free + reserved."""
    free, reserved = (sheet.columns.pop(f"memory:{part}", None) for part in ("free", "reserved"))
    used = sheet.columns.get("gpu_memory_used_mib")
    if free is None or used is None or sheet.has("gpu_memory_total_mib"):
        return
    rest = 0.0 if reserved is None else np.nan_to_num(reserved)
    sheet.columns["gpu_memory_total_mib"] = used + free + rest


def _charge(sheet: Sheet, sent: AbstractSet[str], factors: Factors) -> None:
    """CO2 and cost from energy, unless sent for this GPU or for the run."""
    columns = sheet.columns
    energy = columns.get("energy_joules")
    if energy is None:
        return
    if "co2_emissions_gco2e" not in sent:
        columns["co2_emissions_gco2e"] = energy * factors.co2_g_per_joule
    if "power_cost_usd" not in sent:
        columns["power_cost_usd"] = energy * factors.cost_usd_per_joule


def _integrate(sheet: Sheet, before: PowerEnd | None) -> PowerEnd:
    """Energy from power, by trapezoids; nothing is charged over long gaps."""
    watts = sheet.columns["gpu_power_watts"]
    known = ~np.isnan(watts)
    times, power = sheet.times[known], watts[known]
    if before is None:
        before = PowerEnd(joules=0.0, watts=float(power[0]), time_unix_nano=int(times[0]))
    last = np.uint64(before.time_unix_nano)
    # What comes late lies in a time that was charged already.
    power = np.concatenate([[before.watts], np.where(times < last, before.watts, power)])
    times = np.concatenate([[last], np.maximum(times, last)])
    seconds = np.diff(times) / 1e9
    interval_s, intervals = _typical(seconds, before)
    seconds = np.where(seconds > GAP_FACTOR * interval_s, 0.0, seconds)
    charges = seconds * (power[1:] + power[:-1]) / 2
    joules = np.cumsum(np.concatenate([[before.joules], charges]))
    sheet.column("energy_joules")[known] = joules[1:]
    sheet.column("energy:source")[known] = INTEGRATED
    return PowerEnd(float(joules[-1]), float(power[-1]), int(times[-1]), interval_s, intervals)


def _typical(seconds: Floats, before: PowerEnd) -> tuple[float, int]:
    """The median interval so far, and of how many; those before count as alike."""
    new = seconds[seconds > 0]
    # More of them than of the new ones could not move the median any further.
    old = np.full(min(before.intervals, new.size + 1), before.interval_s)
    every = np.concatenate([old, new])
    return float(np.median(every)) if every.size else 0.0, before.intervals + new.size
