"""
Receiving: data points per second and core, beside a real Collector that writes them to a file.

Two clients replay the same requests to each server in turn, each client a process that waits
for every answer. One process of each server serves all of it::

    receiving.py client NUMBER    replays what it is told on its stdin
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

TESTS = str(Path(__file__).parents[1] / "tests")
if __name__ == "__main__":
    sys.path.append(TESTS)

import captured
from report import Result
from shapes import METRICS

ROUNDS, LEG_S, WARM_UP_S = 5, 1.0, 0.3
CLIENTS = 2
GPUS = 8
COLLECTIONS = (1, 36)
"""In a request: as an SDK sends one, and as a Collector puts them together."""

BODIES = 64
"""That differ; a receiver remembers 32 of a run, and does not keep again what is sent again."""

TRANSPORTS = ("http", "grpc")
OURS = "hubmeter serve"
EXPORT = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"


class Server(NamedTuple):
    """*ports*: of the transports. *after*: called after each leg."""

    pid: int
    ports: dict[str, int]
    after: Callable[[], None] = lambda: None


class Rate(NamedTuple):
    """Data points per second: of the servers' CPU, and of the clock."""

    per_core: float
    per_second: float


def measure() -> Iterator[Result]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {OURS: stack.enter_context(_hubmeter(folder)), **_collectors(stack, folder)}
        clients = [stack.enter_context(_client(number)) for number in range(CLIENTS)]
        rates = _rates(servers, clients)
    for transport, collections in itertools.product(TRANSPORTS, COLLECTIONS):
        points = collections * GPUS * len(METRICS)
        label = {"http": "HTTP", "grpc": "gRPC"}[transport]
        legs = {name: rates[name, transport, collections] for name in servers}
        yield from _compared(f"{label}, {points:,} per request", legs)


def _compared(what: str, legs: dict[str, list[Rate]]) -> Iterator[Result]:
    """More is better. Without a Collector ours stands alone."""
    peers = [name for name in legs if name != OURS] or ["none: no Collector is built"]
    for field, unit in (("per_core", "points per second and core"), ("per_second", "per second")):
        for peer in peers:
            yield Result(
                what=f"received {unit}, {what}",
                unit="k",
                ours=_median(legs[OURS], field),
                peer=_median(legs[peer], field) if peer in legs else None,
                peer_name=peer,
            )


def _median(rates: list[Rate], field: str) -> float:
    return statistics.median(getattr(rate, field) for rate in rates) / 1e3


def _rates(
    servers: dict[str, Server], clients: list[subprocess.Popen]
) -> dict[tuple[str, str, int], list[Rate]]:
    """What each server does in each leg; all have a turn in each round."""
    rates = defaultdict(list)
    legs = list(itertools.product(TRANSPORTS, COLLECTIONS, servers))
    for number in range(ROUNDS + 1):
        for transport, collections, name in legs if number % 2 else reversed(legs):
            seconds = LEG_S if number else WARM_UP_S
            rate = _leg(servers[name], clients, transport, collections, seconds)
            if number:
                rates[name, transport, collections].append(rate)
    return rates


def _leg(
    server: Server,
    clients: list[subprocess.Popen],
    transport: str,
    collections: int,
    seconds: float,
) -> Rate:
    before_s = _cpu_s(server.pid)
    told = [transport, server.ports[transport], collections, seconds]
    for client in clients:
        client.stdin.write(json.dumps(told) + "\n")
        client.stdin.flush()
    answers = [json.loads(client.stdout.readline()) for client in clients]
    used_s = _cpu_s(server.pid) - before_s
    server.after()
    points = sum(points for points, _ in answers)
    return Rate(points / used_s, sum(points / wall_s for points, wall_s in answers))


