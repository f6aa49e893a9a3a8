"""Counts of large tests are in what `make test` prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
def test_that_passes(report_counts):
    report_counts("7 kills")
    report_counts("8 kills")

def test_that_fails(report_counts):
    report_counts("9 kills")
    assert False
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_counts_are_printed_at_the_end(workers: str, tmp_path: Path) -> None:
    """By workers of pytest-xdist too, and also if the test then fails."""
    (tmp_path / "test_it.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "reported_counts", "-n", workers, "test_it.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert sorted(line for line in done.stdout.splitlines() if line.endswith(" kills")) == [
        "7 kills", "8 kills", "9 kills",
    ], done.stdout  # fmt: skip
