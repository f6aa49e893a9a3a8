"""
A run like the one that this project began with, made from arithmetic.

917 collections of one laptop GPU in two and a half hours, nested as smoltrace stores
them. All readings are in plain lists, so every answer about the run is known without
reading the nested form.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubmeter.deadline import Deadline
from hubmeter.decode.otlp_json import JsonDecoder
from hubmeter.pipeline import Pipeline
from hubmeter.settings import load_settings

COLLECTIONS = 917
ABOVE_80 = 772
FIRST_UNIX_NANO = 1_761_544_695_460_017_300
INTERVAL_NS = 10_018_756_152
RUN_ID = "79f3239f-0000-4000-8000-b22ea19044c9"
GPU_NAME = "NVIDIA GeForce RTX 3060 Laptop GPU"

UNITS = {
    "gen_ai.gpu.utilization": "%",
    "gen_ai.gpu.memory.used": "MiB",
    "gen_ai.gpu.memory.total": "MiB",
    "gen_ai.gpu.temperature": "Cel",
    "gen_ai.gpu.power": "W",
    "gen_ai.co2.emissions": "gCO2e",
    "gen_ai.power.cost": "USD",
}
SUMS = ("gen_ai.co2.emissions", "gen_ai.power.cost")


@dataclass(frozen=True, slots=True)
class SeedRun:
    """
    What one GPU reported, one value per collection.

    Attributes:
        times: Nanoseconds.
        readings: Metric name to values.
    """

    times: list[int]
    readings: dict[str, list[float]]

    def nested(self) -> dict[str, Any]:
        """As smoltrace keeps it: one resource per collection, numbers as asInt or asDouble."""
        collections = [self._collection(i) for i in range(len(self.times))]
        return {"run_id": RUN_ID, "resourceMetrics": collections, "aggregates": []}

    def _collection(self, i: int) -> dict[str, Any]:
        metrics = [_metric(name, self.times[i], v[i]) for name, v in self.readings.items()]
        resource = [_text("service.name", "smoltrace-eval"), _text("run.id", RUN_ID)]
        return {
            "resource": {"attributes": resource},
            "scopeMetrics": [{"scope": {"name": "genai.gpu", "version": None}, "metrics": metrics}],
        }


def seed_run() -> SeedRun:
    """Peaks, shares and length as in the run of 2025-10-27; everything in between made up."""
    steps = range(COLLECTIONS)
    return SeedRun(
        times=[FIRST_UNIX_NANO + i * INTERVAL_NS + i * 7919 % 1000 for i in steps],
        readings={
            "gen_ai.gpu.utilization": [_utilization(i) for i in steps],
            "gen_ai.gpu.memory.used": [
                2024.0 if i == 700 else 375 + i * 13 % 1600 + i % 4 / 4 for i in steps
            ],
            "gen_ai.gpu.memory.total": [6144.0] * COLLECTIONS,
            "gen_ai.gpu.temperature": [96.0 if i == 500 else 62.0 + i * 5 % 34 for i in steps],
            "gen_ai.gpu.power": [(16_830 + i * 7919 % 30_949) / 1000 for i in steps],
            "gen_ai.co2.emissions": [0.036395 + i * 0.19182 for i in steps],
            "gen_ai.power.cost": [9.194e-06 + i * 4.846e-05 for i in steps],
        },
    )


def _utilization(i: int) -> float:
    """Evenly spread, ABOVE_80 of COLLECTIONS are 81 to 100; the others 0 to exactly 80."""
    is_high = i * ABOVE_80 // COLLECTIONS != (i + 1) * ABOVE_80 // COLLECTIONS
    return 81.0 + i % 20 if is_high else 80.0 * (i % 3 // 2)


def _metric(name: str, time_unix_nano: int, value: float) -> dict[str, Any]:
    is_whole = value == int(value)
    # genai_otel does not name the GPU that it attributes emissions to.
    named = [] if name == "gen_ai.co2.emissions" else [_text("gpu_name", GPU_NAME)]
    point = {
        "attributes": [_text("gpu_id", "0"), *named],
        "timeUnixNano": str(time_unix_nano),
        "asInt": str(int(value)) if is_whole else None,
        "asDouble": None if is_whole else value,
    }
    data: dict[str, Any] = {"dataPoints": [point]}
    if name in SUMS:
        data |= {"aggregationTemporality": 2, "isMonotonic": True}
    kind = "sum" if name in SUMS else "gauge"
    return {"name": name, "description": "", "unit": UNITS[name], kind: data}


def _text(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}


def publish(nested: dict[str, Any], folder: Path, **settings: Any) -> None:
    """Write the dataset as a live run would: one collection after the other, then the end."""
    pipeline = Pipeline(load_settings(to=str(folder), **settings))
    decoder = JsonDecoder()
    for collection in nested["resourceMetrics"]:
        request = {"run_id": nested["run_id"], "resourceMetrics": [collection]}
        pipeline.consume(decoder.decode(request))
    pipeline.close(Deadline.after(30))
