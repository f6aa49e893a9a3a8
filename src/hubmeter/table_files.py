"""
A table as one file: Parquet, CSV or JSON lines. Written whole or not at all.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv

from .errors import SettingsError
from .tables import write_parquet
from .whole_files import write_whole

CHUNK_ROWS = 10_000


def write_file(table: pa.Table, path: Path, config: str) -> None:
    """
    Write *table* in the format that the name of *path* says.

    Raises:
        SettingsError: The name says nothing that we know.
        OSError: The file cannot be written; what was there before still is.
    """
    write = writer_for(path)
    buffer = io.BytesIO()
    write(table, buffer, config)
    try:
        write_whole({path: buffer.getvalue()})
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def writer_for(path: Path) -> Callable[[pa.Table, IO[bytes], str], None]:
    """
    The format of *path*.

    Raises:
        SettingsError: The name says nothing that we know.
    """
    try:
        return _WRITERS[path.suffix.lower()]
    except KeyError:
        known = ", ".join(_WRITERS)
        raise SettingsError(f"{path}: the name must end in one of {known}") from None


def write_jsonl(table: pa.Table, file: IO[bytes], _config: str = "") -> None:
    """One object per line; null stays null, other non-finite numbers are words as in OTLP/JSON."""
    for batch in table.to_batches(max_chunksize=CHUNK_ROWS):
        lines = (json.dumps(_finite(row), ensure_ascii=False) + "\n" for row in batch.to_pylist())
        file.write("".join(lines).encode())


def _write_csv(table: pa.Table, file: IO[bytes], _config: str) -> None:
    """Lists, which CSV does not have, become JSON."""
    for place, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            lists = table[field.name].to_pylist()
            texts = [None if value is None else json.dumps(_finite(value)) for value in lists]
            table = table.set_column(place, field.name, pa.array(texts, pa.string()))
    pyarrow.csv.write_csv(table, file)


def _write_parquet(table: pa.Table, file: IO[bytes], config: str) -> None:
    write_parquet(table, config, file, {})


def _finite(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list():
            return [_finite(item) for item in value]
        case _:
            return value


_WRITERS: dict[str, Callable[[pa.Table, IO[bytes], str], None]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".jsonl": write_jsonl,
}
