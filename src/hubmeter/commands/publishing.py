"""Commands that publish: what waits in a journal, and what is a file already."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..settings import SETTINGS, Settings, fill_in_date, load_settings
from ..terminal import (
    EXIT_INTERRUPTED,
    Failure,
    Progress,
    format_option,
    inputs_of,
    is_flat,
    reporting_errors,
    say,
)
from ..text import counted, printable

if TYPE_CHECKING:
    from ..destinations import Sink
    from ..shard import Shard

INTERRUPTED_S = 1.0
"""Enough to remove what is half written; a killed command leaves no more than that either."""


@click.command()
@click.argument("folder", required=False, metavar="[DIR]")
@click.option(
    "--to", metavar="DEST", help="Folder or user/repo, instead of where each run meant to go."
)
@click.option(
    "--dry-run", is_flag=True, help="Show what would be published, and where; change nothing."
)
@click.option("--timeout", "budget_s", default=600.0, show_default=True, metavar="SECONDS",
              type=click.FloatRange(1, 86_400), help="For each commit.")  # fmt: skip
@click.option("--process", "process_id", hidden=True, help="Only the segments of that process.")
@click.option("--wait", is_flag=True, hidden=True, help="Until that process lets go of them.")
@click.option("--received", is_flag=True, hidden=True, help="Only what receivers have ended.")
@format_option
@reporting_errors
def recover(  # noqa: PLR0917 - click passes them by name
    folder: str | None,
    to: str | None,
    dry_run: bool,
    budget_s: float,
    process_id: str | None,
    wait: bool,
    received: bool,
    form: str,
) -> None:
    """
    Publish runs that were killed, or that the Hub did not take.

    DIR is a journal directory (default: HUBMETER_JOURNAL_DIR). Runs of live processes are
    left alone. It may be repeated and run twice at once: each data point is published once.
    """
    from ..recovery import recover as recover_all
    from ..waiting import wait_for

    settings = load_settings()
    journal_dir = _journal_dir(settings, folder)
    is_chosen = settings.origins["private"] != "default"
    # Whoever goes on for a program keeps to what that was told, also as an argument in code.
    is_chosen = is_chosen and process_id is None and not received
    _use_hub_from_here()
    if wait and process_id:
        wait_for(journal_dir, process_id)
    result = recover_all(
        journal_dir,
        to=None if to is None else _destination(to),
        private=settings.private if is_chosen else None,
        process_id=process_id,
        only_received=received,
        is_rehearsal=dry_run,
        budget_s=budget_s,
        say=say,
    )
    _show_recovery(result, journal_dir, form, is_rehearsal=dry_run)


@click.command()
@click.argument("srcs", metavar="SRC...", nargs=-1, required=True)
@click.option("--to", metavar="DEST", help="user/repo or a folder.  [default: HUBMETER_TO]")
@click.option(
    "--public", is_flag=True, help="A repository that is made is public; a public one is taken."
)
@click.option("--run-id", metavar="ID", help="For data that names no run.")
@click.option("--timeout", "budget_s", default=600.0, show_default=True, metavar="SECONDS",
              type=click.FloatRange(1, 86_400), help="For each commit.")  # fmt: skip
@reporting_errors
def push(
    srcs: tuple[str, ...], to: str | None, public: bool, run_id: str | None, budget_s: float
) -> None:
    """
    Publish a dataset folder, a Parquet file or captured metrics to the Hub, or to a folder.

    SRC is also anything that flatten reads: files of a Collector or OTLP/JSON, a folder of
    them, or - for stdin; several files become one shard. Pushing the same again adds nothing.
    """
    from ..push import shards_of

    settings = load_settings(to=to, run_id=run_id, private=False if public else None)
    if to is not None:
        _destination(to)
    for problem in settings.problems:
        say(f"hubmeter: {problem}")
    is_flat_already = len(srcs) == 1 and is_flat(srcs[0])
    source = Path(srcs[0]) if is_flat_already else inputs_of(srcs)
    _use_hub_from_here()
    progress = Progress(source if isinstance(source, list) else [])
    _push(shards_of(source, settings, watch=progress, say=say), settings, budget_s)


def _push(groups: Iterator[list[Shard]], settings: Settings, budget_s: float) -> None:
    """Publish each group; its shards may differ in destination, which may name the run."""
    from ..deadline import Deadline
    from ..destinations import destination_of, sink_of

    to = fill_in_date(settings.to)
    sinks: dict[Any, Sink] = {}
    rows: Counter[Any] = Counter()
    points: Counter[Any] = Counter()
    for group in groups:
        parts: dict[Any, list[Shard]] = {}
        for shard in group:
            parts.setdefault(destination_of(to, shard.run_id), []).append(shard)
        for goal, shards in parts.items():
            sink = sinks[goal] = sinks.get(goal) or sink_of(
                goal, private=settings.private, pooled=True
            )
            what = counted(len(shards), "shard")
            say(f"publishing {what} to {sink}, for {budget_s:g} s at most")
            sink.publish(shards, Deadline.after(budget_s))
            rows[goal] += sum(shard.rows for shard in shards)
            points[goal] += sum(shard.points for shard in shards)
    for goal, sink in sinks.items():  # a sink that has published knows who {user} is
        found = f"{counted(rows[goal], 'row')} and {counted(points[goal], 'other point')}"
        click.echo(printable(f"{found} are in {sink}"))


@click.command(hidden=True)
@click.argument("folder")
@click.option("--process", "process_id", required=True)
@click.option("--fd", type=int)
@click.option("--pid", type=int)
@reporting_errors
def sentinel(folder: str, process_id: str, fd: int | None, pid: int | None) -> None:
    """Wait for a process to end, then publish what it left (HUBMETER_SENTINEL=1 starts this)."""
    from ..recovery import recover as recover_all
    from ..sentinel import wait_for_end

    wait_for_end(fd=fd, pid=pid)
    _use_hub_from_here()
    recover_all(Path(folder), process_id=process_id, say=say)


def _journal_dir(settings: Settings, folder: str | None) -> Path:
    from ..run import absolute

    for problem in settings.problems:
        say(f"hubmeter: {problem}")
    chosen = settings.journal_dir if folder is None else folder
    if not chosen:
        raise Failure("the journal is off (HUBMETER_JOURNAL_DIR): name a journal directory")
    journal_dir = absolute(chosen, "")
    if folder and not journal_dir.is_dir():
        raise Failure(f"{folder}: there is no such folder")
    return journal_dir


def _destination(to: str) -> str:
    [parse] = [setting.parse for setting in SETTINGS if setting.name == "to"]
    try:
        return fill_in_date(parse(to.strip()))
    except ValueError as error:  # its words do not repeat the value, which may hold a token
        raise click.BadParameter(f"{error}.", param_hint="--to") from None


def _use_hub_from_here() -> None:
    """This process is ours: the client's own bars would disturb what we say."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _end_soon)


def _end_soon(*_: Any) -> None:
    """Ctrl-C: the client's threads may wait for an answer, but nobody has to wait for them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    say("interrupted")
    end = threading.Timer(INTERRUPTED_S, os._exit, [EXIT_INTERRUPTED])
    end.daemon = True
    end.start()
    sys.exit(EXIT_INTERRUPTED)


def _show_recovery(result: Any, journal_dir: Path, form: str, *, is_rehearsal: bool) -> None:
    from ..recovery_report import as_json, recovery_text

    if form == "json":
        click.echo(json.dumps(as_json(result), indent=2, ensure_ascii=False))
    else:
        for line in recovery_text(result, journal_dir, is_rehearsal=is_rehearsal):
            click.echo(printable(line))
    if result.failures or result.left:
        sys.exit(1)
