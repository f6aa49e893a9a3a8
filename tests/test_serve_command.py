"""``hubmeter serve`` as a person sees it: what it says, what it refuses, how it ends."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from hubmeter import open_dataset
from loopback_hub import Fault, LoopbackHub
from receivers import certificates

SERVE = [sys.executable, "-m", "hubmeter", "serve"]
AGENT = [sys.executable, str(Path(__file__).parent / "agents/python_agent.py")]
ANY_PORT = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]

METRICS = {
    "resourceMetrics": [
        {
            "resource": {
                "attributes": [{"key": "run.id", "value": {"stringValue": "served"}}],
            },
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
            ],
        }
    ]
}


@contextmanager
def serving(
    folder: Path, *arguments: str, serve: Sequence[str] = SERVE, **variables: str
) -> Iterator[tuple[str, subprocess.Popen]]:
    """A receiver, and its HTTP address."""
    process = subprocess.Popen(
        [*serve, *ANY_PORT, *arguments],
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        found = re.match(r"OTLP/HTTP on (\S+)", process.stderr.readline())
        assert found, process.communicate()
        yield found[1], process
    finally:
        process.kill()
        process.communicate()


def post(address: str, run_id: str = "served", **headers: str) -> int:
    request = urllib.request.Request(
        f"{address}/v1/metrics",
        json.dumps(METRICS).replace("served", run_id).encode(),
        {"Content-Type": "application/json", **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def refused(folder: Path, *arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [*SERVE, *arguments], cwd=folder, env={**os.environ, **variables},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode in (1, 2), done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_told_to_end_it_publishes_what_it_took(tmp_path: Path, number: int, code: int) -> None:
    """
    SIGTERM and Ctrl-C drain, publish, and say what was taken.
    """
    with serving(tmp_path) as (address, process):
        assert post(address) == 200
        process.send_signal(number)
        out, said = process.communicate(timeout=60)

    assert process.returncode == code
    assert out == ""
    assert "1 data point taken" in said
    assert "published 1 row to" in said
    assert open_dataset(tmp_path / "hubmeter-data")["run_id"].to_pylist() == ["served"]


def test_a_signal_that_comes_twice_is_one(tmp_path: Path) -> None:
    """
    `timeout` and systemd signal the process and its group; publishing goes on.
    """
    with serving(tmp_path) as (address, process):
        assert post(address) == 200
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGHUP)
        _, said = process.communicate(timeout=60)

    assert process.returncode == 0
    assert "published 1 row to" in said


def test_a_log_that_nobody_reads_any_more_stops_nothing(tmp_path: Path) -> None:
    """
    Ctrl-C ends `hubmeter serve 2>&1 | tee log` with its tee: the receiver publishes alone.
    """
    with serving(tmp_path) as (address, process):
        assert post(address) == 200
        assert process.stderr is not None
        process.stderr.close()
        process.send_signal(signal.SIGINT)
        process.wait(60)

    assert process.returncode == 130
    assert open_dataset(tmp_path / "hubmeter-data")["run_id"].to_pylist() == ["served"]


def test_a_log_on_a_full_disk_does_not_keep_it_from_starting(tmp_path: Path) -> None:
    """
    It takes points, publishes, and ends as ever.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(
            [*SERVE, "--http", address, "--grpc", "off"], cwd=tmp_path, stderr=full
        )
    try:
        deadline = time.monotonic() + 30
        while not _is_taken(f"http://{address}"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
    assert open_dataset(tmp_path / "hubmeter-data")["run_id"].to_pylist() == ["served"]


def _is_taken(address: str) -> bool:
    try:
        return post(address) == 200
    except urllib.error.URLError:
        return False


def test_a_silent_run_is_published_while_it_receives(tmp_path: Path) -> None:
    """
    Nobody has to end the receiver to see a run.
    """
    with serving(tmp_path, "--silence", "1") as (address, _):
        assert post(address) == 200
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("hubmeter-data/data/default/*/*.parquet")):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_connections_leave_files_to_the_runs(tmp_path: Path) -> None:
    """
    Where a process may open few files, some senders are told to come again, and it goes on.
    """
    few = ["prlimit", "--nofile=128:128", *SERVE]
    with serving(tmp_path, "--silence", "1", serve=few) as (address, process), ExitStack() as idle:
        host, port = address.removeprefix("http://").split(":")
        for _ in range(200):
            idle.enter_context(socket.create_connection((host, int(port)), timeout=10))
        assert post(address) == 429
        idle.close()
        deadline = time.monotonic() + 20
        while post(address) != 200:
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert "published 1 row to" in said


