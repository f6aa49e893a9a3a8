"""
What stands at both ends of a Collector: `hubmeter serve`, senders that number each point, GPUs.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from typing_extensions import Self

from real_collector import Collector

CONFIGS = Path(__file__).parents[1] / "collector-config"
HUBMETER = [sys.executable, "-m", "hubmeter"]
SOON_S = 30.0
STEP = "agent.step"
ONLY_OTLP = "yaml:service::pipelines::metrics::receivers: [otlp]"

OLD_NAMES = {
    "otlp_http": "otlphttp",
    "otlp_grpc": "otlp",
    "host_metrics": "hostmetrics",
}
"""What older Collectors call the components that we use."""


def spelled(config: str, spelling: str) -> str:
    """The text of a configuration with the names of "new" or "old" Collectors."""
    text = (CONFIGS / f"{config}.yaml").read_text()
    if spelling == "old":
        for new, old in OLD_NAMES.items():
            text = re.sub(rf"\b{new}\b", old, text)
    return text


def until(condition: Callable[[], Any], what: Callable[[], Any] = lambda: "") -> None:
    """Wait for *condition*; *what* says how it is if that takes too long."""
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


class Hubmeter:
    """
    A `hubmeter serve` on ports that stay the same; its dataset is ``data`` in *folder*.

    It begins with :meth:`start`, and is killed with the ``with`` block.
    """

    def __init__(self, folder: Path, *, silence_s: float = 60, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.http, self.grpc = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http}"
        self.target = f"127.0.0.1:{self.grpc}"
        self._silence_s = silence_s
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def log(self) -> str:
        return (self.folder / "hubmeter.log").read_text()

    def start(self) -> Self:
        """Start a process, and return when it receives."""
        with (self.folder / "hubmeter.log").open("ab") as log:
            before = log.tell()
            self._process = subprocess.Popen(
                [*HUBMETER, "serve", "--to", "./data", "--silence", str(self._silence_s),
                 "--http", f"127.0.0.1:{self.http}", "--grpc", self.target],
                cwd=self.folder,
                env={**os.environ, "HUBMETER_JOURNAL_DIR": "journal", **self._environment},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        until(lambda: "runs go to" in self.log[before:] or self._process.poll() is not None)
        assert self._process.poll() is None, self.log
        return self

    def kill(self) -> None:
        """As a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """As `docker stop` does: it publishes what it has, or the process that it leaves does."""
        assert self._process
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(SOON_S) == 0, self.log
        until(lambda: not list(self.folder.glob("journal/*.journal*")), lambda: self.log)

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """Meanwhile the system refuses to make any file of this process longer."""
        assert self._process
        unlimited = resource.RLIM_INFINITY
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (1, unlimited))
        try:
            yield
        finally:
            resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))

    def journaled(self) -> int:
        """Bytes in the journal."""
        return sum(path.stat().st_size for path in self.folder.glob("journal/*.journal"))

    def status(self) -> dict[str, Any]:
        """What it says about itself since its start, or said before it ended."""
        try:
            answer = urllib.request.urlopen(f"{self.url}/readyz")
        except urllib.error.HTTPError as refused:  # while it takes nothing
            answer = refused
        with answer:
            return json.load(answer)

    def steps(self) -> dict[str, Counter[int]]:
        """How often each number of a `Sender` is in the dataset, by run."""
        return steps(self.folder / "data")


def table(folder: Path, config: str = "points") -> pa.Table:
    """What Parquet files say, without the library that would remember them."""
    return pa.concat_tables(
        [pq.read_table(path) for path in sorted(folder.glob(f"data/{config}/*/*.parquet"))],
        promote_options="default",
    )


def steps(folder: Path) -> dict[str, Counter[int]]:
    """See `Hubmeter.steps`."""
    return steps_of(table(folder))


def steps_of(points: pa.Table) -> dict[str, Counter[int]]:
    found: dict[str, Counter[int]] = {}
    names, values, runs = (points[name].to_pylist() for name in ("metric_name", "value", "run_id"))
    for name, value, run in zip(names, values, runs, strict=True):
        if name == STEP:
            found.setdefault(run, Counter())[int(value)] += 1
    return found


def spans(folder: Path) -> dict[str, int]:
    """How many spans are in a dataset, by run."""
    points = table(folder)
    names, runs = points["metric_name"].to_pylist(), points["run_id"].to_pylist()
    return dict(
        Counter(
            run for name, run in zip(names, runs, strict=True) if name == "hubmeter.span.duration"
        )
    )


