"""The exporter: what an SDK calls, however it calls it."""

import itertools
import logging
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from opentelemetry.sdk.metrics import Counter, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExportResult,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource

from hubmeter import HubMetricExporter, open_dataset
from hubmeter.pipeline import Pipeline
from hubmeter.schema import FLOAT_COLUMNS, SEED_METRICS
from hubmeter.settings import load_settings
from observed import Machine, column, leftovers, shards, undisturbed  # noqa: F401

SUCCESS, FAILURE = MetricExportResult.SUCCESS, MetricExportResult.FAILURE


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def provider_with(*exporters: HubMetricExporter, **resource: str) -> MeterProvider:
    """A provider that collects when it is told to, and when it is shut down."""
    readers = [PeriodicExportingMetricReader(e, export_interval_millis=60_000) for e in exporters]
    return MeterProvider(readers, resource=Resource(resource), shutdown_on_exit=False)


def set_power(provider: MeterProvider, watts: float) -> None:
    """Let GPU 0 draw *watts*."""
    provider.get_meter("test").create_gauge("gen_ai.gpu.power", "W").set(watts, {"gpu_id": "0"})


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Warnings and errors of hubmeter and of the SDK, which complains of its exporters."""
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_shard_of_a_run_is_in_the_folder_after_shutdown(folder: Path) -> None:
    """What a provider collects is in one Parquet file when the provider has shut down."""
    exporter = HubMetricExporter(str(folder))
    provider = provider_with(exporter, **{"service.name": "train"})
    set_power(provider, 100)
    provider.force_flush()
    set_power(provider, 200)
    provider.shutdown()

    assert len(shards(folder)) == 1
    assert column(folder, "gpu_power_watts") == [100, 200]
    assert column(folder, "service_name") == ["train", "train"]
    assert leftovers(folder) == []


def test_the_rows_so_far_can_be_read_at_any_time(folder: Path) -> None:
    """The table grows with each export, and stays after shutdown as it was published."""
    exporter, machine = HubMetricExporter(str(folder)), Machine()
    assert exporter.table().num_rows == 0
    for watts in (1, 2):
        exporter.export(machine.collect(watts))
        assert exporter.table()["gpu_power_watts"].to_pylist()[-1] == watts
    exporter.shutdown()

    assert exporter.table() == open_dataset(folder)


def test_both_configs_can_be_read(folder: Path) -> None:
    """What has no column in the rows is in the table of points."""
    exporter, machine = HubMetricExporter(str(folder)), Machine()
    machine.meter.create_counter("agent.steps").add(3)
    exporter.export(machine.collect(1))
    exporter.shutdown()

    assert exporter.table("points")["metric_name"].to_pylist() == ["agent.steps"]
    assert exporter.table("points") == open_dataset(folder, "points")


@pytest.mark.parametrize(
    "budget",
    [
        {},
        {"timeout": 29_999.38},
        {"timeout": 0},
        {"timeout": -0.15},
        {"timeout_millis": -5},
        {"timeout_millis": 30_000, "timeout": None},
        {"timeout_millis": None},
        {"timeout": math.nan},
        {"timeout": math.inf},
        {"timeout": "soon", "something": "new"},
    ],
    ids=str,
)
def test_a_run_is_published_whatever_budget_shutdown_names(
    folder: Path, budget: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """`timeout=` instead of `timeout_millis=`, negative or senseless, never costs the rows."""
    exporter = HubMetricExporter(str(folder))
    exporter.export(Machine().collect(1))
    exporter.shutdown(**budget)
    exporter.shutdown()  # without any time, publishing goes on: this waits for it

    assert column(folder, "gpu_power_watts") == [1]
    assert not errors(caplog)


def test_shutdown_may_be_called_again(folder: Path) -> None:
    """The second shutdown changes nothing."""
    exporter = HubMetricExporter(str(folder))
    exporter.export(Machine().collect(1))
    exporter.shutdown()
    before = shards(folder)
    exporter.shutdown()

    assert shards(folder) == before


def test_flushing_is_always_possible(folder: Path) -> None:
    """All that was exported is in the run already, before and after shutdown."""
    exporter = HubMetricExporter(str(folder))
    assert exporter.force_flush()
    assert exporter.force_flush(timeout_millis=-1, timeout=None)
    exporter.shutdown()
    assert exporter.force_flush()


def test_an_export_after_shutdown_lands_in_a_shard_of_its_own(folder: Path) -> None:
    """Nothing is lost and no file is touched again."""
    exporter, machine = HubMetricExporter(str(folder)), Machine()
    exporter.export(machine.collect(1))
    exporter.shutdown()
    [first] = shards(folder)
    bytes_before = first.read_bytes()

    assert exporter.export(machine.collect(2)) is SUCCESS
    assert exporter.export(machine.collect(3)) is SUCCESS
    exporter.shutdown()

    assert len(shards(folder)) == 2
    assert first.read_bytes() == bytes_before
    assert column(folder, "gpu_power_watts") == [1, 2, 3]
    assert exporter.table()["gpu_power_watts"].to_pylist() == [1, 2, 3]


def test_a_late_export_continues_the_totals_of_its_run(folder: Path) -> None:
    """Deltas that come after shutdown are added to those before it."""
    delta = {Counter: AggregationTemporality.DELTA}
    exporter = HubMetricExporter(str(folder), preferred_temporality=delta)
    provider = provider_with(exporter)
    joules = provider.get_meter("test").create_counter("gen_ai.gpu.energy", "J")
    for number in range(4):
        if number == 3:
            exporter.shutdown()
        joules.add(100, {"gpu_id": "0"})
        provider.force_flush()
    provider.shutdown()

    assert len(shards(folder)) == 2
    assert column(folder, "energy_joules") == [100, 200, 300, 400]
    assert column(folder, "co2_emissions_gco2e")[-1] == pytest.approx(400 / 3.6e6 * 475)


def test_a_late_export_does_not_make_up_a_row(folder: Path) -> None:
    """Late points without a column are published, and nothing beside them."""
    exporter, machine = HubMetricExporter(str(folder)), Machine()
    exporter.export(machine.collect(1))
    exporter.shutdown()
    other = Machine()
    other.meter.create_histogram("latency").record(0.5)
    exporter.export(other.collect())
    exporter.shutdown()

    assert column(folder, "gpu_power_watts") == [1]
    assert column(folder, "metric_name", "points") == ["latency"]


def test_late_exports_are_published_by_the_next_shutdown(folder: Path) -> None:
    """Many threads export after shutdown; their rows are one more shard."""
    exporter, machine = HubMetricExporter(str(folder)), Machine()
    collections = [machine.collect(watts) for watts in range(24)]
    exporter.shutdown()
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(exporter.export, collections)) == {SUCCESS}
    exporter.shutdown()

    assert len(shards(folder)) == 2
    measured = [watts for watts in column(folder, "gpu_power_watts") if watts is not None]
    assert sorted(measured) == list(range(24))


def test_an_export_beside_shutdown_is_in_the_dataset_once(folder: Path) -> None:
    """Whichever of two threads wins, each acknowledged point is published exactly once."""
    exporter, machine = HubMetricExporter(str(folder)), Machine()
    collections = [machine.collect(watts) for watts in range(60)]
    exported, half = [], threading.Event()

    def export() -> None:
        for number, collection in enumerate(collections):
            if number == 30:
                half.set()
            exported.append(exporter.export(collection))

    thread = threading.Thread(target=export)
    thread.start()
    half.wait()
    exporter.shutdown(timeout=0)
    thread.join()
    exporter.shutdown()

    assert exported == [SUCCESS] * 60
    measured = [watts for watts in column(folder, "gpu_power_watts") if watts is not None]
    assert sorted(measured) == list(range(60))


def test_rows_are_read_while_others_export(folder: Path) -> None:
    """A reader sees whole collections, however busy the exporter is."""
    exporter, machine = HubMetricExporter(str(folder)), Machine()
    collections = [machine.collect(watts) for watts in range(300)]
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(lambda: [exporter.export(one) for one in collections])
        while not done.done():
            watts = exporter.table()["gpu_power_watts"].to_pylist()
            assert watts == list(range(len(watts)))
    exporter.shutdown()
    assert exporter.table().num_rows == 300


def test_a_run_in_which_nothing_was_recorded_is_one_row(folder: Path) -> None:
    """The run is identified, and every metric is null: nothing is made up."""
    provider = provider_with(HubMetricExporter(str(folder), run_id="empty"))
    provider.shutdown()

    [row] = open_dataset(folder).to_pylist()
    assert row["run_id"] == "empty"
    assert row["timestamp"].endswith("+00:00")
    assert {row[name] for name in FLOAT_COLUMNS} == {None}
    assert shards(folder, "points") == []


def test_a_run_in_which_nothing_was_recorded_has_zeros_where_they_are_asked_for(
    folder: Path,
) -> None:
    """With `missing="zero"` the seven seed metrics are 0.0, as smoltrace fills them."""
    HubMetricExporter(str(folder), missing="zero").shutdown()

    [row] = open_dataset(folder).to_pylist()
    assert {row[name] for name in SEED_METRICS} == {0.0}


def test_two_exporters_are_two_runs(folder: Path) -> None:
    """Two exporters of one provider publish next to each other."""
    exporters = HubMetricExporter(str(folder)), HubMetricExporter(str(folder))
    provider = provider_with(*exporters)
    set_power(provider, 7)
    provider.shutdown()

    assert len(shards(folder)) == 2
    assert column(folder, "gpu_power_watts") == [7, 7]
    assert len(set(column(folder, "run_id"))) == 2


def test_one_exporter_may_serve_two_readers(folder: Path) -> None:
    """What the second reader collects after the first one shut down is not lost."""
    exporter = HubMetricExporter(str(folder))
    provider = provider_with(exporter, exporter)
    set_power(provider, 7)
    provider.shutdown()

    assert column(folder, "gpu_power_watts") == [7, 7]
    assert len(set(column(folder, "run_id"))) == 1
    assert len(set(column(folder, "timestamp_unix_nano"))) == 2


@pytest.mark.parametrize("flushes", [True, False])
def test_a_reader_without_an_interval(folder: Path, flushes: bool) -> None:
    """With an infinite interval the SDK collects only on request; the run is there anyway."""
    exporter = HubMetricExporter(str(folder))
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=math.inf)
    provider = MeterProvider([reader], shutdown_on_exit=False)
    set_power(provider, 7)
    if flushes:
        provider.force_flush()
    provider.shutdown()

    assert column(folder, "gpu_power_watts") == ([7] if flushes else [None])


def test_delta_temporality_gives_the_same_totals(folder: Path) -> None:
    """Whoever prefers deltas reads the same cumulative columns."""
    for temporality in (AggregationTemporality.DELTA, AggregationTemporality.CUMULATIVE):
        exporter = HubMetricExporter(
            str(folder), run_id=temporality.name, preferred_temporality={Counter: temporality}
        )
        provider = provider_with(exporter)
        joules = provider.get_meter("test").create_counter("gen_ai.gpu.energy", "J")
        for _ in range(3):
            joules.add(5, {"gpu_id": "0"})
            provider.force_flush()
        provider.shutdown()

    by_run: dict[str, set[float]] = {"DELTA": set(), "CUMULATIVE": set()}
    for row in open_dataset(folder).to_pylist():
        by_run[row["run_id"]].add(row["energy_joules"])
    assert by_run == {"DELTA": {5, 10, 15}, "CUMULATIVE": {5, 10, 15}}


RUN_IDS = [
    "../../x", "/etc/x", "a/b", "a\\b", "..", ".", ".hidden", "_skipped", "x" * 300,
    "x" * 299 + "y", "two words", "naïve-ünï", "new\nline", "a=b", "C:", "*", "-rf", "\0",
]  # fmt: skip


def test_no_run_id_leaves_the_folder(folder: Path, tmp_path: Path) -> None:
    """Every run id is a file in its month, readable by all, and unchanged in the rows."""
    for run_id in RUN_IDS:
        provider = provider_with(HubMetricExporter(str(folder)), **{"run.id": run_id})
        set_power(provider, 1)
        provider.shutdown()

    assert sorted(column(folder, "run_id")) == sorted(RUN_IDS)
    assert len(shards(folder)) == len(RUN_IDS)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    # pyarrow and pandas skip files whose names begin with a dot or an underscore.
    assert ds.dataset(folder / "data" / "default", format="parquet").count_rows() == len(RUN_IDS)


@pytest.mark.parametrize("run_id", ["../../x", "a/b", "..", "x" * 300])
def test_no_run_id_leaves_a_destination_that_is_named_after_it(tmp_path: Path, run_id: str) -> None:
    """A run id in the path of the destination is one folder name."""
    HubMetricExporter(f"{tmp_path}/inner/{{run_id}}", run_id=run_id).shutdown()

    assert [path.name for path in tmp_path.iterdir()] == ["inner"]
    [folder] = (tmp_path / "inner").iterdir()
    assert column(folder, "run_id") == [run_id]


def test_where_the_run_id_comes_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resource before argument before environment before a new UUID for each run."""

    def run_id(argument: str | None = None, **resource: str) -> str:
        exporter = HubMetricExporter(str(folder), run_id=argument)
        exporter.export(Machine(**resource).collect(1))
        exporter.shutdown()
        [identity] = set(exporter.table()["run_id"].to_pylist())
        return str(identity)

    assert len(run_id()) == 36
    assert run_id() != run_id()
    monkeypatch.setenv("HUBMETER_RUN_ID", "environment")
    assert run_id() == "environment"
    assert run_id("argument") == "argument"
    assert run_id("argument", **{"run.id": "resource"}) == "resource"


