"""
An OpenTelemetry SDK pushes to us: the exporter.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    InMemoryMetricReader,
    MetricExporter,
    MetricExportResult,
    MetricsData,
)
from opentelemetry.sdk.metrics.view import Aggregation

from ..deadline import Deadline
from ..decode.sdk_objects import SdkDecoder
from ..destinations import HubRepo, destination_of, is_folder_named_like_repo
from ..endings import goes_on, publish_on_signals, stay_interrupted
from ..errors import JournalError, PublishError
from ..pipeline import Pipeline
from ..settings import default_journal_dir, load_settings
from ..uploader import Uploader
from ..warming import warm

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

DEFAULT_BUDGET_MS = 30_000
"""As in the SDK."""

LEAVING_S = 1.0
"""For starting a process that goes on."""

LAST_COLLECT_S = 2.0
"""For callbacks of the program, before SIGTERM ends it."""

LAST_BUDGET_MS = 1_000
"""At exit, for what a shutdown that was granted less left unfinished."""

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
        self._complaints: set[str] = set()
        self._has_received = self._told_child = self._takes_no_more = False
        self._anchor = _Anchor(self)
        _prepare_process()
        try:
            self._pipeline = pipeline or _open_pipeline(to, settings)
            if self._pipeline is not None:
                self._prepare_for_the_end(self._pipeline)
        except Exception:
            # A raising exporter switches off all of OpenTelemetry, traces included.
            log.exception("hubmeter is off: it could not start")
        if self._pipeline is not None:
            # Runs after the hook of a provider that is made later, so only what nobody
            # shuts down is left: readers that were added late (opentelemetry-python #4818).
            atexit.register(self._anchor.publish_at_exit)

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        if self._pipeline is None:
            return MetricExportResult.SUCCESS
        if self._takes_no_more:
            return MetricExportResult.FAILURE
        if self._in_forked_child():
            self._say_that_children_are_not_recorded()
            return MetricExportResult.FAILURE
        try:
            with self._decoding:
                batch = self._decoder.decode(metrics_data)
            self._has_received = True
            self._anchor.hold(self)
            self._pipeline.consume(batch)
        except JournalError as error:
            self._complain(f"hubmeter: {error}", exc_info=False)
            return MetricExportResult.FAILURE
        except Exception:
            self._complain("hubmeter: a collection is lost, the program goes on")
            return MetricExportResult.FAILURE
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000, **kwargs: Any) -> bool:
        """Nothing to wait for: what :meth:`export` took is in the journal."""
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Publish the run. A further call publishes what came since, if anything did."""
        if self._pipeline is None or self._in_forked_child():
            return
        try:
            if self._pipeline.close(_deadline(timeout_millis, kwargs)):
                self._anchor.let_go()
            else:
                log.info("hubmeter: the time for shutdown is over, publishing goes on")
        except PublishError as error:
            self._complain(f"hubmeter: {error}", _what_next(self._pipeline, error), exc_info=False)
        except Exception:
            self._complain("hubmeter: not published", _what_next(self._pipeline))
        stay_interrupted()

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

    def report_to(self, provider: Any) -> None:
        """Let *provider* have hubmeter's own counts, if ``HUBMETER_SELF_METRICS`` wants them."""
        if self._pipeline is not None and self._pipeline.settings.self_metrics:
            from .self_metrics import observe_with

            observe_with(provider, self._pipeline)

    def _prepare_for_the_end(self, pipeline: Pipeline) -> None:
        if pipeline.settings.signals:
            publish_on_signals(self._anchor.publish_before_death)
        if pipeline.settings.self_metrics:
            from .self_metrics import observe

            observe(pipeline)
        if pipeline.journal_dir is None:
            return
        if pipeline.settings.sentinel:
            from ..sentinel import start_sentinel

            start_sentinel(pipeline.journal_dir, pipeline.run.process_id)
        pipeline.uploader.submit(partial(_say_what_waits, pipeline.journal_dir))

    def _publish_at_exit(self) -> None:
        if self._pipeline is None or self._in_forked_child():
            return
        try:
            # What failed a moment ago would fail again, and the program would wait twice.
            if self._pipeline.failure is None:
                if self._pipeline.unpublished():
                    self.shutdown(timeout_millis=LAST_BUDGET_MS)
                elif self._has_received:
                    self.shutdown()
        finally:
            self._leave(self._pipeline)

    def _publish_before_death(self, deadline: Deadline) -> None:
        if self._pipeline is None or self._in_forked_child():
            return
        try:
            _collect_last(self, self._pipeline.uploader)
            if goes_on():
                self._pipeline.publish_part()
            else:
                # A reader that ticks on while we publish would leave a part behind each time.
                self._takes_no_more = True
                self.shutdown(timeout_millis=(deadline.remaining_s() - LEAVING_S) * 1e3)
        finally:
            if not goes_on():
                self._leave(self._pipeline)

    def _leave(self, pipeline: Pipeline) -> None:
        try:
            if pipeline.is_published():
                return
            is_left = pipeline.leave()
            why = pipeline.failure or "the run is not published yet"
            then = _what_next(pipeline, pipeline.failure, goes_on=is_left)
            self._complain(f"hubmeter: {why}", then, exc_info=False)
        except Exception:
            self._complain("hubmeter: not left cleanly")

    def _in_forked_child(self) -> bool:
        # The SDK restarts its reader in every fork, so without this a DataLoader
        # worker would publish its parent's metrics a second time.
        return os.getpid() != self._owner_pid

    def _say_that_children_are_not_recorded(self) -> None:
        if not self._told_child:
            self._told_child = True
            log.info("hubmeter: a forked child is not recorded; a provider of its own would be")

    def _complain(self, what: str, then: str = "", *, exc_info: bool = True) -> None:
        """Of failures that repeat, the first is an error and the others are for debugging."""
        level = logging.DEBUG if what in self._complaints else logging.ERROR
        self._complaints.add(what)
        log.log(level, "%s", f"{what}. {then}" if then else what, exc_info=exc_info)


