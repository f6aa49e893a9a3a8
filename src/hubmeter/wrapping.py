"""
One run of what the GPUs of this machine did, and what a command sent, while it ran.

A guest of the command: whatever fails in here is noted, and the command runs all the same.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource

from .batch import PointBatch
from .deadline import Deadline
from .ledger import pack
from .pipeline import Pipeline
from .resends import Resends
from .run import absolute, working_folder
from .settings import Settings
from .sources.gpu_meter import GpuMetrics, instrument_gpus
from .sources.sdk_exporter import HubMetricExporter

if TYPE_CHECKING:
    from .receiver.serving import Receiver

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"

DRAIN_S = 1.0
"""For requests in flight, of processes that the command left behind."""

LEAST_COLLECTION_S = 2.0
"""For the last collection, even if there is no time to publish it."""

ENDPOINTS = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Where an SDK sends metrics, the first that is set."""

PROXIES = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "grpc_proxy")


def environment_of_child(
    environment: Mapping[str, str], *, run_id: str, to: str, port: int | None
) -> dict[str, str]:
    """
    The variables of a command that is recorded.

    Those of OpenTelemetry are added where they are unset. Those of hubmeter say that a child
    which uses it belongs to this run and its dataset, and that its GPUs are metered already.

    Args:
        environment: Variables that it would have otherwise.
        run_id: Of the run.
        to: Where the run goes.
        port: Of the receiver; None if there is none.
    """
    ours = {"HUBMETER_RUN_ID": run_id, "HUBMETER_TO": to, "HUBMETER_GPUS": "none"}
    if port is None:
        return {**environment, **ours}
    wanted = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{LOOPBACK}:{port}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_RESOURCE_ATTRIBUTES": f"run.id={quote(run_id, safe='', errors='replace')}",
    }
    unset = {name: value for name, value in wanted.items() if not environment.get(name)}
    return {**environment, **unset, **_around_proxies(environment), **ours}


def _around_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """Where a proxy is set, most clients would ask it for our loopback address."""
    if not any(environment.get(name) for name in PROXIES):
        return {}
    direct = environment.get("no_proxy") or environment.get("NO_PROXY")
    value = f"{direct},{LOOPBACK}" if direct else LOOPBACK
    return {"no_proxy": value, "NO_PROXY": value}


def begin(
    settings: Settings,
    environment: Mapping[str, str],
    command: Sequence[str],
    *,
    interval_s: float,
    say: Callable[[str], None],
) -> Recording | None:
    """
    Start to record, before *command* runs. None, and a log record, if that is not possible.

    Args:
        settings: Effective settings.
        environment: Variables of the command, as they would be without us.
        command: Program and arguments.
        interval_s: Time between two rows of a GPU.
        say: Is told what the user should know before the command runs.
    """
    try:
        return Recording(settings, environment, command, interval_s=interval_s, say=say)
    except Exception:
        log.exception("hubmeter: nothing is recorded")
        return None


