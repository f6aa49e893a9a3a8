"""Hubmeter's own counts: from the provider of the run, and once."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from hubmeter.pipeline import Pipeline
from hubmeter.settings import load_settings
from hubmeter.sources.self_metrics import observe, observe_with
from observed import column, program, run, undisturbed  # noqa: F401

OURS = {f"hubmeter.points.{name}" for name in ("received", "stored", "published", "rejected")}

GPU = """
    from opentelemetry import metrics
    from hubmeter import gpu_meter_provider
    from hubmeter.sources.nvml_sampler import GpuSampler
    from hubmeter.sources.simulated_gpus import SimulatedGpus
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    def begin(to="./data", **settings):
        return gpu_meter_provider(to, sampler=GpuSampler(SimulatedGpus), **settings)
"""


def own_counts(folder: Path) -> Counter[str]:
    """Name of a metric of ours to its number of points in the dataset."""
    names = column(folder, "metric_name", "points")
    return Counter(name for name in names if name in OURS)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("pass", "pass"),
        ("pass", "metrics.set_meter_provider(provider)"),
        ("metrics.set_meter_provider(MeterProvider())", "pass"),
    ],
    ids=["no global provider", "it is the global provider", "there is another one"],
)
def test_a_run_of_its_own_provider_has_its_own_counts(
    first: str, then: str, tmp_path: Path
) -> None:
    """Whatever the global provider is: one point of each per collection, and no warning."""
    code = f"""{GPU}
    {first}
    provider = begin(self_metrics=True)
    {then}
    for watts in (1, 2):
        measure(provider, watts)
        provider.force_flush()
    provider.shutdown()
    """
    done = run(program(code, tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert own_counts(tmp_path / "data") == dict.fromkeys(OURS, 3)
    times = column(tmp_path / "data", "timestamp", "points")
    assert len(times) == 3 * len(OURS)


def test_the_global_provider_is_told_no_more(tmp_path: Path) -> None:
    """Or the points of one run would be in two datasets."""
    code = f"""{GPU}
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    provider = begin(self_metrics=True)
    measure(provider, 1)
    provider.force_flush()
    assert "hubmeter.points" not in str(reader.get_metrics_data())
    provider.shutdown()
    """
    done = run(program(code, tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert own_counts(tmp_path / "data").keys() == OURS


def test_an_exporter_alone_reports_to_the_global_provider(tmp_path: Path) -> None:
    """It does not know whose exporter it is."""
    code = """
    from opentelemetry import metrics
    provider = provider_of(HubMetricExporter("./data", self_metrics=True))
    metrics.set_meter_provider(provider)
    measure(provider, 1)
    provider.force_flush()
    provider.shutdown()
    """
    done = run(program(code, tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert own_counts(tmp_path / "data") == dict.fromkeys(OURS, 2)


def test_without_the_setting_there_are_none(tmp_path: Path) -> None:
    """It is off by default."""
    code = f"""{GPU}
    provider = begin(points="all")
    measure(provider, 1)
    provider.shutdown()
    """
    done = run(program(code, tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert not own_counts(tmp_path / "data")


def test_a_pipeline_is_not_kept_alive_by_what_reports_it(tmp_path: Path) -> None:
    """Its provider holds the exporter, and that the rows."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    settings = load_settings(to=str(tmp_path / "data"), journal_dir="off", self_metrics=True)
    pipeline = Pipeline(settings)
    observe(pipeline)
    observe_with(provider, pipeline)
    observe_with(provider, pipeline)
    provider.holds = pipeline  # as a reader with our exporter does
    assert all(name in str(reader.get_metrics_data()) for name in OURS)

    provider.shutdown()
    reference = weakref.ref(pipeline)
    del provider, reader, pipeline
    gc.collect()
    assert reference() is None
