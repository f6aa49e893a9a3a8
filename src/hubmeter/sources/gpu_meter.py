"""
GPU metrics as ordinary OpenTelemetry instruments of any meter provider.

A table of observable instruments whose callbacks look at the sampler's latest
snapshot: no driver call, no lock, no waiting. They travel like all other metrics.
"""

from __future__ import annotations

import atexit
import logging
import math
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from ..energy import Energy, Factors
from ..errors import NvmlError, SettingsError
from ..gpu_selection import select_gpus
from ..nvml import GpuDevice, load_pynvml, open_nvml
from ..run import factors_of
from ..settings import Settings, load_settings
from ..version import version
from .gpu_windows import GpuState
from .nvml_sampler import (
    SAMPLE_WAIT_S,
    STOP_WAIT_S,
    GpuSampler,
    acquire_shared,
    release_shared,
)

log = logging.getLogger(__name__)

SCOPE = "hubmeter.gpu"


@dataclass(frozen=True, slots=True)
class Gauge:
    """One observable gauge; *read* gives None where a GPU does not offer the value."""

    name: str
    unit: str
    read: Callable[[GpuState], float | None]


@dataclass(frozen=True, slots=True)
class Counter:
    """One observable counter that grows with energy; *per_joule* converts."""

    name: str
    unit: str
    per_joule: Callable[[Factors], float]


GAUGES: tuple[Gauge, ...] = (
    Gauge("gen_ai.gpu.utilization", "%", lambda gpu: gpu.mean.utilization_percent),
    Gauge("gen_ai.gpu.utilization.max", "%", lambda gpu: gpu.highest.utilization_percent),
    Gauge("gen_ai.gpu.memory.used", "MiB", lambda gpu: gpu.mean.memory_used_mib),
    Gauge("gen_ai.gpu.memory.total", "MiB", lambda gpu: gpu.highest.memory_total_mib),
    Gauge("gen_ai.gpu.temperature", "Cel", lambda gpu: gpu.mean.temperature_celsius),
    Gauge("gen_ai.gpu.temperature.max", "Cel", lambda gpu: gpu.highest.temperature_celsius),
    Gauge("gen_ai.gpu.power", "W", lambda gpu: gpu.mean.power_watts),
    Gauge("gen_ai.gpu.power.max", "W", lambda gpu: gpu.highest.power_watts),
    Gauge("gen_ai.gpu.memory.utilization", "%", lambda gpu: gpu.mean.memory_utilization_percent),
    Gauge("gen_ai.gpu.power.limit", "W", lambda gpu: gpu.mean.power_limit_watts),
    Gauge("gen_ai.gpu.clock.sm", "MHz", lambda gpu: gpu.mean.sm_clock_mhz),
    Gauge("gen_ai.gpu.clock.memory", "MHz", lambda gpu: gpu.mean.memory_clock_mhz),
    Gauge("gen_ai.gpu.fan.speed", "%", lambda gpu: gpu.mean.fan_speed_percent),
    Gauge("gen_ai.gpu.ecc.errors.uncorrected", "1", lambda gpu: gpu.highest.ecc_errors_uncorrected),
)

THROTTLE_REASONS: dict[str, int] = {
    # The first three are genai_otel's names, with its meaning.
    "thermal": 0x20,  # software, to protect GPU or memory
    "power": 0x04,  # software power cap
    "hw_slowdown": 0x08,
    "hw_thermal": 0x40,
    "hw_power_brake": 0x80,
}
"""Metric ``gen_ai.gpu.throttle.<reason>`` to NVML's bit; 1 if it was set in a window's sample."""

COUNTERS: tuple[Counter, ...] = (
    Counter("gen_ai.co2.emissions", "gCO2e", lambda factors: factors.co2_g_per_joule),
    Counter("gen_ai.power.cost", "USD", lambda factors: factors.cost_usd_per_joule),
)

ENERGY = "gen_ai.gpu.energy"
"""
Counter in J. Its attribute ``energy_source`` says how it was measured (counter or
integrated); a GPU has one series per source, and their sum is its energy.
"""


