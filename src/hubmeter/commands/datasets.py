"""Commands that read: what a dataset or a file with metrics says."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..terminal import Progress, format_option, inputs_of, is_flat, reporting_errors, say

if TYPE_CHECKING:
    import pyarrow as pa

    from ..captures.reading import Source
    from ..ledger import Points


@click.command()
@click.argument("srcs", metavar="SRC...", nargs=-1, required=True)
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
def flatten(
    srcs: tuple[str, ...], output: str, config: str, missing: str | None, run_id: str | None
) -> None:
    """
    Flatten captured OpenTelemetry metrics into one row per instant and GPU.

    SRC is what a Collector's file exporter writes, in any of its forms: JSON lines, protobuf
    behind lengths, and zstd of both, per record or for the whole file. Also gzip of any of
    these, a single protobuf request, and OTLP/JSON documents such as smoltrace's. Content
    tells which it is, names do not matter. - reads stdin.

    Several files, or a folder, are read in the order in which the Collector rotated them; a
    record that it split over two files is joined:

    \b
      hubmeter flatten metrics-*.json metrics.json -o rows.parquet
      hubmeter flatten captures/ -o rows.parquet

    A damaged record, or one that was cut off when the Collector was killed, costs itself
    only. What could not be used is counted on stderr. Spans become windows of traces and
    tasks; logs are passed over.
    """  # noqa: D301 - click's mark for lines that are kept, which is a backspace
    from ..flattening import flatten_points
    from ..run import begin_run
    from ..sealing import options_of
    from ..settings import load_settings
    from ..table_files import writer_for
    from ..tables import default_table, points_table

    if output != "-":
        writer_for(Path(output))
    sources = inputs_of(srcs)
    if output != "-" and any(_is_same_file(src, output) for src in sources):
        raise click.UsageError(f"-o {output} would replace the input: choose another name")
    settings = load_settings(missing=missing, run_id=run_id)
    for problem in settings.problems:
        say(f"warning: {problem}")
    options = options_of(begin_run(settings, 0))
    points = _points(sources)
    rows = flatten_points(points, options)
    if config == "default":
        _write(default_table(rows), output, config)
    else:
        _write(points_table(points, rows, options.run_id), output, config)
    for reason, count in rows.skipped.items():
        say(f"skipped {count}: {reason}")
    say(f"{rows.times.size} rows, {rows.leftovers.size} other points (--config points)")


@click.command()
@click.argument("srcs", metavar="SRC...", nargs=-1, required=True)
@click.option(
    "--by",
    type=click.Choice(["gpu", "run"]),
    default="gpu",
    show_default=True,
    help="One line per GPU or per run.",
)
@format_option
@reporting_errors
def summary(srcs: tuple[str, ...], by: str, form: str) -> None:
    """
    Show what a dataset says.

    SRC is a dataset folder, one of its Parquet files, or anything that flatten reads: files
    of a Collector, also several, or a folder of them.
    """
    from ..views.summary import by_run, summarize
    from ..views.summary_text import gpu_text, run_text

    found = summarize(_rows(srcs))
    if not found.gpus:
        say(f"{' '.join(srcs)} has no GPU rows; other points: hubmeter flatten SRC --config points")
    if form == "json":
        data = found.as_json()
        if by == "run":
            from dataclasses import asdict

            data["runs"] = [{"run_id": run, **asdict(total)} for run, total in by_run(found)]
            del data["gpus"]
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        click.echo(run_text(found) if by == "run" else gpu_text(found))


def _rows(srcs: tuple[str, ...]) -> pa.Table:
    """Rows of a dataset, or of whatever flattens into one."""
    from ..dataset import open_dataset
    from ..run import begin_run
    from ..sealing import options_of, tables_of
    from ..settings import load_settings

    if len(srcs) == 1 and is_flat(srcs[0]):
        return open_dataset(srcs[0])
    points = _points(inputs_of(srcs))
    for reason, count in points.skipped.items():
        say(f"skipped {count}: {reason}")
    return tables_of(points, options_of(begin_run(load_settings(), 0)))["default"]


def _points(sources: list[Source]) -> Points:
    """All points in *sources*; what takes long is seen to go on."""
    from ..convert import read_points

    return read_points(sources, watch=Progress(sources), say=say)


def _write(table: pa.Table, output: str, config: str) -> None:
    from ..table_files import write_file, write_jsonl

    if output == "-":
        write_jsonl(table, sys.stdout.buffer)
        sys.stdout.flush()
    else:
        write_file(table, Path(output), config)


def _is_same_file(src: Source, output: str) -> bool:
    with suppress(OSError):
        return isinstance(src, Path) and src.samefile(output)
    return False
