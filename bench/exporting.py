"""``export()`` of one collection of 8 GPUs x 7 metrics, beside smoltrace's in-memory exporter."""

from __future__ import annotations

import contextlib
import gc
import io
import statistics
import time
from collections.abc import Callable, Iterator

from report import Result
from shapes import LiveGpus

from hubmeter.pipeline import Pipeline
from hubmeter.settings import Settings
from hubmeter.sources.sdk_exporter import HubMetricExporter

ROUNDS = 400


class _Nowhere:
    def publish(self, shard: object) -> None: ...


def measure() -> Iterator[Result]:
    with contextlib.redirect_stdout(io.StringIO()):
        from smoltrace.otel import InMemoryMetricExporter

        theirs = InMemoryMetricExporter()
        ours = HubMetricExporter(pipeline=Pipeline(Settings(), sink=_Nowhere()))
        for gpus in (8, 1):
            live = LiveGpus(gpus)
            peer_us, ours_us = _compare(live, theirs.export, ours.export)
            yield Result(
                what=f"export(), {gpus} GPU x 7 metrics",
                unit="µs",
                peer_name="smoltrace InMemoryMetricExporter",
                peer=peer_us,
                ours=ours_us,
                limit=1 / 3 if gpus == 8 else None,
            )
            theirs.clear()


def _compare(live: LiveGpus, *exports: Callable) -> list[float]:
    """Median microseconds of each, fed the same collections in turn."""
    times: list[list[float]] = [[] for _ in exports]
    gc.disable()
    for _ in range(ROUNDS):
        data = live.collect()
        for export, seen in zip(exports, times, strict=True):
            started = time.perf_counter()
            export(data)
            seen.append((time.perf_counter() - started) * 1e6)
    gc.enable()
    return [statistics.median(seen[20:]) for seen in times]
