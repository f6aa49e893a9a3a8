"""
Rows of one GPU as columns: what folds into them, and what follows from them. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .conventions import text_of
from .energy import Factors
from .gpus import Gpu
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


def derive(sheets: list[Sheet], factors: Factors | None) -> None:
    """Compute what the reporter of *sheets* did not send, GPU by GPU, from what it did."""
    about_the_run = [sheet for sheet in sheets if sheet.gpu.gpu_id is None]
    for sheet in sheets:
        _derive_memory_total(sheet)
        if factors is not None:
            senders = [sheet, *about_the_run]
            sent = {c for c in CUMULATIVE_COLUMNS if any(sender.has(c) for sender in senders)}
            _derive_energy(sheet, sent, factors)


def _derive_memory_total(sheet: Sheet) -> None:
    """dcgm-exporter sends parts: the total is used + free + reserved."""
    free, reserved = (sheet.columns.pop(f"memory:{part}", None) for part in ("free", "reserved"))
    used = sheet.columns.get("gpu_memory_used_mib")
    if free is None or used is None or sheet.has("gpu_memory_total_mib"):
        return
    rest = 0.0 if reserved is None else np.nan_to_num(reserved)
    sheet.columns["gpu_memory_total_mib"] = used + free + rest


def _derive_energy(sheet: Sheet, sent: AbstractSet[str], factors: Factors) -> None:
    """Energy from power, CO2 and cost from energy, unless sent for this GPU or for the run."""
    columns = sheet.columns
    if "energy_joules" not in sent and sheet.has("gpu_power_watts"):
        columns["energy_joules"] = _integral(sheet.times, columns["gpu_power_watts"])
        known = ~np.isnan(columns["energy_joules"])
        columns["energy:source"] = np.where(known, INTEGRATED, np.nan)
    energy = columns.get("energy_joules")
    if energy is None:
        return
    if "co2_emissions_gco2e" not in sent:
        columns["co2_emissions_gco2e"] = energy * factors.co2_g_per_joule
    if "power_cost_usd" not in sent:
        columns["power_cost_usd"] = energy * factors.cost_usd_per_joule


def _integral(times: Times, watts: Floats) -> Floats:
    """Joules since the first reading, by trapezoids; nothing is charged over long gaps."""
    joules = np.full(times.size, np.nan)
    known = ~np.isnan(watts)
    seconds, power = np.diff(times[known]) / 1e9, watts[known]
    if seconds.size:
        seconds = np.where(seconds > GAP_FACTOR * np.median(seconds), 0.0, seconds)
    joules[known] = np.concatenate([[0.0], np.cumsum(seconds * (power[1:] + power[:-1]) / 2)])
    return joules