def send_span(url: str, run_id: str = "r1") -> None:
    """One root span of a task by OTLP/HTTP."""
    provider = TracerProvider(resource=Resource({"run.id": run_id}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{url}/v1/traces")))
    provider.get_tracer("test").start_span("work", attributes={"task.id": "t1"}).end()
    provider.shutdown()


def each_once(numbers: Iterable[int]) -> Counter[int]:
    return Counter(set(numbers))


class Sender:
    """
    An SDK with an exporter; each of its points has a number of its own.

    Attributes:
        sent: All numbers.
        acknowledged: Those whose export said SUCCESS.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        protocol: str = "http",
        run_id: str = "r1",
        service: str = "sender",
        first: int = 1,
        points: int = 5,
    ) -> None:
        module = importlib.import_module(
            f"opentelemetry.exporter.otlp.proto.{protocol}.metric_exporter"
        )
        where = f"{endpoint}/v1/metrics" if protocol == "http" else endpoint
        self._exporter = module.OTLPMetricExporter(endpoint=where, timeout=SOON_S)
        self._reader = InMemoryMetricReader()
        resource = Resource({"run.id": run_id, "service.name": service})
        self._provider = MeterProvider([self._reader], resource=resource, shutdown_on_exit=False)
        self._step = self._provider.get_meter("test").create_gauge(STEP)
        self._points = points
        self._first = self._next = first
        self.acknowledged: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._provider.shutdown()
        self._exporter.shutdown()

    @property
    def sent(self) -> range:
        return range(self._first, self._next)

    def send(self, requests: int) -> None:
        """So many requests, one after the other."""
        for _ in range(requests):
            numbers = range(self._next, self._next + self._points)
            self._next += self._points
            for place, number in enumerate(numbers):
                self._step.set(number, {"place": place})
            result = self._exporter.export(self._reader.get_metrics_data())
            if result is MetricExportResult.SUCCESS:
                self.acknowledged.extend(numbers)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """One request after the other in a thread of its own, until the block ends."""
        ended = threading.Event()

        def work() -> None:
            while not ended.is_set():
                self.send(1)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


DCGM_PAGE = """\
# HELP DCGM_FI_DEV_GPU_UTIL GPU utilization (in %).
# TYPE DCGM_FI_DEV_GPU_UTIL gauge
DCGM_FI_DEV_GPU_UTIL{{{0}}} 87
DCGM_FI_DEV_GPU_UTIL{{{1}}} 12
# HELP DCGM_FI_DEV_POWER_USAGE Power draw (in W).
# TYPE DCGM_FI_DEV_POWER_USAGE gauge
DCGM_FI_DEV_POWER_USAGE{{{0}}} 301.5
DCGM_FI_DEV_POWER_USAGE{{{1}}} 70.25
# HELP DCGM_FI_DEV_FB_USED Framebuffer memory used (in MiB).
# TYPE DCGM_FI_DEV_FB_USED gauge
DCGM_FI_DEV_FB_USED{{{0}}} 40960
DCGM_FI_DEV_FB_USED{{{1}}} 512
# HELP DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION Total energy consumption since boot (in mJ).
# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{0}}} {2}
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{1}}} {2}
"""
LABELS = (
    'gpu="{0}",UUID="GPU-0000000{0}",pci_bus_id="00000000:0{0}:00.0",device="nvidia{0}",'
    'modelName="NVIDIA H100 80GB HBM3",Hostname="node1",DCGM_FI_DRIVER_VERSION="570.86.15"'
)


class Dcgm:
    """What NVIDIA's dcgm-exporter shows of two GPUs that draw 100 W."""

    def __init__(self) -> None:
        self.pages = 0
        began, dcgm = time.monotonic(), self

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                dcgm.pages += 1
                millijoules = 1e9 + (time.monotonic() - began) * 1e5
                body = DCGM_PAGE.format(LABELS.format(0), LABELS.format(1), round(millijoules))
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                """Not to stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
        self.address = f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,)).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Unheard:
    """
    Hands requests on to *port*, and what it answers back, until :meth:`swallow` is called.

    Attributes:
        url: Where it listens.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._is_heard = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def swallow(self, is_swallowing: bool = True) -> None:
        """No answer comes back, or each one again."""
        self._is_heard = not is_swallowing

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                asking, _ = self._listener.accept()
                answering = socket.create_connection(("127.0.0.1", self._port))
                for ends in ((asking, answering), (answering, asking)):
                    threading.Thread(target=self._pipe, args=ends, daemon=True).start()

    def _pipe(self, source: socket.socket, target: socket.socket) -> None:
        is_answer = source.getpeername()[1] == self._port
        with suppress(OSError), source, target:
            while data := source.recv(65_536):
                if self._is_heard or not is_answer:
                    target.sendall(data)


class QueueingCollector(Collector):
    """
    A Collector with one of our configurations, which comes again soon, and tells its queue.

    Attributes:
        url: Where it takes OTLP/HTTP.
    """

    def __init__(
        self,
        config: str,
        folder: Path,
        *,
        spelling: str = "new",
        overrides: Sequence[str] = (),
        **environment: str,
    ) -> None:
        where = listening(**environment)
        self.url = f"http://{where['OTLP_HTTP_LISTEN']}"
        self._told = free_port()
        reader = f"{{pull: {{exporter: {{prometheus: {{host: 127.0.0.1, port: {self._told}}}}}}}}}"
        told = f"yaml:service::telemetry::metrics: {{level: basic, readers: [{reader}]}}"
        super().__init__(
            config=_sooner(spelled(config, spelling)),
            folder=folder,
            environment=where,
            overrides=[told, *overrides],
        )

    def queued(self) -> int:
        """Requests that it took and nobody acknowledged."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._told}/metrics") as page:
            sizes = re.findall(
                r"(?m)^otelcol_exporter_queue_size\{.*\} (\d+)$", page.read().decode()
            )
        return sum(map(int, sizes))

    def drain(self) -> None:
        """Wait until all is acknowledged, and end it."""
        until(lambda: self.queued() == 0, lambda: self.log)
        assert self.stop() == 0


def _sooner(config: str) -> str:
    """Nobody wants to wait for the next attempt."""
    least = "max_elapsed_time: 0"
    return config.replace(least, f"{least}\n      initial_interval: 100ms\n      max_interval: 1s")


def listening(**more: str) -> dict[str, str]:
    """Variables that give a Collector with one of our configurations ports of its own."""
    names = ("OTLP_GRPC_LISTEN", "OTLP_HTTP_LISTEN", "HEALTH_LISTEN")
    return {**{name: f"127.0.0.1:{free_port()}" for name in names}, **more}