def test_a_token_is_asked_for_and_never_shown(tmp_path: Path) -> None:
    """
    Senders without the token, or with another, are refused.
    """
    with serving(tmp_path, HUBMETER_SERVE_TOKEN="the-token-of-all") as (address, process):
        assert post(address) == 401
        assert post(address, Authorization="Bearer the-token-of-others") == 401
        assert post(address, Authorization="Bearer the-token-of-all") == 200
        shown = Path(f"/proc/{process.pid}/cmdline")
        assert not shown.exists() or b"the-token" not in shown.read_bytes()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert "the-token" not in said


def test_agents_bring_a_token_by_tls(tmp_path: Path) -> None:
    """
    With OpenTelemetry's own variables, by both protocols; nothing is taken without TLS.
    """
    files = certificates(tmp_path)
    flags = ["--tls-cert", str(files.certificate), "--tls-key", str(files.key)]
    variables = {
        "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20the-token-of-all",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(files.certificate),
        "REQUESTS_CA_BUNDLE": "",  # if the machine sets these, `requests` believes them more
        "CURL_CA_BUNDLE": "",
    }
    with serving(tmp_path, *flags, HUBMETER_SERVE_TOKEN="the-token-of-all") as (address, process):
        assert process.stderr is not None
        by_grpc = process.stderr.readline().removeprefix("OTLP/gRPC on ").strip()
        for protocol, endpoint in (("http", address), ("grpc", by_grpc)):
            assert endpoint.startswith("https://127.0.0.1:")
            environment = {**os.environ, **variables, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
            subprocess.run([*AGENT, protocol, "2"], env=environment, check=True, timeout=60)
        with pytest.raises(OSError, match=r"[Cc]onnection|[Rr]emote"):
            post(address.replace("https:", "http:"))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)

    points = open_dataset(tmp_path / "hubmeter-data", "points").to_pylist()
    steps = [one["value"] for one in points if one["metric_name"] == "agent.steps"]
    assert sorted(steps) == [1, 1, 2, 2, 2, 2]


def test_insecure_is_for_all(tmp_path: Path) -> None:
    """
    On all addresses, without a token.
    """
    with serving(tmp_path, "--http", "0.0.0.0:0", "--insecure") as (address, _):
        assert address.startswith("http://0.0.0.0:")
        assert post(address.replace("0.0.0.0", "127.0.0.1")) == 200


def test_the_limit_of_a_request_can_be_set(tmp_path: Path) -> None:
    """
    In MiB, for the body as it comes and decompressed.
    """
    with serving(tmp_path, HUBMETER_SERVE_LIMIT="1") as (address, _):
        assert post(address, "x" * (2**20 - 1000)) == 200
        assert post(address, "x" * 2**20) == 413


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--http", "0.0.0.0:0"], "set HUBMETER_SERVE_TOKEN, or say --insecure"),
        (["--http", "off", "--grpc", "off"], "both doors are off"),
        (["--http", "4318"], "expected host:port"),
        ([*ANY_PORT, "--tls-cert", "cert.pem"], "--tls-cert and --tls-key"),
        ([*ANY_PORT, "--tls-cert", "no.pem", "--tls-key", "no.pem"], "no.pem"),
        ([*ANY_PORT, "--silence", "soon"], "expected a number"),
    ],
)
def test_doors_that_must_not_be_opened(tmp_path: Path, arguments: list[str], reason: str) -> None:
    """
    A wrong flag is one line that says what to do, and nothing listens.
    """
    assert reason in refused(tmp_path, *arguments)


