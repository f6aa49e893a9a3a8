"""
The command line: parse, call, print. The result goes to stdout, all else to stderr.

Exit codes: 0 done, 1 an error (one line says which), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from shlex import quote
from shutil import which
from typing import IO, TYPE_CHECKING, Any

import click

from .errors import HubmeterError
from .text import printable

if TYPE_CHECKING:
    import pyarrow as pa

    from .doctor import Finding

EPILOG = """\b
Examples:
  hubmeter demo
  hubmeter flatten metrics.json -o rows.parquet
  hubmeter summary ./hubmeter-data --format json | jq .totals
  OTEL_METRICS_EXPORTER=hubmeter opentelemetry-instrument python agent.py
"""

EXIT_INTERRUPTED = 128 + 2

MARKS = {"ok": "ok", "warning": "!", "error": "x"}


class _Failure(click.ClickException):
    """One clear line on stderr, exit code 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        _say(f"hubmeter: {self.message}")


def _reporting_errors(command: Callable[..., None]) -> Callable[..., None]:
    @wraps(command)
    def reporting(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            raise
        except KeyboardInterrupt:
            _say("interrupted")
            sys.exit(EXIT_INTERRUPTED)
        except (HubmeterError, OSError) as error:
            raise _Failure(_one_line(error)) from error

    return reporting


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'writing'}: {error.strerror}"
    return " ".join(str(error).split())


_format_option = click.option(
    "--format", "form", type=click.Choice(["human", "json"]), default="human", show_default=True
)


@click.group(
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="hubmeter")
def main() -> None:
    """What your agent's GPUs did, as a flat dataset: one row per instant and GPU."""


@main.command()
@click.option(
    "--to",
    "-o",
    default="./hubmeter-data",
    show_default=True,
    metavar="FOLDER",
    help="Where the dataset goes.",
)
@click.option(
    "--seconds",
    default=12.0,
    show_default=True,
    type=click.FloatRange(1, 3600),
    help="Length of the workload.",
)
@click.option(
    "--gpus",
    default=2,
    show_default=True,
    type=click.IntRange(1, 16),
    help="GPUs to simulate where there is none.",
)
@_reporting_errors
def demo(to: str, seconds: float, gpus: int) -> None:
    """
    Record a small workload and show what it did to the GPUs.

    A live OpenTelemetry meter provider samples the GPUs of this machine while four
    tasks run. Without a GPU it samples simulated ones, which say so in every row.
    """
    from .demo import run_demo
    from .views.summary import summarize
    from .views.summary_text import gpu_text

    if math.isnan(seconds):
        raise click.BadParameter("a number is needed", param_hint="--seconds")
    folder, run_id = _demo_folder(to)
    before = set(Path(folder).glob("data/*/*/*.parquet"))
    program, python = quote(_callable("hubmeter")), quote(_callable("python"))
    next_command = f"  {program} summary {quote(folder)} --format json"
    try:
        rows = run_demo(folder, run_id=run_id, seconds=seconds, gpus=gpus, say=_say)
    except KeyboardInterrupt:
        _say(f"what was recorded until now is in {folder}:\n{next_command}")
        raise
    click.echo(gpu_text(summarize(rows)))
    if set(Path(folder).glob("data/*/*/*.parquet")) == before:
        raise _Failure(f"the dataset was not written to {folder}: see the message above")
    load = f"from datasets import load_dataset; print(load_dataset({json.dumps(folder)}))"
    _say("")
    _say(f"the dataset is in {folder}: {rows.num_rows} rows. What next:")
    _say(next_command)
    _say(f"  {python} -c {quote(load)}")
    _say("  OTEL_METRICS_EXPORTER=hubmeter opentelemetry-instrument python your_agent.py")


def _demo_folder(to: str) -> tuple[str, str]:
    """Where the demo goes, as a person would type it, and its run id."""
    from .pipeline import folder_of
    from .settings import load_settings, new_run_id

    settings = load_settings(to=to)
    if settings.disabled:
        raise _Failure("HUBMETER_DISABLED is set, so nothing would be recorded: unset it")
    if settings.to != to:
        raise click.BadParameter(f"{to!r} is not the path of a folder", param_hint="--to")
    run_id = new_run_id(settings)
    is_plain = not set("{}") & set(to) and not to.startswith("~")
    return (to if is_plain else str(folder_of(settings, run_id))), run_id


