"""
GPUs for machines without one: made up, and every row says so in ``gpu_name``.

A deterministic function of time: bursts of load and pauses, with an energy counter
that is the exact integral of the power.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..nvml import GpuDevice, Reading

NAME = "Simulated GPU (no NVML)"

BURST_S, PAUSE_S = 5.0, 3.0
LAG_S = 10.0
"""Temperature follows the load of this time."""
IDLE_WATTS, FULL_WATTS = 60.0, 360.0
COOL_CELSIUS, HOT_CELSIUS = 34.0, 78.0
IDLE_MIB, BUSY_MIB, TOTAL_MIB = 1_200.0, 52_000.0, 81_920.0
IDLE_MHZ, BUSY_MHZ, MEMORY_MHZ = 345.0, 1_980.0, 2_619.0


@dataclass(slots=True)
class _Meter:
    """Energy of one GPU, and the moment up to which it is counted."""

    joules: float = 0.0
    time_s: float | None = None


class SimulatedGpus:
    """
    A source for :class:`hubmeter.sources.nvml_sampler.GpuSampler`.

    Args:
        count: How many GPUs.
        load: How busy they are in a burst, from 0 to 1.

    Attributes:
        load: May be changed at any time; holds from the reading before on.
        devices: The GPUs.
    """

    def __init__(self, count: int = 2, *, load: float = 1.0) -> None:
        self.load = load
        self.devices: Sequence[GpuDevice] = tuple(
            GpuDevice(index=index, uuid=f"SIMULATED-{index}", name=NAME) for index in range(count)
        )
        self._meters = {device: _Meter() for device in self.devices}

    def read(self, device: GpuDevice, now_ns: int) -> Reading:
        """What the GPU would report at this moment."""
        # Each GPU starts its bursts a second after the one before.
        now_s = now_ns / 1e9 - device.index
        busy = self.load if _is_burst(now_s) else 0.0
        warm = self.load * (_burst_s(now_s) - _burst_s(now_s - LAG_S)) / LAG_S
        return Reading(
            utilization_percent=100.0 * busy,
            memory_utilization_percent=60.0 * busy,
            memory_used_mib=_between(IDLE_MIB, BUSY_MIB, self.load),
            memory_total_mib=TOTAL_MIB,
            temperature_celsius=_between(COOL_CELSIUS, HOT_CELSIUS, warm),
            power_watts=_between(IDLE_WATTS, FULL_WATTS, busy),
            power_limit_watts=FULL_WATTS,
            sm_clock_mhz=_between(IDLE_MHZ, BUSY_MHZ, busy),
            memory_clock_mhz=MEMORY_MHZ,
            energy_counter_joules=self._count(self._meters[device], now_s),
            throttle_reasons=0,
        )

    def close(self) -> None:
        """Nothing to close."""

    def _count(self, meter: _Meter, now_s: float) -> float:
        since_s = now_s if meter.time_s is None else meter.time_s
        burst_s = _burst_s(now_s) - _burst_s(since_s)
        meter.joules += IDLE_WATTS * (now_s - since_s)
        meter.joules += self.load * (FULL_WATTS - IDLE_WATTS) * burst_s
        meter.time_s = now_s
        return meter.joules


def _is_burst(time_s: float) -> bool:
    return time_s % (BURST_S + PAUSE_S) < BURST_S


def _burst_s(time_s: float) -> float:
    """How much of the time from 0 to *time_s* was burst."""
    cycles, rest_s = divmod(time_s, BURST_S + PAUSE_S)
    return cycles * BURST_S + min(rest_s, BURST_S)


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share