def test_a_repository_that_cannot_take_runs_is_named_at_once(tmp_path: Path) -> None:
    """
    Not minutes later, after the first run; meanwhile points are taken.
    """
    with LoopbackHub() as hub:
        variables = {**hub.environment(tmp_path / "home"), "HF_TOKEN": hub.read_token}
        with serving(tmp_path, "--to", "me/runs", **variables) as (address, process):
            assert process.stderr is not None
            said = next(line for line in process.stderr if line.startswith("not ready"))
            assert post(address) == 200
    assert said.startswith("not ready to publish: hf://datasets/me/runs, as me: the token may only")
    assert hub.read_token not in said


def test_a_hub_that_does_not_answer_makes_no_sender_wait(tmp_path: Path) -> None:
    """
    A publication hangs; what comes meanwhile is acknowledged as quickly as ever.
    """
    with LoopbackHub() as hub:
        hub.faults.append(Fault(on="create", hang=True, times=math.inf))
        variables = hub.environment(tmp_path / "home")
        with serving(tmp_path, "--to", "me/runs", "--silence", "1", **variables) as (address, _):
            assert post(address) == 200
            deadline = time.monotonic() + 60
            while not any(one.kind == "create" for one in hub.requests):
                assert time.monotonic() < deadline, hub.requests
                time.sleep(0.05)
            took_s = []
            for number in range(50):
                began = time.monotonic()
                assert post(address, f"run-{number}") == 200
                took_s.append(time.monotonic() - began)
                time.sleep(0.05)
            with urllib.request.urlopen(f"{address}/readyz") as answer:
                status = json.load(answer)
    assert (status["ready"], status["is_publishing"], status["points_published"]) == (True, True, 0)
    assert sorted(took_s)[25] < 0.5
    assert max(took_s) < 2


def test_a_folder_that_cannot_take_runs_is_named_at_once(tmp_path: Path) -> None:
    """
    With what to do about it.
    """
    (tmp_path / "file").touch()
    with serving(tmp_path, "--to", "./file/data") as (_, process):
        assert process.stderr is not None
        said = next(line for line in process.stderr if line.startswith("not ready"))
    assert "file/data cannot be written; set HUBMETER_TO to a folder" in said


def test_files_that_are_no_certificates_are_named(tmp_path: Path) -> None:
    """
    And what was expected instead.
    """
    (tmp_path / "cert.pem").write_text("no certificate")
    (tmp_path / "key.pem").write_text("no key")
    said = refused(tmp_path, *ANY_PORT, "--tls-cert", "cert.pem", "--tls-key", "key.pem")

    assert said.startswith("hubmeter: cert.pem, key.pem: ")
    assert "expected PEM files" in said


def test_a_journal_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """
    With the setting to change.
    """
    (tmp_path / "file").touch()
    said = refused(tmp_path, *ANY_PORT, HUBMETER_JOURNAL_DIR="./file")

    assert "file: File exists; set HUBMETER_JOURNAL_DIR" in said


def test_a_bad_token_does_not_open_the_doors(tmp_path: Path) -> None:
    """
    A receiver that was meant to have a token does not start without one.
    """
    said = refused(tmp_path, *ANY_PORT, HUBMETER_SERVE_TOKEN="a b")

    assert "HUBMETER_SERVE_TOKEN=(hidden): expected 8 or more" in said


def test_without_a_journal_nothing_can_be_acknowledged(tmp_path: Path) -> None:
    """
    The journal is what a receiver promises.
    """
    assert "needs a journal" in refused(tmp_path, *ANY_PORT, HUBMETER_JOURNAL_DIR="off")


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    """
    The message has the address, and what to do.
    """
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = refused(tmp_path, "--http", address, "--grpc", "off")

    assert address in said
    assert "choose another port" in said
