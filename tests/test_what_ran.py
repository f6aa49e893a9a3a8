"""Spans and GPUs arrive on roads of their own: rows say which trace and task ran meanwhile."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from collector_runs import HUBMETER, Hubmeter, table
from observed import undisturbed  # noqa: F401
from standin import subprocess_env

WORKING = """
import json, sys, time
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
time.sleep(1.3)
with provider.get_tracer("agent").start_as_current_span("x", attributes={"task.id": "t1"}) as span:
    time.sleep(2.3)
time.sleep(1.3)
provider.shutdown()
print(json.dumps([f"{span.context.trace_id:032x}", span.start_time, span.end_time]))
"""


def said_of_gpus(folder: Path) -> list[dict[str, Any]]:
    """Rows of GPUs in *folder*/data, in order of time."""
    rows = [row for row in table(folder, "default").to_pylist() if row["gpu_id"] is not None]
    return sorted(rows, key=lambda row: row["timestamp_unix_nano"])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_receiver_labels_rows_with_the_spans_of_their_run(protocol: str, tmp_path: Path) -> None:
    """A meter and an agent that share a run.id: readings before, during and after a task."""
    with Hubmeter(tmp_path).start() as hubmeter:
        paths = ("/v1/metrics", "/v1/traces") if protocol == "http" else ("", "")
        base = hubmeter.url if protocol == "http" else f"http://{hubmeter.target}"
        module = f"opentelemetry.exporter.otlp.proto.{protocol}"
        meter = importlib.import_module(f"{module}.metric_exporter").OTLPMetricExporter
        agent = importlib.import_module(f"{module}.trace_exporter").OTLPSpanExporter
        metrics = MeterProvider(
            [PeriodicExportingMetricReader(meter(base + paths[0]), float("inf"))],
            resource=Resource({"run.id": "r1", "service.name": "meter"}), shutdown_on_exit=False,
        )  # fmt: skip
        traces = TracerProvider(
            resource=Resource({"run.id": "r1", "service.name": "agent"}), shutdown_on_exit=False
        )
        traces.add_span_processor(SimpleSpanProcessor(agent(base + paths[1])))
        power = metrics.get_meter("m").create_gauge("gen_ai.gpu.power", "W")

        power.set(100, {"gpu_id": "0"})
        assert metrics.force_flush()
        with traces.get_tracer("a").start_as_current_span(
            "x", attributes={"task.id": "t1"}
        ) as span:
            power.set(200, {"gpu_id": "0"})
            assert metrics.force_flush()
        power.set(300, {"gpu_id": "0"})
        assert metrics.force_flush()
        traces.shutdown()
        metrics.shutdown()
        hubmeter.stop()

    rows = said_of_gpus(tmp_path / "data")
    trace_id = f"{span.get_span_context().trace_id:032x}"
    assert {(row["gpu_power_watts"], row["trace_id"], row["task_id"]) for row in rows} == {
        (100, None, None), (200, trace_id, "t1"), (300, None, None),
    }  # fmt: skip
    assert {row["run_id"] for row in rows} == {"r1"}


def test_a_recorded_command_labels_the_rows_of_its_gpus(
    tmp_path: Path, standin_library: Path
) -> None:
    """What the command says by OTLP, and what was sampled meanwhile, from the same clock."""
    environment = subprocess_env(standin_library, "gpus 2\nclock real\n", tmp_path)
    done = subprocess.run(
        [*HUBMETER, "run", "--to", "./data", "--", sys.executable, "-c", WORKING],
        env=environment, capture_output=True, timeout=90, check=True,
    )  # fmt: skip
    trace_id, began, ended = json.loads(done.stdout)

    rows = said_of_gpus(tmp_path / "data")
    inside = [began <= int(row["timestamp_unix_nano"]) <= ended for row in rows]
    assert {row["gpu_id"] for row in rows} == {"0", "1"}
    assert set(inside) == {True, False}
    for row, is_inside in zip(rows, inside, strict=True):
        expected = (trace_id, "t1") if is_inside else (None, None)
        assert (row["trace_id"], row["task_id"]) == expected
