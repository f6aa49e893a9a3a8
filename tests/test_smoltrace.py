"""Beside smoltrace: its real evaluation with our reader, and its flattener beside ours."""

import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping
from copy import deepcopy
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource

import hubmeter.smoltrace
from hubmeter import open_dataset
from hubmeter.schema import SEED_COLUMNS, SEED_METRICS
from hubmeter.smoltrace import flatten_metrics_for_hf
from seedlike import seed_run
from standin import subprocess_env

PROGRAM = Path(__file__).with_name("smoltrace_run.py")
PROGRAM_COLLECTIONS = 4
"""Three that the stubbed tests ask for, and smoltrace's own at the end. Its clock adds one
where the evaluation takes longer than ten seconds."""

GPUS = "clock real\ngpus 2\nutilization 0 20\nutilization 1 90\npower 1 0 250000"
U, C, P = "gen_ai.gpu.utilization", "gen_ai.co2.emissions", "gen_ai.gpu.power"
UNITS = {U: "%", C: "gCO2e", P: "W"}
T0 = 1_761_544_695_460_017_300


# -- the real evaluation


class Evaluations(NamedTuple):
    """Folders and answers of processes that ran at the same time."""

    folder: Path
    outputs: Mapping[str, subprocess.CompletedProcess[str]]

    def answers(self, name: str) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = json.loads((self.folder / f"{name}.json").read_text())
        return answers

    def rows(self, name: str) -> list[dict[str, Any]]:
        return open_dataset(self.folder / name).to_pylist()


