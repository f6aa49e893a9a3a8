"""Programs that are killed, what they leave in a journal directory, and commands that follow."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from click.testing import CliRunner

from hubmeter.cli import main

HUBMETER = (sys.executable, "-m", "hubmeter")

HEAD = """
import os, signal, sys, threading, time
from hubmeter.deadline import Deadline
from hubmeter.decode.otlp_json import JsonDecoder
from hubmeter.errors import JournalError, PublishError
from hubmeter.pipeline import Pipeline
from hubmeter.settings import load_settings

T0 = 1_761_544_695_000_000_000

def number(value, second, gpu="0"):
    attributes = [{"key": "gpu_id", "value": {"stringValue": gpu}}]
    time = T0 + int(second * 1e9)
    return {"timeUnixNano": str(time), "asDouble": value, "attributes": attributes}

def power(*watts, first=0):
    points = [number(value, second) for second, value in enumerate(watts, first)]
    return {"name": "gen_ai.gpu.power", "unit": "W", "gauge": {"dataPoints": points}}

def request(*metrics, run_id=None):
    named = [{"key": "run.id", "value": {"stringValue": run_id}}] if run_id else []
    scopes = [{"scope": {"name": "t"}, "metrics": list(metrics)}]
    return {"resourceMetrics": [{"resource": {"attributes": named}, "scopeMetrics": scopes}]}

def begin(to, run_id, **settings):
    return Pipeline(load_settings(to=to, run_id=run_id, journal_dir="journal", **settings))

def feed(pipeline, *watts, first=0):
    for second, value in enumerate(watts, first):
        pipeline.consume(JsonDecoder().decode(request(power(value, first=second))))
    return pipeline

def cut(pipeline):
    with pipeline._lock:
        pipeline._cut(None)

def soon():
    return Deadline.after(30)

def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""


def program(code: str, folder: Path) -> list[str]:
    """The command that runs *code*, after `HEAD`."""
    path = folder / "agent.py"
    path.write_text(HEAD + textwrap.dedent(code))
    return [sys.executable, str(path)]


def kill(code: str, folder: Path, **environment: str) -> None:
    """Run *code* in *folder*, then SIGKILL; its journals are in *folder*/journal."""
    done = run(program(textwrap.dedent(code) + "\ndie()\n", folder), folder, **environment)
    assert done.returncode == -9, done.stderr


def run(
    command: list[str], folder: Path, *, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run *command* in *folder* to its end."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        input=stdin,
        capture_output=True,
        timeout=100,
        check=False,
    )
    return subprocess.CompletedProcess(
        command, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def hubmeter(
    *arguments: str, folder: Path, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of ours in *folder*."""
    return run([*HUBMETER, *arguments], folder, stdin=stdin, **environment)


def invoke(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The same within this process, which is quicker; Ctrl-C stays what it was."""
    before = signal.getsignal(signal.SIGINT)
    try:
        done = CliRunner().invoke(main, arguments)
    finally:
        signal.signal(signal.SIGINT, before)
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def journals(folder: Path) -> list[Path]:
    """What waits in *folder*/journal, with its sealed files."""
    return sorted(folder.glob("journal/*.*"))


def contents(folder: Path) -> dict[str, bytes]:
    """The Parquet files in *folder*, by path."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.parquet")}


def rows(files: Mapping[str, bytes], config: str = "default") -> list[dict[str, Any]]:
    """Rows of all shards in *files*, in order of run and time."""
    found = [
        row
        for path, content in files.items()
        if path.startswith(f"data/{config}/")
        for row in pq.read_table(io.BytesIO(content)).to_pylist()
    ]
    return sorted(found, key=lambda row: (row["run_id"], row["timestamp"], row.get("gpu_id") or ""))


def watts(files: Mapping[str, bytes]) -> list[float]:
    """The power in each row."""
    return [row["gpu_power_watts"] for row in rows(files)]


def metadata(files: Mapping[str, bytes]) -> list[dict[str, str]]:
    """Ours in each shard, once per shard."""
    shards = {path.rsplit("/", 1)[1]: content for path, content in sorted(files.items())}
    return [
        {
            key.decode().removeprefix("hubmeter."): value.decode()
            for key, value in pq.read_metadata(io.BytesIO(content)).metadata.items()
            if key.startswith(b"hubmeter.")
        }
        for content in shards.values()
    ]


def received(files: Mapping[str, bytes]) -> int:
    """
    How many points all shards in *files* received, as they say themselves.

    Each of them adds up, and has those that it published: one in a row, as its power.
    """
    shards = {path: content for path, content in files.items() if path.startswith("data/default/")}
    total = 0
    for path, content in shards.items():
        [said] = metadata({path: content})
        rejected = sum(json.loads(said["rejected"]).values())
        published = sum(value is not None for value in watts({path: content}))
        assert (int(said["points_published"]), int(said["points_rejected"])) == (
            published,
            rejected,
        )
        assert int(said["points_received"]) == published + rejected
        total += published + rejected
    return total
