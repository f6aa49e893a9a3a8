"""Arrow and Parquet: the schema of the contract, whatever the input."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmeter import tables as tables_module
from hubmeter.energy import Factors
from hubmeter.errors import DecodeError
from hubmeter.flattening import Options, flatten_points
from hubmeter.schema import CONFIGS, SEED_COLUMNS, SEED_METRICS
from hubmeter.tables import (
    arrow_schema,
    compact_points_table,
    default_table,
    points_table,
    read_parquet,
    write_parquet,
)
from makers import CO2, SECOND, T0, UTIL, decoded, gauge, point, request, total

HISTOGRAM = {
    "name": "h",
    "histogram": {
        "dataPoints": [
            {"timeUnixNano": str(T0), "count": 2, "bucketCounts": [1, 1], "explicitBounds": [0.5]}
        ]
    },
}
SUMMARY = {"name": "s", "summary": {"dataPoints": [
    {"timeUnixNano": str(T0), "quantileValues": [{"quantile": 0.5, "value": 1}]}]}}  # fmt: skip

INPUTS = {
    "nothing": [],
    "no GPU": [request(gauge("m", "", point(1)))],
    "one value": [request(gauge(UTIL, "%", point(1, gpu=0)))],
    "null": [request(gauge(UTIL, "%", point(None, gpu=0)))],
    "run level": [request(total(CO2, "g", point(1.0)))],
    "distributions": [request(HISTOGRAM, SUMMARY, gauge(UTIL, "%", point(1, gpu=0)))],
    "throttle": [request(gauge("gen_ai.gpu.throttle.power", "1", point(1, gpu=0)))],
}


def tables_of(*requests, **options) -> dict[str, pa.Table]:
    points = decoded(*requests)
    rows = flatten_points(points, Options(run_id="run", **options))
    return {"default": default_table(rows), "points": points_table(points, rows, "run")}


def run_of(gpus: int = 2, ticks: int = 50) -> dict[str, pa.Table]:
    """A run with every column filled that one convention can fill."""
    sent = [
        request(
            gauge(
                UTIL, "%", *(point(float(n % 7), T0 + n * SECOND, gpu=gpu) for gpu in range(gpus))
            ),
            gauge(
                "gen_ai.gpu.power",
                "W",
                *(point(100 + n / 3, T0 + n * SECOND, gpu=gpu) for gpu in range(gpus)),
            ),
            gauge("m", "", point(n, T0 + n * SECOND)),
            HISTOGRAM,
            SUMMARY,
            resource={"service.name": "s", "host.name": "h"},
        )
        for n in range(ticks)
    ]
    return tables_of(*sent, factors=Factors())


# ------------------------------------------------------------------ schema


@pytest.mark.parametrize("sent", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("config", CONFIGS)
def test_schema_is_the_same_for_every_input(sent, config) -> None:
    """Nothing is inferred, not even from an empty input."""
    table = tables_of(*sent)[config]

    assert table.schema.equals(arrow_schema(config), check_metadata=True)
    assert table.schema.names == [column.name for column in CONFIGS[config]]
    table.validate(full=True)


@pytest.mark.parametrize("config", CONFIGS)
def test_no_column_is_of_type_null_or_map(config) -> None:
    """Readers that infer from one shard must not fail on the next."""
    for field in arrow_schema(config):
        assert not pa.types.is_null(field.type)
        assert not pa.types.is_map(field.type)


def test_the_thirteen_columns_come_first() -> None:
    """Those that smoltrace and TraceMind read, in their order and types."""
    schema = arrow_schema("default")

    assert tuple(schema.names[:13]) == SEED_COLUMNS == (
        "run_id", "timestamp", "timestamp_unix_nano", "service_name", "gpu_id", "gpu_name",
        "co2_emissions_gco2e", "power_cost_usd", "gpu_utilization_percent", "gpu_memory_used_mib",
        "gpu_memory_total_mib", "gpu_temperature_celsius", "gpu_power_watts",
    )  # fmt: skip
    assert SEED_COLUMNS[6:] == SEED_METRICS
    assert {str(field.type) for field in list(schema)[:6]} == {"string"}
    assert {str(field.type) for field in list(schema)[6:13]} == {"double"}


# ------------------------------------------------------------------ timestamps


def stamp(nanos: int) -> tuple[str, str]:
    table = tables_of(
        request(gauge(UTIL, "%", point(1, nanos, gpu=0)), gauge("m", "", point(1, nanos)))
    )
    row, kept = table["default"].to_pylist()[0], table["points"].to_pylist()[0]
    assert (row["timestamp"], row["timestamp_unix_nano"]) == (
        kept["timestamp"], kept["timestamp_unix_nano"],
    )  # fmt: skip
    return row["timestamp"], row["timestamp_unix_nano"]


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (1761544695460017300, "2025-10-27T05:58:15.460017+00:00"),
        (1761544695000000000, "2025-10-27T05:58:15.000000+00:00"),
        (1761544695999999999, "2025-10-27T05:58:15.999999+00:00"),
        (1761544695100000000, "2025-10-27T05:58:15.100000+00:00"),
        (1, "1970-01-01T00:00:00.000000+00:00"),
        (951782400 * 10**9, "2000-02-29T00:00:00.000000+00:00"),
        (2**63 - 1, "2262-04-11T23:47:16.854775+00:00"),
        (2**63, "2262-04-11T23:47:16.854775+00:00"),
        (2**64 - 1, "2554-07-21T23:34:33.709551+00:00"),
    ],
)
def test_timestamp(nanos: int, text: str) -> None:
    """UTC, six digits always, cut and not rounded, to the end of OTLP's time."""
    assert stamp(nanos) == (text, str(nanos))


