"""
What hubmeter itself did, as OpenTelemetry metrics. Off unless ``HUBMETER_SELF_METRICS`` is set.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable

from opentelemetry.metrics import CallbackOptions, Meter, Observation, get_meter

from ..pipeline import Counts, Pipeline

METRICS: dict[str, Callable[[Counts], int]] = {
    "hubmeter.points.received": lambda counts: counts.received,
    "hubmeter.points.published": lambda counts: counts.published,
    "hubmeter.points.rejected": lambda counts: counts.rejected,
}


def observe(pipeline: Pipeline, meter: Meter | None = None) -> None:
    """
    Report the counts of *pipeline* to the global meter provider, whenever it collects.

    Received = stored + published + rejected. They may end in our own dataset: then they
    are points like any others, one collection behind.
    """
    meter = meter or get_meter("hubmeter")
    attributes = {"hubmeter.process_id": pipeline.run.process_id}
    reference, owner_pid = weakref.ref(pipeline), os.getpid()

    def callback(
        read: Callable[[Counts], int],
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observed(_: CallbackOptions) -> Iterable[Observation]:
            survivor = reference()
            if survivor is None or os.getpid() != owner_pid:  # a forked child counts nothing
                return []
            return [Observation(read(survivor.counts()), attributes)]

        return observed

    for name, read in METRICS.items():
        meter.create_observable_counter(name, [callback(read)], "{data_point}")
    meter.create_observable_up_down_counter(
        "hubmeter.points.stored", [callback(lambda counts: counts.stored)], "{data_point}"
    )
