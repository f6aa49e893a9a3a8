"""Resident memory of an exporter that holds a million rows, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from report import Result

ROWS, GPUS = 1_000_000, 8

SCRIPT = f"""
import gc, sys
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from dataclasses import replace
from opentelemetry.sdk.metrics.export import MetricsData
from hubmeter.pipeline import Pipeline
from hubmeter.settings import Settings
from hubmeter.sources.sdk_exporter import HubMetricExporter
from shapes import LiveGpus

def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

class Nowhere:
    def publish(self, shards, deadline): ...

live = LiveGpus({GPUS})
first = live.collect()
exporter = HubMetricExporter(pipeline=Pipeline(Settings(), sink=Nowhere()))
exporter.export(first)
[resource_metrics] = first.resource_metrics
[scope_metrics] = resource_metrics.scope_metrics

def later(tick):
    # The same collection at a later time with other values, cheaper than asking the SDK.
    metrics = [
        replace(m, data=replace(m.data, data_points=[
            replace(p, time_unix_nano=p.time_unix_nano + tick * 10**9, value=p.value + tick * 0.25)
            for p in m.data.data_points]))
        for m in scope_metrics.metrics
    ]
    scope = replace(scope_metrics, metrics=metrics)
    return MetricsData([replace(resource_metrics, scope_metrics=[scope])])

for tick in range(1, 200):
    exporter.export(later(tick))
gc.collect()
before, done = resident_bytes(), 200
for tick in range(200, {ROWS // GPUS}):
    exporter.export(later(tick))
gc.collect()
print((resident_bytes() - before) / (({ROWS // GPUS} - done) * {GPUS}))
"""


def measure() -> Iterator[Result]:
    command = [sys.executable, "-c", SCRIPT]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    what = f"resident memory per row at {ROWS:,} rows"
    yield Result(what=what, unit="B", ours=float(printed), limit=150)
