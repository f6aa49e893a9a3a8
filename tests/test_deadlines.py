"""What a program granted for its shutdown, and what a Hub makes of it that does not answer."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hubmeter.pipeline import MEMORY_ONLY_S
from loopback_hub import Fault, LoopbackHub
from observed import program, run, undisturbed  # noqa: F401

SHUTDOWN = """
import json
exporter = HubMetricExporter()
provider = provider_of(exporter, shutdown_on_exit=False)
measure(provider, 7)
provider.force_flush()
started = time.monotonic()
exporter.shutdown(**{budget})
print(time.monotonic() - started, flush=True)
"""

BUDGETS = {
    "timeout_millis": ({"timeout_millis": 400}, 0.4),
    "timeout": ({"timeout": 400.0}, 0.4),
    "both": ({"timeout_millis": 30_000, "timeout": 400.0}, 0.4),
    "negative": ({"timeout": -0.15}, 0),
    "nothing": ({"timeout_millis": 0}, 0),
}
LATE_S = 1.5
"""A machine that does other things too."""


@pytest.fixture(name="hub")
def _hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub
        assert hub.errors == []


def _shut_down(
    hub: LoopbackHub, folder: Path, budget: dict[str, float], *, ends: str = "", **more: str
) -> tuple[float, str]:
    """Seconds that a shutdown took, and what the program said on stderr."""
    code = SHUTDOWN.format(budget=budget) + ends
    environment = hub.environment(folder / "home") | {"HUBMETER_TO": "me/x", **more}
    ended = run(program(code, folder), **environment)
    assert ended.returncode == 0, ended.stderr
    return float(json.loads(ended.stdout)), ended.stderr


@pytest.mark.parametrize("spelling", BUDGETS)
def test_a_shutdown_takes_what_was_granted(spelling: str, hub: LoopbackHub, tmp_path: Path) -> None:
    """The SDK says `timeout`, people say `timeout_millis`, and it may have run out already."""
    hub.faults.append(Fault(on="create", hang=True, times=math.inf))
    budget, granted_s = BUDGETS[spelling]

    took_s, _ = _shut_down(hub, tmp_path, budget, ends="os._exit(0)")

    assert 0.95 * granted_s <= took_s < granted_s + LATE_S


def test_a_run_that_is_in_memory_only_is_waited_for(hub: LoopbackHub, tmp_path: Path) -> None:
    """To leave after what was granted would lose it."""
    hub.faults.append(Fault(on="create", delay_s=3))

    took_s, said = _shut_down(hub, tmp_path, {"timeout": 400.0}, HUBMETER_JOURNAL_DIR="off")

    assert 3 <= took_s < MEMORY_ONLY_S
    assert said == ""
    [shard] = [path for path in hub.repo("me/x").files if path.endswith(".parquet")]
    table = pq.read_table(io.BytesIO(hub.repo("me/x").files[shard]))
    assert table["gpu_power_watts"].to_pylist() == [7]


def test_a_run_that_is_in_memory_only_is_not_waited_for_without_end(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    """A Hub that never answers: half a minute, and one line that says what is lost."""
    hub.faults.append(Fault(on="create", hang=True, times=math.inf))

    took_s, said = _shut_down(hub, tmp_path, {"timeout": 400.0}, HUBMETER_JOURNAL_DIR="off")

    assert 10 < took_s < MEMORY_ONLY_S + LATE_S
    [line] = said.splitlines()
    assert line.endswith("There is no journal: the rows are lost when this process ends"
                         " (exporter.table())")  # fmt: skip