class GpuMetrics(AbstractContextManager["GpuMetrics"]):
    """
    GPU instruments of one provider. Made by :func:`instrument_gpus`.

    Values start at 0 when the provider was instrumented, however long others have
    been using the sampler.

    Args:
        sampler: What the instruments look at.
        factors: What energy costs.
        close: Called once by :meth:`stop`, with the seconds it may take.
    """

    def __init__(
        self, sampler: GpuSampler, factors: Factors, close: Callable[[float], object]
    ) -> None:
        self._sampler = sampler
        self._factors = factors
        self._close = close
        self._is_stopped = False
        self._seen = sampler.snapshot
        self._start = {gpu.device.uuid: gpu.energy for gpu in self._seen.gpus}
        atexit.register(self.stop)  # before the hook of the provider, which is older

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self, timeout_s: float = STOP_WAIT_S) -> None:
        """
        Take a last sample and stop sampling. May be called again.

        Call it before ``provider.shutdown()``, so that the last collection has the
        energy up to now; at interpreter exit this happens by itself.

        Args:
            timeout_s: How long a driver that hangs may hold up the program.
        """
        if not self._is_stopped:
            self._is_stopped = True
            atexit.unregister(self.stop)
            self._close(timeout_s)

    def refresh(self, timeout_s: float = SAMPLE_WAIT_S) -> None:
        """Take a sample now, before a collection that should be up to date."""
        if not self._is_stopped:
            self._sampler.sample_now(timeout_s)

    def register(self, meter: Meter) -> None:
        """Create the instruments. Callbacks run in this order in each collection."""
        meter.create_observable_counter(ENERGY, [self._observe_energy], "J")
        for counter in COUNTERS:
            observe = partial(self._observe_cost, counter.per_joule(self._factors))
            meter.create_observable_counter(counter.name, [observe], counter.unit)
        for gauge in (*GAUGES, *_throttle_gauges()):
            observe = partial(self._observe, gauge.read)
            meter.create_observable_gauge(gauge.name, [observe], gauge.unit)

    def _observe_energy(self, options: CallbackOptions) -> Iterator[Observation]:
        # The first callback of a collection chooses the snapshot for all of them, so that
        # energy, CO2 and cost of a row are of the same moment.
        self._seen = self._sampler.snapshot
        for gpu in self._seen.gpus:
            start = self._start_of(gpu)
            for source, joules in (
                ("counter", gpu.energy.counter_joules - start.counter_joules),
                ("integrated", gpu.energy.integrated_joules - start.integrated_joules),
            ):
                if joules > 0 or source == gpu.energy.source:
                    attributes = {**_attributes(gpu.device), "energy_source": source}
                    yield Observation(joules, attributes)

    def _observe_cost(self, per_joule: float, options: CallbackOptions) -> Iterator[Observation]:
        for gpu in self._seen.gpus:
            if gpu.energy.source is not None:
                joules = gpu.energy.total_joules - self._start_of(gpu).total_joules
                yield Observation(joules * per_joule, _attributes(gpu.device))

    def _observe(
        self, read: Callable[[GpuState], float | None], options: CallbackOptions
    ) -> Iterator[Observation]:
        # After stop() or behind a driver that hangs, the latest values are soon no news.
        for gpu in () if self._sampler.is_stale else self._seen.gpus:
            value = read(gpu)
            if value is not None:
                yield Observation(value, _attributes(gpu.device))

    def _start_of(self, gpu: GpuState) -> Energy:
        return self._start.get(gpu.device.uuid, _NO_ENERGY)


_NO_ENERGY = Energy()


def _throttle_gauges() -> Iterator[Gauge]:
    for reason, bit in THROTTLE_REASONS.items():
        yield Gauge(f"gen_ai.gpu.throttle.{reason}", "1", partial(_is_throttled, bit))


def _is_throttled(bit: int, gpu: GpuState) -> int | None:
    mask = gpu.highest.throttle_reasons
    return None if mask is None else int(mask & bit != 0)


def _attributes(device: GpuDevice) -> dict[str, str]:
    return {"gpu_id": str(device.index), "gpu_name": device.name, "gpu_uuid": device.uuid}


_instrumented: weakref.WeakKeyDictionary[metrics.MeterProvider, GpuMetrics] = (
    weakref.WeakKeyDictionary()
)


def instrument_gpus(
    provider: metrics.MeterProvider,
    *,
    settings: Settings | None = None,
    sampler: GpuSampler | None = None,
) -> GpuMetrics:
    """
    Add the GPU instruments to *provider*.

    Without a GPU this logs one line and the instruments stay silent. A provider is
    instrumented once; asking again returns what there is.

    Args:
        provider: Any meter provider of an SDK.
        settings: By default those of the environment.
        sampler:
            What to look at, if not the sampler that this process shares. Who made
            it starts and stops it.

    Returns:
        A handle; ``stop()`` it before the provider is shut down. It does not start again.
    """
    if provider in _instrumented:
        return _instrumented[provider]
    meter = provider.get_meter(SCOPE, version())
    settings = settings or _settings_of_the_environment()
    if sampler is not None:
        close: Callable[[float], object] = sampler.sample_now
    elif settings.disabled or settings.gpus.lower() == "none" or not _has_binding():
        sampler = GpuSampler(open_nvml)  # never started, so it never has anything to show
        close = sampler.stop
    else:
        span_s = _export_interval_s(provider)
        wanted = f"GPUs {settings.gpus}, every {settings.sample_interval_s:g} s, over {span_s:g} s"
        sampler = acquire_shared(partial(_sampler, settings, span_s), wanted)
        close = partial(release_shared, sampler)
    handle = GpuMetrics(sampler, factors_of(settings), close)
    handle.register(meter)
    _instrumented[provider] = handle
    return handle


