"""
A sealed shard: the Parquet bytes of one run and process, frozen, with their paths.

Whatever publishes it, and however often, publishes the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .settings import safe_name

if TYPE_CHECKING:
    import pyarrow as pa


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
    Freeze the tables of one flush.

    Args:
        tables: Config name to table, at least one of them with a row.
        run_id: Of the run; becomes part of a file name, whatever it contains.
        process_id: Unique for this process and flush, safe as a file name.
        metadata: Written into each Parquet file.
    """
    from .tables import write_parquet

    name = f"{safe_name(run_id)}-{process_id}"
    # datasets 5.2 cannot open a config that has only empty files
    filled = {config: table for config, table in tables.items() if table.num_rows}
    month = next(iter(filled.values()))["timestamp"][0].as_py()[:7]
    files = {}
    for config, table in filled.items():
        buffer = io.BytesIO()
        write_parquet(table, config, buffer, metadata)
        files[f"data/{config}/{month}/{name}.parquet"] = buffer.getvalue()
    return Shard(
        name=name, files=files, rows=tables["default"].num_rows, points=tables["points"].num_rows
    )