@pytest.fixture(scope="module", name="evaluations")
def _evaluations(standin_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluations:
    """Without us, with us twice in one process, and by command: with two GPUs each."""
    pytest.importorskip("smoltrace")
    folder = tmp_path_factory.mktemp("smoltrace")
    commands = {
        "alone": ["evaluate", "alone.json"],
        "ours": ["registered", "ours", "ours.json", "first", "second"],
        "command": [
            *("command", "--model", "stub", "--provider", "ollama", "--agent-type", "tool"),
            *("--enable-otel", "--run-id", "by-command"),
            *("--output-format", "json", "--output-dir", "results"),
        ],
    }
    return Evaluations(folder, _run_together(commands, standin_library, folder))


def _run_together(
    commands: Mapping[str, list[str]], library: Path, folder: Path
) -> dict[str, subprocess.CompletedProcess[str]]:
    environment = {
        **subprocess_env(library, GPUS, folder),
        "GENAI_GPU_COLLECTION_INTERVAL": "1",
        "GENAI_SKIP_COLLECTOR_CHECK": "true",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        "HF_HUB_OFFLINE": "1",
        "HUBMETER_TO": "command",
    }
    started = {
        name: subprocess.Popen(
            [sys.executable, str(PROGRAM), *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, arguments in commands.items()
    }
    finished = {}
    for name, process in started.items():
        output, errors = process.communicate(timeout=120)
        finished[name] = subprocess.CompletedProcess(
            process.args, process.returncode, output, errors
        )
    return finished


@pytest.mark.parametrize("name", ["alone", "ours", "command"])
def test_the_evaluation_ends_well_and_hears_nothing_of_us(
    evaluations: Evaluations, name: str
) -> None:
    """Exit code 0, nothing of ours on stdout, no traceback on stderr."""
    output = evaluations.outputs[name]
    assert output.returncode == 0, output.stderr
    assert "hubmeter" not in output.stdout
    assert "Traceback" not in output.stderr
    assert "hubmeter" not in output.stderr


def test_every_collection_of_every_gpu_is_in_the_dataset(evaluations: Evaluations) -> None:
    """Two rows for each collection of both evaluations, and for the one at the end."""
    rows = _gpu_rows(evaluations)
    instants = sorted({row["timestamp_unix_nano"] for row in rows})
    assert len(instants) == 2 * PROGRAM_COLLECTIONS + 1
    assert [(row["timestamp_unix_nano"], row["gpu_id"]) for row in rows] == [
        (instant, gpu) for instant in instants for gpu in ("0", "1")
    ]
    for row in rows:
        assert row["run_id"] == "first"
        assert row["service_name"] == "smoltrace-eval"
        assert row["gpu_utilization_percent"] == (20 if row["gpu_id"] == "0" else 90)
        assert row["gpu_power_watts"] == (100 if row["gpu_id"] == "0" else 250)


def _gpu_rows(evaluations: Evaluations) -> list[dict[str, Any]]:
    rows = [row for row in evaluations.rows("ours") if row["gpu_id"] is not None]
    return sorted(rows, key=_place_in_time)


def test_the_dataset_has_zeros_where_dashboards_expect_them(evaluations: Evaluations) -> None:
    """Emissions begin at 0.0 although they are not known yet, and grow on both GPUs."""
    rows = _gpu_rows(evaluations)
    assert all(row[column] is not None for row in rows for column in SEED_METRICS)
    assert [row["co2_emissions_gco2e"] for row in rows[:2]] == [0.0, 0.0]
    co2 = {row["gpu_id"]: row["co2_emissions_gco2e"] for row in rows}
    assert co2["1"] == pytest.approx(2.5 * co2["0"])
    assert co2["0"] > 0


LOADER = """
import pickle, sys
from datasets import load_dataset
rows = load_dataset(sys.argv[1], split="train").to_list()
with open(sys.argv[2], "wb") as file:
    pickle.dump(rows, file)
"""


def test_datasets_opens_it_offline(evaluations: Evaluations, tmp_path: Path) -> None:
    """load_dataset reads the folder as it is, without a network."""
    answer = tmp_path / "rows.pickle"
    environment = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    subprocess.run(
        [sys.executable, "-c", LOADER, str(evaluations.folder / "ours"), str(answer)],
        env={**os.environ, **environment},
        check=True,
        timeout=120,
    )
    loaded = sorted(pickle.loads(answer.read_bytes()), key=_place_in_time)
    assert loaded == sorted(evaluations.rows("ours"), key=_place_in_time)


def _place_in_time(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["timestamp"], row["gpu_id"] or ""


def test_smoltrace_collects_what_it_collects_without_us(evaluations: Evaluations) -> None:
    """The same metrics, units and GPUs in the same number of batches."""
    [alone], [ours, _] = evaluations.answers("alone"), evaluations.answers("ours")
    batches = [len(run["metric_data"]["resourceMetrics"]) for run in (alone, ours)]
    assert min(batches) >= PROGRAM_COLLECTIONS
    assert abs(batches[0] - batches[1]) <= 1
    assert _series_of(alone["metric_data"]) == _series_of(ours["metric_data"])
    assert {gpu for _, _, gpu in _series_of(ours["metric_data"])} >= {"0", "1"}
    assert _shape(alone["metric_data"]["aggregates"]) == _shape(ours["metric_data"]["aggregates"])


def test_smoltrace_returns_the_same_results_and_traces(evaluations: Evaluations) -> None:
    """Field by field the same results and traces, up to identifiers and times."""
    [alone], [ours, _] = evaluations.answers("alone"), evaluations.answers("ours")
    assert _shape(alone["results"]) == _shape(ours["results"])
    assert _shape(alone["traces"]) == _shape(ours["traces"])
    for run in (alone, ours):
        assert [result["test_id"] for result in run["results"]["tool"]] == ["one", "two"]
        assert [trace["spans"][0]["name"] for trace in run["traces"]] == ["task", "task"]


def test_theirs_loses_a_gpu_of_the_same_data_and_ours_does_not(evaluations: Evaluations) -> None:
    """Of two GPUs smoltrace's rows show one, ours both, from one and the same metric data."""
    theirs = pytest.importorskip("smoltrace.utils")
    [ours, _] = evaluations.answers("ours")
    lossy = theirs.flatten_metrics_for_hf(deepcopy(ours["metric_data"]))
    complete = flatten_metrics_for_hf(ours["metric_data"])
    assert len(complete) == 2 * len(lossy) >= 2 * PROGRAM_COLLECTIONS
    assert {row["gpu_utilization_percent"] for row in lossy} == {20}
    assert [row["gpu_utilization_percent"] for row in complete] == [20, 90] * len(lossy)


def test_a_second_evaluation_in_a_process(evaluations: Evaluations) -> None:
    """smoltrace sees no GPU in it; our first run goes on, and the second is on record."""
    first, second = evaluations.answers("ours")
    assert len(first["metric_data"]["resourceMetrics"]) >= PROGRAM_COLLECTIONS
    assert second["metric_data"]["resourceMetrics"] == []
    [empty] = [row for row in evaluations.rows("ours") if row["run_id"] == "second"]
    assert empty["gpu_id"] is None
    assert {empty[column] for column in SEED_METRICS} == {0.0}


# -- the command


def test_the_command_writes_both_datasets(evaluations: Evaluations) -> None:
    """smoltrace's own files, and ours where HUBMETER_TO says, under the same run id."""
    [saved] = evaluations.folder.glob("results/*/metrics.json")
    assert json.loads(saved.read_text())["run_id"] == "by-command"
    rows = evaluations.rows("command")
    assert {row["run_id"] for row in rows} == {"by-command"}
    assert {row["gpu_id"] for row in rows} == {"0", "1"}


def _command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hubmeter.smoltrace", *arguments],
        env={**os.environ, **environment},
        check=False,
        timeout=120,
        capture_output=True,
        text=True,
    )


def test_help_is_that_of_smoltrace() -> None:
    """Its arguments under its name, on stdout, with exit code 0."""
    pytest.importorskip("smoltrace")
    done = _command("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: smoltrace-eval ")
    assert "--disable-gpu-metrics" in done.stdout
    assert done.stderr == ""


def test_the_exit_code_is_that_of_smoltrace() -> None:
    """A wrong argument ends as it ends in smoltrace-eval."""
    pytest.importorskip("smoltrace")
    done = _command("--model", "stub", "--provider", "nobody")
    assert done.returncode == 2
    assert "invalid choice: 'nobody'" in done.stderr


def test_without_smoltrace_it_says_what_to_install(tmp_path: Path) -> None:
    """One line on stderr and exit code 1, where smoltrace cannot be imported."""
    (tmp_path / "smoltrace.py").write_text("raise ModuleNotFoundError('no smoltrace here')")
    done = _command("--help", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert "no smoltrace here" in line
    assert "pip install smoltrace" in line


# -- registering


@pytest.fixture(name="their_otel")
def _their_otel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """smoltrace's module with its own meter provider, before and after."""
    their_otel = pytest.importorskip("smoltrace.otel")
    monkeypatch.setattr(their_otel, "MeterProvider", MeterProvider)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("HUBMETER_")]:
        monkeypatch.delenv(name)
    return their_otel


@pytest.fixture(name="provider_of")
def _provider_of(their_otel: Any) -> Iterator[Any]:
    """Makes a provider as smoltrace does; shut down at the end."""
    made = []

    def provider_of(run_id: str) -> MeterProvider:
        resource = Resource({"run.id": run_id, "service.name": "smoltrace-eval"})
        made.append(
            their_otel.MeterProvider(resource=resource, metric_readers=[], shutdown_on_exit=False)
        )
        return made[-1]

    yield provider_of
    for provider in made:
        provider.shutdown()


def _measure(provider: MeterProvider, value: float) -> None:
    provider.get_meter("test").create_gauge(U, "%").set(value, {"gpu_id": "0"})
    provider.force_flush()


def test_each_provider_has_an_exporter_of_its_own(provider_of: Any) -> None:
    """Runs do not share rows, however often we registered."""
    registration = hubmeter.smoltrace.register("runs")
    assert hubmeter.smoltrace.register("runs") is registration
    assert registration.table().num_rows == 0
    for run_id, value in (("one", 10.0), ("two", 20.0)):
        _measure(provider_of(run_id), value)
    assert len(registration.exporters) == 2
    [row] = registration.table().to_pylist()
    assert (row["run_id"], row["gpu_utilization_percent"]) == ("two", 20)
    [row] = registration.exporters[0].table().to_pylist()
    assert (row["run_id"], row["gpu_utilization_percent"]) == ("one", 10)


@pytest.mark.usefixtures("their_otel")
def test_it_collects_every_ten_seconds() -> None:
    """As often as smoltrace itself, unless it is told otherwise."""
    registration = hubmeter.smoltrace.register("runs")
    [reader] = registration.readers(Resource({}))
    try:
        assert reader._export_interval_millis == 10_000
    finally:
        reader.shutdown()


def test_a_destination_may_name_the_run(provider_of: Any, tmp_path: Path) -> None:
    """{run_id} is smoltrace's run id, also for an evaluation that had no metrics at all."""
    hubmeter.smoltrace.register("./runs/{run_id}")
    provider_of("quiet").shutdown()
    [row] = open_dataset(tmp_path / "runs" / "quiet").to_pylist()
    assert row["run_id"] == "quiet"
    assert {row[column] for column in SEED_METRICS} == {0.0}


def test_unregistered_smoltrace_is_as_before(their_otel: Any, provider_of: Any) -> None:
    """Providers made later have no reader of ours; registering again is possible."""
    registration = hubmeter.smoltrace.register("runs")
    inherited = type("Patched", (their_otel.MeterProvider,), {})
    registration.unregister()
    assert their_otel.MeterProvider is MeterProvider
    inherited(shutdown_on_exit=False)
    provider_of("later")
    assert registration.exporters == []
    assert hubmeter.smoltrace.register("runs") is not registration


@pytest.mark.usefixtures("their_otel")
def test_a_second_registration_with_other_wishes_is_ignored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first stays, and the log says so."""
    registration = hubmeter.smoltrace.register("here")
    assert caplog.records == []
    assert hubmeter.smoltrace.register("there") is registration
    assert "registered already" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "environment", "first_value"),
    [
        ({}, {}, 0.0),
        ({"missing": "null"}, {}, None),
        ({}, {"HUBMETER_MISSING": "null"}, None),
        ({"missing": "zero"}, {"HUBMETER_MISSING": "null"}, 0.0),
    ],
)
def test_zeros_unless_someone_says_otherwise(
    provider_of: Any,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, str],
    environment: dict[str, str],
    first_value: float | None,
) -> None:
    """Arguments before environment before smoltrace's habit."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    registration = hubmeter.smoltrace.register("runs", **arguments)
    _measure(provider_of("one"), 5)
    assert registration.table()["gpu_temperature_celsius"].to_pylist() == [first_value]


def test_switched_off_it_is_not_there(provider_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """HUBMETER_DISABLED leaves smoltrace's provider without a reader of ours."""
    registration = hubmeter.smoltrace.register("runs")
    monkeypatch.setenv("HUBMETER_DISABLED", "1")
    _measure(provider_of("one"), 5)
    assert registration.exporters == []


def test_nothing_of_ours_stops_an_evaluation(
    provider_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A wish that cannot be fulfilled is an error in the log, and the provider works."""
    registration = hubmeter.smoltrace.register("runs", export_interval_s=-1)
    _measure(provider_of("one"), 5)
    assert registration.exporters == []
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


# -- the flattener, beside theirs


@pytest.fixture(name="theirs")
def _theirs() -> Any:
    return pytest.importorskip("smoltrace.utils").flatten_metrics_for_hf


def point(value: Any = None, *, at: Any = T0, gpu: str | None = "0", **more: Any) -> dict[str, Any]:
    """A data point; a value of None is explicit, as smoltrace writes it."""
    attributes = {} if gpu is None else {"gpu_id": gpu}
    attributes |= more
    return {
        "attributes": [{"key": k, "value": {"stringValue": v}} for k, v in attributes.items()],
        "timeUnixNano": None if at is None else str(at),
        "asInt": str(value) if isinstance(value, int) else None,
        "asDouble": value if isinstance(value, float) else None,
    }


def metric(name: str, *points: Any, kind: str = "gauge", temporality: int = 2) -> dict[str, Any]:
    data: dict[str, Any] = {"dataPoints": list(points)}
    if kind == "sum":
        data |= {"aggregationTemporality": temporality, "isMonotonic": True}
    return {"name": name, "unit": UNITS.get(name, ""), kind: data}


def collection(*metrics: Any, **resource: str) -> dict[str, Any]:
    attributes = [{"key": k, "value": {"stringValue": v}} for k, v in resource.items()]
    return {
        "resource": {"attributes": attributes},
        "scopeMetrics": [{"scope": {"name": "genai.gpu"}, "metrics": list(metrics)}],
    }


def nested(*collections: Any, run_id: Any = "run") -> dict[str, Any]:
    return {"run_id": run_id, "resourceMetrics": list(collections), "aggregates": []}


def test_on_one_gpu_the_rows_are_theirs(theirs: Any) -> None:
    """917 rows, equal in all but the time zone and the order of columns."""
    data = seed_run().nested()
    for our_row, their_row in zip(flatten_metrics_for_hf(data), theirs(data), strict=True):
        assert tuple(our_row) == SEED_COLUMNS
        ours, local = _instant(our_row), datetime.fromisoformat(their_row["timestamp"])
        assert abs(ours - local.astimezone()) <= timedelta(microseconds=1)
        assert {**our_row, "timestamp": ""} == {**their_row, "timestamp": ""}


def _instant(row: Mapping[str, Any]) -> datetime:
    assert row["timestamp"].endswith("+00:00")
    return datetime.fromisoformat(row["timestamp"])


def test_the_types_are_theirs(theirs: Any) -> None:
    """Python strings and floats, as Dataset.from_list takes them."""
    [ours] = flatten_metrics_for_hf(nested(collection(metric(U, point(5, gpu_name="A")))))
    [row] = theirs(nested(collection(metric(U, point(5, gpu_name="A")))))
    assert {name: type(ours[name]) for name in row} == {name: type(row[name]) for name in row}
    assert set(ours) == set(row)


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        {"run_id": "run"},
        nested(),
        nested(collection()),
        nested({"resource": {"attributes": []}}),
        nested({"resource": {"attributes": []}, "scopeMetrics": [{"scope": {}}]}),
        nested(collection(metric(U))),
        nested(collection(metric(U, point(1, at="")))),
        nested(collection(metric("h", {"timeUnixNano": str(T0), "count": 1}, kind="histogram"))),
    ],
)
def test_what_makes_no_row_there_makes_none_here(theirs: Any, data: Any) -> None:
    """No metrics, scopes, data points or times: no row, and no exception."""
    assert theirs(data) == flatten_metrics_for_hf(data) == []


def test_points_without_a_gpu_fold_into_the_only_gpu(theirs: Any) -> None:
    """A sum without and a gauge with a GPU id at one instant are one row."""
    data = nested(collection(metric(C, point(1.5, gpu=None), kind="sum"), metric(U, point(45))))
    [ours], [row] = flatten_metrics_for_hf(data), theirs(data)
    assert ours["gpu_id"] == row["gpu_id"] == "0"
    assert ours["co2_emissions_gco2e"] == row["co2_emissions_gco2e"] == 1.5
    assert ours["gpu_utilization_percent"] == row["gpu_utilization_percent"] == 45.0


@pytest.mark.parametrize(("value", "cell"), [(None, 0.0), (0, 0.0), (7, 7.0), (0.25, 0.25)])
def test_values_are_read_as_theirs(theirs: Any, value: Any, cell: float) -> None:
    """Integers are strings in the data; an explicit null is zero, and still makes a row."""
    data = nested(collection(metric(U, point(value))))
    [ours], [row] = flatten_metrics_for_hf(data), theirs(data)
    assert ours["gpu_utilization_percent"] == row["gpu_utilization_percent"] == cell


def test_what_is_unknown_is_called_as_theirs(theirs: Any) -> None:
    """No run id and no service name: unknown; no GPU name: none."""
    data = {"resourceMetrics": [collection(metric(U, point(5)))]}
    [ours], [row] = flatten_metrics_for_hf(data), theirs(data)
    assert ours["run_id"] == row["run_id"] == "unknown"
    assert ours["service_name"] == row["service_name"] == "unknown"
    assert ours["gpu_name"] is row.get("gpu_name") is None


# -- the flattener, where theirs is wrong


def _rows(data: Any, *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row[c] for c in columns) for row in flatten_metrics_for_hf(data)]


def test_four_gpus_are_four_rows(theirs: Any) -> None:
    """Theirs shows the first GPU only, with a quarter of the truth."""
    points = [point(10 * (n + 1), gpu=str(n)) for n in range(4)]
    data = nested(collection(metric(U, *points)))
    assert [row["gpu_id"] for row in theirs(data)] == ["0"]
    assert _rows(data, "gpu_id", "gpu_utilization_percent") == [
        ("0", 10), ("1", 20), ("2", 30), ("3", 40)
    ]  # fmt: skip


def test_several_instants_in_one_metric_are_several_rows(theirs: Any) -> None:
    """Theirs reads the first data point of a metric and drops the others."""
    times = [T0 + n * 10**10 for n in range(12)]
    data = nested(collection(metric(U, *[point(n, at=t) for n, t in enumerate(times)])))
    assert len(theirs(data)) == 1
    assert _rows(data, "timestamp_unix_nano", "gpu_utilization_percent") == [
        (str(t), n) for n, t in enumerate(times)
    ]


def test_two_services_at_one_instant_stay_apart(theirs: Any) -> None:
    """Theirs writes the values of one into the row of the other."""
    data = nested(
        collection(metric(U, point(10)), **{"service.name": "a"}),
        collection(metric(U, point(90)), **{"service.name": "b"}),
    )
    assert [row["service_name"] for row in theirs(data)] == ["a"]
    assert _rows(data, "service_name", "gpu_utilization_percent") == [("a", 10), ("b", 90)]


def test_two_collections_close_together_stay_apart() -> None:
    """A forced collection soon after a regular one is an instant of its own."""
    soon = T0 + 10**10 + 3 * 10**8
    data = nested(
        collection(metric(U, point(1))),
        collection(metric(U, point(2, at=T0 + 10**10))),
        collection(metric(C, point(5.0, at=soon), kind="sum"), metric(U, point(3, at=soon))),
    )
    assert _rows(data, "gpu_utilization_percent", "co2_emissions_gco2e") == [
        (1, 0), (2, 0), (3, 5)
    ]  # fmt: skip


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/New_York"])
def test_the_time_is_utc_wherever_the_machine_is(zone: str) -> None:
    """One instant is one text, in any zone; theirs was local and did not say so."""
    script = (
        "import json, sys; from hubmeter.smoltrace import flatten_metrics_for_hf as flatten;"
        "print(flatten(json.loads(sys.argv[1]))[0]['timestamp'])"
    )
    data = json.dumps(nested(collection(metric(U, point(1)))))
    done = subprocess.run(
        [sys.executable, "-c", script, data],
        env={**os.environ, "TZ": zone},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "2025-10-27T05:58:15.460017+00:00\n"


def test_a_whole_second_keeps_its_digits(theirs: Any) -> None:
    """Texts of two formats make a column that pandas cannot read."""
    data = nested(collection(metric(U, point(1, at=1_761_544_695 * 10**9))))
    assert "." not in theirs(data)[0]["timestamp"]
    assert _rows(data, "timestamp") == [("2025-10-27T05:58:15.000000+00:00",)]


def test_attributes_overwrite_nothing(theirs: Any) -> None:
    """A point that calls itself a run id or a power stays what it is."""
    evil = point(5, run_id="evil", timestamp="never", gpu_power_watts="a lot")
    data = nested(collection(metric(U, evil)))
    assert theirs(data)[0]["run_id"] == "evil"
    assert _rows(data, "run_id", "timestamp", "gpu_power_watts") == [
        ("run", "2025-10-27T05:58:15.460017+00:00", 0.0)
    ]


def test_every_row_has_exactly_the_thirteen_columns(theirs: Any) -> None:
    """Further metrics, arrays and names that collide add no column and change none."""
    tags = {"key": "tags", "value": {"arrayValue": {"values": [{"stringValue": "x"}]}}}
    odd = {**point(3), "attributes": [*point(3)["attributes"], tags]}
    data = nested(
        collection(metric("gen_ai.server.requests.running", point(1, gpu=None))),
        collection(metric(U, odd), metric("gpu.id", point(9))),
    )
    assert {"tags", "gen_ai_server_requests_running"} & set(theirs(data)[0])
    [row] = flatten_metrics_for_hf(data)
    assert tuple(row) == SEED_COLUMNS
    assert (row["gpu_id"], row["gpu_utilization_percent"]) == ("0", 3.0)


def test_server_gauges_alone_are_not_a_gpu_at_rest(theirs: Any) -> None:
    """Without a GPU there is no row, so smoltrace says itself that there were no metrics."""
    data = nested(collection(metric("gen_ai.server.requests.running", point(1, gpu=None))))
    assert theirs(data)[0]["gpu_temperature_celsius"] == 0.0
    assert flatten_metrics_for_hf(data) == []


def test_delta_sums_add_up_and_restarts_continue() -> None:
    """5 + 5 + 5 are 15; 100, then 2 after a restart are 102."""
    times = [T0 + n * 10**10 for n in range(3)]
    for values, temporality, expected in (
        ([5.0, 5.0, 5.0], 1, [5, 10, 15]),
        ([60.0, 100.0, 2.0], 2, [60, 100, 102]),
    ):
        points = [point(value, at=time) for value, time in zip(values, times, strict=True)]
        data = nested(collection(metric(C, *points, kind="sum", temporality=temporality)))
        assert _rows(data, "co2_emissions_gco2e") == [(value,) for value in expected]


def test_nothing_is_derived() -> None:
    """Power alone does not make emissions or costs."""
    points = [point(300.0, at=T0 + n * 10**10) for n in range(10)]
    data = nested(collection(metric(P, *points)))
    assert set(_rows(data, "co2_emissions_gco2e", "power_cost_usd")) == {(0.0, 0.0)}


GOOD = metric(P, point(100.0))


@pytest.mark.parametrize(
    "broken",
    [
        {**collection(GOOD), "resource": None},
        collection(GOOD, None, "text", {}),
        collection(GOOD, metric(U, None)),
        collection(GOOD, metric(U, {**point(1), "timeUnixNano": "yesterday"})),
        collection(GOOD, metric(U, {**point(1), "attributes": None}, point(1))),
        collection(GOOD, metric(U, {**point(1), "asInt": "many"})),
        collection(GOOD, {"name": U, "gauge": {"dataPoints": {}}}),
    ],
)
def test_a_broken_record_costs_itself_only(broken: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Theirs loses the whole run; ours keeps the rest and says what is missing."""
    rows = _rows(nested(None, broken), "gpu_id", "gpu_power_watts")
    assert ("0", 100.0) in rows
    assert "hubmeter: 1 x an item of resourceMetrics is null" in caplog.text


@pytest.mark.parametrize("data", [{"resource_metrics": [collection(GOOD)]}, {"resourceMetrics": 3}])
def test_data_of_another_shape_is_reported(data: Any, caplog: pytest.LogCaptureFixture) -> None:
    """No rows, but not silently."""
    assert flatten_metrics_for_hf(data) == []
    assert len(caplog.records) == 1


KEYS = st.sampled_from(
    ["resourceMetrics", "resource", "attributes", "scopeMetrics", "metrics", "name", "gauge", "sum",
     "dataPoints", "key", "value", "stringValue", "asInt", "asDouble", "timeUnixNano", "run_id",
     "aggregationTemporality", "flags", "exemplars", "startTimeUnixNano", "unit", "scope"]
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(
    [U, C, "gpu_id", "0", str(T0), 2**64, "\ud800", object]
)  # fmt: skip
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)
)
ODD_POINTS = st.dictionaries(KEYS, ANYTHING, max_size=4).map(lambda odd: {**point(1), **odd})
ODD_METRICS = st.builds(
    lambda name, kind, points: metric(name, *points, kind=kind),
    st.sampled_from([U, C, P, "other"]),
    st.sampled_from(["gauge", "sum", "histogram", "summary", "exponentialHistogram"]),
    st.lists(ODD_POINTS | ANYTHING, max_size=3),
)
ODD_COLLECTIONS = st.lists(
    st.lists(ODD_METRICS | ANYTHING, max_size=3).map(lambda metrics: collection(*metrics))
    | ANYTHING,
    max_size=3,
)


ODD_DATA = ANYTHING | st.builds(
    lambda collections, run_id: nested(*collections, run_id=run_id), ODD_COLLECTIONS, LEAVES
)


@settings(max_examples=300, deadline=None)
@given(ODD_DATA)
def test_nothing_can_make_it_raise(data: Any) -> None:
    """Whatever the data, the answer is a list of complete rows of the right types."""
    for row in flatten_metrics_for_hf(data):
        assert tuple(row) == SEED_COLUMNS
        assert all(isinstance(row[column], float) for column in SEED_METRICS)
        assert pa.array([row["run_id"], row["timestamp"], row["service_name"]]).type == pa.string()


def _shape(value: Any) -> Any:
    """The structure without identifiers, times and measured numbers."""
    if isinstance(value, dict):
        return {key: _shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shape(item) for item in value]
    return "number" if isinstance(value, int | float) else type(value).__name__


def _series_of(metric_data: Mapping[str, Any]) -> set[tuple[str, str, str | None]]:
    """Metric name, unit and GPU id of everything that smoltrace collected."""
    return {
        (metric["name"], metric["unit"], _gpu_of(point))
        for batch in metric_data["resourceMetrics"]
        for scope in batch["scopeMetrics"]
        for metric in scope["metrics"]
        for kind in ("gauge", "sum", "histogram")
        for point in metric.get(kind, {}).get("dataPoints", [])
    }


def _gpu_of(point: Mapping[str, Any]) -> str | None:
    attributes = {pair["key"]: pair["value"].get("stringValue") for pair in point["attributes"]}
    return attributes.get("gpu_id")
