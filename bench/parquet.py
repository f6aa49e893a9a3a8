"""Parquet bytes per row of the 13 seed columns at 91,700 rows, beside ``datasets``' writer."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from itertools import accumulate
from random import Random

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pyarrow as pa
import pyarrow.parquet as pq
from report import Result
from shapes import COUNTERS, METRICS

from hubmeter.batch import PointBatch, Series, SeriesLayout
from hubmeter.flattening import Options, flatten_points
from hubmeter.ledger import gather
from hubmeter.schema import SEED_COLUMNS
from hubmeter.tables import default_table, write_parquet

ROWS = 91_700
FIRST_UNIX_NANO = 1_761_544_695_460_017_300


def measure() -> Iterator[Result]:
    table = _table()
    seed = table.select(SEED_COLUMNS)
    theirs, seed_only, whole = io.BytesIO(), io.BytesIO(), io.BytesIO()
    from datasets import Dataset

    Dataset(seed).to_parquet(theirs)
    write_parquet(seed, "default", seed_only, {})
    write_parquet(table, "default", whole, {})
    yield Result(what=f"Parquet per row, 13 columns, {ROWS:,} rows", unit="B", limit=25,
                 ours=seed_only.tell() / ROWS)  # fmt: skip
    yield Result(what="the same beside Dataset.to_parquet", unit="B", peer_name="datasets",
                 peer=theirs.tell() / ROWS, ours=seed_only.tell() / ROWS)  # fmt: skip
    yield Result(what=f"Parquet per row, all {table.num_columns} columns", unit="B",
                 ours=whole.tell() / ROWS)  # fmt: skip
    assert pq.read_table(pa.BufferReader(whole.getvalue())).equals(table)


def _table() -> pa.Table:
    """
    One GPU, a row every ten seconds, as in the seed scenario a hundred times longer.

    Seeded noise, nothing that repeats for the compressor's sake: collections are late by
    0.2 to some 3 ms, power is read in mW, memory changes in steps, CO2 and cost follow power.
    """
    random = Random(1)
    watts = [round(40 + random.gauss(0, 4), 3) for _ in range(ROWS)]
    kwh = list(accumulate(power * 10 / 3.6e6 for power in watts))
    celsius = [round(85 + 5 * math.sin(i / 50) + random.gauss(0, 1)) for i in range(ROWS)]
    columns = {
        "gen_ai.gpu.utilization": [min(100, round(random.gauss(85, 15))) for _ in range(ROWS)],
        "gen_ai.gpu.memory.used": [1000 + Random(i // 10).randrange(1024) for i in range(ROWS)],
        "gen_ai.gpu.memory.total": [6144] * ROWS,
        "gen_ai.gpu.temperature": celsius,
        "gen_ai.gpu.power": watts,
        "gen_ai.co2.emissions": [475 * amount for amount in kwh],
        "gen_ai.power.cost": [0.12 * amount for amount in kwh],
    }
    late_ns = [round(200_000 + random.gammavariate(2, 400_000)) for _ in range(ROWS)]
    times = list(accumulate((10_000_000_000 + late for late in late_ns), initial=FIRST_UNIX_NANO))
    layout = SeriesLayout(tuple(map(_series, columns)))
    batches = (
        PointBatch(layout=layout, times_unix_nano=(time,), values=values)
        for time, *values in zip(times, *columns.values(), strict=False)
    )
    return default_table(flatten_points(gather(batches), Options(run_id="bench")))


def _series(name: str) -> Series:
    is_counter = name in COUNTERS
    return Series(
        resource='{"run.id":"79f3239f-f300-477c-956b-f22ea19044c9","service.name":"smoltrace-eval"}',
        scope_name="genai.gpu",
        metric_name=name,
        unit=METRICS[name],
        kind="sum" if is_counter else "gauge",
        temporality="cumulative" if is_counter else None,
        is_monotonic=True if is_counter else None,
        attributes='{"gpu_id":"0","gpu_name":"NVIDIA GeForce RTX 3060 Laptop GPU"}',
    )
