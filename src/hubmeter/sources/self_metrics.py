"""
What hubmeter itself did, as OpenTelemetry metrics. Off unless ``HUBMETER_SELF_METRICS`` is set.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable

from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation, get_meter

from ..pipeline import Counts, Pipeline

SCOPE = "hubmeter"

METRICS: dict[str, Callable[[Counts], int]] = {
    "hubmeter.points.received": lambda counts: counts.received,
    "hubmeter.points.published": lambda counts: counts.published,
    "hubmeter.points.rejected": lambda counts: counts.rejected,
}


_meters: weakref.WeakKeyDictionary[Pipeline, weakref.ref[Meter]] = weakref.WeakKeyDictionary()
"""
The meter that reports a pipeline: one only, or its points would be counted twice.

A weak one, because its provider holds the exporter, and that the pipeline.
"""


def observe_with(provider: MeterProvider, pipeline: Pipeline | None) -> None:
    """Let *provider*, and no longer the global one, report *pipeline*, if that is wanted."""
    if pipeline is not None and pipeline.settings.self_metrics:
        observe(pipeline, provider.get_meter(SCOPE))


def observe(pipeline: Pipeline, meter: Meter | None = None) -> None:
    """
    Report the counts of *pipeline* to *meter*, whenever it collects, and to no other any more.

    Received = stored + published + rejected. They may end in our own dataset: then they
    are points like any others, one collection behind.
    """
    meter = meter or get_meter(SCOPE)
    if _is_reported_by(meter, pipeline):
        return
    _meters[pipeline] = weakref.ref(meter)
    attributes = {"hubmeter.process_id": pipeline.run.process_id}
    reference, owner_pid = weakref.ref(pipeline), os.getpid()

    def callback(
        read: Callable[[Counts], int],
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observed(_: CallbackOptions) -> Iterable[Observation]:
            survivor = reference()
            if survivor is None or os.getpid() != owner_pid:  # a forked child counts nothing
                return []
            if not _is_reported_by(meter, survivor):
                return []
            return [Observation(read(survivor.counts()), attributes)]

        return observed

    for name, read in METRICS.items():
        meter.create_observable_counter(name, [callback(read)], "{data_point}")
    meter.create_observable_up_down_counter(
        "hubmeter.points.stored", [callback(lambda counts: counts.stored)], "{data_point}"
    )


def _is_reported_by(meter: Meter, pipeline: Pipeline) -> bool:
    reporting = _meters.get(pipeline)
    return reporting is not None and reporting() is meter