def gpu_meter_provider(
    to: str | None = None,
    *,
    export_interval_s: float | None = None,
    resource: Resource | None = None,
    sampler: GpuSampler | None = None,
    **settings: Any,
) -> MeterProvider:
    """
    A meter provider whose GPU metrics, and all others, become a dataset.

    Args:
        to: Destination; by default ``HUBMETER_TO``.
        export_interval_s: By default ``OTEL_METRIC_EXPORT_INTERVAL``, else 60 s.
        resource: Of the provider.
        sampler: See :func:`instrument_gpus`.
        settings: Other settings by field name, such as ``gpus="0,2"``.
    """
    # Other sources, because this is all in one call; imported only when it is made.
    from .sdk_exporter import HubMetricExporter

    exporter = HubMetricExporter(to, **settings)
    reader = PeriodicExportingMetricReader(
        exporter,
        export_interval_millis=None if export_interval_s is None else export_interval_s * 1e3,
    )
    provider = _GpuMeterProvider([reader], resource=resource)
    exporter.report_to(provider)
    provider.gpus = instrument_gpus(
        provider, settings=load_settings(to=to, **settings), sampler=sampler
    )
    return provider


def instrument_when_exporting() -> None:
    """
    Add the GPUs to the global provider, if its metrics come to us.

    The hook that ``opentelemetry-instrument`` calls last. Never raises.
    """
    try:
        from .sdk_exporter import was_created

        provider = metrics.get_meter_provider()
        if isinstance(provider, MeterProvider) and was_created():
            instrument_gpus(provider)
    except Exception:  # the border to a program that asked for nothing
        log.exception("GPUs are not metered")


class _GpuMeterProvider(MeterProvider):
    """Takes a fresh sample before it flushes, and the last one before it shuts down."""

    gpus: GpuMetrics

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        deadline_s = time.monotonic() + timeout_millis / 1e3
        self.gpus.refresh(min(SAMPLE_WAIT_S, timeout_millis / 2e3))
        return super().force_flush((deadline_s - time.monotonic()) * 1e3)

    def shutdown(self, timeout_millis: float = 30_000) -> None:
        deadline_s = time.monotonic() + timeout_millis / 1e3
        self.gpus.stop(min(STOP_WAIT_S, timeout_millis / 2e3))
        super().shutdown((deadline_s - time.monotonic()) * 1e3)


def _sampler(settings: Settings, span_s: float) -> GpuSampler:
    return GpuSampler(
        open_nvml,
        select=partial(_select, settings),
        interval_s=settings.sample_interval_s,
        span_s=span_s,
    )


def _select(settings: Settings, devices: Sequence[GpuDevice]) -> Sequence[GpuDevice]:
    try:
        return select_gpus(settings.gpus, devices, settings.cuda_visible_devices)
    except SettingsError as error:
        log.warning("%s The visible ones are metered.", error)
        return select_gpus("visible", devices, settings.cuda_visible_devices)


def _settings_of_the_environment() -> Settings:
    from .sdk_exporter import was_created

    settings = load_settings()
    for problem in () if was_created() else settings.problems:  # an exporter has said it already
        log.warning("hubmeter: %s", problem)
    return settings


def _has_binding() -> bool:
    """Import pynvml here, and not in the sampler's thread, where it may not silence warnings."""
    try:
        load_pynvml()
    except NvmlError as error:
        log.warning("%s", error)
        return False
    return True


def _export_interval_s(provider: object) -> float:
    """
    The longest export interval, which is the time that means and maxima should cover.

    The SDK has no public way to ask; without an answer they cover one window.
    """
    config = getattr(provider, "_sdk_config", None)
    readers = getattr(provider, "_metric_readers", None) or getattr(config, "metric_readers", [])
    intervals = [getattr(reader, "_export_interval_millis", math.inf) for reader in readers]
    return max((millis / 1e3 for millis in intervals if 0 < millis < math.inf), default=0.0)
