"""Commands that read: what a dataset or a file with metrics says."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..terminal import format_option, input_of, reporting_errors, say

if TYPE_CHECKING:
    import pyarrow as pa


@click.command()
@click.argument("src")
@click.option(
    "-o",
    "--output",
    default="-",
    metavar="FILE",
    help="FILE.parquet, .csv or .jsonl; - is JSON lines to stdout (default).",
)
@click.option(
    "--config",
    type=click.Choice(["default", "points"]),
    default="default",
    show_default=True,
    help="Rows, or the points that have no column.",
)
@click.option(
    "--fill",
    "missing",
    type=click.Choice(["null", "zero"]),
    help="What stands for a value that was not measured.  [default: null]",
)
@click.option("--run-id", metavar="ID", help="For data that names no run.")
@reporting_errors
def flatten(src: str, output: str, config: str, missing: str | None, run_id: str | None) -> None:
    """
    Flatten OTLP/JSON into one row per instant and GPU.

    SRC is a file with one JSON document or one request per line, as smoltrace and the
    Collector's file exporter write it; - reads stdin. What could not be used is counted
    on stderr.
    """
    from ..convert import read_points
    from ..flattening import flatten_points
    from ..run import begin_run
    from ..sealing import options_of
    from ..settings import load_settings
    from ..table_files import writer_for
    from ..tables import default_table, points_table

    if output != "-":
        writer_for(Path(output))
        if _is_same_file(src, output):
            raise click.UsageError(f"-o {output} would replace the input: choose another name")
    settings = load_settings(missing=missing, run_id=run_id)
    for problem in settings.problems:
        say(f"warning: {problem}")
    options = options_of(begin_run(settings, 0))
    points = read_points(input_of(src))
    rows = flatten_points(points, options)
    if config == "default":
        _write(default_table(rows), output, config)
    else:
        _write(points_table(points, rows, options.run_id), output, config)
    for reason, count in rows.skipped.items():
        say(f"skipped {count}: {reason}")
    say(f"{rows.times.size} rows, {rows.leftovers.size} other points (--config points)")


@click.command()
@click.argument("src")
@click.option(
    "--by",
    type=click.Choice(["gpu", "run"]),
    default="gpu",
    show_default=True,
    help="One line per GPU or per run.",
)
@format_option
@reporting_errors
def summary(src: str, by: str, form: str) -> None:
    """
    Show what a dataset says.

    SRC is a dataset folder, one of its Parquet files, or anything that flatten reads.
    """
    from ..views.summary import by_run, summarize
    from ..views.summary_text import gpu_text, run_text

    found = summarize(_rows(src))
    if not found.gpus:
        say(f"{src} has no GPU rows; other points: hubmeter flatten SRC --config points")
    if form == "json":
        data = found.as_json()
        if by == "run":
            from dataclasses import asdict

            data["runs"] = [{"run_id": run, **asdict(total)} for run, total in by_run(found)]
            del data["gpus"]
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        click.echo(run_text(found) if by == "run" else gpu_text(found))


def _rows(src: str) -> pa.Table:
    """Rows of a dataset, or of whatever flattens into one."""
    from ..convert import flatten
    from ..dataset import open_dataset

    path = Path(src)
    if src not in ("", "-") and (path.is_dir() or path.suffix == ".parquet"):
        return open_dataset(path)
    return flatten(input_of(src))


def _write(table: pa.Table, output: str, config: str) -> None:
    from ..table_files import write_file, write_jsonl

    if output == "-":
        write_jsonl(table, sys.stdout.buffer)
        sys.stdout.flush()
    else:
        write_file(table, Path(output), config)


def _is_same_file(src: str, output: str) -> bool:
    with suppress(OSError):
        return os.path.samefile(src, output)  # noqa: PTH121
    return False
