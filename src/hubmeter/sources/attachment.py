"""
Our exporter on a provider that is running already.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

from .sdk_exporter import HubMetricExporter

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

log = logging.getLogger(__name__)

DEFAULT_INTERVAL_MS = 60_000
"""As in the SDK."""


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
    exporter.report_to(provider)
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
