"""Samples of one GPU, put together: windows of fixed length and the energy account. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from ..energy import Energy, EnergySample, advance, settled
from ..nvml import GpuDevice, Reading

FIELDS: tuple[str, ...] = tuple(
    field.name
    for field in dataclasses.fields(Reading)
    if field.name not in {"energy_counter_joules", "throttle_reasons"}
)
_values_of = attrgetter(*FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """
    What is known of one GPU.

    Attributes:
        energy: Since the sampler started, up to the latest sample.
        latest: The latest sample; None while the GPU is lost.
        mean: Means over the latest windows, weighted by time.
        highest: The highest samples of these windows, and every throttle reason seen.
    """

    device: GpuDevice
    energy: Energy
    latest: Reading | None
    mean: Reading
    highest: Reading


class _Window:
    """Sums over the samples of one GPU in one window, which begins with *first*."""

    def __init__(self, first: Reading) -> None:
        self.weighted = [0.0] * len(FIELDS)
        self.seconds = [0.0] * len(FIELDS)
        self.lowest = [math.inf if value is None else value for value in _values_of(first)]
        self.highest = [-math.inf if value is None else value for value in _values_of(first)]
        self.throttle_reasons = first.throttle_reasons

    def extend(self, before: Reading, now: Reading, elapsed_s: float) -> None:
        """Add the trapezoids between two samples."""
        for i, (left, right) in enumerate(zip(_values_of(before), _values_of(now), strict=True)):
            if right is None:
                continue
            self.lowest[i] = min(self.lowest[i], right)
            self.highest[i] = max(self.highest[i], right)
            if left is not None:
                self.weighted[i] += (left + right) / 2 * elapsed_s
                self.seconds[i] += elapsed_s
        if now.throttle_reasons is not None:
            self.throttle_reasons = (self.throttle_reasons or 0) | now.throttle_reasons


class GpuTrack:
    """
    One GPU over time.

    Args:
        windows: How many closed windows the means and maxima cover.
    """

    def __init__(self, device: GpuDevice, *, interval_s: float, windows: int) -> None:
        self._device = device
        self._interval_s = interval_s
        self._energy = Energy()
        self._latest: Reading | None = None
        self._latest_ns = 0
        self._open: _Window | None = None
        self._open_number = 0
        self._closed: deque[_Window] = deque(maxlen=windows)
        self._mean = self._highest = Reading()

    def add(self, reading: Reading | None, time_ns: int, window_number: int) -> None:
        """Take the next sample, or None from a lost GPU."""
        self._energy = advance(
            self._energy, _energy_sample(reading, time_ns), interval_s=self._interval_s
        )
        if reading is None:
            self._forget()
        elif self._latest is None or self._open is None:
            self._open, self._open_number = _Window(reading), window_number
            self._summarise([self._open])
        else:
            self._open.extend(self._latest, reading, (time_ns - self._latest_ns) / 1e9)
            self._close_window(self._open, reading, window_number)
        self._latest, self._latest_ns = reading, time_ns

    def finish(self) -> None:
        """No more samples: count the partial window in, and close the energy account."""
        self._energy = settled(self._energy)
        if self._open is not None:
            self._summarise([*self._closed, self._open])

    def state(self) -> GpuState:
        return GpuState(
            device=self._device,
            energy=self._energy,
            latest=self._latest,
            mean=self._mean,
            highest=self._highest,
        )

    def _close_window(self, window: _Window, edge: Reading, number: int) -> None:
        """The first sample after a window is its right edge and the next one's left edge."""
        if number == self._open_number:
            if not self._closed:
                self._summarise([window])
            return
        self._closed.append(window)
        self._summarise(self._closed)
        self._open, self._open_number = _Window(edge), number

    def _summarise(self, windows: Sequence[_Window]) -> None:
        weighted = map(sum, zip(*(window.weighted for window in windows), strict=True))
        seconds = map(sum, zip(*(window.seconds for window in windows), strict=True))
        lowest = map(min, zip(*(window.lowest for window in windows), strict=True))
        highest = map(max, zip(*(window.highest for window in windows), strict=True))
        tops = [None if value == -math.inf else value for value in highest]
        # A value that was seen only once has no duration; it is its own mean. Rounding
        # must not take a mean out of its range: 100.00000000000001 % is no utilisation.
        means = [
            min(max(total / duration, low), top) if duration and top is not None else top
            for total, duration, low, top in zip(weighted, seconds, lowest, tops, strict=True)
        ]
        self._mean = _reading(means, None)
        self._highest = _reading(tops, _any_reason(windows))

    def _forget(self) -> None:
        """Of a lost GPU nothing is known, and no mean spans its absence."""
        self._open = None
        self._closed.clear()
        self._mean = self._highest = Reading()


def _reading(values: Sequence[float | None], throttle_reasons: int | None) -> Reading:
    fields: dict[str, Any] = dict(zip(FIELDS, values, strict=True))
    return Reading(**fields, throttle_reasons=throttle_reasons)


def _any_reason(windows: Sequence[_Window]) -> int | None:
    masks = [w.throttle_reasons for w in windows if w.throttle_reasons is not None]
    union = 0
    for mask in masks:
        union |= mask
    return union if masks else None


def _energy_sample(reading: Reading | None, time_ns: int) -> EnergySample:
    if reading is None:
        return EnergySample(time_ns=time_ns)
    return EnergySample(
        time_ns=time_ns,
        counter_joules=reading.energy_counter_joules,
        power_watts=reading.power_watts,
        power_limit_watts=reading.power_limit_watts,
    )
