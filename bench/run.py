"""
All measurements, each beside its peer in the same run, as tables with ratios and budgets.

Machines are noisy: compare the ratios, not the numbers. Medians of interleaved rounds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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

SECTIONS: Mapping[str, Sequence[Callable[[], Iterator[Result]]]] = {
    "Measurements": (
        exporting.measure,
        memory.measure,
        parquet.measure,
        starting.measure,
        sampling.measure,
        publishing.measure,
    ),
    "Receiving": (receiving.measure,),
    "Files": (flattening_files.measure,),
}
"""By their headings in docs/performance.md."""


def main() -> int:
    is_within_budgets = True
    for heading, measurements in SECTIONS.items():
        results = []
        for measure in measurements:
            print(f"measuring: {measure.__module__}", file=sys.stderr)
            results.extend(measure())
        print(f"## {heading}\n\n{table(results)}\n", flush=True)
        is_within_budgets &= all(result.is_within_budget for result in results)
    return 0 if is_within_budgets else 1


if __name__ == "__main__":
    sys.exit(main())
