"""Every example of the README is executed, in order, in one folder, as a reader would."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopback_hub import LoopbackHub

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)

AGENT = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
if not isinstance(metrics.get_meter_provider(), MeterProvider):  # not auto-instrumented
    from hubmeter import gpu_meter_provider
    metrics.set_meter_provider(gpu_meter_provider())
metrics.get_meter("agent").create_counter("steps").add(3)
"""

METRICS = {
    "run_id": "readme",
    "resourceMetrics": [
        {
            "scopeMetrics": [
                {
                    "metrics": [
                        {
                            "name": "gen_ai.gpu.temperature",
                            "unit": "Cel",
                            "gauge": {
                                "dataPoints": [
                                    {"timeUnixNano": "1761544695460017300", "asInt": "61"}
                                ]
                            },
                        }
                    ]
                }
            ]
        }
    ],
}


@pytest.fixture(name="hub", scope="module")
def _hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory, hub: LoopbackHub) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    (folder / "agent.py").write_text(AGENT)
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "environment.json").write_text(json.dumps(hub.environment(folder / "home")))
    return folder


def execute(command: list[str], folder: Path) -> str:
    env = {
        **os.environ,
        **json.loads((folder / "environment.json").read_text()),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",  # nobody receives here
    }
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


def commands(block: str) -> list[str]:
    lines = block.replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


def test_there_are_examples() -> None:
    """
    The pattern that finds them still fits the README.
    """
    assert [language for language, _ in BLOCKS].count("python") >= 2
    assert [language for language, _ in BLOCKS].count("sh") >= 4


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_an_example_of_the_readme_runs(number: int, folder: Path) -> None:
    """
    Code and commands run as they stand; ``make`` targets exist.
    """
    language, block = BLOCKS[number]
    if language == "python":
        execute([sys.executable, "-c", block], folder)
        return
    for command in commands(block):
        if command.startswith("make "):
            execute(["make", "-n", "-C", str(ROOT), *shlex.split(command)[1:]], folder)
        else:
            execute(["sh", "-ec", command], folder)


def test_the_examples_left_what_they_promise(folder: Path, hub: LoopbackHub) -> None:
    """
    The recorded runs and the flattened file can be opened; what was pushed is on the Hub.
    """
    assert len(hub.repo("me/run-metrics").commits) == 2  # an agent, and a file
    from hubmeter import open_dataset

    assert open_dataset(folder / "hubmeter-data").num_rows >= 1
    assert "steps" in open_dataset(folder / "hubmeter-data", "points")["metric_name"].to_pylist()
    assert "steps" in open_dataset(folder / "hubmeter-data", "points")["metric_name"].to_pylist()
    rows = open_dataset(folder / "rows.parquet")
    assert rows["gpu_temperature_celsius"].to_pylist() == [61.0]


def test_the_readme_names_every_setting_and_command() -> None:
    """
    What ``--help`` and ``doctor`` know, the README knows too.
    """
    from hubmeter.cli import main
    from hubmeter.settings import SETTINGS

    for setting in SETTINGS:
        assert setting.variable in README
    for name, command in main.commands.items():
        assert command.hidden or f"hubmeter {name}" in README


def test_the_architecture_names_every_module() -> None:
    """
    A stranger can find each module of the package in ARCHITECTURE.md.
    """
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    package = ROOT / "src" / "hubmeter"
    for path in package.rglob("*.py"):
        if not path.name.startswith("__"):
            assert re.search(rf"`([a-z_]+/)?{path.stem}`", text), path
