"""
Energy arithmetic: joules from counters and power, and what joules cost. Pure.

The driver's energy counter is the better measure and comes first. Beside it the
power readings are integrated, and stand in where the counter cannot be used: it
is missing, went backwards, jumped, or stands still while the GPU draws power.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

JOULES_PER_KWH = 3.6e6

LONGEST_STEP_INTERVALS = 3
"""Power is integrated over this many sampling intervals at most; the rest is a gap."""

PLAUSIBLE_LOAD = 1.5
"""A counter that grows faster than this multiple of the power limit is not believed."""

COUNTER_STEP_S = 0.1
"""Counters grow in steps of up to 0.1 s, so a delta may hold that much more than asked for."""

STUCK_AFTER_S = 5.0
"""A counter that stands still so long under power is not believed."""

SETTLE_AFTER_S = 1.0
"""At the end, energy that the counter held back for longer than this is integrated."""

EnergySource: TypeAlias = Literal["counter", "integrated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """
    What a joule costs.

    100 W for one hour is 0.1 kWh: 47.5 gCO2e and 0.012 USD with the defaults.

    Attributes:
        carbon_g_per_kwh: Grams of CO2 equivalent per kWh of electricity.
        price_usd_per_kwh: US dollars per kWh of electricity.
        pue: Power usage effectiveness; facility energy per GPU energy.
    """

    carbon_g_per_kwh: float = 475.0
    price_usd_per_kwh: float = 0.12
    pue: float = 1.0

    @property
    def co2_g_per_joule(self) -> float:
        return self.carbon_g_per_kwh * self.pue / JOULES_PER_KWH

    @property
    def cost_usd_per_joule(self) -> float:
        return self.price_usd_per_kwh * self.pue / JOULES_PER_KWH


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergySample:
    """
    What a GPU said about its energy at one moment; None where it said nothing.

    Attributes:
        time_ns: On a monotonic clock.
        counter_joules: Energy since some moment in the past.
        power_limit_watts: What the board may draw; tells jumps from load.
    """

    time_ns: int
    counter_joules: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """
    Power integrated since the counter last moved.

    Attributes:
        gap_s: Time that was too long between two readings to be integrated.
        powered_s: Integrated time in which the GPU drew power.
    """

    joules: float = 0.0
    gap_s: float = 0.0
    powered_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """
    Energy of one GPU since its first sample.

    Attributes:
        counter_joules: The part that the driver counted. Never decreases.
        integrated_joules: The part that was integrated from power. Never decreases.
        gap_s: Time whose energy is in neither part.
        residual_joules: Counted minus integrated, over the time where there were both.
        counter: The last counter value and when it was reached; None before the first.
        power: The last power reading, in watts, and its time; None before the first.
        pending: What is integrated if the counter turns out to be useless.
        is_counter_trusted: Whether the counter moves as it should.
    """

    counter_joules: float = 0.0
    integrated_joules: float = 0.0
    gap_s: float = 0.0
    residual_joules: float = 0.0
    counter: tuple[float, int] | None = None
    power: tuple[float, int] | None = None
    pending: Stretch = field(default_factory=Stretch)
    is_counter_trusted: bool = True

    @property
    def total_joules(self) -> float:
        return self.counter_joules + self.integrated_joules

    @property
    def source(self) -> EnergySource | None:
        """Where the energy of this moment comes from; None if from nowhere."""
        if self.counter is not None and self.is_counter_trusted:
            return "counter"
        return None if self.power is None else "integrated"


def advance(energy: Energy, sample: EnergySample, *, interval_s: float) -> Energy:
    """
    Energy up to *sample*, given the energy up to the sample before it.

    Args:
        energy: ``Energy()`` before the first sample.
        sample: May say nothing at all; the counter bridges such holes.
        interval_s: Planned time between samples.
    """
    energy = _integrate(energy, sample, interval_s)
    energy = _count(energy, sample)
    if energy.pending.powered_s > STUCK_AFTER_S:
        energy = replace(energy, is_counter_trusted=False)
    return energy if energy.source == "counter" else _settle(energy)


def settled(energy: Energy) -> Energy:
    """Energy after the last sample: nothing stays pending on a counter that stands still."""
    return _settle(energy) if energy.pending.powered_s > SETTLE_AFTER_S else energy


def _integrate(energy: Energy, sample: EnergySample, interval_s: float) -> Energy:
    """Put the trapezoid between two power readings aside."""
    if sample.power_watts is None:
        return energy
    now = (sample.power_watts, sample.time_ns)
    if energy.power is None:
        return replace(energy, power=now)
    before_watts, before_ns = energy.power
    elapsed_s = (sample.time_ns - before_ns) / 1e9
    covered_s = min(elapsed_s, LONGEST_STEP_INTERVALS * interval_s)
    mean_watts = (before_watts + sample.power_watts) / 2
    pending = Stretch(
        joules=energy.pending.joules + mean_watts * covered_s,
        gap_s=energy.pending.gap_s + elapsed_s - covered_s,
        powered_s=energy.pending.powered_s + (covered_s if mean_watts > 0 else 0.0),
    )
    return replace(energy, power=now, pending=pending)


def _count(energy: Energy, sample: EnergySample) -> Energy:
    """Take the counter's growth, or restart from its value if that is not believable."""
    if sample.counter_joules is None:
        return energy
    now = (sample.counter_joules, sample.time_ns)
    if energy.counter is None:
        return _settle(replace(energy, counter=now))
    before_joules, before_ns = energy.counter
    grown = sample.counter_joules - before_joules
    if grown == 0:
        return energy
    # What grew while the counter was not trusted was integrated meanwhile.
    if not energy.is_counter_trusted or not _is_plausible(grown, before_ns, sample):
        return _settle(replace(energy, counter=now, is_counter_trusted=True))
    is_comparable = energy.pending.joules > 0 and energy.pending.gap_s == 0
    return replace(
        energy,
        counter=now,
        counter_joules=energy.counter_joules + grown,
        residual_joules=energy.residual_joules
        + (grown - energy.pending.joules if is_comparable else 0.0),
        pending=Stretch(),
    )


def _is_plausible(grown_joules: float, since_ns: int, sample: EnergySample) -> bool:
    if grown_joules < 0:
        return False
    if not sample.power_limit_watts:
        return True
    elapsed_s = (sample.time_ns - since_ns) / 1e9 + COUNTER_STEP_S
    return grown_joules <= PLAUSIBLE_LOAD * sample.power_limit_watts * elapsed_s


def _settle(energy: Energy) -> Energy:
    """Count what is pending as integrated."""
    return replace(
        energy,
        integrated_joules=energy.integrated_joules + energy.pending.joules,
        gap_s=energy.gap_s + energy.pending.gap_s,
        pending=Stretch(),
    )
