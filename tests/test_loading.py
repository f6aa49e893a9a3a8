"""Loading by name: as the auto-instrumentation and the configuration file do it."""

import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics.export import MetricExporter

from hubmeter import HubMetricExporter
from observed import column, run, shards, undisturbed  # noqa: F401

pytest.importorskip("opentelemetry.distro")

INSTRUMENT = str(Path(sys.executable).with_name("opentelemetry-instrument"))

AGENT = """
import sys
from opentelemetry import metrics
gauge = metrics.get_meter("agent").create_gauge("gen_ai.gpu.power", "W")
gauge.set(7, {"gpu_id": "0"})
print("answer: 42")
sys.exit(3)
"""

ONLY_METRICS = {
    "OTEL_METRICS_EXPORTER": "hubmeter",
    "OTEL_TRACES_EXPORTER": "none",
    "OTEL_LOGS_EXPORTER": "none",
    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*",  # those of smoltrace's many dependencies
    "HUBMETER_GPUS": "none",
}


@pytest.fixture(name="agent")
def _agent(tmp_path: Path) -> list[str]:
    (tmp_path / "agent.py").write_text(AGENT)
    return [INSTRUMENT, sys.executable, "agent.py"]


def test_the_entry_point_is_a_class_that_needs_no_arguments(tmp_path: Path) -> None:
    """The SDK takes classes only, and calls them without arguments."""
    [entry] = entry_points(group="opentelemetry_metrics_exporter", name="hubmeter")
    loaded = entry.load()
    assert loaded is HubMetricExporter
    assert issubclass(loaded, MetricExporter)
    loaded().shutdown()
    assert len(shards(tmp_path / "hubmeter-data")) == 1


def test_an_agent_that_knows_nothing_of_it_leaves_a_dataset(
    tmp_path: Path, agent: list[str]
) -> None:
    """`OTEL_METRICS_EXPORTER=hubmeter opentelemetry-instrument python agent.py`."""
    ended = run(agent, **ONLY_METRICS, OTEL_SERVICE_NAME="agent", HUBMETER_RUN_ID="r1")

    assert (ended.returncode, ended.stdout) == (3, "answer: 42\n")
    assert ended.stderr == ""
    folder = tmp_path / "hubmeter-data"
    assert column(folder, "gpu_power_watts") == [7]
    assert column(folder, "service_name") == ["agent"]
    assert column(folder, "run_id") == ["r1"]


def test_the_gpu_hook_does_not_disturb_an_agent_on_a_machine_without_gpus(
    tmp_path: Path, agent: list[str]
) -> None:
    """With the GPUs that there are, if any, the agent's own metrics are still in the dataset."""
    ended = run(agent, **{**ONLY_METRICS, "HUBMETER_GPUS": "visible"})

    assert (ended.returncode, ended.stdout) == (3, "answer: 42\n")
    assert "Traceback" not in ended.stderr
    assert 7 in column(tmp_path / "hubmeter-data", "gpu_power_watts")


def test_it_works_beside_other_exporters(tmp_path: Path, agent: list[str]) -> None:
    """A list of exporters is a list of readers."""
    ended = run(agent, **{**ONLY_METRICS, "OTEL_METRICS_EXPORTER": "console,hubmeter"})

    assert ended.returncode == 3
    assert '"gen_ai.gpu.power"' in ended.stdout
    assert column(tmp_path / "hubmeter-data", "gpu_power_watts") == [7]


def test_each_python_child_is_a_shard_of_its_own(tmp_path: Path, agent: list[str]) -> None:
    """The auto-instrumentation loads itself into children; nothing gets mixed up."""
    (tmp_path / "parent.py").write_text(
        "import subprocess, sys\nsubprocess.run([sys.executable, 'agent.py'])\n"
    )
    ended = run([*agent[:-1], "parent.py"], **ONLY_METRICS)

    assert (ended.returncode, ended.stderr) == (0, "")
    folder = tmp_path / "hubmeter-data"
    assert len(shards(folder)) == 2
    assert [watts for watts in column(folder, "gpu_power_watts") if watts is not None] == [7]


@pytest.mark.parametrize(
    "variable",
    [{"HUBMETER_TO": "/dev/full/x"}, {"HUBMETER_PUE": "much"}, {"HUBMETER_MISSING": "perhaps"}],
    ids=str,
)
def test_wrong_settings_do_not_switch_off_opentelemetry(
    agent: list[str], variable: dict[str, str]
) -> None:
    """An exporter that raised would take the traces with it."""
    ended = run(agent, **ONLY_METRICS, **variable)

    assert (ended.returncode, ended.stdout) == (3, "answer: 42\n")
    [line] = ended.stderr.splitlines()
    assert "Failed to auto initialize" not in line
    assert next(iter(variable.values())) in line


def test_switched_off_it_leaves_no_trace(tmp_path: Path, agent: list[str]) -> None:
    """HUBMETER_DISABLED works without touching the command line."""
    ended = run(agent, **ONLY_METRICS, HUBMETER_DISABLED="1")

    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "answer: 42\n", "")
    assert not (tmp_path / "hubmeter-data").exists()


CONFIGURATION = """
file_format: "1.0"
meter_provider:
  readers:
    - periodic:
        interval: 60000
        exporter: {{hubmeter: {arguments}}}
"""


@pytest.mark.parametrize(
    ("arguments", "folder", "warnings"),
    [
        ("{to: data, run_id: r1}", "data", 0),
        ("null", "hubmeter-data", 0),
        ("{}", "hubmeter-data", 0),
        ("{repo: org/ds, token: secret, to: data}", "data", 1),
        ("{to: {nested: 1}, preferred_temporality: delta}", "hubmeter-data", 2),
    ],
)
def test_a_configuration_file_loads_it(
    tmp_path: Path, agent: list[str], arguments: str, folder: str, warnings: int
) -> None:
    """`OTEL_CONFIG_FILE` hands its mapping over as arguments, known or not."""
    pytest.importorskip("opentelemetry.configuration")
    (tmp_path / "otel.yaml").write_text(CONFIGURATION.format(arguments=arguments))
    ended = run(agent, OTEL_CONFIG_FILE="otel.yaml", HUBMETER_GPUS="none")

    assert (ended.returncode, ended.stdout) == (3, "answer: 42\n")
    assert ended.stderr.count("hubmeter: ") == warnings, ended.stderr
    assert column(tmp_path / folder, "gpu_power_watts") == [7]
