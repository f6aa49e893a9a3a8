"""``export()`` of one collection of 8 GPUs x 7 metrics, beside smoltrace's in-memory exporter."""

from __future__ import annotations

import contextlib
import gc
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

from report import Result
from shapes import LiveGpus

from hubmeter.deadline import Deadline
from hubmeter.pipeline import Pipeline
from hubmeter.settings import Settings
from hubmeter.sources.sdk_exporter import HubMetricExporter

ROUNDS = 400


class _Nowhere:
    def publish(self, shards: object, deadline: object) -> None: ...


def measure() -> Iterator[Result]:
    with contextlib.redirect_stdout(io.StringIO()):
        from smoltrace.otel import InMemoryMetricExporter

        theirs = InMemoryMetricExporter()
        with tempfile.TemporaryDirectory() as folder:
            journaled = _exporter(Settings(journal_dir=folder))
            in_memory = _exporter(Settings())
            for gpus in (8, 1):
                for kind, ours in (("journaled", journaled), ("in memory", in_memory)):
                    peer_us, ours_us = _compare(LiveGpus(gpus), theirs.export, ours.export)
                    yield Result(
                        what=f"export(), {gpus} GPU x 7 metrics, {kind}",
                        unit="µs",
                        peer_name="smoltrace InMemoryMetricExporter",
                        peer=peer_us,
                        ours=ours_us,
                        limit=1 / 3 if gpus == 8 else None,
                    )
                    theirs.clear()
            journaled.shutdown()


def _exporter(settings: Settings) -> HubMetricExporter:
    """An exporter that has seen a collection: what it imports then is done."""
    pipeline = Pipeline(settings, sink=_Nowhere())
    exporter = HubMetricExporter(pipeline=pipeline)
    exporter.export(LiveGpus(1).collect())
    pipeline.uploader.submit(lambda: None).wait(Deadline.after(60))
    return exporter


def _compare(live: LiveGpus, *exports: Callable) -> list[float]:
    """Median microseconds of each, fed the same collections; who is first takes turns."""
    times: list[list[float]] = [[] for _ in exports]
    gc.disable()
    for number in range(ROUNDS):
        data = live.collect()
        pairs = list(zip(exports, times, strict=True))
        for export, seen in pairs if number % 2 else reversed(pairs):
            started = time.perf_counter()
            export(data)
            seen.append((time.perf_counter() - started) * 1e6)
    gc.enable()
    return [statistics.median(seen[20:]) for seen in times]
