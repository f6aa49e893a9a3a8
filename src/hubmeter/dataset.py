"""
Open a published dataset as Arrow.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DecodeError
from .schema import CONFIGS

if TYPE_CHECKING:
    import pyarrow as pa


def open_dataset(source: str | Path, config: str = "default") -> pa.Table:
    """
    All rows of a dataset folder or of a single Parquet file, in order of time.

    Args:
        source: Folder that hubmeter wrote, or one of its Parquet files.
        config: ``default`` or ``points``.

    A file that is not a shard is skipped with a warning, if others are.

    Raises:
        DecodeError: There is no such dataset, or it is not one of ours.
        OSError: It may not be read.
    """
    from .tables import arrow_schema, read_parquet

    path = Path(source)
    if config not in CONFIGS:
        raise DecodeError(f"no config {config!r} in {path}: expected one of {', '.join(CONFIGS)}")
    if not path.is_dir():
        if not path.exists():
            raise DecodeError(f"no hubmeter dataset in {path}: there is no such file or folder")
        return read_parquet([path], config)
    if files := _shards(path, config):
        return read_parquet(files, config)
    if not any(_shards(path, other) for other in CONFIGS):
        raise DecodeError(
            f"no hubmeter dataset in {path}: expected data/<config>/<month>/*.parquet"
        )
    return arrow_schema(config).empty_table()  # a shard has no file for a config without rows


def _shards(folder: Path, config: str) -> list[Path]:
    """Files of a config. Not a glob, which overlooks folders that it may not read."""
    root = folder / "data" / config
    months = [month for month in root.iterdir() if month.is_dir()] if root.is_dir() else []
    return sorted(path for month in months for path in month.iterdir() if path.suffix == ".parquet")
