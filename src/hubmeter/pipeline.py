"""
The road from batches to a published shard. Owns the points of one run.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .batch import PointBatch
from .energy import Factors
from .ledger import Ledger, Points, gather
from .settings import Settings, fill_in, new_run_id
from .version import version

if TYPE_CHECKING:
    import pyarrow as pa

    from .flattening import Options
    from .shard import Shard

log = logging.getLogger(__name__)


class Sink(Protocol):
    """A destination. ``publish`` raises PublishError if the shard did not arrive whole."""

    def publish(self, shard: Shard) -> None: ...


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in monotonic time by which something must be done; handed down, never restarted."""

    at_s: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + max(0.0, seconds))

    def remaining_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at_s - time.monotonic())


class Pipeline:
    """
    Keeps the points of a run and publishes them when it closes.

    Safe to call from several threads. A forked child inherits a copy that belongs to
    its parent: whoever owns a pipeline must not use it there.

    Args:
        settings: Effective settings.
        sink: Destination; by default the one that the settings name.
        wall_clock_ns: Time of a row that stands for an empty run.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        sink: Sink | None = None,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.run_id = new_run_id(settings)
        self.settings = settings
        self.sink = sink if sink is not None else _sink_for(settings, self.run_id)
        self._process_id = uuid.uuid4().hex[:12]
        self._wall_clock_ns = wall_clock_ns
        self._ledger = Ledger()
        self._parts = itertools.count()
        self._closed = False
        self._lock = threading.Lock()
        _renew_lock_after_fork(self)

    def consume(self, batch: PointBatch) -> None:
        """
        Take *batch*. When this returns, its points are in the run.

        A batch that comes after :meth:`close` (an export that was in flight) is
        published at once, in a shard of its own that continues the run's totals.

        Raises:
            PublishError: The batch came late and the sink refused; its points are
                in :meth:`table` all the same.
        """
        with self._lock:
            self._ledger.append(batch)
            if not self._closed:
                return
            points = self._ledger.snapshot()
        if batch.values:
            self._publish_late(points, batch)

    def points(self) -> Points:
        """The points so far, as a copy."""
        with self._lock:
            return self._ledger.snapshot()

    def table(self, config: str = "default") -> pa.Table:
        """The rows so far."""
        return tables_of(self.points(), self._options())[config]

    def flush(self, deadline: Deadline) -> bool:
        """Everything that :meth:`consume` took is already in the run: nothing to wait for."""
        return True

    def close(self, deadline: Deadline) -> None:
        """
        Publish the run. Further calls do nothing.

        Raises:
            PublishError: The sink refused; the rows stay readable.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            points = self._ledger.snapshot()
        self._publish(tables_of(points, self._options(self._wall_clock_ns())), points)

    def _publish_late(self, points: Points, batch: PointBatch) -> None:
        times = {str(time) for time in batch.times_unix_nano}
        tables = {
            config: _rows_at(times, table)
            for config, table in tables_of(points, self._options()).items()
        }
        if any(table.num_rows for table in tables.values()):
            self._publish(tables, gather(iter([batch])))

    def _publish(self, tables: Mapping[str, pa.Table], points: Points) -> None:
        from .shard import seal

        run_id = next(t["run_id"][0].as_py() for t in tables.values() if t.num_rows)
        part = next(self._parts)
        shard = seal(
            tables,
            run_id=run_id,
            process_id=f"{self._process_id}-{part}" if part else self._process_id,
            metadata=_metadata(self.settings, points),
        )
        self.sink.publish(shard)
        log.info("hubmeter: %d rows of run %s are in %s", shard.rows, run_id, self.sink)

    def _options(self, empty_run_unix_nano: int | None = None) -> Options:
        return options_of(self.settings, self.run_id, empty_run_unix_nano)


def options_of(settings: Settings, run_id: str, empty_run_unix_nano: int | None = None) -> Options:
    """How *settings* want points to be flattened."""
    from .flattening import Options

    return Options(
        run_id=run_id,
        factors=factors_of(settings),
        zero_fill=settings.missing == "zero",
        points=settings.points,
        empty_run_unix_nano=empty_run_unix_nano,
    )


def factors_of(settings: Settings) -> Factors:
    """What a joule costs under *settings*."""
    return Factors(
        carbon_g_per_kwh=settings.carbon_g_per_kwh,
        price_usd_per_kwh=settings.price_usd_per_kwh,
        pue=settings.pue,
    )


def tables_of(points: Points, options: Options) -> dict[str, pa.Table]:
    """Both configs of *points*."""
    from .flattening import flatten_points
    from .tables import default_table, points_table

    rows = flatten_points(points, options)
    return {
        "default": default_table(rows),
        "points": points_table(points, rows, options.run_id),
    }


def _rows_at(times_unix_nano: Collection[str], table: pa.Table) -> pa.Table:
    times = table["timestamp_unix_nano"].to_pylist()
    places = [place for place, time in enumerate(times) if time in times_unix_nano]
    return table.take(places) if places else table.slice(0, 0)


def _sink_for(settings: Settings, run_id: str) -> Sink:
    from .sinks.parquet_dir import ParquetDir

    return ParquetDir(folder_of(settings, run_id))


def folder_of(settings: Settings, run_id: str) -> Path:
    """The folder that *settings* want the dataset of a run in."""
    # Unlike Path.expanduser() this takes the `~` of nobody as it stands.
    return Path(os.path.expanduser(fill_in(settings.to, run_id))).absolute()  # noqa: PTH111


def _metadata(settings: Settings, points: Points) -> dict[str, str]:
    """What a reader needs to judge the numbers, in the metadata of each Parquet file."""
    received = sum(len(block.values) for block in points.blocks)
    return {
        "version": version(),
        "carbon_g_per_kwh": repr(settings.carbon_g_per_kwh),
        "carbon_source": settings.origins.get("carbon_g_per_kwh", "default"),
        "price_usd_per_kwh": repr(settings.price_usd_per_kwh),
        "price_source": settings.origins.get("price_usd_per_kwh", "default"),
        "pue": repr(settings.pue),
        "missing": settings.missing,
        "points_received": str(received),
        "points_rejected": str(sum(points.skipped.values())),
    }


def _renew_lock_after_fork(pipeline: Pipeline) -> None:
    """A lock that some thread held while the process forked would never be released."""
    if not hasattr(os, "register_at_fork"):
        return
    reference = weakref.ref(pipeline)

    def renew() -> None:
        if (survivor := reference()) is not None:
            survivor._lock = threading.Lock()  # noqa: SLF001

    os.register_at_fork(after_in_child=renew)
