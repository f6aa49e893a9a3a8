"""
An OpenTelemetry SDK pushes to us: the exporter, and ``attach()`` for running providers.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import re
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    InMemoryMetricReader,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import Aggregation

from ..decode.sdk_objects import SdkDecoder
from ..pipeline import Deadline, Pipeline
from ..settings import load_settings

if TYPE_CHECKING:
    import pyarrow as pa
    from opentelemetry.metrics import MeterProvider

log = logging.getLogger(__name__)

DEFAULT_BUDGET_MS = 30_000
DEFAULT_INTERVAL_MS = 60_000
"""Both as in the SDK."""

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""``user/repo``: what a person means who has a Hub repository."""

_created = False


def was_created() -> bool:
    """Whether this process has an exporter, however it was made."""
    return _created


class HubMetricExporter(MetricExporter):
    """
    Keep what an OpenTelemetry SDK collects, and publish it as a dataset on shutdown.

    Nothing that goes wrong in here reaches the program that is being observed: it is
    logged once, and counted.

    Args:
        to: Destination; by default ``HUBMETER_TO``, else ``./hubmeter-data``.
        pipeline: Where the points go, instead of a pipeline made from the settings.
        preferred_temporality: As in the SDK; cumulative by default.
        preferred_aggregation: As in the SDK.
        settings: Any setting by name, for example ``run_id`` or ``missing``.
    """

    def __init__(
        self,
        to: str | None = None,
        *,
        pipeline: Pipeline | None = None,
        preferred_temporality: Any = None,
        preferred_aggregation: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__(
            preferred_temporality=_accepted(
                AggregationTemporality, preferred_temporality=preferred_temporality
            ),
            preferred_aggregation=_accepted(
                Aggregation, preferred_aggregation=preferred_aggregation
            ),
        )
        self._owner_pid = os.getpid()
        self._decoder = SdkDecoder()
        self._decoding = threading.Lock()
        self._pipeline: Pipeline | None = None
        self._complained = False
        self._has_received = False
        self._told_child = False
        _prepare_process()
        try:
            self._pipeline = pipeline or _open_pipeline(to, settings)
        except Exception:
            # A raising exporter switches off all of OpenTelemetry, traces included.
            log.exception("hubmeter is off: it could not start")
        if self._pipeline is not None:
            # Runs after the hook of a provider that is made later, so only what nobody
            # shuts down is left: readers that were added late (opentelemetry-python #4818).
            atexit.register(self._publish_at_exit)

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        if self._pipeline is None:
            return MetricExportResult.SUCCESS
        if self._in_forked_child():
            self._say_that_children_are_not_recorded()
            return MetricExportResult.FAILURE
        try:
            with self._decoding:
                batch = self._decoder.decode(metrics_data)
            self._has_received = True
            self._pipeline.consume(batch)
        except Exception:
            self._complain("hubmeter: a collection is lost, the program goes on")
            return MetricExportResult.FAILURE
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000, **kwargs: Any) -> bool:
        if self._pipeline is None or self._in_forked_child():
            return True
        try:
            return self._pipeline.flush(_deadline(timeout_millis, kwargs))
        except Exception:
            self._complain("hubmeter: not flushed, the program goes on")
            return False

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Publish the run. A further call publishes what came since, if anything did."""
        if self._pipeline is None or self._in_forked_child():
            return
        try:
            self._pipeline.close(_deadline(timeout_millis, kwargs))
        except Exception as error:
            log.error("hubmeter: %s", error, exc_info=not isinstance(error, OSError))  # noqa: TRY400
        _stay_interrupted()

    def table(self, config: str = "default") -> pa.Table:
        """
        The rows so far, also after shutdown.

        Args:
            config: ``default`` (one row per instant and GPU) or ``points``.
        """
        if self._pipeline is None:
            from ..tables import arrow_schema

            return arrow_schema(config).empty_table()
        return self._pipeline.table(config)

    def _publish_at_exit(self) -> None:
        if self._has_received:
            self.shutdown()

    def _in_forked_child(self) -> bool:
        # The SDK restarts its reader in every fork, so without this a DataLoader
        # worker would publish its parent's metrics a second time.
        return os.getpid() != self._owner_pid

    def _say_that_children_are_not_recorded(self) -> None:
        if not self._told_child:
            self._told_child = True
            log.info("hubmeter: a forked child is not recorded; a provider of its own would be")

    def _complain(self, message: str) -> None:
        """Of failures that repeat, the first is an error and the others are for debugging."""
        level = logging.DEBUG if self._complained else logging.ERROR
        self._complained = True
        log.log(level, "%s", message, exc_info=True)


def _open_pipeline(to: str | None, settings: dict[str, Any]) -> Pipeline | None:
    loaded = load_settings(to=to, **settings)
    for problem in loaded.problems:
        log.warning("hubmeter: %s", problem)
    if HUB_NAME.fullmatch(loaded.to) and not os.path.isdir(loaded.to):  # noqa: PTH112
        log.warning("hubmeter: %s is a folder here; publishing to the Hub is to come", loaded.to)
    return None if loaded.disabled else Pipeline(loaded)


def _prepare_process() -> None:
    global _created  # noqa: PLW0603
    _created = True
    _import_thread_pools()


def _import_thread_pools() -> None:
    """
    Import what pyarrow cannot import while the interpreter shuts down, when we need it.

    A provider starts a thread pool in each forked child (opentelemetry-sdk 1.45). If pools
    are first imported after the provider was made, their hook to renew the pools' lock runs
    after the provider's, and the child waits for ever for the lock that was taken for the
    fork. So it is let go in between; hooks before a fork run last in, first out.
    """
    if "concurrent.futures.thread" in sys.modules:
        return
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=lambda: thread._global_shutdown_lock.release(),  # noqa: PLW0108, SLF001
            after_in_parent=lambda: thread._global_shutdown_lock.acquire(),  # noqa: PLW0108, SLF001
        )
    from concurrent.futures import thread


def _stay_interrupted() -> None:
    """
    Let a program that Ctrl-C ended still end by SIGINT after we published.

    CPython notes an unhandled KeyboardInterrupt, but forgets it when it evaluates text,
    as the imports do that publishing needs: the exit code would become 1. Importing them
    earlier would load numpy before a program could say with how many threads.
    """
    if getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1"):
        with suppress(KeyboardInterrupt):
            exec("raise KeyboardInterrupt")  # noqa: S102 - evaluates text, and so notes it again


def _accepted(kind: type, **preference: Any) -> Any:
    """A preference for readers, or None if it is one at which the SDK would raise later."""
    [(name, value)] = preference.items()
    try:
        _check(value or {}, Mapping)
        for one in (value or {}).values():
            _check(one, kind)
        InMemoryMetricReader(**preference)
    except Exception as error:
        log.warning("hubmeter: %s=%r is ignored: %s", name, value, error)
        return None
    return value


def _check(value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")


def _deadline(timeout_millis: Any, others: Mapping[str, Any]) -> Deadline:
    """The shorter budget: PeriodicExportingMetricReader says `timeout`, perhaps negative."""
    granted = (timeout_millis, others.get("timeout"))
    budgets_ms = [ms for ms in granted if isinstance(ms, int | float) and not math.isnan(ms)]
    return Deadline.after(min(budgets_ms, default=DEFAULT_BUDGET_MS) / 1e3)


class _Reader(PeriodicExportingMetricReader):
    """A periodic reader that may be shut down twice, and collects last even without a ticker."""

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        if self._shutdown:
            return
        try:
            if self._daemon_thread is None:
                self.collect(timeout_millis=timeout_millis)
        finally:
            super().shutdown(timeout_millis=timeout_millis, **kwargs)


class Attachment:
    """
    An exporter on somebody else's provider, see :func:`attach`.

    Attributes:
        exporter: The exporter; ``exporter.table()`` has the rows so far.
    """

    def __init__(self, provider: Any, exporter: HubMetricExporter, reader: _Reader | None) -> None:
        self.exporter = exporter
        self._provider = provider
        self._reader = reader
        self._owner_pid = os.getpid()

    def detach(self) -> None:
        """Collect once more, publish, and leave the provider. Further calls do nothing."""
        reader, self._reader = self._reader, None
        if reader is None or os.getpid() != self._owner_pid:
            return
        atexit.unregister(self.detach)
        try:
            try:
                reader.shutdown()
            finally:
                self._provider.remove_metric_reader(reader)
        except Exception:
            log.exception("hubmeter: not detached cleanly")


def attach(
    provider: MeterProvider,
    to: str | None = None,
    *,
    export_interval_s: float | None = None,
    **settings: Any,
) -> Attachment:
    """
    Record what a running meter *provider* collects.

    The provider neither flushes nor shuts down readers that came late
    (opentelemetry-python #4818), so the attachment does it itself when the process
    ends. Counters that are not observable start at zero for a late reader.

    Args:
        provider: An SDK meter provider, opentelemetry-sdk 1.43 or newer.
        to: Destination, as for :class:`HubMetricExporter`.
        export_interval_s: Default ``OTEL_METRIC_EXPORT_INTERVAL``, else 60 s.
        settings: As for :class:`HubMetricExporter`.

    Returns:
        A handle; ``handle.detach()`` publishes before the process ends.
    """
    exporter = HubMetricExporter(to, **settings)
    attachment = Attachment(provider, exporter, _added(provider, exporter, export_interval_s))
    # Hooks run last in, first out: this one before the provider's own.
    atexit.register(attachment.detach)
    return attachment


def _added(
    provider: Any, exporter: HubMetricExporter, export_interval_s: float | None
) -> _Reader | None:
    """A new reader of *provider*, or None: who attaches must not see an exception."""
    if not hasattr(provider, "add_metric_reader"):
        log.error(
            "hubmeter is not attached: %s takes no readers; needs an SDK MeterProvider of "
            "opentelemetry-sdk 1.43 or newer, or pass HubMetricExporter to it when it is made",
            type(provider).__name__,
        )
        return None
    try:
        reader = _reader(exporter, export_interval_s)
        provider.add_metric_reader(reader)
    except Exception:
        log.exception("hubmeter is not attached")
        return None
    return reader


def _reader(exporter: HubMetricExporter, export_interval_s: float | None) -> _Reader:
    try:
        if export_interval_s is None:
            return _Reader(exporter)
        interval_ms = float(export_interval_s) * 1e3
        # The SDK itself refuses 0 and less, but takes "not a number" for "never".
        return _Reader(
            exporter, export_interval_millis=0 if math.isnan(interval_ms) else interval_ms
        )
    except (TypeError, ValueError):
        log.warning("hubmeter: wrong export interval, using %d s", DEFAULT_INTERVAL_MS / 1e3)
        return _Reader(exporter, export_interval_millis=DEFAULT_INTERVAL_MS)