def test_a_change_of_directory_does_not_move_the_destination(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative destination is relative to where the program was when it began."""
    exporter = HubMetricExporter()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    exporter.shutdown()

    assert len(shards(tmp_path / "hubmeter-data")) == 1
    assert list((tmp_path / "elsewhere").iterdir()) == []


WRONG_ARGUMENTS: list[dict[str, Any]] = [
    {"to": len},
    {"to": {"repo": "org/ds"}},
    {"to": b"bytes"},
    {"to": "a\0b"},
    {"to": "https://example.org/x"},
    {"to": ""},
    {"missing": "perhaps"},
    {"pue": "x"},
    {"pue": math.nan},
    {"carbon_g_per_kwh": -1},
    {"sample_interval_s": [1, 2]},
    {"run_id": "\udcff"},
    {"run_id": ["\n"]},
    {"disabled": "perhaps"},
    {"preferred_temporality": "delta"},
    {"preferred_temporality": {"Counter": "delta"}},
    {"preferred_temporality": {Counter: "delta"}},
    {"preferred_aggregation": 7},
    {"preferred_aggregation": {Counter: "sum"}},
    {"repo": "org/ds", "token": None},
]


@pytest.mark.parametrize("arguments", WRONG_ARGUMENTS, ids=repr)
def test_a_wrong_argument_is_one_warning_and_the_default(
    tmp_path: Path, arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the exporter nor the reader that gets it raises, and the run is published."""
    exporter = HubMetricExporter(**{"to": "hubmeter-data", **arguments})
    provider = provider_with(exporter)
    set_power(provider, 1)
    provider.shutdown()

    [warning] = errors(caplog)
    assert warning.levelno == logging.WARNING
    for name in arguments:
        assert name in warning.getMessage()
    assert column(tmp_path / "hubmeter-data", "gpu_power_watts") == [1]


@pytest.mark.parametrize("to", ["~", "~nobody-has-this-name/x", "x [1]*?", "./a/../b", "ünï"])
def test_an_unusual_destination_is_taken_as_it_stands(
    tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tildes, brackets and dots in the path of the destination are no reason to fail."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "a").mkdir()
    HubMetricExporter(to).shutdown()

    folder = tmp_path / "home" if to == "~" else tmp_path / to
    assert len(shards(folder)) == 1
    assert len(column(folder, "run_id")) == 1


def test_an_exporter_whose_directory_is_gone_does_not_raise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A program may have deleted the directory that it runs in."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    exporter = HubMetricExporter()
    exporter.export(Machine().collect(1))
    exporter.shutdown()

    assert len(errors(caplog)) == 1
    assert exporter.table().num_rows in (0, 1)


@pytest.mark.parametrize("obstacle", ["file", "device", "proc"])
def test_a_folder_that_cannot_be_written_costs_no_rows(
    tmp_path: Path, obstacle: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One clear line says why, the program goes on, and the rows stay readable."""
    (tmp_path / "file").write_text("in the way")
    folder = {"file": tmp_path / "file", "device": Path("/dev/full"), "proc": Path("/proc/x")}
    exporter = HubMetricExporter(str(folder[obstacle] / "data"))
    provider = provider_with(exporter)
    set_power(provider, 7)
    provider.shutdown()

    [record] = errors(caplog)
    message = record.getMessage()
    assert message.startswith(f"hubmeter: 1 rows not written to {folder[obstacle]}/data: ")
    assert "HUBMETER_TO" in message
    assert message.endswith("the run is in the journal: hubmeter recover")
    assert "\n" not in message
    assert not record.exc_info
    assert exporter.table()["gpu_power_watts"].to_pylist() == [7]


def test_late_exports_into_a_folder_that_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same failure is complained of once, and they stay readable."""
    (tmp_path / "file").write_text("in the way")
    exporter, machine = HubMetricExporter(str(tmp_path / "file")), Machine()
    exporter.shutdown()
    caplog.clear()

    assert [exporter.export(machine.collect(watts)) for watts in (1, 2)] == [SUCCESS] * 2
    exporter.shutdown()
    exporter.shutdown()

    [record] = errors(caplog)
    assert not record.exc_info
    assert exporter.table()["gpu_power_watts"].to_pylist() == [1, 2]


@pytest.mark.parametrize("rubbish", [None, 7, "text", [], len], ids=repr)
def test_rubbish_instead_of_metrics_never_raises(
    folder: Path, rubbish: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It is refused, with one traceback however often it comes, and the rest is kept."""
    exporter, machine = HubMetricExporter(str(folder)), Machine()
    exporter.export(machine.collect(1))
    assert exporter.export(rubbish) is FAILURE
    assert exporter.export(rubbish) is FAILURE
    exporter.export(machine.collect(2))
    exporter.shutdown()

    [record] = errors(caplog)
    assert record.exc_info
    assert column(folder, "gpu_power_watts") == [1, 2]


def test_switched_off_it_does_nothing_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With HUBMETER_DISABLED the exporter accepts everything and leaves no trace."""
    monkeypatch.setenv("HUBMETER_DISABLED", "1")
    exporter = HubMetricExporter()
    provider = provider_with(exporter)
    set_power(provider, 1)
    assert provider.force_flush()
    provider.shutdown()

    assert exporter.export(Machine().collect(1)) is SUCCESS
    assert exporter.table().num_rows == 0
    assert exporter.table("points").schema.names[0] == "run_id"
    assert list(tmp_path.iterdir()) == []
    assert not errors(caplog)


def test_a_pipeline_may_be_given(folder: Path) -> None:
    """Who makes a pipeline decides where the points go."""
    pipeline = Pipeline(load_settings(to=folder, run_id="given"))
    HubMetricExporter(pipeline=pipeline).shutdown()

    assert column(folder, "run_id") == ["given"]


def test_the_schema_is_the_same_with_and_without_rows(folder: Path) -> None:
    """An empty table has all columns, with the types that they will have."""
    exporter = HubMetricExporter(str(folder))
    empty = {config: exporter.table(config).schema for config in ("default", "points")}
    machine = Machine()
    machine.meter.create_histogram("latency").record(0.5)
    exporter.export(machine.collect(1))
    for config, schema in empty.items():
        assert exporter.table(config).schema == schema
        assert pa.null() not in schema.types
    exporter.shutdown()


def test_exporting_takes_no_part_in_the_program_s_output(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written to stdout, also when things go wrong."""
    (folder.parent / "file").write_text("")
    for to, argument in itertools.product([str(folder), "file/x"], [{}, {"nonsense": 1}]):
        exporter = HubMetricExporter(to, **argument)
        exporter.export(Machine().collect(1))
        exporter.shutdown()

    assert capfd.readouterr().out == ""


def test_files_belong_to_everybody_who_may_read_the_folder(folder: Path) -> None:
    """Files have the permissions that the program's umask leaves, not private ones."""
    before = os.umask(0o022)
    try:
        HubMetricExporter(str(folder)).shutdown()
    finally:
        os.umask(before)
    for path in [*shards(folder), folder / "README.md"]:
        assert path.stat().st_mode & 0o777 == 0o644
