"""Attaching to a provider that runs already, and leaving it."""

import logging
import math
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.metrics import CallbackOptions, NoOpMeterProvider, Observation
from opentelemetry.metrics._internal import _ProxyMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource

from hubmeter import attach
from observed import column, shards, undisturbed  # noqa: F401


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture(name="provider")
def _provider() -> MeterProvider:
    return MeterProvider(resource=Resource({"run.id": "r1"}), shutdown_on_exit=False)


def set_power(provider: MeterProvider, watts: float) -> None:
    """Let GPU 0 draw *watts*."""
    provider.get_meter("test").create_gauge("gen_ai.gpu.power", "W").set(watts, {"gpu_id": "0"})


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Warnings and errors of hubmeter."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("hubmeter")
    ]


def threads() -> set[str]:
    """Names of the threads that run."""
    return {thread.name for thread in threading.enumerate()}


def test_detaching_collects_once_more_and_publishes(folder: Path, provider: MeterProvider) -> None:
    """What was recorded since the last interval is in the shard, and no thread stays."""
    before = threads()
    handle = attach(provider, str(folder))
    set_power(provider, 7)
    assert handle.exporter.table().num_rows == 0
    handle.detach()

    assert column(folder, "gpu_power_watts") == [7]
    assert column(folder, "run_id") == ["r1"]
    assert threads() == before


def test_detaching_again_does_nothing(folder: Path, provider: MeterProvider) -> None:
    """A handle publishes once, and the provider lives on without it."""
    handle = attach(provider, str(folder))
    handle.detach()
    set_power(provider, 7)
    handle.detach()
    provider.force_flush()
    provider.shutdown()

    assert len(shards(folder)) == 1
    assert column(folder, "gpu_power_watts") == [None]


def test_instruments_that_are_older_are_collected_too(
    folder: Path, provider: MeterProvider
) -> None:
    """Observable instruments that were made before are read from now on."""

    def power(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(7, {"gpu_id": "0"})

    provider.get_meter("test").create_observable_gauge("gen_ai.gpu.power", [power], "W")
    attach(provider, str(folder)).detach()

    assert column(folder, "gpu_power_watts") == [7]


def test_intervals_are_collected_in_between(folder: Path, provider: MeterProvider) -> None:
    """The rows so far grow without anybody asking."""
    handle = attach(provider, str(folder), export_interval_s=0.02)
    set_power(provider, 7)
    deadline = time.monotonic() + 10
    while handle.exporter.table().num_rows < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert handle.exporter.table().num_rows >= 3
    handle.detach()


def test_without_an_interval_the_last_collection_is_the_only_one(
    folder: Path, provider: MeterProvider
) -> None:
    """An infinite interval needs no thread that ticks, and loses nothing."""
    before = threads()
    handle = attach(provider, str(folder), export_interval_s=math.inf)
    assert threads() == before | {"hubmeter-uploader"}
    set_power(provider, 7)
    handle.detach()
    assert threads() == before

    assert column(folder, "gpu_power_watts") == [7]


def test_a_provider_that_shut_down_before_its_attachment(
    folder: Path, provider: MeterProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """The provider forgets readers that were added late; the handle does not."""
    handle = attach(provider, str(folder))
    set_power(provider, 7)
    provider.shutdown()
    assert shards(folder) == []
    handle.detach()

    assert column(folder, "gpu_power_watts") == [7]
    assert not complaints(caplog)


def test_a_last_collection_that_times_out_costs_only_itself(
    folder: Path, provider: MeterProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """What was collected before is published, and the reader has left the provider."""

    def slow(_: CallbackOptions) -> Iterable[Observation]:
        time.sleep(0.1)
        yield Observation(1)

    handle = attach(provider, str(folder), export_interval_s=math.inf)
    set_power(provider, 7)
    handle._reader.collect()
    for name in ("a", "b"):
        provider.get_meter("test").create_observable_gauge(name, [slow])
    reader = handle._reader
    with pytest.raises(Exception, match="Timed out"):
        reader.shutdown(timeout_millis=50)
    handle.detach()

    assert column(folder, "gpu_power_watts") == [7]
    assert not complaints(caplog)


def test_others_do_not_notice(folder: Path) -> None:
    """A reader that was there before sees what it would have seen."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    steps = provider.get_meter("test").create_counter("steps")
    steps.add(1)
    handle = attach(provider, str(folder))
    steps.add(1)
    handle.detach()
    steps.add(1)

    data = reader.get_metrics_data()
    [point] = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    assert point.value == 3
    provider.shutdown()


def test_two_attachments_are_two_runs(folder: Path) -> None:
    """Each handle has its own exporter, and each publishes."""
    provider = MeterProvider(shutdown_on_exit=False)
    handles = [attach(provider, str(folder)) for _ in range(2)]
    set_power(provider, 7)
    for handle in handles:
        handle.detach()

    assert column(folder, "gpu_power_watts") == [7, 7]
    assert len(set(column(folder, "run_id"))) == 2


@pytest.mark.parametrize(
    "provider",
    [None, 7, NoOpMeterProvider(), _ProxyMeterProvider()],
    ids=lambda p: type(p).__name__,
)
def test_what_takes_no_readers_is_one_error(
    folder: Path, provider: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Who attaches to the API's provider is told so, and gets a handle that does nothing."""
    handle = attach(provider, str(folder))
    handle.detach()

    [complaint] = complaints(caplog)
    assert f"not attached: {type(provider).__name__} takes no readers" in complaint
    assert handle.exporter.table().num_rows == 0
    assert not folder.exists()


def test_a_provider_that_refuses_the_reader_is_one_error(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the provider raises, the program that attaches does not see it."""

    class Refusing:
        def add_metric_reader(self, reader: Any) -> None:
            raise RuntimeError("full")

    handle = attach(Refusing(), str(folder))
    handle.detach()

    assert complaints(caplog) == ["hubmeter is not attached"]
    assert not folder.exists()


@pytest.mark.parametrize("interval", [0, -1, "soon", math.nan, [1]], ids=repr)
def test_a_wrong_interval_is_one_warning_and_the_default(
    folder: Path, provider: MeterProvider, interval: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is raised, and nothing is lost."""
    handle = attach(provider, str(folder), export_interval_s=interval)
    set_power(provider, 7)
    assert handle._reader._export_interval_millis == 60_000
    handle.detach()

    assert len(complaints(caplog)) == 1
    assert column(folder, "gpu_power_watts") == [7]


def test_a_wrong_interval_in_the_environment_is_one_warning(
    folder: Path,
    provider: MeterProvider,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The SDK raises at an interval of 0; we do not."""
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "0")
    handle = attach(provider, str(folder))
    set_power(provider, 7)
    handle.detach()

    assert len(complaints(caplog)) == 1
    assert column(folder, "gpu_power_watts") == [7]


def test_wrong_settings_do_not_stop_an_attachment(
    folder: Path, provider: MeterProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """They are one warning each, as for the exporter."""
    handle = attach(provider, str(folder), missing="perhaps", nonsense=1)
    handle.detach()

    assert len(complaints(caplog)) == 2
    assert len(shards(folder)) == 1


def test_switched_off_an_attachment_leaves_no_trace(
    tmp_path: Path, provider: MeterProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With HUBMETER_DISABLED a handle does nothing."""
    monkeypatch.setenv("HUBMETER_DISABLED", "1")
    handle = attach(provider)
    set_power(provider, 7)
    handle.detach()

    assert list(tmp_path.iterdir()) == []
