"""The image that `run.py` has built does in containers what its documentation says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from buildah import Container, Process, buildah
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub

from hubmeter import open_dataset

EVALUATION = Path(__file__).parents[2] / "docker/evaluation/eval.py"
TOKEN = "a-token-of-the-tests"
START_NS = 1_700_000_000_000_000_000
ZOMBIES = "grep -l '^State:.Z' /proc/[0-9]*/status"


@pytest.fixture(name="tree", scope="module")
def _tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    volume = tmp_path_factory.mktemp("volumes") / "hubmeter"
    tree = Container(os.environ["HUBMETER_TEST_IMAGE"], volume)
    yield tree
    tree.remove()


@pytest.fixture(name="container")
def _container(tree: Container) -> Container:
    """With a new volume."""
    tree.empty_volume()
    return tree


class Receiver:
    """The image's default command, on free ports instead of its own: the network is ours."""

    def __init__(self, container: Container) -> None:
        self._port, self._grpc_port = _free_port(), _free_port()
        self._container = container
        self.environment = {
            "HUBMETER_SERVE_HTTP": f"0.0.0.0:{self._port}",
            "HUBMETER_SERVE_GRPC": f"0.0.0.0:{self._grpc_port}",
        }

    def health(self) -> tuple[int, str]:
        """What the image's health check says."""
        kind, *line = self._container.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self._container.asked(line, self.environment)

    def send(self, readings_w: Sequence[float], *, token: str = TOKEN) -> int:
        """The status of the answer to a request with the power of one GPU, a second apart."""
        body = json.dumps(_request(readings_w)).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        url = f"http://127.0.0.1:{self._port}/v1/metrics"
        request = urllib.request.Request(url, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as answer:
            answer.close()
            return int(answer.code)

    def send_by_grpc(self, readings_w: Sequence[float]) -> None:
        """The same; raises if the answer is no success."""
        request = ParseDict(_request(readings_w), ExportMetricsServiceRequest())
        metadata = [("authorization", f"Bearer {TOKEN}")]
        with grpc.insecure_channel(f"127.0.0.1:{self._grpc_port}") as channel:
            MetricsServiceStub(channel).Export(request, metadata=metadata, timeout=10)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_it_runs_as_a_user_without_rights(container: Container) -> None:
    """The user is a number, cannot become root, and may write nothing of hubmeter."""
    assert container.plain("id", "-u") == container.plain("id", "-g") == "10001"
    assert container.config["User"] == "10001:10001"
    says = container.plain(
        "sh", "-c", "grep CapEff /proc/self/status; test -w /opt/hubmeter; echo $?"
    )
    assert says.split() == ["CapEff:", "0000000000000000", "1"]


def test_nothing_of_the_build_is_left(container: Container) -> None:
    """Neither sources nor caches nor pip's settings of the machine that built it."""
    left = "find /source /root/.cache /tmp -mindepth 1; cat /etc/pip.conf"
    assert container.plain("sh", "-c", f"({left}) 2>/dev/null; true", user="0:0") == ""
    assert not [name for name in container.config["Env"] if name.startswith(("PIP_", "SSL_"))]


def test_an_evaluation_is_recorded(container: Container) -> None:
    """`hubmeter run` as process 1 records it, passes its exit code on and leaves no zombies."""
    shutil.copy(EVALUATION, container.volume)
    script = f"(sleep 0.1 &); python /var/lib/hubmeter/eval.py; {ZOMBIES}; id -u; exit 7"

    with container.running("run", "--", "sh", "-c", script) as process:
        assert process.ended(90) == 7

    assert "task 5 of 5 is done\n10001\n" in process.output()  # no zombie is named in between
    assert _steps(container) == [1, 2, 3, 4, 5, 5]


def test_the_example_of_an_evaluation_image_builds_and_runs(tmp_path: Path) -> None:
    """docker/evaluation on top of our image: its own command, and what it did is a dataset."""
    name = f"localhost/hubmeter-test-evaluation:{os.getpid()}"
    how = ["--isolation=chroot", "--format=docker", "--layers=false", f"--tag={name}"]
    buildah("build", *how, f"--from={os.environ['HUBMETER_TEST_IMAGE']}", EVALUATION.parent)
    container = Container(name, tmp_path / "hubmeter")
    try:
        container.empty_volume()
        assert container.config["Healthcheck"]["Test"] == ["NONE"]
        with container.running() as process:
            assert process.ended(90) == 0
        assert "task 5 of 5 is done\n" in process.output()
        assert _steps(container) == [1, 2, 3, 4, 5, 5]
    finally:
        container.remove()
        buildah("rmi", name)


def test_sigterm_ends_an_evaluation_with_a_dataset(container: Container) -> None:
    """What `docker stop` sends reaches the evaluation, and what it did is published."""
    with container.running("run", "--", "sh", "-c", "echo begun; exec sleep 60") as process:
        process.line_with("begun")
        began = time.monotonic()
        process.send(_stop_signal(container))
        assert process.ended(30) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 10  # after which docker kills

    [row] = open_dataset(container.volume / "data").to_pylist()
    assert row["gpu_id"] is None


def test_the_demo_runs(container: Container) -> None:
    """Without a GPU there are simulated ones, and rows of them."""
    to = "/var/lib/hubmeter/data"
    with container.running("demo", "--seconds", "2", "--to", to) as process:
        assert process.ended(60) == 0

    rows = open_dataset(container.volume / "data").to_pylist()
    assert {row["gpu_id"] for row in rows} == {"0", "1"}


def test_the_receiver_demands_a_token(container: Container) -> None:
    """Its doors are open to all in the network, so without a token it does not start."""
    with container.running() as process:
        assert process.ended(30) != 0

    assert "set HUBMETER_SERVE_TOKEN" in process.output()


def test_the_receiver_publishes_at_sigterm(container: Container) -> None:
    """Started, healthy, sent to, stopped: the dataset is on the volume, all is acknowledged."""
    receiver = Receiver(container)
    assert receiver.health()[0] != 0

    with _started(container, receiver) as process:
        assert receiver.health() == (0, "")
        assert receiver.send([250.0], token="another-token") == 401
        assert receiver.send([300.0, 310.0]) == 200
        receiver.send_by_grpc([300.0, 310.0, 320.0])  # two of them again
        process.send(_stop_signal(container))
        assert process.ended(30) == 0

    assert _powers(container) == [300, 310, 320]
    assert receiver.health()[0] != 0


def test_a_second_receiver_publishes_what_a_killed_one_had(container: Container) -> None:
    """After SIGKILL the next container on the volume goes on; each point is there once."""
    first, second = Receiver(container), Receiver(container)
    with _started(container, first) as process:
        assert first.send([300.0, 310.0]) == 200
        process.send(signal.SIGKILL)
        assert process.ended(30) != 0
    assert not list(container.volume.glob("data/data/**/*.parquet"))

    with _started(container, second) as process:
        assert second.send([300.0, 310.0, 320.0]) == 200  # a sender that repeats, and goes on
        process.send(_stop_signal(container))
        assert process.ended(30) == 0

    assert _powers(container) == [300, 310, 320]


def test_a_killed_evaluation_is_recovered(container: Container) -> None:
    """After SIGKILL `hubmeter recover` in a second container publishes what was recorded."""
    shutil.copy(EVALUATION, container.volume)
    script = "python /var/lib/hubmeter/eval.py; exec sleep 60"
    with container.running("run", "--", "sh", "-c", script) as process:
        process.line_with("task 5 of 5")
        process.send(signal.SIGKILL)
        assert process.ended(30) != 0
    assert not list(container.volume.glob("data/data/**/*.parquet"))

    with container.running("recover") as process:
        assert process.ended(60) == 0, process.output()

    assert _steps(container)[:5] == [1, 2, 3, 4, 5]


@contextmanager
def _started(container: Container, receiver: Receiver) -> Iterator[Process]:
    """A receiver that takes requests."""
    environment = {**receiver.environment, "HUBMETER_SERVE_TOKEN": TOKEN}
    with container.running(environment=environment) as process:
        process.line_with("runs go to")
        yield process


def _stop_signal(container: Container) -> signal.Signals:
    return signal.Signals[container.config["StopSignal"]]


def _steps(container: Container) -> list[float]:
    points = open_dataset(container.volume / "data", "points").to_pylist()
    return [point["value"] for point in points if point["metric_name"] == "evaluation.steps"]


def _powers(container: Container) -> list[float]:
    rows = open_dataset(container.volume / "data").to_pylist()
    return [row["gpu_power_watts"] for row in rows]


def _request(readings_w: Sequence[float]) -> dict[str, object]:
    points = [
        {
            "timeUnixNano": str(START_NS + second * 10**9),
            "asDouble": power_w,
            "attributes": [{"key": "gpu_id", "value": {"stringValue": "0"}}],
        }
        for second, power_w in enumerate(readings_w)
    ]
    metric = {"name": "gen_ai.gpu.power", "unit": "W", "gauge": {"dataPoints": points}}
    run = {"key": "run.id", "value": {"stringValue": "of-the-tests"}}
    scopes = [{"scope": {"name": "tests"}, "metrics": [metric]}]
    return {"resourceMetrics": [{"resource": {"attributes": [run]}, "scopeMetrics": scopes}]}
