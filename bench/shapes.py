"""Data of realistic shape: what an SDK collects from N GPUs with the seven seed metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData
from opentelemetry.sdk.resources import Resource

METRICS = {
    "gen_ai.gpu.utilization": "%",
    "gen_ai.gpu.memory.used": "MiB",
    "gen_ai.gpu.memory.total": "MiB",
    "gen_ai.gpu.temperature": "Cel",
    "gen_ai.gpu.power": "W",
    "gen_ai.co2.emissions": "gCO2e",
    "gen_ai.power.cost": "USD",
}
COUNTERS = {"gen_ai.co2.emissions", "gen_ai.power.cost"}


class LiveGpus:
    """A real provider whose observable instruments report *count* GPUs."""

    def __init__(self, count: int) -> None:
        self.tick = 0
        self._count = count
        self._attributes = [
            {"gpu_id": str(gpu), "gpu_name": "NVIDIA H100 80GB HBM3"} for gpu in range(count)
        ]
        self._reader = InMemoryMetricReader()
        resource = Resource.create({"service.name": "bench", "run.id": "bench-run"})
        self.provider = MeterProvider([self._reader], resource=resource, shutdown_on_exit=False)
        meter = self.provider.get_meter("genai.gpu")
        for name, unit in METRICS.items():
            create = (
                meter.create_observable_counter
                if name in COUNTERS
                else meter.create_observable_gauge
            )
            create(name, [self._observer(name)], unit)

    def collect(self) -> MetricsData:
        self.tick += 1
        data = self._reader.get_metrics_data()
        assert data is not None
        return data

    def _observer(self, name: str):
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            for gpu, attributes in enumerate(self._attributes):
                yield Observation(self._value(name, gpu), attributes)

        return observe

    def _value(self, name: str, gpu: int) -> float:
        return reading(name, gpu, self.tick)


def reading(name: str, gpu: int, tick: int) -> float:
    """Shaped like NVML: utilization and temperature whole numbers, power in milliwatts."""
    wave = 0.5 + 0.5 * math.sin((tick + 31 * gpu) / 37)
    jitter = ((tick * 2654435761 + gpu * 97) % 1000) / 1000
    match name:
        case "gen_ai.gpu.utilization":
            return round(100 * min(1.0, 0.6 * wave + 0.4 * jitter))
        case "gen_ai.gpu.memory.used":
            return 1024.0 + 512 * ((tick // 60 + gpu) % 9)
        case "gen_ai.gpu.memory.total":
            return 81559.0
        case "gen_ai.gpu.temperature":
            return 45 + round(30 * wave)
        case "gen_ai.gpu.power":
            return round(90 + 500 * wave + 40 * jitter, 3)
        case "gen_ai.co2.emissions":
            return 0.0475 * tick + 0.001 * wave
        case _:
            return 1.2e-5 * tick + 1e-7 * wave
