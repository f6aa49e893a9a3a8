"""
A sealed shard: the Parquet bytes of one run and process, frozen, with their paths.

Whatever publishes it, and however often, publishes the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

LONGEST_STEM = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """
    Files of one flush, by path inside the dataset.

    Attributes:
        rows: Number of rows of the ``default`` config.
        points: Number of rows of the ``points`` config.
    """

    name: str
    files: Mapping[str, bytes]
    rows: int
    points: int


def seal(
    tables: Mapping[str, pa.Table], *, run_id: str, process_id: str, metadata: Mapping[str, str]
) -> Shard:
    """
    Freeze *tables* (config name to table, ``default`` with at least one row).

    Args:
        run_id: Of the run; becomes part of a file name, whatever it contains.
        process_id: Unique for this process and flush, safe as a file name.
        metadata: Written into each Parquet file.
    """
    from .tables import write_parquet

    name = f"{_file_stem(run_id)}-{process_id}"
    month = tables["default"]["timestamp"][0].as_py()[:7]
    files = {}
    for config, table in tables.items():
        if not table.num_rows:
            continue  # datasets 5.2 cannot open a config that has only empty files
        buffer = io.BytesIO()
        write_parquet(table, config, buffer, metadata)
        files[f"data/{config}/{month}/{name}.parquet"] = buffer.getvalue()
    return Shard(
        name=name, files=files, rows=tables["default"].num_rows, points=tables["points"].num_rows
    )


def _file_stem(text: str) -> str:
    """A file name that cannot leave its folder; different texts stay different."""
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", text).lstrip(".")[:LONGEST_STEM]
    if safe == text:
        return safe
    return f"{safe}-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:8]}"
