"""
All measurements, each beside its peer in the same run, as a table with ratios and budgets.

Machines are noisy: compare the ratios, not the numbers. Medians of interleaved rounds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

import exporting
import flattening_files
import memory
import parquet
import publishing
import receiving
import sampling
import starting
from report import Result, table

MEASUREMENTS: tuple[Callable[[], Iterator[Result]], ...] = (
    exporting.measure,
    memory.measure,
    parquet.measure,
    starting.measure,
    sampling.measure,
    publishing.measure,
    receiving.measure,
    flattening_files.measure,
)


def main() -> int:
    results = []
    for measure in MEASUREMENTS:
        print(f"measuring: {measure.__module__}", file=sys.stderr)
        results.extend(measure())
    print(table(results))
    return 0 if all(result.is_within_budget for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
