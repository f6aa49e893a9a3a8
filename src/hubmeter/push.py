"""
Bring a dataset, or anything that flattens into one, to a destination.
"""

from __future__ import annotations

import hashlib
import io
import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .captures.reading import Source, nobody
from .convert import read_points
from .destinations import commits
from .errors import DecodeError
from .run import begin_run
from .schema import CONFIGS
from .sealing import seal_segment
from .settings import Settings, safe_name
from .shard import Shard

if TYPE_CHECKING:
    import pyarrow as pa

_MONTH = re.compile(r"\d{4}-\d\d")

_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*-[0-9a-f]{12}(?:-\d+)?")
"""Run, process and part, as :func:`hubmeter.shard.seal` joins them."""


def shards_of(
    source: Path | Sequence[Source],
    settings: Settings,
    *,
    watch: Callable[[bytes], object] = nobody,
    say: Callable[[str], object] = lambda _: None,
) -> Iterator[list[Shard]]:
    """
    What *source* holds as shards, in groups for one commit each.

    The same source makes the same shards: to push it again adds nothing.

    Args:
        source: Dataset folder or Parquet file of one config; or captures, which are one shard.
        settings: For what is flattened.
        watch: Is shown the bytes of captures as they are read.
        say: Is told what in them is not published.

    Raises:
        DecodeError: It is none of these.
    """
    if not isinstance(source, Path):
        yield [_flattened(source, settings, watch, say)]
    elif source.is_dir():
        yield from _folder_shards(source)
    else:
        yield [_file_shard(source)]


def _folder_shards(folder: Path) -> Iterator[list[Shard]]:
    """The files of a dataset folder, as they are."""
    groups: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for config in CONFIGS:
        for path in sorted(folder.glob(f"data/{config}/*/*.parquet")):
            groups[path.parent.name, path.name].append(path)
    if not groups:
        raise DecodeError(
            f"no hubmeter dataset in {folder}: expected a dataset folder "
            "(data/<config>/<month>/*.parquet), a Parquet file or OTLP/JSON, "
            "or a folder of a Collector's files"
        )
    shards = (_as_it_is(folder, paths) for paths in groups.values())
    yield from commits(shards, lambda one: (len(one.files), sum(map(len, one.files.values()))))


def _as_it_is(folder: Path, paths: Sequence[Path]) -> Shard:
    """One shard of a dataset folder, byte for byte."""
    tables = {path.parent.parent.name: _table(path) for path in paths}
    return Shard(
        name=paths[0].stem,
        run_id=_run_id(next(iter(tables.values()))),
        files={path.relative_to(folder).as_posix(): path.read_bytes() for path in paths},
        rows=tables["default"].num_rows if "default" in tables else 0,
        points=tables["points"].num_rows if "points" in tables else 0,
    )


def _file_shard(path: Path) -> Shard:
    """
    A Parquet file from anywhere, at the place that a dataset has for it.

    One of our shards keeps its name, so that it is the same file as in its dataset.
    """
    content = path.read_bytes()
    config, table = _recognized(path)
    run_id, month = _run_id(table), _month(path, config) or str(table["timestamp"][0])[:7]
    if not _MONTH.fullmatch(month):
        raise DecodeError(f"{path}: its first row has no timestamp like 2026-01-31T...")
    name = path.stem
    if not (_SHARD_NAME.fullmatch(name) and _is_ours(content)):
        name = f"{safe_name(run_id)}-{hashlib.sha256(content).hexdigest()[:12]}"
    files = {f"data/{config}/{month}/{name}.parquet": content}
    shard = Shard(name=name, run_id=run_id, files=files, rows=0, points=0)
    return replace(shard, **{"rows" if config == "default" else "points": table.num_rows})


def _month(path: Path, config: str) -> str | None:
    """The month whose folder *path* is in: a shard's, which one of its files may not begin with."""
    folder = path.absolute().parent
    return folder.name if folder.parent.name == config and _MONTH.fullmatch(folder.name) else None


def _is_ours(content: bytes) -> bool:
    """Whether hubmeter wrote this Parquet file."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(io.BytesIO(content)).metadata or {}
    return any(key.startswith(b"hubmeter.") for key in metadata)


def _recognized(path: Path) -> tuple[str, pa.Table]:
    """The config that a Parquet file has the columns of, and its rows."""
    from .tables import read_parquet

    for config in CONFIGS:
        try:
            table = read_parquet([path], config)
        except DecodeError:
            continue
        return config, _filled(table, path)
    raise DecodeError(f"{path} is no Parquet file with the columns of hubmeter's dataset")


def _flattened(
    sources: Sequence[Source],
    settings: Settings,
    watch: Callable[[bytes], object],
    say: Callable[[str], object],
) -> Shard:
    content = hashlib.sha256()

    def digesting(piece: bytes) -> None:
        content.update(piece)
        watch(piece)

    points = read_points(sources, watch=digesting, say=say)
    for reason, count in points.skipped.items():
        say(f"skipped {count}: {reason}")
    digest = content.hexdigest()
    run = begin_run(settings, 0)
    # No random names: what names no run is named by what is in it.
    run_id = settings.run_id or str(uuid.uuid5(uuid.NAMESPACE_OID, digest))
    run = replace(run, run_id=run_id, process_id=digest[:12])
    shard, _ = seal_segment(points, run)
    if shard is None:
        raise DecodeError("nothing to push: no data point has a time, or HUBMETER_POINTS is none")
    return shard


def _table(path: Path) -> pa.Table:
    from .tables import read_parquet

    return _filled(read_parquet([path], path.parent.parent.name), path)


def _filled(table: pa.Table, path: Path) -> pa.Table:
    if not table.num_rows:
        raise DecodeError(f"{path} has no rows")
    return table


def _run_id(table: pa.Table) -> str:
    return str(table["run_id"][0].as_py() or "run")
