"""
Publishing to a Hub that takes 60 ms per request, beside smoltrace's push of the same run.

The Hub is a loopback server, both sides use the real clients. Each side is a process of its
own, because the clients read where the Hub is when they are imported::

    publishing.py theirs    smoltrace pushes the seed run, and its card
    publishing.py ours      hubmeter publishes the same run
    publishing.py agent     a program with eight GPUs that waits to be terminated
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = str(Path(__file__).parents[1] / "tests")
if __name__ == "__main__":
    sys.path.append(TESTS)

from report import Result
from shapes import METRICS, LiveGpus

from hubmeter.deadline import Deadline
from hubmeter.decode.otlp_json import JsonDecoder
from hubmeter.pipeline import Pipeline
from hubmeter.settings import Settings, load_settings
from hubmeter.sources.sdk_exporter import HubMetricExporter
from loopback_hub import LoopbackHub
from seedlike import RUN_ID, publish, seed_run

DELAY_S = 0.06
ROUNDS = 5
COLLECTIONS = 917
OURS, THEIRS, AGENTS = "me/hubmeter", "me/smoltrace-metrics", "me/agent"
REPOS = {"theirs": THEIRS, "ours": OURS}


@dataclass(frozen=True, slots=True)
class Push:
    """What it took to bring one run to the Hub."""

    seconds: float
    requests: int
    commits: int


def measure() -> Iterator[Result]:
    pushes: dict[str, list[Push]] = {side: [] for side in REPOS}
    for _ in range(ROUNDS):
        for side, seen in pushes.items():
            seen.append(_push(side))
    yield from _compared(pushes["theirs"], pushes["ours"])
    endings = [_seconds_to_end() for _ in range(ROUNDS)]
    yield Result(what="SIGTERM to process end, 51,352 points, 60 ms per request", unit="s",
                 ours=statistics.median(endings))  # fmt: skip
    for gpus in (8, 1):
        yield Result(what=f"journal per point, {gpus} GPU x 7 metrics", unit="B",
                     ours=_journal_bytes_per_point(gpus))  # fmt: skip


def _compared(theirs: list[Push], ours: list[Push]) -> Iterator[Result]:
    yield Result(
        what="publish the seed run to a Hub, 60 ms per request",
        unit="s",
        peer_name="smoltrace push_results_to_hf",
        peer=statistics.median(push.seconds for push in theirs),
        ours=statistics.median(push.seconds for push in ours),
        limit=0.45,
    )
    for what, limit in (("requests", 7), ("commits", 1)):
        peer, own = (max(getattr(push, what) for push in side) for side in (theirs, ours))
        yield Result(what=f"{what} to publish it", unit="", ours=own, limit=limit)
        yield Result(what="the same beside smoltrace's push", unit="", ours=own, peer=peer,
                     peer_name="smoltrace push_results_to_hf")  # fmt: skip


def _push(side: str) -> Push:
    """Let *side* publish the seed run to a repository that is not there yet."""
    with LoopbackHub(delay_s=DELAY_S) as hub, tempfile.TemporaryDirectory() as home:
        command = [sys.executable, __file__, side]
        environment = _environment(hub, Path(home))
        ended = subprocess.run(command, env=environment, cwd=home, capture_output=True, check=False)
        assert ended.returncode == 0, ended.stderr.decode()
        began_s, ended_s = json.loads(ended.stdout)
        repo = hub.repo(REPOS[side])
        assert repo is not None
        assert any(path.endswith(".parquet") for path in repo.files), list(repo.files)
        # New repositories on the Hub have this file; in an empty one the peer's client asks more.
        assert ".gitattributes" in repo.files
        # Both ends read the same monotonic clock.
        requests = sum(request.at_s > began_s for request in hub.requests)
        return Push(ended_s - began_s, requests, len(repo.commits))


def _environment(hub: LoopbackHub, home: Path) -> dict[str, str]:
    """For a program that knows no settings but the Hub and where to publish."""
    foreign = ("HUBMETER_", "OTEL_", "HF_", "GENAI_", "CODECARBON_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    paths = os.pathsep.join([TESTS, str(Path(__file__).parent)])
    # With xet the uploads of datasets need a second server, which the loopback Hub does not have.
    chosen = {"HUBMETER_TO": AGENTS, "PYTHONPATH": paths, "HF_HUB_DISABLE_XET": "1"}
    return {**kept, **hub.environment(home), **chosen}


def push_as_smoltrace() -> tuple[float, float]:
    """
    Monotonic seconds at which smoltrace began and ended to push the metrics and their card.

    It pushes its results first, which also loads and connects whatever a push needs. The
    line that it prints after these tells where the metrics begin.
    """
    from smoltrace.utils import push_results_to_hf

    nested = seed_run().nested()
    lines = _TimedLines()
    with contextlib.redirect_stdout(lines):
        push_results_to_hf(
            {"tool": [_one_result()]},
            [],
            nested,
            "me/smoltrace-results",
            "me/smoltrace-traces",
            THEIRS,
            model_name="model",
            hf_token=None,
            private=True,
            run_id=RUN_ID,
        )
    return (
        lines.seen_s["[OK] Uploaded dataset card to me/smoltrace-results"],
        lines.seen_s[f"[OK] Uploaded dataset card to {THEIRS}"],
    )


class _TimedLines(io.StringIO):
    """Takes text, and knows when which line came."""

    def __init__(self) -> None:
        super().__init__()
        self.seen_s: dict[str, float] = {}

    def write(self, text: str) -> int:
        self.seen_s.setdefault(text, time.monotonic())
        return len(text)


def _one_result() -> dict[str, object]:
    texts = dict.fromkeys(("test_id", "agent_type", "difficulty", "prompt", "response"), "tool")
    checks = dict.fromkeys(("success", "tool_called", "correct_tool", "final_answer_called"), True)
    return {**texts, **checks, "tools_used": ["tool"], "steps": 1}


def push_as_hubmeter() -> tuple[float, float]:
    """Monotonic seconds at which the end of a run began and was done; the second run of two."""
    nested = seed_run().nested()
    publish({**nested, "resourceMetrics": nested["resourceMetrics"][:1]}, Path("me/warm-up"))
    pipeline, decoder = Pipeline(load_settings(to=OURS)), JsonDecoder()
    pipeline.consume(decoder.decode(nested))
    began_s = time.monotonic()
    pipeline.close(Deadline.after(30))
    return began_s, time.monotonic()


def _seconds_to_end() -> float:
    """From SIGTERM to the end of a program whose run is then on the Hub."""
    with LoopbackHub(delay_s=DELAY_S) as hub, tempfile.TemporaryDirectory() as home:
        agent = subprocess.Popen(
            [sys.executable, __file__, "agent"],
            env=_environment(hub, Path(home)),
            cwd=home,
            stdout=subprocess.PIPE,
        )
        with agent:
            assert agent.stdout is not None
            assert agent.stdout.readline() == b"ready\n"
            began_s = time.monotonic()
            agent.terminate()
            assert agent.wait(timeout=60) in (-signal.SIGTERM, 128 + signal.SIGTERM)
            ended_s = time.monotonic()
        repo = hub.repo(AGENTS)
        assert repo is not None
        assert len(repo.commits) == 1
        return ended_s - began_s


def work_until_terminated() -> None:
    """An agent with a run of eight GPUs, long enough at work to have loaded everything."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    exporter = HubMetricExporter()
    live = LiveGpus(8)
    for _ in range(COLLECTIONS):
        exporter.export(live.collect())
    provider = MeterProvider([PeriodicExportingMetricReader(exporter)])
    time.sleep(3)
    print("ready", flush=True)
    time.sleep(60)
    provider.shutdown()


class _Nowhere:
    def publish(self, shards: object, deadline: object) -> None: ...


def _journal_bytes_per_point(gpus: int) -> float:
    """Size of the journal of a run that goes on, layouts and all."""
    live = LiveGpus(gpus)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Pipeline(Settings(journal_dir=folder), sink=_Nowhere())
        exporter = HubMetricExporter(pipeline=pipeline)
        for _ in range(COLLECTIONS):
            exporter.export(live.collect())
        size = sum(path.stat().st_size for path in Path(folder).glob("*.journal"))
        exporter.shutdown()
    return size / (COLLECTIONS * gpus * len(METRICS))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["theirs"]:
            print(json.dumps(push_as_smoltrace()))
        case ["ours"]:
            print(json.dumps(push_as_hubmeter()))
        case ["agent"]:
            work_until_terminated()
        case _:
            from report import table

            print(table(list(measure())))
