"""CPU time of the GPU sampler at 1 Hz on 8 stand-in GPUs, through the real pynvml."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from report import Result

from hubmeter.nvml import open_nvml
from hubmeter.sources.nvml_sampler import GpuSampler
from standin import CompilerMissing, compile_standin, loaded

TICKS = 300
GPUS = 8


def measure() -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            library = compile_standin(Path(folder), soname=False)
        except CompilerMissing as error:
            print(f"skipped: {error}")
            return
        with loaded(library) as standin:
            standin.set_gpu_count(GPUS)
            yield Result(what=f"sampler at 1 Hz, {GPUS} stand-in GPUs, share of one core",
                         unit="%", ours=_share_percent(), limit=0.1)  # fmt: skip


def _share_percent() -> float:
    """CPU of one tick per second; waking up once a second is not in it."""
    now = [time.monotonic_ns()]
    sampler = GpuSampler(open_nvml, monotonic_ns=lambda: now[0])
    sampler.open()
    started = time.process_time()
    for _ in range(TICKS):
        now[0] += 1_000_000_000
        sampler.tick()
    used_s = time.process_time() - started
    sampler.stop()
    return 100 * used_s / TICKS
