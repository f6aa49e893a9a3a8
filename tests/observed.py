"""Programs that hubmeter observes, run for real, and what they left behind."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData
from opentelemetry.sdk.resources import Resource

from hubmeter.dataset import open_dataset

POWER = "gen_ai.gpu.power"

HEAD = """
import math, os, signal, sys, threading, time
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from hubmeter import HubMetricExporter, attach

def measure(provider, watts):
    provider.get_meter("t").create_gauge("gen_ai.gpu.power", "W").set(watts, {"gpu_id": "0"})

def provider_of(*exporters, **options):
    readers = [PeriodicExportingMetricReader(e, export_interval_millis=60_000) for e in exporters]
    return MeterProvider(readers, resource=Resource({"run.id": "r1"}), **options)
"""


@pytest.fixture(autouse=True)
def undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the machine, and a working directory of our own."""
    for name in os.environ:
        if name.startswith(("HUBMETER_", "OTEL_", "GENAI_", "CODECARBON_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def program(code: str, folder: Path) -> list[str]:
    """The command that runs *code*, after `HEAD`, from a file in *folder*."""
    path = folder / "program.py"
    path.write_text(HEAD + textwrap.dedent(code))
    return [sys.executable, str(path)]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run *command* in the current directory, for at most a minute."""
    return subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def shards(folder: Path, config: str = "default") -> list[Path]:
    """The Parquet files of a dataset."""
    return sorted(folder.glob(f"data/{config}/*/*.parquet"))


def column(folder: Path, name: str, config: str = "default") -> list[Any]:
    """One column of a dataset."""
    return open_dataset(folder, config)[name].to_pylist()


def leftovers(folder: Path) -> list[Path]:
    """Files that are neither a shard nor the card."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if path.suffix != ".parquet" and path.name != "README.md"]


class Machine:
    """A real SDK whose collections a test hands to an exporter, when it likes."""

    def __init__(self, **resource: str) -> None:
        self._reader = InMemoryMetricReader()
        self._provider = MeterProvider(
            [self._reader], resource=Resource(resource), shutdown_on_exit=False
        )
        self.meter = self._provider.get_meter("test")
        self._power = self.meter.create_gauge(POWER, "W")

    def collect(self, watts: float | None = None) -> MetricsData:
        """Everything there is to collect, with the power of GPU 0 at *watts*."""
        if watts is not None:
            self._power.set(watts, {"gpu_id": "0"})
        data = self._reader.get_metrics_data()
        assert data is not None
        return data
