"""
Beside smoltrace, not instead of it: our dataset from its runs, and its flattener with our rows.

::

    hubmeter.smoltrace.register("runs")      # once, before smoltrace.run_evaluation(...)
    python -m hubmeter.smoltrace --model ... # the same for the command line of smoltrace-eval
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

from .decode.otlp_json import JsonDecoder
from .flattening import Options
from .ledger import Points, gather
from .schema import SEED_COLUMNS
from .sealing import tables_of
from .settings import load_settings
from .sources.sdk_exporter import HubMetricExporter

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

UNKNOWN = "unknown"
"""What smoltrace writes where there is no run id or no service name."""


def register(
    to: str | None = None, *, export_interval_s: float = 10.0, **settings: Any
) -> Registration:
    """
    Let every evaluation that smoltrace runs from now on also write our dataset.

    Each meter provider that smoltrace makes gets one more reader, with an exporter of
    its own. What smoltrace collects, prints and publishes stays as it is. The dataset is
    published when the process ends; until then ``registration.table()`` has its rows.
    Registering twice is registering once: the first registration stays.

    OpenTelemetry takes one meter provider per process, so of several evaluations in one
    process smoltrace itself sees GPU metrics in the first only. Ours are complete, as
    the first exporter records until the process ends; but they all carry the first
    ``run_id``, and each later evaluation has one row that only says that it was there.
    One process per evaluation keeps runs apart.

    Args:
        to: Destination, as for :class:`hubmeter.HubMetricExporter`.
        export_interval_s: Seconds between two collections; smoltrace's own are 10 s apart.
        settings: Any setting by name. ``missing`` is ``zero`` unless it is set anywhere,
            so that dashboards made for smoltrace show what they are used to.

    Returns:
        What was registered; ``unregister()`` undoes it.

    Raises:
        ImportError: smoltrace is not installed.
    """
    import smoltrace.otel as their_otel

    registered = getattr(their_otel.MeterProvider, "hubmeter_registration", None)
    if isinstance(registered, Registration):
        registered._warn_if_other(to, export_interval_s, settings)  # noqa: SLF001
        return registered
    registration = Registration(their_otel.MeterProvider, to, export_interval_s, settings)
    their_otel.MeterProvider = registration.provider_class
    return registration


class Registration:
    """
    Our reader in the meter providers of smoltrace. Made by :func:`register`.

    Attributes:
        exporters: One per provider that smoltrace has made so far, the latest last.
        provider_class: What smoltrace makes its providers of while this is registered.
    """

    def __init__(
        self, original: type, to: str | None, export_interval_s: float, settings: dict[str, Any]
    ) -> None:
        self.exporters: list[HubMetricExporter] = []
        self.provider_class = _with_one_more_reader(original, self)
        self._original = original
        self._given = (to, export_interval_s, settings)
        self._is_active = True

    def table(self, config: str = "default") -> pa.Table:
        """The rows so far of the latest evaluation, also after its end."""
        if self.exporters:
            return self.exporters[-1].table(config)
        from .tables import arrow_schema

        return arrow_schema(config).empty_table()

    def unregister(self) -> None:
        """Leave smoltrace alone from now on. Evaluations that run keep their exporter."""
        import smoltrace.otel as their_otel

        self._is_active = False
        if their_otel.MeterProvider is self.provider_class:
            their_otel.MeterProvider = self._original

    def readers(self, resource: Any) -> list[PeriodicExportingMetricReader]:
        """The reader for a provider that is being made; none if we are switched off."""
        if not self._is_active:
            return []
        try:
            return self._new_readers(resource)
        except Exception:
            log.exception("hubmeter is off in this evaluation: it could not start")
            return []

    def _new_readers(self, resource: Any) -> list[PeriodicExportingMetricReader]:
        to, export_interval_s, given = self._given
        settings = dict(given)
        loaded = load_settings(to=to, **settings)
        if loaded.disabled:
            return []
        if loaded.origins["missing"] == "default":
            settings["missing"] = "zero"
        # The destination may name the run, and a run without metrics has no other name.
        settings["run_id"] = _run_id_of(resource) or settings.get("run_id")
        exporter = HubMetricExporter(to, **settings)
        reader = PeriodicExportingMetricReader(
            exporter, export_interval_millis=export_interval_s * 1e3
        )
        self.exporters.append(exporter)
        return [reader]

    def _warn_if_other(self, *given: Any) -> None:
        if given != self._given:
            log.warning("hubmeter: smoltrace is registered already, %r is ignored", given)


def flatten_metrics_for_hf(metric_data: Any) -> list[dict[str, Any]]:
    """
    ``smoltrace.utils.flatten_metrics_for_hf`` with every data point, in UTC.

    The same thirteen columns as theirs, and 0.0 where a metric is missing. On a machine
    with one GPU the rows are theirs but for the time zone. What differs, on purpose:

    - all data points count: a row per resource, instant and GPU, not one per instant;
    - ``timestamp`` is UTC with six digits and ``+00:00``, not the local time of the machine;
    - further metrics and attributes do not become columns, nor replace any: thirteen
      columns in the same order in every row, ``gpu_id`` and ``gpu_name`` None if unknown;
    - an instant of which only further metrics are known (the server gauges of an
      evaluation without a GPU) is not a row of zeros;
    - delta sums add up, counters that restart continue;
    - a broken record costs itself only, and is counted in a log line.

    Nothing is derived: energy, CO2 and cost are as sent.

    Args:
        metric_data: smoltrace's dictionary with ``run_id`` and ``resourceMetrics``.

    Returns:
        Dictionaries in order of time; none if there are no metrics.
    """
    if not isinstance(metric_data, Mapping) or not metric_data:
        return []
    run_id = str(metric_data.get("run_id") or UNKNOWN)
    points = gather(JsonDecoder().decode_document({**metric_data, "run_id": run_id}))
    options = Options(run_id=run_id, factors=None, zero_fill=True, points="none")
    table = tables_of(points, options)["default"].select(SEED_COLUMNS)
    _report(points)
    return [{**row, "service_name": row["service_name"] or UNKNOWN} for row in table.to_pylist()]


def main() -> Any:
    """Run smoltrace's command line with :func:`register`; arguments and exit code are theirs."""
    try:
        import smoltrace.cli as their_cli
    except ImportError as error:
        sys.exit(
            f"hubmeter: cannot load smoltrace: {error}. "
            "Install it with `pip install smoltrace` (Python 3.11 or newer)"
        )
    register()
    sys.argv[0] = "smoltrace-eval"
    return their_cli.main()


def _with_one_more_reader(original: Any, registration: Registration) -> type:
    class MeterProvider(original):  # type: ignore[misc]
        hubmeter_registration = registration

        def __init__(
            self, metric_readers: Any = (), resource: Any = None, *args: Any, **kwargs: Any
        ) -> None:
            readers = [*metric_readers, *registration.readers(resource)]
            super().__init__(readers, resource, *args, **kwargs)

    return MeterProvider


def _run_id_of(resource: Any) -> str | None:
    run_id = getattr(resource, "attributes", {}).get("run.id")
    return str(run_id) if run_id else None


def _report(points: Points) -> None:
    for reason, count in points.skipped.items():
        log.warning("hubmeter: %d x %s", count, reason)


if __name__ == "__main__":
    # Not this module's own main: register() must be the one that others import.
    from hubmeter.smoltrace import main as imported_main

    sys.exit(imported_main())
