"""
A captured file to rows, beside protobuf's parser, orjson and Python, and smoltrace.

Each way is a process of its own, which has done it once with one record before::

    flattening_files.py WAY PATH
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1] / "tests"))

import captured
from report import Result
from shapes import METRICS

ENOUGH_S = 40.0
"""No other round after so long; the first one takes as long as it takes."""

GPUS, COLLECTIONS = 8, 17_858
"""A million data points."""

SMALL = 12_000
"""
Collections of one GPU, 84,000 points, for smoltrace: of several it would read the first only. It
has all documents in memory as dictionaries, and takes the same time for each of them.
"""

COLUMNS = {
    "gen_ai.gpu.utilization": "gpu_utilization_percent",
    "gen_ai.gpu.memory.used": "gpu_memory_used_mib",
    "gen_ai.gpu.memory.total": "gpu_memory_total_mib",
    "gen_ai.gpu.temperature": "gpu_temperature_celsius",
    "gen_ai.gpu.power": "gpu_power_watts",
    "gen_ai.co2.emissions": "co2_emissions_gco2e",
    "gen_ai.power.cost": "power_cost_usd",
}


class Did(NamedTuple):
    """*rows*: of the table, or points where there is none. *grown*: peak of resident bytes."""

    ns_per_point: float
    rows: int
    grown: int


def measure() -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        proto, lines, small = folder / "proto", folder / "lines", folder / "small"
        captured.write_messages(proto, GPUS, COLLECTIONS)
        captured.write_lines(lines, GPUS, COLLECTIONS)
        captured.write_lines(small, 1, SMALL)
        tried = _tried(
            ("flatten", proto), ("decode", proto), ("protobuf", proto),
            ("flatten", lines), ("decode", lines), ("orjson", lines), ("orjson_rows", lines),
            ("flatten", small), ("smoltrace", small),
        )  # fmt: skip
    million, part = f"{COLLECTIONS * GPUS * len(METRICS):,} points", f"{SMALL * 7:,} points"
    for what, path, way, peer, peer_name in (
        (f"protobuf file to Arrow, {million}", proto, "flatten", "protobuf", "protobuf's parse"),
        ("the same, decoded only", proto, "decode", "protobuf", "protobuf's parse"),
        (f"JSON file to Arrow, {million}", lines, "flatten", "orjson_rows", "orjson + Python"),
        ("the same, decoded only", lines, "decode", "orjson", "orjson's parse"),
        (f"JSON file of 1 GPU to rows, {part}", small, "flatten", "smoltrace",
         "json + smoltrace flatten_metrics_for_hf"),
    ):  # fmt: skip
        ours, theirs = (_median(tried[one, path], "ns_per_point") for one in (way, peer))
        yield Result(what=what, unit="ns/point", ours=ours, peer=theirs, peer_name=peer_name)
    for what, path in (("protobuf", proto), ("JSON", lines)):
        yield Result(
            what=f"peak memory of {what} file to Arrow, {million}",
            unit="MB",
            ours=_median(tried["flatten", path], "grown") / 1e6,
            peer=_median(tried["orjson_rows", lines], "grown") / 1e6 if path == lines else None,
            peer_name="orjson + Python" if path == lines else "",
        )


def _median(seen: list[Did], field: str) -> float:
    return statistics.median(getattr(did, field) for did in seen)


def _tried(*ways: tuple[str, Path]) -> dict[tuple[str, Path], list[Did]]:
    """All of *ways* in turn, several times; those of one file agree on the rows."""
    tried = defaultdict(list)
    until_s = time.monotonic() + ENOUGH_S
    while not tried or time.monotonic() < until_s:
        for way, path in ways:
            command = [sys.executable, __file__, way, str(path)]
            printed = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
            tried[way, path].append(Did(*json.loads(printed)))
    for _, path in ways:
        tables = ("flatten", "orjson_rows", "smoltrace")
        rows = {did.rows for way in tables for did in tried.get((way, path), ())}
        assert len(rows) == 1, rows
    return tried


def try_one(way: str, path: Path) -> Did:
    """Do it with one record, so that all is imported, and then with the whole file."""
    do: Callable[[Path], int] = WAYS[way]
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first"
        gpus = 1 if path.name == "small" else GPUS
        write = captured.write_messages if path.name == "proto" else captured.write_lines
        write(first, gpus, 1)
        do(first)
    points = (SMALL if gpus == 1 else COLLECTIONS) * gpus * len(METRICS)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    began_s = time.perf_counter()
    rows = do(path)
    seconds = time.perf_counter() - began_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Did(seconds / points * 1e9, rows, peak - before)


def _flatten(path: Path) -> int:
    from hubmeter.convert import flatten

    return flatten(path).num_rows


def _decode(path: Path) -> int:
    from hubmeter.captures.reading import CaptureReader

    return sum(len(batch.values) for batch in CaptureReader().read([path]))


def _protobuf(path: Path) -> int:
    """Protobuf's parser alone; the messages are dropped."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
        ExportMetricsServiceRequest,
    )

    records = 0
    with path.open("rb") as file:
        while prefix := file.read(4):
            ExportMetricsServiceRequest.FromString(file.read(int.from_bytes(prefix, "big")))
            records += 1
    return records


def _orjson(path: Path) -> int:
    """Its parser alone; the documents are dropped."""
    import orjson

    with path.open("rb") as file:
        return sum(1 for line in file if orjson.loads(line))


def _orjson_rows(path: Path) -> int:
    """What one writes in an afternoon: correct for this file, and for no other."""
    import orjson
    import pyarrow as pa

    rows: dict[tuple[str, str], dict[str, Any]] = {}
    with path.open("rb") as file:
        for line in file:
            for resource_metrics in orjson.loads(line)["resourceMetrics"]:
                _add(resource_metrics, rows)
    return pa.Table.from_pylist(list(rows.values())).num_rows


def _add(resource_metrics: Any, rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    about = {
        pair["key"]: pair["value"].get("stringValue")
        for pair in resource_metrics["resource"]["attributes"]
    }
    for scope_metrics in resource_metrics["scopeMetrics"]:
        for metric in scope_metrics["metrics"]:
            column = COLUMNS[metric["name"]]
            for point in (metric.get("gauge") or metric["sum"])["dataPoints"]:
                said = {pair["key"]: pair["value"]["stringValue"] for pair in point["attributes"]}
                key = point["timeUnixNano"], said["gpu_id"]
                row = rows.get(key)
                if row is None:
                    row = rows[key] = {
                        "run_id": about["run.id"],
                        "service_name": about["service.name"],
                        "timestamp_unix_nano": int(key[0]),
                        **said,
                    }
                value = point.get("asDouble")
                row[column] = float(point["asInt"]) if value is None else value


def _smoltrace(path: Path) -> int:
    from smoltrace.utils import flatten_metrics_for_hf

    with path.open("rb") as file:
        found = [one for line in file for one in json.loads(line)["resourceMetrics"]]
    return len(flatten_metrics_for_hf({"run_id": "bench-run", "resourceMetrics": found}))


WAYS: dict[str, Callable[[Path], int]] = {
    "flatten": _flatten,
    "decode": _decode,
    "protobuf": _protobuf,
    "orjson": _orjson,
    "orjson_rows": _orjson_rows,
    "smoltrace": _smoltrace,
}

if __name__ == "__main__":
    match sys.argv[1:]:
        case [way, path]:
            print(json.dumps(try_one(way, Path(path))))
        case _:
            from report import table

            print(table(list(measure())))