@main.command()
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
@_reporting_errors
def flatten(src: str, output: str, config: str, missing: str | None, run_id: str | None) -> None:
    """
    Flatten OTLP/JSON into one row per instant and GPU.

    SRC is a file with one JSON document or one request per line, as smoltrace and the
    Collector's file exporter write it; - reads stdin. What could not be used is counted
    on stderr.
    """
    from .convert import read_points
    from .flattening import flatten_points
    from .pipeline import options_of
    from .settings import load_settings, new_run_id
    from .table_files import writer_for
    from .tables import default_table, points_table

    if output != "-":
        writer_for(Path(output))
        if _is_same_file(src, output):
            raise click.UsageError(f"-o {output} would replace the input: choose another name")
    settings = load_settings(missing=missing, run_id=run_id)
    for problem in settings.problems:
        _say(f"warning: {problem}")
    options = options_of(settings, new_run_id(settings))
    points = read_points(_input(src))
    rows = flatten_points(points, options)
    if config == "default":
        _write(default_table(rows), output, config)
    else:
        _write(points_table(points, rows, options.run_id), output, config)
    for reason, count in rows.skipped.items():
        _say(f"skipped {count}: {reason}")
    _say(f"{rows.times.size} rows, {rows.leftovers.size} other points (--config points)")


@main.command()
@click.argument("src")
@click.option(
    "--by",
    type=click.Choice(["gpu", "run"]),
    default="gpu",
    show_default=True,
    help="One line per GPU or per run.",
)
@_format_option
@_reporting_errors
def summary(src: str, by: str, form: str) -> None:
    """
    Show what a dataset says.

    SRC is a dataset folder, one of its Parquet files, or anything that flatten reads.
    """
    from .views.summary import by_run, summarize
    from .views.summary_text import gpu_text, run_text

    found = summarize(_rows(src))
    if not found.gpus:
        _say(f"{src} has no GPU rows; other points: hubmeter flatten SRC --config points")
    if form == "json":
        data = found.as_json()
        if by == "run":
            from dataclasses import asdict

            data["runs"] = [{"run_id": run, **asdict(total)} for run, total in by_run(found)]
            del data["gpus"]
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        click.echo(run_text(found) if by == "run" else gpu_text(found))


@main.command()
@_format_option
@_reporting_errors
def doctor(form: str) -> None:
    """
    Check this machine: packages, GPUs, destination, clock, settings and their origin.

    Exits with 1 if something is broken (x). A missing GPU is only a warning (!).
    """
    from .doctor import as_json, examine
    from .settings import load_settings

    findings = []
    for finding in examine(load_settings()):
        findings.append(finding)
        if form == "human":
            _print_finding(finding)
    if form == "json":
        click.echo(json.dumps(as_json(findings), indent=2, ensure_ascii=False))
    if any(finding.state == "error" for finding in findings):
        sys.exit(1)


def _print_finding(finding: Finding) -> None:
    click.echo(printable(f"{MARKS[finding.state]:>2}  {finding.subject}: {finding.text}"))
    if finding.advice:
        click.echo(printable(f"      -> {finding.advice}"))


def _callable(name: str) -> str:
    """How to call a program of this environment, also if nobody activated it."""
    own = Path(sys.executable).with_name(name)
    found = which(name)
    if found is not None and Path(found).absolute() == own.absolute():
        return name
    with suppress(OSError):  # somebody removed the working folder
        if own.is_relative_to(Path.cwd()):
            return os.path.join(".", os.path.relpath(own))  # noqa: PTH118
    return str(own)


def _say(text: str) -> None:
    """Words for a person; what stands in them from outside cannot steer the terminal."""
    click.echo("\n".join(map(printable, text.split("\n"))), err=True)


def _input(src: str) -> Any:
    """Bytes of stdin, or the path."""
    if src == "-":
        return sys.stdin.buffer.read()
    path = Path(src)
    if not src or (path.is_dir() and not (path / "data").is_dir()):
        raise _Failure(f"{src or 'an empty name'}: expected a file with OTLP/JSON, or -")
    if path.suffix == ".parquet" or path.is_dir():
        raise _Failure(f"{src} is flat already: hubmeter summary {quote(src)}")
    return path


def _rows(src: str) -> pa.Table:
    """Rows of a dataset, or of whatever flattens into one."""
    from .convert import flatten
    from .dataset import open_dataset

    path = Path(src)
    if src not in ("", "-") and (path.is_dir() or path.suffix == ".parquet"):
        return open_dataset(path)
    return flatten(_input(src))


def _write(table: pa.Table, output: str, config: str) -> None:
    from .table_files import write_file, write_jsonl

    if output == "-":
        write_jsonl(table, sys.stdout.buffer)
        sys.stdout.flush()
    else:
        write_file(table, Path(output), config)


def _is_same_file(src: str, output: str) -> bool:
    with suppress(OSError):
        return os.path.samefile(src, output)  # noqa: PTH121
    return False
