"""
The main job in a dozen seconds: a live meter provider, a small traced workload, a dataset.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Tracer

from .errors import NvmlError
from .nvml import open_nvml
from .sources.gpu_meter import instrument_gpus
from .sources.nvml_sampler import GpuSampler
from .sources.sdk_exporter import HubMetricExporter
from .sources.simulated_gpus import SimulatedGpus

if TYPE_CHECKING:
    import pyarrow as pa

EXPORT_INTERVAL_S = 1.0
SAMPLE_INTERVAL_S = 0.25

TASKS = (
    ("plan the trip", 0.35),
    ("search flights", 0.70),
    ("compare hotels", 1.00),
    ("write the answer", 0.55),
)
"""What the workload does, and how busy that keeps a simulated GPU, from 0 to 1."""


def run_demo(
    to: str, *, run_id: str, seconds: float, gpus: int, say: Callable[[str], None]
) -> pa.Table:
    """
    Record a small workload, on the GPUs of this machine or on simulated ones.

    Args:
        to: Destination folder.
        run_id: Of the run.
        seconds: Length of the workload.
        gpus: How many GPUs to simulate where there is none.
        say: Is told what happens, a line at a time.

    Returns:
        The rows that were recorded.
    """
    simulated = None if _has_gpu() else SimulatedGpus(gpus, load=0.0)
    if simulated is not None:
        say("no NVIDIA GPU here: simulated ones stand in, and every row says so in gpu_name")
    resource = Resource.create({"service.name": "hubmeter-demo"})
    exporter = HubMetricExporter(to, run_id=run_id)
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=EXPORT_INTERVAL_S * 1e3)
    provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    with _sampler(simulated) as sampler:
        metrics = instrument_gpus(provider, sampler=sampler)
        try:
            tracer = TracerProvider(resource=resource, shutdown_on_exit=False).get_tracer(__name__)
            _work(_Workload(tracer, provider, simulated, say), seconds)
        finally:
            metrics.stop()
            provider.shutdown()
    return exporter.table()


@dataclass(frozen=True, slots=True)
class _Workload:
    tracer: Tracer
    provider: MeterProvider
    simulated: SimulatedGpus | None
    say: Callable[[str], None]


def _work(workload: _Workload, seconds: float) -> None:
    meter = workload.provider.get_meter("hubmeter.demo")
    tokens = meter.create_counter("gen_ai.client.token.usage", "{token}")
    duration = meter.create_histogram("gen_ai.client.operation.duration", "s")
    for number, (task, load) in enumerate(TASKS, 1):
        workload.say(f"task {number} of {len(TASKS)}: {task}")
        if workload.simulated is not None:
            workload.simulated.load = load
        started = time.monotonic()
        with workload.tracer.start_as_current_span(task):
            time.sleep(seconds / len(TASKS))
        duration.record(time.monotonic() - started, {"gen_ai.operation.name": "chat"})
        tokens.add(round(1000 * load), {"gen_ai.token.type": "output"})


def _sampler(simulated: SimulatedGpus | None) -> GpuSampler:
    sampler = GpuSampler(
        open_nvml if simulated is None else lambda: simulated,
        interval_s=SAMPLE_INTERVAL_S,
        span_s=EXPORT_INTERVAL_S,
    )
    sampler.start()
    return sampler


def _has_gpu() -> bool:
    try:
        with open_nvml() as nvml:
            return bool(nvml.devices)
    except NvmlError:
        return False
