"""GPUs of `instrument_gpus` by OTLP, to a receiver instead of our exporter and beside it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as by_grpc
from opentelemetry.exporter.otlp.proto.http import metric_exporter as by_http
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from collector_runs import ONLY_OTLP, Hubmeter, QueueingCollector, table
from hubmeter import HubMetricExporter, instrument_gpus
from hubmeter.nvml import open_nvml
from hubmeter.sources.nvml_sampler import GpuSampler
from observed import undisturbed  # noqa: F401
from real_collector import needs_collector
from standin import StandIn, subprocess_env

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(name="sampler")
def _sampler(standin: StandIn) -> Iterator[GpuSampler]:
    """Of a clock that a test moves."""
    sampler = GpuSampler(open_nvml, monotonic_ns=lambda: round(standin.now_s * 1e9))
    sampler.open()
    yield sampler
    sampler.stop()


def otlp(protocol: str, hubmeter: Hubmeter) -> MetricExporter:
    """The exporter of the SDK, as a user makes it."""
    if protocol == "grpc":
        return by_grpc.OTLPMetricExporter(f"http://{hubmeter.target}", insecure=True)
    return by_http.OTLPMetricExporter(f"{hubmeter.url}/v1/metrics")


def measure(
    standin: StandIn, sampler: GpuSampler, *exporters: MetricExporter, collections: int = 5
) -> None:
    """A process whose GPUs are instrumented: as many collections, ten seconds apart."""
    readers = [PeriodicExportingMetricReader(one, float("inf")) for one in exporters]
    provider = MeterProvider(
        readers, resource=Resource({"run.id": "r1", "service.name": "s"}), shutdown_on_exit=False
    )
    gpus = instrument_gpus(provider, sampler=sampler)
    for number in range(collections):
        standin.set_power_w(0, 100 + number)
        for _ in range(10):
            standin.advance_s(1)
            sampler.tick()
        assert provider.force_flush()
    gpus.stop()
    provider.shutdown()


def recipe() -> str:
    """The program of the README; its provider exports a last time when the process ends."""
    programs = re.findall(r"(?ms)^```python\n(.*?)^```", README.read_text())
    [found] = [one for one in programs if "OTLPMetricExporter" in one]
    return found


def gpu_rows(rows: pa.Table) -> list[dict[str, object]]:
    """The rows of GPUs in order, without what tells when and by whom they were collected."""
    found = [row for row in rows.to_pylist() if row["gpu_id"] is not None]
    found.sort(key=lambda row: (row["gpu_id"], row["timestamp_unix_nano"]))
    return [{k: v for k, v in row.items() if "timestamp" not in k} for row in found]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_beside_our_exporter(
    protocol: str, standin: StandIn, sampler: GpuSampler, tmp_path: Path
) -> None:
    """One provider, two readers: what went over the wire is what stayed in the process."""
    ours = HubMetricExporter(str(tmp_path / "ours"))
    with Hubmeter(tmp_path).start() as hubmeter:
        measure(standin, sampler, otlp(protocol, hubmeter), ours)
        hubmeter.stop()

    received = gpu_rows(table(tmp_path / "data", "default"))
    assert len({row["gpu_power_watts"] for row in received}) == 5
    assert received == gpu_rows(ours.table())


def run_recipe(endpoint: str, library: Path, folder: Path) -> None:
    """The recipe of the README, in a process that is told the endpoint only."""
    environment = subprocess_env(library, "gpus 2\nclock real\n", folder)
    environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    subprocess.run([sys.executable, "-c", recipe()], env=environment, check=True, timeout=60)


def assert_gpus(folder: Path) -> None:
    rows = gpu_rows(table(folder / "data", "default"))
    assert {row["gpu_id"] for row in rows} == {"0", "1"}
    assert {row["gpu_power_watts"] for row in rows} == {100.0}
    assert {row["energy_source"] for row in rows} == {"counter"}


def test_instead_of_our_exporter(tmp_path: Path, standin_library: Path) -> None:
    """Straight to hubmeter."""
    with Hubmeter(tmp_path).start() as hubmeter:
        run_recipe(hubmeter.url, standin_library, tmp_path)
        hubmeter.stop()
    assert_gpus(tmp_path)


@needs_collector
def test_to_a_collector(tmp_path: Path, standin_library: Path) -> None:
    """Which has a queue, and sends to hubmeter."""
    with (
        Hubmeter(tmp_path).start() as hubmeter,
        QueueingCollector(
            "agent", tmp_path / "c", overrides=[ONLY_OTLP], HUBMETER_ENDPOINT=hubmeter.url
        ) as collector,
    ):
        run_recipe(collector.url, standin_library, tmp_path)
        collector.drain()
        hubmeter.stop()
    assert_gpus(tmp_path)
