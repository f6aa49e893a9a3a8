"""The Collector of the tests is built once, loudly missed where it is not, and works."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from collector import build
from real_collector import Collector, collector_binary, needs_collector

needs_go = pytest.mark.skipif(build.find_go() is None, reason="Go is missing")
WITHOUT_GO = f"""
import sys
sys.path.insert(0, {str(Path(build.__file__).parent)!r})
import build
build.PLACES_OF_GO = ()
sys.exit(build.main())
"""
CAPTURE = """
receivers:
  otlp: {protocols: {http: {endpoint: "127.0.0.1:${env:OTLP_PORT}"}}}
exporters:
  file: {path: metrics.jsonl}
service:
  pipelines:
    metrics: {receivers: [otlp], exporters: [file]}
"""
START, END = 1_760_000_000_000_000_000, 1_760_000_060_000_000_000


# -- the program that builds it


@needs_collector
def test_a_second_build_is_quick_and_the_same() -> None:
    """What is built is found, and not built again."""
    assert collector_binary()
    began = time.monotonic()
    ended = _ended(sys.executable, build.__file__)
    assert (ended.stdout, ended.stderr) == (f"{collector_binary()}\n", "")
    assert time.monotonic() - began < 10


@needs_collector
def test_the_log_of_the_build_is_kept() -> None:
    """Beside the Collector stands what its build said, and nothing half made."""
    binary = collector_binary()
    assert binary
    assert "Compiled" in binary.with_name("build.log").read_text()
    assert sorted(file.name for file in binary.parent.iterdir()) == ["build.log", build.NAME]


@pytest.mark.parametrize(("is_required", "status"), [("", 0), ("1", 1)])
def test_missing_go_is_loud(is_required: str, status: int, tmp_path: Path) -> None:
    """Without Go one reads what to install and which tests are left out; CI fails."""
    (tmp_path / "bin").mkdir()
    chosen = {
        "PATH": str(tmp_path / "bin"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "COLLECTOR_IS_REQUIRED": is_required,
    }
    ended = _ended(sys.executable, "-c", WITHOUT_GO, **chosen)
    assert (ended.returncode, ended.stdout) == (status, "")
    assert "Go is missing; install Go" in ended.stderr
    assert "test_real_collector.py" in ended.stderr
    assert "LEFT OUT until `make collector`" in ended.stderr
    assert not (tmp_path / "cache").exists()


@needs_go
@pytest.mark.parametrize(("is_required", "status"), [("", 0), ("1", 1)])
def test_a_failed_build_is_loud(is_required: str, status: int, tmp_path: Path) -> None:
    """Without a module proxy one reads why, the log is kept, and no Collector is there."""
    chosen = {**_first_time(tmp_path, "off"), "COLLECTOR_IS_REQUIRED": is_required}
    ended = _ended(sys.executable, build.__file__, **chosen)
    assert (ended.returncode, ended.stdout) == (status, "")
    assert "WARNING: tests will do without an OpenTelemetry Collector" in ended.stderr
    assert "GOPROXY=off" in ended.stderr
    (log,) = tmp_path.glob("cache/hubmeter-tests/*/build.log")
    assert str(log) in ended.stderr
    assert _made(tmp_path) == ["build.log"]


@needs_go
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C ends the build and all its processes, and no half result is there."""
    with (
        _silent_proxy() as (address, proxy),
        _started(_first_time(tmp_path, address)) as process,
        proxy.accept()[0] as connection,
    ):
        process.send_signal(number)
        assert process.wait(30) == 128 + number
        _read_to_end(connection)
    assert _made(tmp_path) == ["build.log"]


@needs_go
def test_a_second_build_waits_for_the_first(tmp_path: Path) -> None:
    """Two builds at once do not write the same files."""
    with _silent_proxy() as (address, proxy):
        chosen = _first_time(tmp_path, address)
        with _started(chosen) as first, proxy.accept()[0], _started(chosen) as second:
            assert _next_line(second).startswith("waiting for another build")
            first.terminate()
            assert _next_line(second).startswith("building")
            second.terminate()
    assert _made(tmp_path) == ["build.log"]


