"""
Points of a run to the frozen bytes of a shard. The same for live runs, recovery and files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .ledger import Points
from .openings import START, Opening
from .run import Run, factors_of
from .version import version

if TYPE_CHECKING:
    import pyarrow as pa

    from .flattening import Options, Rows
    from .shard import Shard


def options_of(run: Run, empty_run_unix_nano: int | None = None) -> Options:
    """How *run* wants its points to be flattened."""
    from .flattening import Options

    return Options(
        run_id=run.run_id,
        factors=factors_of(run),
        zero_fill=run.missing == "zero",
        points=run.points,  # type: ignore[arg-type]
        empty_run_unix_nano=empty_run_unix_nano,
    )


def tables_of(points: Points, options: Options) -> dict[str, pa.Table]:
    """Both configs of *points*."""
    from .flattening import flatten_points
    from .tables import default_table, points_table

    rows = flatten_points(points, options)
    return {"default": default_table(rows), "points": points_table(points, rows, options.run_id)}


def table_of(points: Points, options: Options, config: str, opening: Opening = START) -> pa.Table:
    """One config of *points*; the other, which may be large, is not made."""
    from .flattening import flatten_points
    from .tables import default_table, points_table

    rows = flatten_points(points, options, opening)
    if config == "default":
        return default_table(rows)
    return points_table(points, rows, options.run_id)


def seal_segment(
    points: Points,
    run: Run,
    opening: Opening = START,
    *,
    part: int = 0,
    empty_run_unix_nano: int | None = None,
    lost: Mapping[str, int] | None = None,
) -> tuple[Shard | None, Opening]:
    """
    Freeze one segment of *run*.

    Args:
        points: Of this segment only.
        run: Whose segment it is.
        opening: Totals that the run had before it.
        part: Number of the segment; it is in the name of the shard.
        empty_run_unix_nano: If there is no row, make one with this time.
        lost: Reason to number of points that were received, but not kept.

    Returns:
        The shard, or None if there is nothing to publish; and the totals after it.
    """
    from .flattening import flatten_points
    from .shard import seal
    from .tables import compact_points_table, default_table

    options = options_of(run, empty_run_unix_nano)
    rows = flatten_points(points, options, opening)
    left = compact_points_table(points, rows, options.run_id)
    tables = {"default": default_table(rows), "points": left}
    rejected = _rejected(rows, lost or {})
    if not any(table.num_rows for table in tables.values()):
        return None, rows.closing
    shard = seal(
        tables,
        run_id=next(t["run_id"][0].as_py() for t in tables.values() if t.num_rows),
        process_id=f"{run.process_id}-{part}" if part else run.process_id,
        received=received(points) + sum((lost or {}).values()),
        rejected=rejected,
        metadata=_factors(run),
    )
    return shard, rows.closing


def received(points: Points) -> int:
    """How many data points were taken, also those that could not be decoded."""
    return sum(len(block.values) for block in points.blocks) + sum(points.skipped.values())


def _rejected(rows: Rows, lost: Mapping[str, int]) -> dict[str, int]:
    """Reason to the number of data points that are in no table because of it."""
    from .flattening import IN_POINTS

    broken = {why: n for why, n in rows.skipped.items() if why not in IN_POINTS}
    return dict(Counter(broken) + Counter(lost))


def _factors(run: Run) -> dict[str, str]:
    """What a reader needs to judge the numbers."""
    return {
        "version": version(),
        "carbon_g_per_kwh": repr(run.carbon_g_per_kwh),
        "carbon_source": run.carbon_source,
        "price_usd_per_kwh": repr(run.price_usd_per_kwh),
        "price_source": run.price_source,
        "pue": repr(run.pue),
        "missing": run.missing,
    }
