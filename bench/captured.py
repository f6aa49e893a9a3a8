"""What a source sends: requests that repeat the same series, each a second after the last."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from shapes import LiveGpus, reading

from otlp_wire import json_of

SECOND = 1_000_000_000
RUN_ID = "bench-run"


def collections(gpus: int, run_id: str) -> Iterator[ExportMetricsServiceRequest]:
    """Without end; it is the same object each time, with other times and values."""
    request = encode_metrics(LiveGpus(gpus).collect())
    for attribute in request.resource_metrics[0].resource.attributes:
        if attribute.key == "run.id":
            attribute.value.string_value = run_id
    places = [
        (metric.name, gpu, point)
        for metric in request.resource_metrics[0].scope_metrics[0].metrics
        for gpu, point in enumerate(points_of(metric))
    ]
    first_unix_nano = places[0][2].time_unix_nano
    for tick in itertools.count():
        for name, gpu, point in places:
            point.time_unix_nano = first_unix_nano + tick * SECOND
            value = reading(name, gpu, tick)
            setattr(point, "as_int" if isinstance(value, int) else "as_double", value)
        yield request


def points_of(metric: Any) -> Any:
    """The data points of a metric in protobuf."""
    return getattr(metric, metric.WhichOneof("data")).data_points


def requests(gpus: int, run_id: str, *, count: int, per_request: int) -> list[bytes]:
    """*count* requests with *per_request* collections each, as a Collector puts them together."""
    source = collections(gpus, run_id)
    bodies = []
    for _ in range(count):
        body = ExportMetricsServiceRequest()
        for collection in itertools.islice(source, per_request):
            body.MergeFrom(collection)
        bodies.append(body.SerializeToString())
    return bodies


def write_messages(path: Path, gpus: int, count: int) -> None:
    """As the file exporter writes protobuf: each collection behind its length."""
    with path.open("wb") as file:
        for collection in itertools.islice(collections(gpus, RUN_ID), count):
            body = collection.SerializeToString()
            file.write(len(body).to_bytes(4, "big") + body)


def write_lines(path: Path, gpus: int, count: int) -> None:
    """As the file exporter writes JSON: a line for each collection."""
    source = itertools.islice(collections(gpus, RUN_ID), count)
    first = next(source)
    document = json_of(first)
    scope = document["resourceMetrics"][0]["scopeMetrics"][0]
    kinds = [metric.get("gauge") or metric["sum"] for metric in scope["metrics"]]
    texts = [point for kind in kinds for point in kind["dataPoints"]]
    messages = first.resource_metrics[0].scope_metrics[0].metrics
    with path.open("w") as file:
        for collection in itertools.chain([first], source):
            assert collection is first
            points = itertools.chain.from_iterable(map(points_of, messages))
            for text, point in zip(texts, points, strict=True):
                text["timeUnixNano"] = str(point.time_unix_nano)
                if "asInt" in text:
                    text["asInt"] = str(point.as_int)
                else:
                    text["asDouble"] = point.as_double
            file.write(json.dumps(document, separators=(",", ":")) + "\n")
