"""
Columns to Arrow and Parquet. The only module that builds ``pyarrow`` tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .errors import DecodeError
from .flattening import Rows
from .ledger import Points
from .leftovers import point_columns
from .schema import CONFIGS, DEFAULT, POINTS, Column
from .sheets import ENERGY_SOURCES

if TYPE_CHECKING:
    from .streams import Floats, Times

LEVEL = 3
TIME_LEVEL, TIME_LEVEL_ROWS = 16, 200_000
"""Times are half of a shard. A higher level saves 3 bytes per row and costs 3 µs, up to here."""

DICTIONARY_FACTOR = 3
"""A column becomes a dictionary if each value stands there three times on average."""

_UNREPEATED_ENCODINGS = {"float64": "BYTE_STREAM_SPLIT", "string": "DELTA_BYTE_ARRAY"}

_ARROW_TYPES: Mapping[str, pa.DataType] = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int64": pa.int64(),
    "uint64": pa.uint64(),
    "float64": pa.float64(),
    "list<uint64>": pa.list_(pa.uint64()),
    "list<float64>": pa.list_(pa.float64()),
    "quantiles": pa.list_(pa.struct([("quantile", pa.float64()), ("value", pa.float64())])),
}


def arrow_schema(config: str) -> pa.Schema:
    """The fixed schema of *config*: the same in every shard, nothing inferred."""
    return pa.schema([(column.name, _ARROW_TYPES[column.type]) for column in CONFIGS[config]])


def default_table(rows: Rows) -> pa.Table:
    """The ``default`` config as a table with the contract's columns, in its order."""
    size = rows.times.size
    nanos = pa.array(rows.times)
    known: dict[str, pa.Array] = {
        "timestamp": _iso_utc(rows.times),
        "timestamp_unix_nano": nanos.cast(pa.string()),
        "energy_source": _energy_source(rows.energy_source),
        "gpu_throttle_reasons": _throttle_reasons(rows.throttle_reasons, size),
    }
    for name in ("run_id", "service_name", "host_name", "gpu_id", "gpu_uuid", "gpu_name"):
        words = pa.array([getattr(gpu, name) for gpu in rows.gpus], pa.string())
        known[name] = words.take(pa.array(rows.gpu_of_row))
    for name, values in rows.floats.items():
        known[name] = pa.array(values, from_pandas=True)
    arrays = [known.get(c.name, pa.nulls(size, _ARROW_TYPES[c.type])) for c in DEFAULT]
    return pa.Table.from_arrays(arrays, schema=arrow_schema("default"))


def points_table(points: Points, rows: Rows, default_run_id: str) -> pa.Table:
    """The ``points`` config: what *rows* left over from *points*."""
    columns = point_columns(points, rows.leftovers, default_run_id)
    times = np.array(columns["timestamp_unix_nano"], dtype=np.uint64)
    arrays: dict[str, pa.Array] = {"timestamp": _iso_utc(times)}
    arrays["timestamp_unix_nano"] = pa.array(times).cast(pa.string())
    starts = pa.array(columns["start_time_unix_nano"], pa.uint64())
    arrays["start_time_unix_nano"] = starts.cast(pa.string())
    columns["quantiles"] = [_quantiles(value) for value in columns["quantiles"]]
    for column in POINTS:
        if column.name not in arrays:
            arrays[column.name] = pa.array(columns[column.name], _ARROW_TYPES[column.type])
    return pa.Table.from_arrays([arrays[c.name] for c in POINTS], schema=arrow_schema("points"))


def write_parquet(
    table: pa.Table, config: str, file: IO[bytes], metadata: Mapping[str, str]
) -> None:
    """
    Write *table* as one immutable shard.

    Encodings follow the data (measured, docs/performance.md): values that repeat become a
    dictionary, other floats are split by byte, times are deltas; zstd over all. The same
    table always becomes the same bytes.
    """
    columns = [column for column in CONFIGS[config] if column.name in table.schema.names]
    encodings = {c.name: _encoding(c, table) for c in columns}
    time_level = TIME_LEVEL if table.num_rows <= TIME_LEVEL_ROWS else LEVEL
    pq.write_table(
        table.replace_schema_metadata({f"hubmeter.{k}": v for k, v in metadata.items()}),
        file,
        compression="zstd",
        compression_level={c.name: time_level if c.semantic == "time" else LEVEL for c in columns},
        version="2.6",
        data_page_version="2.0",
        write_page_index=True,
        use_dictionary=[name for name, encoding in encodings.items() if encoding == "dictionary"],
        column_encoding={
            name: encoding
            for name, encoding in encodings.items()
            if encoding not in (None, "dictionary")
        },
    )


def _encoding(column: Column, table: pa.Table) -> str | None:
    if column.type not in _UNREPEATED_ENCODINGS:
        return None
    distinct = pc.count_distinct(table[column.name]).as_py()
    if column.semantic != "time" and DICTIONARY_FACTOR * distinct <= table.num_rows:
        return "dictionary"
    return _UNREPEATED_ENCODINGS[column.type]


def _iso_utc(times: Times) -> pa.Array:
    """``2025-10-27T05:58:15.460017+00:00``: by integer arithmetic, always six digits."""
    micros = pa.array((times // np.uint64(1000)).astype(np.int64)).cast(pa.timestamp("us"))
    text = pc.replace_substring(micros.cast(pa.string()), " ", "T", max_replacements=1)
    return pc.binary_join_element_wise(text, "+00:00", "")


def _energy_source(source: Floats) -> pa.Array:
    words = pa.array([None, *ENERGY_SOURCES.values()], pa.string())
    return words.take(pa.array(np.nan_to_num(source).astype(np.int64)))


def _throttle_reasons(reasons: Mapping[str, Floats], size: int) -> pa.Array:
    """Comma-separated active reasons; empty where none is active, null where none was read."""
    if not reasons:
        return pa.nulls(size, pa.string())
    names = sorted(reasons)
    flags = np.stack([reasons[name] for name in names], axis=1)
    states = np.column_stack([np.isnan(flags).all(axis=1), flags > 0])
    distinct, place = np.unique(states, axis=0, return_inverse=True)
    # Not pyarrow's binary_join_element_wise: where every input is null it loses the rows.
    words = [
        None
        if is_unread
        else ",".join(name for name, flag in zip(names, active, strict=True) if flag)
        for is_unread, *active in distinct.tolist()
    ]
    return pa.array(words, pa.string()).take(pa.array(place.ravel()))


def _quantiles(value: Any) -> Any:
    return value and [{"quantile": quantile, "value": number} for quantile, number in value]


def read_parquet(files: Sequence[Path], config: str) -> pa.Table:
    """
    The rows of *files* in order of time, rows without a GPU first.

    Raises:
        DecodeError: A file is not Parquet, or lacks the columns of *config*.
    """
    schema = arrow_schema(config)
    tables = [_read_file(file, schema) for file in files]
    table = pa.concat_tables(tables)
    if len(tables) == 1:
        return table
    keys = [name for name in ("timestamp", "timestamp_unix_nano", "gpu_id") if name in schema.names]
    # No GPU sorts as "", hence first: the option for nulls differs between releases of pyarrow.
    places = pa.table({key: pc.fill_null(table[key], "") for key in keys})
    return table.take(pc.sort_indices(places, sort_keys=[(key, "ascending") for key in keys]))


def _read_file(file: Path, schema: pa.Schema) -> pa.Table:
    try:
        table = pq.ParquetFile(file).read()
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise DecodeError(f"{file} is not a shard of hubmeter: {error}") from error