@given(st.integers(1, 2**64 - 1))
def test_timestamp_is_what_integer_arithmetic_says(nanos: int) -> None:
    """For every time that OTLP can say."""
    exact = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=nanos // 1000)

    assert stamp(nanos)[0] == exact.isoformat(timespec="microseconds")


def test_time_zone_of_the_machine_does_not_matter() -> None:
    """The seed's 11:28:15 was India's."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_tables; "
        "print(test_tables.stamp(test_tables.T0)[0])"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program, str(Path(__file__).parent)],
            env={**os.environ, "TZ": zone}, capture_output=True, text=True, check=True,
        ).stdout.strip()
        for zone in ("Asia/Kolkata", "America/New_York")
    }  # fmt: skip

    assert found == {"2025-10-27T05:58:15.460017+00:00"}


# ------------------------------------------------------------------ Parquet


@pytest.fixture(name="files", scope="module")
def _files(tmp_path_factory) -> dict[str, tuple[str, pa.Table]]:
    folder = tmp_path_factory.mktemp("shards")
    files = {}
    for config, table in run_of().items():
        path = folder / f"{config}.parquet"
        with path.open("wb") as file:
            write_parquet(table, config, file, {"version": "1"})
        files[config] = (str(path), table)
    return files


@pytest.mark.parametrize("config", CONFIGS)
def test_pandas_reads_the_same(files, config) -> None:
    """Through pyarrow, as most people do."""
    path, table = files[config]

    pd.testing.assert_frame_equal(pd.read_parquet(path), table.to_pandas())


@pytest.mark.parametrize("config", CONFIGS)
def test_polars_reads_the_same(files, config) -> None:
    """A reader of its own."""
    path, table = files[config]

    assert pl.read_parquet(path).rows(named=True) == table.to_pylist()


@pytest.mark.parametrize("config", CONFIGS)
def test_duckdb_reads_the_same(files, config) -> None:
    """A reader of its own."""
    path, table = files[config]
    found = duckdb.sql(f"SELECT * FROM '{path}'")

    assert found.columns == table.schema.names
    assert found.fetchall() == [tuple(row.values()) for row in table.to_pylist()]


@pytest.mark.parametrize("config", CONFIGS)
def test_encodings_are_those_declared(files, config) -> None:
    """Dictionaries where values repeat, floats split by byte, times as deltas; all in zstd."""
    metadata = pq.ParquetFile(files[config][0]).metadata
    group = metadata.row_group(0)
    found = {group.column(n).path_in_schema: group.column(n) for n in range(group.num_columns)}
    for column in CONFIGS[config]:
        if column.type not in ("string", "float64"):
            continue
        chunk = found[column.name]
        distinct = len(set(files[config][1][column.name].drop_null().to_pylist()))
        word = "BYTE_STREAM_SPLIT" if column.type == "float64" else "DELTA_BYTE_ARRAY"
        repeats = column.semantic != "time" and 3 * distinct <= metadata.num_rows
        assert chunk.compression == "ZSTD"
        assert ("RLE_DICTIONARY" in chunk.encodings) == repeats
        assert (word in chunk.encodings) == (not repeats)
    assert metadata.metadata[b"hubmeter.version"] == b"1"


def test_the_same_table_is_the_same_bytes() -> None:
    """So that a retry publishes what the first try did."""
    written = []
    for _ in range(2):
        buffer = io.BytesIO()
        write_parquet(run_of()["default"], "default", buffer, {"a": "b"})
        written.append(buffer.getvalue())

    assert written[0] == written[1]


@pytest.mark.parametrize(("most", "groups"), [(2**26, 1), (1000, 9)])
def test_what_rows_share_is_not_in_memory_for_each_row(
    most: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long resource is there once, and for some rows at a time where it becomes Parquet."""
    monkeypatch.setattr(tables_module, "MOST_TEXT", most)
    sent = request(
        gauge("m", "", *(point(n, T0 + n) for n in range(30))),
        HISTOGRAM,
        resource={"a": "x" * 250},
    )
    points = decoded(sent)
    rows = flatten_points(points, Options(run_id="run"))
    plain, buffers = points_table(points, rows, "run"), (io.BytesIO(), io.BytesIO())
    compact = compact_points_table(points, rows, "run")
    for table, buffer in zip((plain, compact), buffers, strict=True):
        write_parquet(table, "points", buffer, {"a": "b"})

    assert compact.nbytes < plain.nbytes - 29 * 250
    assert pq.ParquetFile(buffers[1]).metadata.num_row_groups == groups
    assert pq.read_table(buffers[1]).equals(pq.read_table(buffers[0]))
    assert groups > 1 or buffers[1].getvalue() == buffers[0].getvalue()


