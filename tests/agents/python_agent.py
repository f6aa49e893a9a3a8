"""
An agent that knows nothing of hubmeter: the SDK and its OTLP exporters, without an argument.

    python_agent.py http|grpc [steps]

Each step is a collection of its own, and the end of the provider is one more: the values of
``agent.steps`` are 1, 2, ..., steps, steps.
"""

import importlib
import sys

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

protocol = sys.argv[1]
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 5

exporters = f"opentelemetry.exporter.otlp.proto.{protocol}"
metric_exporter = importlib.import_module(f"{exporters}.metric_exporter").OTLPMetricExporter
span_exporter = importlib.import_module(f"{exporters}.trace_exporter").OTLPSpanExporter

metrics = MeterProvider([PeriodicExportingMetricReader(metric_exporter())])
traces = TracerProvider()
traces.add_span_processor(BatchSpanProcessor(span_exporter()))

counter = metrics.get_meter("agent").create_counter("agent.steps")
with traces.get_tracer("agent").start_as_current_span("task", attributes={"task.id": "t1"}):
    for step in range(steps):
        counter.add(1, {"language": "python"})
        if not metrics.force_flush():
            sys.exit("not exported")
        print("step", step, flush=True)
traces.shutdown()
metrics.shutdown()
