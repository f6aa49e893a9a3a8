"""What importing and ``hubmeter --help`` cost, each in fresh processes."""

from __future__ import annotations

import compileall
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from report import Result

import hubmeter

ROUNDS = 9
SDK = "import opentelemetry.sdk.metrics.export"
EXPORTER = f"{SDK}; from hubmeter import HubMetricExporter"


def measure() -> Iterator[Result]:
    # As installed; some machines forbid Python to keep what it compiled.
    compileall.compile_dir(str(Path(hubmeter.__file__).parent), quiet=1)
    bare, exporter, package = _best_ms(
        [sys.executable, "-c", SDK],
        [sys.executable, "-c", EXPORTER],
        [sys.executable, "-c", f"{SDK}; import hubmeter"],
    )
    for what, found in (("import hubmeter", package), ("import its exporter", exporter)):
        beyond_sdk = found - bare
        yield Result(what=f"{what}, beyond the OTel SDK", unit="ms", ours=beyond_sdk, limit=30)
    [help_ms] = _best_ms([str(Path(sys.executable).with_name("hubmeter")), "--help"])
    yield Result(what="hubmeter --help", unit="ms", ours=help_ms, limit=300)


def _best_ms(*commands: list[str]) -> list[float]:
    times: list[list[float]] = [[] for _ in commands]
    for _ in range(ROUNDS):
        for command, seen in zip(commands, times, strict=True):
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seen.append((time.perf_counter() - started) * 1e3)
    return [min(seen) for seen in times]