class Recording:
    """
    Records until :meth:`end`. See :func:`begin`.

    Attributes:
        pipeline: All of the run.
        environment: Variables for the command.
    """

    def __init__(
        self,
        settings: Settings,
        environment: Mapping[str, str],
        command: Sequence[str],
        *,
        interval_s: float,
        say: Callable[[str], None],
    ) -> None:
        self._given = OTELResourceDetector().detect().attributes
        self.pipeline = Pipeline(_adjusted(settings, self._given.get("run.id"), say))
        self._exporter = HubMetricExporter(pipeline=self.pipeline)
        self._provider: MeterProvider | None = None
        self._gpus: GpuMetrics | None = None
        self._receiver: Receiver | None = None
        service = Path(command[0]).name
        _attempt("no GPU metrics", partial(self._meter_gpus, service, interval_s))
        if endpoint := next(filter(None, map(environment.get, ENDPOINTS)), None):
            what = "nothing is" if settings.gpus == "none" else "only GPUs are"
            say(f"hubmeter: metrics of {service} go to {endpoint}: {what} recorded")
        else:
            _attempt(f"metrics of {service} are not recorded", self._receive)
        self.environment = environment_of_child(
            environment, run_id=self.pipeline.run_id, to=self.pipeline.run.to, port=self._port()
        )

    def publish_part(self) -> None:
        """Publish what there is, in the background, as the time to end may come too late."""
        self.pipeline.uploader.submit(self._publish_part)

    def end(self, deadline: Deadline) -> bool:
        """
        Collect last and publish.

        Returns:
            Whether it is published. If not, it is said why, and what becomes of it.
        """
        if self._receiver is not None:
            drained = deadline.no_later_than(Deadline.after(DRAIN_S))
            _attempt("the receiver did not stop", partial(self._receiver.stop, drained))
        if self._gpus is not None:
            _attempt("the last GPU sample is missing", self._gpus.stop)
        if self._provider is not None:
            _attempt("the last collection is missing", partial(_end, self._provider, deadline))
        if self.pipeline.failure is None:  # and if it is done, this does nothing
            self._exporter.shutdown(timeout_millis=deadline.remaining_s() * 1e3)
        return not self.pipeline.unpublished()

    def leave(self) -> None:
        """Let a process of its own go on with what is not published, and say so."""
        self._exporter._leave(self.pipeline)  # noqa: SLF001

    def place(self) -> str:
        """Where the run is published."""
        return str(self.pipeline._sink)  # noqa: SLF001

    def _publish_part(self) -> None:
        if self._provider is not None:
            _attempt("a collection is missing", self._provider.force_flush)
        self.pipeline.publish_part()

    def _meter_gpus(self, service: str, interval_s: float) -> None:
        named = {"service.name": service, **self._given}
        reader = PeriodicExportingMetricReader(
            self._exporter, export_interval_millis=interval_s * 1e3
        )
        self._provider = MeterProvider(
            [reader], resource=Resource.create(named), shutdown_on_exit=False
        )
        self._exporter.report_to(self._provider)
        self._gpus = instrument_gpus(self._provider, settings=self.pipeline.settings)

    def _port(self) -> int | None:
        address = None if self._receiver is None else self._receiver.http_address
        return None if address is None else address.port

    def _receive(self) -> None:
        from .receiver.intake import Intake
        from .receiver.serving import Address, Doors, Receiver

        receiver = Receiver(
            Intake(_once(self.pipeline.consume)),
            Doors(shared=Address(LOOPBACK, 0)),
            status=lambda: asdict(self.pipeline.counts()),
            keeps_last=True,
        )
        receiver.start()
        self._receiver = receiver


def _once(consume: Callable[[PointBatch], None]) -> Callable[[PointBatch], None]:
    """*consume* without what comes again: its answer was lost, perhaps a part ago."""
    resends = Resends()

    def take(batch: PointBatch) -> None:
        packed = pack(batch)
        if not batch.values or not resends.has(packed):
            consume(batch)
            resends.add(packed)

    return take


def _end(provider: MeterProvider, deadline: Deadline) -> None:
    """Collect last, and publish if there is time for that: a shutdown without time does neither."""
    if deadline.remaining_s() < LEAST_COLLECTION_S:
        provider.force_flush(LEAST_COLLECTION_S * 1e3)
    else:
        provider.shutdown(deadline.remaining_s() * 1e3)


def _attempt(failure: str, work: Callable[[], object]) -> None:
    try:
        work()
    except Exception:  # the border to a command that runs in any case
        log.exception("hubmeter: %s", failure)


def _adjusted(settings: Settings, named: object, say: Callable[[str], None]) -> Settings:
    """Settings of a run that may have its name from OTEL_RESOURCE_ATTRIBUTES."""
    run_id = settings.run_id if named is None else str(named)
    if settings.run_id not in {None, run_id}:
        say(f"hubmeter: the run is {run_id}, as OTEL_RESOURCE_ATTRIBUTES says")
    journal_dir = settings.journal_dir if _can_write(settings.journal_dir, say) else ""
    return replace(settings, run_id=run_id, journal_dir=journal_dir, signals=False)


def _can_write(folder: str, say: Callable[[str], None]) -> bool:
    """
    Whether there can be a journal.

    If not, it is off from the start. Else each request would be answered as one to send
    again, and the command's SDK would do that until it gives up, also when it wants to end.
    """
    if not folder:
        return False
    try:
        path = absolute(folder, working_folder())
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return True
    except OSError as error:
        say(f"hubmeter: no journal, the run is in memory until it is published: {error}")
        return False
