"""
A sealed shard: the Parquet bytes of one run and process, frozen, with their paths.

Whatever publishes it, and however often, publishes the same bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .settings import safe_name

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """
    Files of one flush, by path inside the dataset.

    Attributes:
        name: Of the shard, unique for run, process and part.
        files: Path inside the dataset to the bytes of a Parquet file.
        rows: Number of rows of the ``default`` config.
        points: Number of rows of the ``points`` config.
        received: Data points that were taken for this shard, also the broken ones.
        rejected: Reason to number of data points that are in no table because of it.
    """

    name: str
    run_id: str
    files: Mapping[str, bytes]
    rows: int
    points: int
    received: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)

    @property
    def number_of_files(self) -> int:
        """One for each config that has rows, also while :attr:`files` are elsewhere."""
        return bool(self.rows) + bool(self.points)

    @property
    def published(self) -> int:
        """Data points that are in one of the tables."""
        return self.received - sum(self.rejected.values())


def seal(
    tables: Mapping[str, pa.Table],
    *,
    run_id: str,
    process_id: str,
    metadata: Mapping[str, str],
    received: int = 0,
    rejected: Mapping[str, int] | None = None,
) -> Shard:
    """
    Freeze the tables of one flush.

    Args:
        tables: Config name to table, at least one of them with a row.
        run_id: Of the run; becomes part of a file name, whatever it contains.
        process_id: Unique for this process and flush, safe as a file name.
        metadata: Written into each Parquet file, with the counts of data points.
        received: Data points that were taken, also those that are in no table.
        rejected: Reason to number of data points that are in no table.
    """
    from .tables import write_parquet

    name = f"{safe_name(run_id)}-{safe_name(process_id)}"
    # datasets 5.2 cannot open a config that has only empty files
    filled = {config: table for config, table in tables.items() if table.num_rows}
    month = next(iter(filled.values()))["timestamp"][0].as_py()[:7]
    shard = Shard(
        name=name,
        run_id=run_id,
        files={},
        rows=tables["default"].num_rows,
        points=tables["points"].num_rows,
        received=received,
        rejected=dict(rejected or {}),
    )
    files = {}
    for config, table in filled.items():
        buffer = io.BytesIO()
        write_parquet(table, config, buffer, {**metadata, **_counts(shard)})
        files[f"data/{config}/{month}/{name}.parquet"] = buffer.getvalue()
    return replace(shard, files=files)


def _counts(shard: Shard) -> dict[str, str]:
    """Received = stored + published + rejected; of what is published, nothing is only stored."""
    return {
        "points_received": str(shard.received),
        "points_stored": "0",
        "points_published": str(shard.published),
        "points_rejected": str(sum(shard.rejected.values())),
        "rejected": json.dumps(dict(sorted(shard.rejected.items()))),
    }
