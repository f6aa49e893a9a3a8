"""
Columns to Arrow and Parquet. The only module that builds ``pyarrow`` tables.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .arrow_arrays import column as column_of
from .arrow_arrays import numbers, repeated, shared, texts
from .batch import Distribution
from .errors import DecodeError
from .flattening import Rows
from .gpus import owner_of
from .ledger import Points
from .leftovers import PointRows, point_rows
from .schema import CONFIGS, DEFAULT, POINTS, Column
from .sheets import ENERGY_SOURCES

if TYPE_CHECKING:
    from .streams import Floats, Times

log = logging.getLogger(__name__)

LEVEL = 3
TIME_LEVEL, TIME_LEVEL_ROWS = 16, 200_000
"""Times are half of a shard. A higher level saves 3 bytes per row and costs 3 µs, up to here."""

MOST_TEXT = 2**26
"""Bytes that are made of dictionaries at a time; then a new row group begins."""

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
    known: dict[str, pa.Array] = {
        "timestamp": _iso_utc(rows.times),
        "timestamp_unix_nano": numbers(rows.times).cast(pa.string()),
        "energy_source": _energy_source(rows.energy_source),
        "gpu_throttle_reasons": _throttle_reasons(rows.throttle_reasons, size),
    }
    for name in ("run_id", "service_name", "host_name", "gpu_id", "gpu_uuid", "gpu_name"):
        words = texts([getattr(gpu, name) for gpu in rows.gpus])
        known[name] = words.take(numbers(rows.gpu_of_row))
    for name, column in rows.labels.items():
        known[name] = texts([None, *column.words]).take(numbers(column.of_row + 1))
    for name, values in rows.floats.items():
        known[name] = numbers(values, ~np.isnan(values))
    arrays = [known.get(c.name, pa.nulls(size, _ARROW_TYPES[c.type])) for c in DEFAULT]
    return pa.Table.from_arrays(arrays, schema=arrow_schema("default"))


def points_table(points: Points, rows: Rows, default_run_id: str) -> pa.Table:
    """The ``points`` config: what *rows* left over from *points*."""
    return compact_points_table(points, rows, default_run_id).cast(arrow_schema("points"))


def compact_points_table(points: Points, rows: Rows, default_run_id: str) -> pa.Table:
    """
    The same with dictionaries of what the series say, for :func:`write_parquet`.

    A resource of some kilobytes that stands in each row would take gigabytes.
    """
    found = point_rows(points, rows.leftovers)
    owners = [owner_of(series, default_run_id) for series in found.series]
    words: dict[str, list[Any]] = {
        name: [getattr(s, name) for s in found.series] for name in _SERIES
    }
    words["run_id"], words["service_name"] = [o[0] for o in owners], [o[1] for o in owners]
    words["resource_attributes"] = [series.resource for series in found.series]
    starts = numbers(found.start_times, found.start_times != 0)
    arrays: dict[str, pa.Array] = {
        "timestamp": _iso_utc(found.times),
        "timestamp_unix_nano": numbers(found.times).cast(pa.string()),
        "start_time_unix_nano": starts.cast(pa.string()),
        "value": numbers(found.values, found.is_number),
        "value_int": numbers(found.integers, found.is_integer),
        "flags": _flags(found),
    }
    for name, values in words.items():
        arrays[name] = shared(values, _point_type(name), found.series_of_row)
    for name in Distribution.__slots__:
        known = {row: getattr(value, name) for row, value in found.distributions.items()}
        arrays[name] = _scattered(known, found.times.size, _point_type(name))
    exemplars = {row: extra.exemplars for row, extra in found.extras.items()}
    arrays["exemplars"] = _scattered(exemplars, found.times.size, pa.string())
    names = [column.name for column in POINTS]
    return pa.Table.from_arrays([arrays[name] for name in names], names=names)


_SERIES = ("metric_name", "unit", "kind", "temporality", "is_monotonic", "scope_name", "attributes")


def _point_type(name: str) -> pa.DataType:
    return _ARROW_TYPES[next(column.type for column in POINTS if column.name == name)]


def _flags(found: PointRows) -> pa.Array:
    flags = np.zeros(found.times.size, dtype=np.int64)
    for row, extra in found.extras.items():
        flags[row] = extra.flags
    return numbers(flags)


def _scattered(known: Mapping[int, Any], size: int, type_: pa.DataType) -> pa.Array:
    """A column of *size* rows that is null but for what is *known*."""
    if not any(value is not None for value in known.values()):
        return pa.nulls(size, type_)
    values: list[Any] = [None] * size
    for row, value in known.items():
        values[row] = _quantiles(value) if type_ == _ARROW_TYPES["quantiles"] else value
    return column_of(values, type_)


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
    schema = pa.schema([arrow_schema(config).field(name) for name in table.schema.names])
    with pq.ParquetWriter(
        file,
        schema.with_metadata({f"hubmeter.{k}": v for k, v in metadata.items()}),
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
    ) as writer:
        for rows in _written_together(table):
            writer.write_table(rows.cast(writer.schema))


def _written_together(table: pa.Table) -> Iterator[pa.Table]:
    """All of *table*, unless what its dictionaries stand for is too much at a time."""
    text = np.zeros(table.num_rows, dtype=np.int64)
    for column in table.itercolumns():
        if pa.types.is_dictionary(column.type) and table.num_rows:
            text += _lengths(column.combine_chunks())
    group = np.cumsum(text) // MOST_TEXT
    cuts = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), table.num_rows]
    for first, end in pairwise(cuts):
        yield table.slice(first, end - first)


def _lengths(texts: pa.DictionaryArray) -> NDArray[np.int64]:
    """Bytes of each of *texts*; of a null, those of any."""
    # Neither fill_null() nor to_numpy(): they import pandas.
    places = np.frombuffer(texts.indices.buffers()[1], dtype=np.int32)
    offsets = np.frombuffer(texts.dictionary.buffers()[1], dtype=np.int32)
    of_word = np.append(np.diff(offsets), 0).astype(np.int64)  # there may be none
    return of_word[places[texts.offset : texts.offset + len(texts)]]


def _encoding(column: Column, table: pa.Table) -> str | None:
    if column.type not in _UNREPEATED_ENCODINGS:
        return None
    values = table[column.name]
    if pa.types.is_dictionary(values.type):
        values = pa.chunked_array([chunk.indices for chunk in values.chunks])
    distinct = pc.count_distinct(values).as_py()
    if column.semantic != "time" and DICTIONARY_FACTOR * distinct <= table.num_rows:
        return "dictionary"
    return _UNREPEATED_ENCODINGS[column.type]


def _iso_utc(times: Times) -> pa.Array:
    """``2025-10-27T05:58:15.460017+00:00``: by integer arithmetic, always six digits."""
    micros = numbers((times // np.uint64(1000)).astype(np.int64)).cast(pa.timestamp("us"))
    text = pc.replace_substring(micros.cast(pa.string()), " ", "T", max_replacements=1)
    zone, separator = repeated("+00:00", times.size), repeated("", times.size)
    return pc.binary_join_element_wise(text, zone, separator)


def _energy_source(source: Floats) -> pa.Array:
    words = texts([None, *ENERGY_SOURCES.values()])
    return words.take(numbers(np.nan_to_num(source).astype(np.int64)))


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
    return texts(words).take(numbers(place.ravel()))


def _quantiles(value: Any) -> Any:
    return value and [{"quantile": quantile, "value": number} for quantile, number in value]


def read_parquet(files: Sequence[Path], config: str) -> pa.Table:
    """
    The rows of *files* in order of time, rows without a GPU first.

    Raises:
        DecodeError: None of them is Parquet with the columns of *config*.
    """
    schema = arrow_schema(config)
    tables: list[pa.Table] = []
    for file in files:
        try:
            tables.append(_read_file(file, schema))
        except DecodeError as error:
            if file is files[-1] and not tables:
                raise
            log.warning("skipped: %s", error)
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