class _Anchor:
    """
    Holds an exporter that still has something to publish, for exit hooks and signals.

    They live as long as the process, and so would every exporter and its rows.
    """

    def __init__(self, exporter: HubMetricExporter) -> None:
        self._exporter: HubMetricExporter | None = exporter

    def hold(self, exporter: HubMetricExporter) -> None:
        self._exporter = exporter

    def let_go(self) -> None:
        self._exporter = None

    def publish_at_exit(self) -> None:
        if self._exporter is not None:
            self._exporter._publish_at_exit()  # noqa: SLF001 - its other half

    def publish_before_death(self, deadline: Deadline) -> None:
        if self._exporter is not None:
            self._exporter._publish_before_death(deadline)  # noqa: SLF001 - its other half


def _collect_last(exporter: HubMetricExporter, uploader: Uploader) -> None:
    """
    Let the readers of *exporter* collect once more, as a shutdown of their provider would.

    In another thread, for a while: the main thread may hold one of the SDK's locks.
    """
    readers = [
        reader
        for reader in list(getattr(MeterProvider, "_all_metric_readers", ()))
        if getattr(reader, "_exporter", None) is exporter
    ]

    def collect() -> None:
        for reader in readers:
            with suppress(BaseException):  # a callback of the program, or a provider shut down
                reader.collect(timeout_millis=LAST_COLLECT_S * 1e3)

    collector = threading.Thread(target=collect, daemon=True)
    try:
        collector.start()
    except RuntimeError:  # Python 3.12.0 to 3.12.2 ends: only threads that run already go on
        if (job := uploader.submit(collect)) is not None:
            job.wait(Deadline.after(LAST_COLLECT_S))
    else:
        collector.join(LAST_COLLECT_S)


def _open_pipeline(to: str | None, settings: dict[str, Any]) -> Pipeline | None:
    loaded = load_settings(to=to, **settings)
    for problem in loaded.problems:
        log.warning("hubmeter: %s", problem)
    if loaded.disabled:
        return None
    pipeline = Pipeline(loaded)
    if is_folder_named_like_repo(loaded.to, pipeline.run.base):
        log.warning("hubmeter: %s is a folder here, so it is used; the Hub is hf://datasets/%s",
                    loaded.to, loaded.to)  # fmt: skip
    return pipeline


def _say_what_waits(journal_dir: Path) -> None:
    warm(("hubmeter.waiting",))
    from ..waiting import waiting_text

    if text := waiting_text(journal_dir):
        log.warning("hubmeter: %s: %s", text, _recover_command(journal_dir))


def _what_next(
    pipeline: Pipeline, failure: PublishError | None = None, *, goes_on: bool = False
) -> str:
    """How what was not published, because of *failure*, gets published."""
    if pipeline.journal_dir is None or not pipeline.is_journaled():
        return "There is no journal: the rows are lost when this process ends (exporter.table())"
    command = _recover_command(pipeline.journal_dir, failure)
    to = pipeline.run.to
    is_name = isinstance(destination_of(to, base=pipeline.run.base), HubRepo) and "://" not in to
    hint = f"; a folder would be ./{to}" if is_name else ""
    again = "It is tried again when this process has ended. " if goes_on else ""
    return f"{again}Nothing is lost, the run is in the journal: {command}{hint}"


def _recover_command(journal_dir: Path, failure: PublishError | None = None) -> str:
    is_default = str(journal_dir) == os.path.expanduser(default_journal_dir())  # noqa: PTH111
    command = failure.command if failure else PublishError.command
    return command.format("" if is_default else f" {quote(str(journal_dir))}")


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