@pytest.mark.parametrize("config", CONFIGS)
def test_empty_tables_can_be_written(config) -> None:
    """With all their columns."""
    buffer = io.BytesIO()
    write_parquet(tables_of()[config], config, buffer, {})

    assert pq.read_table(buffer).schema.equals(arrow_schema(config))


# ------------------------------------------------------------------ reading shards


def shard(path, *requests):
    with path.open("wb") as file:
        write_parquet(tables_of(*requests)["default"], "default", file, {})
    return path


def test_shards_are_read_in_order_of_time_without_a_gpu_first(tmp_path) -> None:
    """Consumers take the last row for the latest state, so a run-level row is never last."""
    gpus = gauge(UTIL, "%", point(1, T0, gpu=1), point(2, T0, gpu=0))
    late = request(gpus, total(CO2, "g", point(5.0, T0)))
    early = request(gauge(UTIL, "%", point(3, T0 - SECOND, gpu=0)))
    table = read_parquet([shard(tmp_path / "a", late), shard(tmp_path / "b", early)], "default")

    assert table["gpu_id"].to_pylist() == ["0", None, "0", "1"]
    assert table.schema.equals(arrow_schema("default"))


def test_what_is_not_a_shard_is_a_decode_error(tmp_path) -> None:
    """Not Parquet, or not our columns."""
    (tmp_path / "text").write_text("x")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other")
    for name in ("text", "other"):
        with pytest.raises(DecodeError, match="not a shard"):
            read_parquet([tmp_path / name], "default")


def test_integers_beyond_float_survive_parquet(tmp_path) -> None:
    """From request to file."""
    table = tables_of(request(gauge("m", "", point(2**53 + 1))))["points"]
    with (tmp_path / "p").open("wb") as file:
        write_parquet(table, "points", file, {})

    assert read_parquet([tmp_path / "p"], "points")["value_int"].to_pylist() == [2**53 + 1]


def test_null_and_nan_are_different_in_points() -> None:
    """Not recorded is null; not a number is a number that is none."""
    sent = request(
        gauge("m", "", point(None, T0), point(1, T0 + 1) | {"asInt": None, "asDouble": "NaN"})
    )
    values = tables_of(sent)["points"]["value"]

    assert values.null_count == 1
    assert np.isnan(values[1].as_py())
