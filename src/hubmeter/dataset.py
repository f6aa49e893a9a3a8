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

    Raises:
        DecodeError: There is no such dataset, or it is not one of ours.
    """
    from .tables import read_parquet

    path = Path(source)
    files = sorted(path.glob(f"data/{config}/*/*.parquet")) if path.is_dir() else [path]
    if config not in CONFIGS or not files or not files[0].exists():
        raise DecodeError(
            f"no hubmeter dataset in {path}: expected data/{config}/<month>/*.parquet"
        )
    return read_parquet(files, config)
