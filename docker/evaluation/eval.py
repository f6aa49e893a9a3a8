"""
Stands for an evaluation: five tasks, with a metric of its own, a span each, and the GPUs.

It sends OTLP to OTEL_EXPORTER_OTLP_ENDPOINT. In `hubmeter run`, which measures the GPUs itself
and sets that variable, `instrument_gpus` adds nothing.
"""

import time

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from hubmeter import instrument_gpus

metrics = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())])
instrument_gpus(metrics)
traces = TracerProvider()
traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))

steps = metrics.get_meter("evaluation").create_counter("evaluation.steps")
tracer = traces.get_tracer("evaluation")
for number in range(1, 6):
    with tracer.start_as_current_span("task", attributes={"task.id": f"task-{number}"}):
        time.sleep(0.2)
        steps.add(1)
        metrics.force_flush()
    print(f"task {number} of 5 is done", flush=True)

traces.shutdown()
metrics.shutdown()
