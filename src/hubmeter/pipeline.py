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
from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .batch import PointBatch
from .energy import Factors
from .ledger import Ledger, Points
from .settings import Settings, fill_in, new_run_id
from .version import version

if TYPE_CHECKING:
    import pyarrow as pa

    from .flattening import Options
    from .shard import Shard

log = logging.getLogger(__name__)


NOTHING = Points((), {})


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
        self._base = _working_folder()  # the program may change it before it ends
        self._sink = sink
        self._process_id = uuid.uuid4().hex[:12]
        self._wall_clock_ns = wall_clock_ns
        self._ledger = Ledger()
        self._parts = itertools.count()
        self._closed = False
        self._published = 0
        self._skipped: Mapping[str, int] = {}
        self._lock = threading.Lock()
        self._publishing = threading.RLock()  # a signal handler may close while we publish
        _renew_lock_after_fork(self)

    def consume(self, batch: PointBatch) -> None:
        """
        Take *batch*. When this returns, its points are in the run.

        What comes after :meth:`close` (an export that was in flight) is published by
        the next :meth:`close`.
        """
        with self._lock:
            self._ledger.append(batch)

    def points(self) -> Points:
        """The points so far, as a copy."""
        with self._lock:
            return self._ledger.snapshot()

    def table(self, config: str = "default") -> pa.Table:
        """The rows so far."""
        return table_of(self.points(), self._options(), config)

    def flush(self, deadline: Deadline) -> bool:
        """Everything that :meth:`consume` took is already in the run: nothing to wait for."""
        return True

    def close(self, deadline: Deadline) -> None:
        """
        Publish the run. Further calls publish what came since, continuing the run.

        Raises:
            PublishError: The sink refused; the rows stay readable.
        """
        with self._publishing:
            with self._lock:
                is_first, self._closed = not self._closed, True
                first, self._published = self._published, self._ledger.batches
                if not is_first and first == self._published:
                    return
                points = self._ledger.snapshot()
                before = replace(self._ledger.snapshot(first), skipped=self._skipped)
                self._skipped = points.skipped
            if is_first:
                options = self._options(self._wall_clock_ns())
                self._publish(tables_of(points, options), _metadata(self.settings, points))
            else:
                self._publish_rest(before, points, first)

    def _publish_rest(self, before: Points, points: Points, first: int) -> None:
        options = self._options()
        published, now = tables_of(before, options), tables_of(points, options)
        times = {str(time) for block in points.blocks for time in block.times_since(first)}
        tables = {config: _new_rows(now[config], published[config], times) for config in now}
        if any(table.num_rows for table in tables.values()):
            self._publish(tables, _metadata(self.settings, points, before))

    def _publish(self, tables: Mapping[str, pa.Table], metadata: Mapping[str, str]) -> None:
        from .shard import seal

        run_id = next(t["run_id"][0].as_py() for t in tables.values() if t.num_rows)
        part = next(self._parts)
        shard = seal(
            tables,
            run_id=run_id,
            process_id=f"{self._process_id}-{part}" if part else self._process_id,
            metadata=metadata,
        )
        # Only now: the destination may name the run, which the first resource may name.
        self._sink = self._sink or _sink_for(self.settings, run_id, self._base)
        self._sink.publish(shard)
        log.info("hubmeter: %d rows of run %s are in %s", shard.rows, run_id, self._sink)

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
    return {"default": default_table(rows), "points": points_table(points, rows, options.run_id)}


def table_of(points: Points, options: Options, config: str) -> pa.Table:
    """One config of *points*; the other, which may be large, is not made."""
    from .flattening import flatten_points
    from .tables import default_table, points_table

    rows = flatten_points(points, options)
    if config == "default":
        return default_table(rows)
    return points_table(points, rows, options.run_id)


def _new_rows(table: pa.Table, published: pa.Table, times: AbstractSet[str]) -> pa.Table:
    """Rows of *table* that *published* does not have: of other instants, or changed at *times*."""
    known = Counter(map(str, published.to_pylist()))
    instants = set(published["timestamp_unix_nano"].to_pylist())
    places = []
    for place, row in enumerate(table.to_pylist()):
        if known[str(row)]:
            known[str(row)] -= 1
        elif row["timestamp_unix_nano"] in times or row["timestamp_unix_nano"] not in instants:
            places.append(place)
    return table.take(places) if places else table.slice(0, 0)


def _sink_for(settings: Settings, run_id: str, base: Path) -> Sink:
    from .sinks.parquet_dir import ParquetDir

    return ParquetDir(folder_of(settings, run_id, base))


def folder_of(settings: Settings, run_id: str, base: Path | None = None) -> Path:
    """The folder that *settings* want the dataset of a run in, as seen from *base*."""
    # Unlike Path.expanduser() this takes the `~` of nobody as it stands.
    folder = os.path.expanduser(fill_in(settings.to, run_id))  # noqa: PTH111
    return (_working_folder() if base is None else base) / folder


def _working_folder() -> Path:
    try:
        return Path.cwd()
    except OSError:  # somebody removed it
        return Path()


def _metadata(settings: Settings, points: Points, before: Points = NOTHING) -> dict[str, str]:
    """What a reader needs to judge the numbers; the points counted are those since *before*."""
    received = _size(points) - _size(before)
    rejected = sum(points.skipped.values()) - sum(before.skipped.values())
    return {
        "version": version(),
        "carbon_g_per_kwh": repr(settings.carbon_g_per_kwh),
        "carbon_source": settings.origins.get("carbon_g_per_kwh", "default"),
        "price_usd_per_kwh": repr(settings.price_usd_per_kwh),
        "price_source": settings.origins.get("price_usd_per_kwh", "default"),
        "pue": repr(settings.pue),
        "missing": settings.missing,
        "points_received": str(received),
        "points_rejected": str(rejected),
    }


def _size(points: Points) -> int:
    return sum(len(block.values) for block in points.blocks)


def _renew_lock_after_fork(pipeline: Pipeline) -> None:
    """A lock that some thread held while the process forked would never be released."""
    if not hasattr(os, "register_at_fork"):
        return
    reference = weakref.ref(pipeline)

    def renew() -> None:
        if (survivor := reference()) is not None:
            survivor._lock = threading.Lock()  # noqa: SLF001
            survivor._publishing = threading.RLock()  # noqa: SLF001

    os.register_at_fork(after_in_child=renew)
