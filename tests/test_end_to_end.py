"""Agents, a real Collector and `hubmeter serve`: what was sent is in the dataset, each once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agents.node.install import modules
from collector_runs import (
    CONFIGS,
    HUBMETER,
    ONLY_OTLP,
    Dcgm,
    Hubmeter,
    QueueingCollector,
    Sender,
    Unheard,
    each_once,
    listening,
    send_span,
    spans,
    spelled,
    steps,
    steps_of,
    table,
    until,
)
from observed import undisturbed  # noqa: F401
from real_collector import QUIET, Collector, collector_binary, needs_collector
from receivers import certificates

AGENTS = Path(__file__).parent / "agents"
PYTHON_AGENT = [sys.executable, str(AGENTS / "python_agent.py")]
NODE_AGENT = ["node", str(AGENTS / "node/agent.js")]
AT_ONCE = {"flush_timeout": "1ms", "min_size": 1}
"""Many small requests, so that there is always one under way."""
OTLP_GRPC = {
    "endpoint": "${env:HUBMETER_GRPC}",
    "tls": {"insecure": True},
    "compression": "gzip",
    "sending_queue": {"storage": "file_storage", "block_on_overflow": True, "batch": AT_ONCE},
    "retry_on_failure": {"max_elapsed_time": 0, "initial_interval": "100ms", "max_interval": "1s"},
}
BY = {
    "http": (f"yaml:exporters::otlp_http::sending_queue::batch: {json.dumps(AT_ONCE)}",),
    "grpc": (
        f"yaml:exporters::otlp_grpc: {json.dumps(OTLP_GRPC)}",
        "yaml:service::pipelines::metrics::exporters: [otlp_grpc]",
    ),
}
"""What makes of ``agent.yaml`` a Collector that sends at once, by either protocol."""
NOT_NOW = {"http": "HTTP Status Code 503", "grpc": "code = Unavailable"}
CUT_OFF = re.compile("EOF|connection reset")
"""What a Collector says of a request that had no answer."""

pytestmark = needs_collector


# -- ways


WAYS = {
    "grpc-none": ("otlp_grpc", {"compression": "none"}),
    "grpc-gzip": ("otlp_grpc", {"compression": "gzip"}),
    **{
        f"http-{encoding}-{compression}": (
            "otlp_http",
            {"encoding": encoding, "compression": compression},
        )
        for encoding in ("proto", "json")
        for compression in ("none", "gzip", "zstd", "zlib")
    },
}


REFUSED = {
    "grpc-snappy": ("otlp_grpc", {"compression": "snappy"}),
    "grpc-zstd": ("otlp_grpc", {"compression": "zstd"}),
    "http-lz4": ("otlp_http", {"compression": "lz4"}),
    "http-snappy": ("otlp_http", {"compression": "snappy"}),
}


def every_way(hubmeter: Hubmeter, ways: Mapping[str, Any] = WAYS) -> dict[str, Any]:
    """A Collector that sends what it gets in each way, as a run of its own."""
    exporters, processors, pipelines = {}, {}, {}
    for way, (exporter, options) in ways.items():
        address = hubmeter.target if exporter == "otlp_grpc" else hubmeter.url
        where = {"endpoint": address, "tls": {"insecure": True}}
        exporters[f"{exporter}/{way}"] = {**where, **options}
        named = {"key": "run.id", "value": way, "action": "upsert"}
        processors[f"resource/{way}"] = {"attributes": [named]}
        pipelines[f"metrics/{way}"] = {
            "receivers": ["otlp"],
            "processors": [f"resource/{way}"],
            "exporters": [f"{exporter}/{way}"],
        }
    listen = {
        protocol: {"endpoint": f"127.0.0.1:${{env:{protocol.upper()}}}"}
        for protocol in ("grpc", "http")
    }
    return {
        "receivers": {"otlp": {"protocols": listen}},
        "processors": processors,
        "exporters": exporters,
        "service": {"pipelines": pipelines},
    }


def test_each_protocol_encoding_and_compression(tmp_path: Path) -> None:
    """Ten ways from a Collector to hubmeter, of what an SDK sent by both protocols."""
    with (
        Hubmeter(tmp_path).start() as hubmeter,
        Collector(every_way(hubmeter), tmp_path / "c", ports=["HTTP", "GRPC"]) as collector,
    ):
        with Sender(f"http://127.0.0.1:{collector.port('HTTP')}") as by_http:
            by_http.send(20)
        grpc = f"http://127.0.0.1:{collector.port('GRPC')}"
        with Sender(grpc, protocol="grpc", first=101) as by_grpc:
            by_grpc.send(20)
        assert collector.stop() == 0
        hubmeter.stop()

    sent = by_http.acknowledged + by_grpc.acknowledged
    assert len(sent) == 200
    assert hubmeter.steps() == {way: each_once(sent) for way in WAYS}


def test_other_compressions_are_refused_and_dropped(tmp_path: Path) -> None:
    """A Collector does not come again with them; its log says so, and what is taken goes on."""
    good = {"http-gzip": ("otlp_http", {"compression": "gzip"})}
    with (
        Hubmeter(tmp_path).start() as hubmeter,
        Collector(
            every_way(hubmeter, {**REFUSED, **good}), tmp_path / "c", ports=["HTTP", "GRPC"]
        ) as collector,
        Sender(f"http://127.0.0.1:{collector.port('HTTP')}") as sender,
    ):
        sender.send(1)
        for way in REFUSED:
            until(lambda: dropped_by(collector, way), lambda: collector.log)  # noqa: B023
        sender.send(1)
        assert collector.stop() == 0
        hubmeter.stop()

    assert hubmeter.steps() == {"http-gzip": each_once(sender.sent)}
    for way in REFUSED:
        why = "Status Code 415" if way.startswith("http") else "code = Internal"
        assert all(why in line for line in dropped_by(collector, way))
    assert "HTTP 415: the Content-Encoding must be gzip, deflate or zstd, or none" in hubmeter.log


def dropped_by(collector: Collector, name: str) -> list[str]:
    """What its log says of requests that the exporter *name* gave up."""
    lines = collector.log.splitlines()
    return [line for line in lines if "Dropping data" in line and f"/{name}" in line]


def test_a_request_beyond_the_limit_is_dropped_and_does_not_stop_others(tmp_path: Path) -> None:
    """413 is for ever: the Collector says so, does not come again, and its queue goes on."""
    with (
        Hubmeter(tmp_path, HUBMETER_SERVE_LIMIT="1").start() as hubmeter,
        collecting(tmp_path, hubmeter) as collector,
        Sender(collector.url) as sender,
        Sender(collector.url, run_id="r2", service="x" * 2**21) as large,
    ):
        sender.send(1)
        until(lambda: hubmeter.status()["points_acknowledged"] == 5)
        large.send(1)
        until(lambda: "Dropping data" in collector.log, lambda: collector.log)
        sender.send(1)
        assert_all_arrive(collector, hubmeter, sender)

    [line] = [line for line in collector.log.splitlines() if "Dropping data" in line]
    assert "Status Code 413" in line
    assert list(hubmeter.steps()) == ["r1"]


@pytest.mark.parametrize("protocol", BY)
def test_over_tls(protocol: str, tmp_path: Path) -> None:
    """A Collector that trusts the certificate, by either protocol."""
    files = certificates(tmp_path)
    tls = json.dumps({"insecure": False, "ca_file": str(files.certificate)})
    environment = {
        "HUBMETER_SERVE_CERT": str(files.certificate), "HUBMETER_SERVE_KEY": str(files.key)
    }  # fmt: skip
    with (
        Hubmeter(tmp_path, **environment).start() as hubmeter,
        QueueingCollector(
            "agent", tmp_path / "c",
            overrides=[ONLY_OTLP, *BY[protocol], f"yaml:exporters::otlp_{protocol}::tls: {tls}"],
            HUBMETER_ENDPOINT=hubmeter.url.replace("http:", "https:"),
            HUBMETER_GRPC=hubmeter.target,
        ) as collector,
        Sender(collector.url) as sender,
    ):  # fmt: skip
        sender.send(20)
        assert_all_arrive(collector, hubmeter, sender)


# -- ends


def test_a_collector_that_is_killed_loses_nothing_from_its_queue(tmp_path: Path) -> None:
    """What it took before hubmeter was there survives SIGKILL, and so does what is under way."""
    with (
        Hubmeter(tmp_path) as hubmeter,
        collecting(tmp_path, hubmeter) as collector,
        Sender(collector.url) as sender,
    ):
        sender.send(30)
        until(lambda: "connection refused" in collector.log, lambda: collector.log)
        collector.kill()
        collector.start()
        sender.send(30)
        hubmeter.start()
        with sender.sending():
            until(lambda: len(sender.acknowledged) > 500)
            collector.kill()
            collector.start()
            acknowledged = len(sender.acknowledged)
            until(lambda: len(sender.acknowledged) > acknowledged)
        assert_all_arrive(collector, hubmeter, sender, is_whole=False)


def test_what_a_killed_collector_batches_anew_is_there_once(tmp_path: Path) -> None:
    """It never heard that its requests were taken, and they are published when it comes back."""
    with (
        Hubmeter(tmp_path, silence_s=1).start() as hubmeter,
        Unheard(hubmeter.http) as between,
        QueueingCollector(
            "agent", tmp_path / "c", overrides=[ONLY_OTLP], HUBMETER_ENDPOINT=between.url
        ) as collector,
        Sender(collector.url) as sender,
    ):
        sender.send(3)
        until(lambda: collector.queued() == 0 and hubmeter.status()["points_acknowledged"] == 15)
        between.swallow()
        for number in range(1, 5):
            sender.send(3)
            until(lambda: hubmeter.status()["points_acknowledged"] == 15 + 15 * number)  # noqa: B023
        collector.kill()
        until(lambda: hubmeter.status()["points_published"] == 75, lambda: hubmeter.log)
        between.swallow(False)
        collector.start()
        assert_all_arrive(collector, hubmeter, sender)
    [taken] = re.findall(r"(\d+) data points taken", hubmeter.log)
    assert int(taken) > 75


@pytest.mark.parametrize("protocol", BY)
def test_a_receiver_that_is_killed_loses_and_doubles_nothing(protocol: str, tmp_path: Path) -> None:
    """SIGKILL with requests under way, twice or more: the Collector comes again, it goes on."""
    with (
        Hubmeter(tmp_path).start() as hubmeter,
        collecting(tmp_path, hubmeter, *BY[protocol]) as collector,
        Sender(collector.url) as sender,
    ):
        with sender.sending():
            for kill in range(60):
                before = hubmeter.journaled()
                until(lambda: hubmeter.journaled() > before)  # noqa: B023
                hubmeter.kill()
                hubmeter.start()
                if kill and CUT_OFF.search(collector.log):
                    break
        assert CUT_OFF.search(collector.log)
        assert_all_arrive(collector, hubmeter, sender)
        assert "go on" in hubmeter.log


@pytest.mark.parametrize("protocol", BY)
def test_a_receiver_whose_disk_is_full_answers_503(protocol: str, tmp_path: Path) -> None:
    """The Collector keeps what is refused, and comes again until there is room."""
    with (
        Hubmeter(tmp_path).start() as hubmeter,
        collecting(tmp_path, hubmeter, *BY[protocol]) as collector,
        Sender(collector.url) as sender,
    ):
        sender.send(10)
        until(lambda: hubmeter.status()["points_acknowledged"] == 50)
        with hubmeter.full_disk():
            sender.send(10)
            until(lambda: NOT_NOW[protocol] in collector.log, lambda: collector.log)
            refused = hubmeter.status()
            sender.send(10)
            until(lambda: hubmeter.status()["points_received"] > refused["points_received"])
            assert hubmeter.status()["points_acknowledged"] == refused["points_acknowledged"]
        assert_all_arrive(collector, hubmeter, sender)


def collecting(folder: Path, hubmeter: Hubmeter, *overrides: str) -> QueueingCollector:
    """A Collector with ``agent.yaml`` that measures nothing itself."""
    return QueueingCollector(
        "agent", folder / "c", overrides=[ONLY_OTLP, *overrides],
        HUBMETER_ENDPOINT=hubmeter.url, HUBMETER_GRPC=hubmeter.target,
    )  # fmt: skip


def assert_all_arrive(
    collector: QueueingCollector, hubmeter: Hubmeter, sender: Sender, *, is_whole: bool = True
) -> None:
    """
    Empty all queues, publish, and count.

    Unless *is_whole* the Collector was killed: what it did not acknowledge may be lost.
    """
    collector.drain()
    hubmeter.stop()
    found = hubmeter.steps()["r1"]
    print(f"{len(sender.sent)} sent, {len(sender.acknowledged)} acknowledged, {len(found)} found")
    assert found == each_once(found)
    assert set(sender.acknowledged) <= set(found) <= set(sender.sent)
    if is_whole:
        assert set(found) == set(sender.sent)


# -- files


def test_a_capture_flattened_later_gives_the_same(tmp_path: Path) -> None:
    """
    A Collector writes files and sends to hubmeter: the points of both are equal in all columns.

    It is stopped and started in between, and rotates its files.
    """
    overrides = [
        ONLY_OTLP,
        "yaml:exporters::otlp_http/hubmeter: {endpoint: '${env:HUBMETER}'}",
        "yaml:service::pipelines::metrics::exporters: [file, otlp_http/hubmeter]",
        "yaml:service::pipelines::traces::exporters: [file, otlp_http/hubmeter]",
        "yaml:exporters::file::rotation::max_megabytes: 1",
    ]
    with Hubmeter(tmp_path).start() as hubmeter:
        where = listening(HUBMETER=hubmeter.url)
        url = f"http://{where['OTLP_HTTP_LISTEN']}"
        with (
            Collector(
                spelled("file-capture", "new"), tmp_path, environment=where, overrides=overrides
            ) as collector,
            Sender(url, points=1000) as sender,
        ):
            sender.send(10)
            send_span(url)
            collector.restart()
            sender.send(10)
            send_span(url)
            assert collector.stop() == 0
        hubmeter.stop()
    captures = tmp_path / "captures"
    hubmeter_does("flatten", captures, "--config", "points", "-o", tmp_path / "points.parquet")
    hubmeter_does("push", captures, "--to", tmp_path / "pushed")

    assert len(list(captures.iterdir())) > 2
    assert sender.acknowledged == list(sender.sent)
    expected = {"r1": each_once(sender.sent)}
    assert hubmeter.steps() == expected
    assert steps_of(pq.read_table(tmp_path / "points.parquet")) == expected
    assert steps(tmp_path / "pushed") == expected
    assert table(tmp_path / "pushed").equals(table(tmp_path / "data"))
    assert spans(tmp_path / "pushed") == {"r1": 2}


def hubmeter_does(*words: object) -> None:
    ended = subprocess.run(
        [*HUBMETER, *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr


# -- all together


def test_agents_that_know_only_the_endpoint_and_a_collector(tmp_path: Path) -> None:
    """Node and Python, by each protocol, and a Collector of ours with its GPUs: one dataset."""
    node = {"NODE_PATH": str(modules())}
    with (
        Dcgm() as dcgm,
        Hubmeter(tmp_path).start() as hubmeter,
        QueueingCollector(
            "agent", tmp_path / "c", HUBMETER_ENDPOINT=hubmeter.url, DCGM_ENDPOINT=dcgm.address,
            MEASURE_EVERY="300ms", HUBMETER_RUN_ID="r1",
        ) as collector,
    ):  # fmt: skip
        agents = [
            start([*NODE_AGENT, "http"], hubmeter.url, **node),
            start([*NODE_AGENT, "proto"], collector.url, **node),
            start([*PYTHON_AGENT, "http"], hubmeter.url),
            start([*PYTHON_AGENT, "grpc"], f"http://{hubmeter.target}"),
            start([*PYTHON_AGENT, "http"], collector.url),
        ]
        assert [agent.wait(60) for agent in agents] == [0] * len(agents)
        until(lambda: dcgm.pages > 4)
        collector.drain()
        hubmeter.stop()

    points = table(tmp_path / "data")
    expected = Counter(
        {(language, step): agents for language, agents in (("node", 2), ("python", 3))
         for step in (1, 2, 3, 4, 5)}
    )  # fmt: skip
    for language, agents in (("node", 2), ("python", 3)):
        expected[language, 5] += agents
    assert agent_steps(points) == expected
    assert points["metric_name"].to_pylist().count("hubmeter.span.duration") == 3
    assert len(set(points["run_id"].to_pylist())) == 4  # what came by the Collector is r1
    assert {"system.cpu.utilization", "system.memory.usage"} <= set(
        points["metric_name"].to_pylist()
    )
    all_rows = table(tmp_path / "data", "default")
    assert set(all_rows["run_id"].to_pylist()) == set(points["run_id"].to_pylist())
    rows = assert_gpus(all_rows)
    assert {(row["run_id"], row["host_name"]) for row in rows} == {("r1", "node1")}
    assert max(row["energy_joules"] for row in rows) > 0


def start(command: list[str], endpoint: str, **environment: str) -> subprocess.Popen[bytes]:
    """An agent that was told the endpoint, and nothing else."""
    return subprocess.Popen(
        command,
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **environment},
        stdout=subprocess.DEVNULL,
    )


def agent_steps(points: pa.Table) -> Counter[tuple[str, int]]:
    """How often each value of each agent's counter is there, by language."""
    names, values, attributes = (
        points[name].to_pylist() for name in ("metric_name", "value", "attributes")
    )
    return Counter(
        (json.loads(attributes)["language"], int(value))
        for name, value, attributes in zip(names, values, attributes, strict=True)
        if name == "agent.steps"
    )


def test_hubmeter_run_takes_what_a_collector_sends(tmp_path: Path) -> None:
    """`hubmeter run -- otelcol --config agent.yaml`, as it does with any other agent."""
    with Dcgm() as dcgm:
        where = listening(DCGM_ENDPOINT=dcgm.address, MEASURE_EVERY="300ms")
        process = subprocess.Popen(
            [*HUBMETER, "run", "--gpus", "none", "--", str(collector_binary()),
             f"--config={QUIET}", f"--config={CONFIGS / 'agent.yaml'}"],
            env={**os.environ, **where},
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            until(lambda: dcgm.pages > 2)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert_gpus(table(tmp_path / "hubmeter-data", "default"))


def assert_gpus(rows: pa.Table) -> list[dict[str, Any]]:
    """What `Dcgm` shows is in rows of its two GPUs, which are returned."""
    found = [row for row in rows.to_pylist() if row["gpu_id"] is not None]
    columns = ("gpu_id", "gpu_uuid", "gpu_power_watts", "gpu_utilization_percent")
    assert {tuple(row[name] for name in columns) for row in found} == {
        ("0", "GPU-00000000", 301.5, 87.0),
        ("1", "GPU-00000001", 70.25, 12.0),
    }
    return found