@needs_go
def test_a_killed_build_is_not_in_the_way(tmp_path: Path) -> None:
    """What a killed build left behind is waited for, and removed by the next."""
    with (
        _silent_proxy() as (address, proxy),
        _started(_first_time(tmp_path, address)) as killed,
        proxy.accept()[0],
    ):
        killed.kill()
    ended = _ended(sys.executable, build.__file__, **_first_time(tmp_path, "off"))
    assert "GOPROXY=off" in ended.stderr
    assert _made(tmp_path) == ["build.log"]


# -- the Collector


@needs_collector
def test_a_collector_receives_and_writes(tmp_path: Path) -> None:
    """A request by OTLP/HTTP is one JSON line of the file exporter, once it has stopped."""
    with Collector(CAPTURE, tmp_path, ports=["OTLP_PORT"]) as collector:
        _send(collector.port("OTLP_PORT"), _request(42))
        assert collector.stop() == 0
        assert not collector.is_running
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (resource,) = json.loads(line)["resourceMetrics"]
    (metric,) = resource["scopeMetrics"][0]["metrics"]
    assert metric["name"] == "requests"
    assert metric["sum"]["dataPoints"][0]["asInt"] == "42"


@needs_collector
def test_a_collector_restarts_and_can_be_killed(tmp_path: Path) -> None:
    """Another process answers on the same port; none is left after a kill."""
    with Collector(CAPTURE, tmp_path, ports=["OTLP_PORT"]) as collector:
        first = collector.pid
        collector.restart()
        assert collector.pid != first
        _send(collector.port("OTLP_PORT"), _request(1))
        collector.kill()
        assert not collector.is_running
    assert collector.log.count("Everything is ready") == 2


@needs_collector
def test_a_refused_configuration_is_shown(tmp_path: Path) -> None:
    """A Collector that does not start says why, as does the check of its configuration."""
    wrong = {"receivers": {"otlp": {"protocol": {}}}}
    collector = Collector(wrong, tmp_path)
    assert "has invalid keys: protocol" in collector.validate()
    with pytest.raises(RuntimeError, match="has invalid keys: protocol"), collector:
        pass
    assert not collector.is_running


@needs_collector
def test_no_collector_outlives_its_test(tmp_path: Path) -> None:
    """A test that fails leaves no process behind."""
    collector = Collector(CAPTURE, tmp_path, ports=["OTLP_PORT"])
    with pytest.raises(ZeroDivisionError), collector:
        raise ZeroDivisionError
    with pytest.raises(ProcessLookupError):
        os.kill(collector.pid, 0)


# -- what they need


def _ended(*command: str, **chosen: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **chosen}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def _started(chosen: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, build.__file__],
        env={**os.environ, **chosen},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _next_line(process: subprocess.Popen[str]) -> str:
    assert process.stderr
    return process.stderr.readline()


def _first_time(folder: Path, proxy: str) -> dict[str, str]:
    """An environment in which nothing was built or fetched yet, with this module proxy."""
    return {
        "XDG_CACHE_HOME": str(folder / "cache"),
        "GOMODCACHE": str(folder / "modules"),
        "GOPROXY": proxy,
    }


def _made(folder: Path) -> list[str]:
    """Every file of the cache but the lock."""
    files = (folder / "cache").rglob("*")
    return sorted(file.name for file in files if file.is_file() and file.suffix != ".lock")


@contextmanager
def _silent_proxy() -> Iterator[tuple[str, socket.socket]]:
    """A module proxy that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(60)
        yield f"http://127.0.0.1:{proxy.getsockname()[1]}", proxy


def _read_to_end(connection: socket.socket) -> None:
    """Until whoever is at the other end has closed it, or is no more."""
    connection.settimeout(30)
    while connection.recv(4096):
        pass


def _request(value: int) -> bytes:
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="requests")
    metric.sum.is_monotonic = True
    metric.sum.aggregation_temporality = 2
    metric.sum.data_points.add(as_int=value, start_time_unix_nano=START, time_unix_nano=END)
    return request.SerializeToString()


def _send(port: int, body: bytes) -> None:
    url = f"http://127.0.0.1:{port}/v1/metrics"
    headers = {"Content-Type": "application/x-protobuf"}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
        assert answer.status == 200
