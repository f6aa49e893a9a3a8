"""Commands about this machine: what it has, and a run on it."""

from __future__ import annotations

import json
import math
import os
import sys
from contextlib import suppress
from pathlib import Path
from shlex import quote
from shutil import which
from typing import TYPE_CHECKING

import click

from ..terminal import Failure, checked, format_option, reporting_errors, say
from ..text import printable

if TYPE_CHECKING:
    from ..doctor import Finding

MARKS = {"ok": "ok", "warning": "!", "error": "x"}


@click.command()
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
@reporting_errors
def demo(to: str, seconds: float, gpus: int) -> None:
    """
    Record a small workload and show what it did to the GPUs.

    A live OpenTelemetry meter provider samples the GPUs of this machine while four
    tasks run. Without a GPU it samples simulated ones, which say so in every row.
    """
    from ..demo import run_demo
    from ..views.summary import summarize
    from ..views.summary_text import gpu_text

    if math.isnan(seconds):
        raise click.BadParameter("a number is needed", param_hint="--seconds")
    folder, run_id = _demo_folder(to)
    before = set(Path(folder).glob("data/*/*/*.parquet"))
    program, python = quote(_callable("hubmeter")), quote(_callable("python"))
    next_command = f"  {program} summary {quote(folder)} --format json"
    try:
        rows = run_demo(folder, run_id=run_id, seconds=seconds, gpus=gpus, say=say)
    except KeyboardInterrupt:
        say(f"what was recorded until now is in {folder}:\n{next_command}")
        raise
    click.echo(gpu_text(summarize(rows)))
    if set(Path(folder).glob("data/*/*/*.parquet")) == before:
        raise Failure(f"the dataset was not written to {folder}: see the message above")
    load = f"from datasets import load_dataset; print(load_dataset({json.dumps(folder)}))"
    say("")
    say(f"the dataset is in {folder}: {rows.num_rows} rows. What next:")
    say(next_command)
    say(f"  {python} -c {quote(load)}")
    say("  OTEL_METRICS_EXPORTER=hubmeter opentelemetry-instrument python your_agent.py")


def _demo_folder(to: str) -> tuple[str, str]:
    """Where the demo goes, as a person would type it, and its run id."""
    from ..destinations import Folder, destination_of
    from ..run import working_folder
    from ..settings import fill_in_date, load_settings, new_run_id

    settings = load_settings(to=to)
    if settings.disabled:
        raise Failure("HUBMETER_DISABLED is set, so nothing would be recorded: unset it")
    run_id = new_run_id(settings)
    destination = destination_of(fill_in_date(to), run_id, working_folder())
    if settings.to != to or not isinstance(destination, Folder):
        hint = f"{to!r} is not the path of a folder; a relative one begins with ./"
        raise click.BadParameter(hint, param_hint="--to")
    is_plain = not set("{}") & set(to) and not to.startswith("~")
    return (to if is_plain else str(destination.path)), run_id


@click.command()
@click.option("--to", metavar="DEST", callback=checked,
              help="Check this folder or user/repo.  [default: HUBMETER_TO]")  # fmt: skip
@format_option
@reporting_errors
def doctor(form: str, to: str | None) -> None:
    """
    Check this machine: packages, GPUs, destination, clock, settings and their origin.

    Exits with 1 if something is broken (x). A missing GPU is only a warning (!).
    """
    from ..doctor import as_json, examine
    from ..settings import load_settings

    findings = []
    for finding in examine(load_settings(to=to)):
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