def _cpu_s(root: int) -> float:
    """Seconds of CPU that a process and its children have used."""
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(path.parent.name)] = int(fields[1])
        ticks[int(path.parent.name)] = sum(map(int, fields[11:15]))
    tree = [root]
    for pid in tree:
        tree.extend(child for child, parent in parents.items() if parent == pid)
    return sum(ticks[pid] for pid in tree) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _hubmeter(folder: Path) -> Iterator[Server]:
    """With a journal on disk; nothing is published before the end."""
    foreign = ("HUBMETER_", "OTEL_", "HF_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    command = [sys.executable, "-m", "hubmeter", "serve", "--to", str(folder / "data"),
               "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]  # fmt: skip
    environment = {**kept, "HUBMETER_JOURNAL_DIR": str(folder / "journal")}
    log = folder / "hubmeter.log"
    with log.open("wb") as written:
        process = subprocess.Popen(command, cwd=folder, env=environment, stderr=written)
    try:
        ports: dict[str, int] = {}
        while len(ports) < len(TRANSPORTS):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
            found = re.findall(r"OTLP/(\w+) on \S+:(\d+)\n", log.read_text())
            ports = {name.lower(): int(port) for name, port in found}
        yield Server(process.pid, ports)
        assert process.poll() is None, log.read_text()
    finally:
        process.kill()
        process.wait()


def _collectors(stack: ExitStack, folder: Path) -> dict[str, Server]:
    """One Collector with a pipeline for each form of files, under two names; none if not built."""
    from real_collector import Collector, collector_binary

    if collector_binary() is None:
        return {}
    receivers, exporters, pipelines, ports, servers = {}, {}, {}, [], {}
    for form in ("json", "proto"):
        named = {transport: f"{form}_{transport}".upper() for transport in TRANSPORTS}
        ends = {t: {"endpoint": f"127.0.0.1:${{env:{name}}}"} for t, name in named.items()}
        receivers[f"otlp/{form}"] = {"protocols": ends}
        path = folder / f"captured.{form}"
        exporters[f"file/{form}"] = {"path": str(path), "format": form, "append": True}
        pipelines[f"metrics/{form}"] = {"receivers": [f"otlp/{form}"],
                                        "exporters": [f"file/{form}"]}  # fmt: skip
        ports += named.values()
        servers[form] = named, path
    config = {"receivers": receivers, "exporters": exporters, "service": {"pipelines": pipelines}}
    collector = stack.enter_context(Collector(config, folder / "collector", ports=ports))
    return {
        f"Collector, file exporter, {form}": Server(
            collector.pid,
            {transport: collector.port(name) for transport, name in named.items()},
            lambda path=path: os.truncate(path, 0),  # a gigabyte otherwise
        )
        for form, (named, path) in servers.items()
    }


@contextmanager
def _client(number: int) -> Iterator[subprocess.Popen]:
    command = [sys.executable, __file__, "client", str(number)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def replay(number: int) -> None:
    """Be a client: a line with transport, port, collections per request and seconds; an answer."""
    bodies = {
        size: captured.requests(GPUS, f"bench-{number}-{size}", count=BODIES, per_request=size)
        for size in COLLECTIONS
    }
    print("ready", flush=True)
    for line in sys.stdin:
        transport, port, collections, seconds = json.loads(line)
        with {"http": _http, "grpc": _grpc}[transport](port) as send:
            requests, wall_s = _sent(send, bodies[collections], seconds)
        points = requests * collections * GPUS * len(METRICS)
        print(json.dumps([points, wall_s]), flush=True)


def _sent(send: Callable[[bytes], bytes], bodies: list[bytes], seconds: float):
    """How many requests were taken as a whole, in which time."""
    began_s = time.perf_counter()
    for requests, body in enumerate(itertools.cycle(bodies)):
        wall_s = time.perf_counter() - began_s
        if wall_s >= seconds:
            return requests, wall_s
        assert send(body) in (b"", b"\n\0")  # an empty partial success
    raise AssertionError


@contextmanager
def _http(port: int) -> Iterator[Callable[[bytes], bytes]]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"Content-Type": "application/x-protobuf"}

    def send(body: bytes) -> bytes:
        connection.request("POST", "/v1/metrics", body, headers)
        response = connection.getresponse()
        assert response.status == 200
        return response.read()

    yield send
    connection.close()


@contextmanager
def _grpc(port: int) -> Iterator[Callable[[bytes], bytes]]:
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.unary_unary(EXPORT)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["client", number]:
            replay(int(number))
        case _:
            from report import table

            print(table(list(measure())))
