"""The command that runs another one, and records what it did."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

import click

from ..settings import Settings, load_settings
from ..terminal import checked, say
from ..text import counted

if TYPE_CHECKING:
    from ..deadline import Deadline
    from ..wrapping import Recording

CANNOT_RUN, NOT_FOUND = 126, 127
"""Exit codes, as of a shell."""

PATIENCE_S = 7.0
"""After SIGTERM, until the run so far is published. ``docker stop`` kills after 10 s."""

GRACE_S = 8.0
"""After SIGTERM, for the command and for publishing."""

LEAST_S = 2.0
"""For publishing, if the command took all of that."""

MOST_NOTES = 20


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
Examples:
  hubmeter run python eval.py
  hubmeter run --to me/run-metrics -- node agent.js --verbose
  hubmeter run --interval 5 -- sh -c 'make data && ./train.sh'
""",
)
@click.option("--to", metavar="DEST", callback=checked,
              help="Folder or user/repo.  [default: HUBMETER_TO]")  # fmt: skip
@click.option("--run-id", metavar="ID", callback=checked,
              help="Name of the run, unless OTEL_RESOURCE_ATTRIBUTES has a run.id.  "
                   "[default: HUBMETER_RUN_ID, or a new UUID]")  # fmt: skip
@click.option("--gpus", metavar="WHICH", callback=checked,
              help="visible, all, none, 0,2 or UUIDs.  [default: HUBMETER_GPUS]")  # fmt: skip
@click.option("--interval", "interval_s", default=1.0, show_default=True, metavar="SECONDS",
              type=click.FloatRange(1, 3600), help="Time between two rows of a GPU.")  # fmt: skip
@click.option("--timeout", "budget_s", default=30.0, show_default=True, metavar="SECONDS",
              type=click.FloatRange(0, 86_400), help="For publishing, after CMD.")  # fmt: skip
@click.option("-q", "--quiet", "is_quiet", is_flag=True, help="No table at the end, only errors.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="CMD [ARG]...")
def run(
    command: tuple[str, ...],
    *,
    interval_s: float,
    budget_s: float,
    is_quiet: bool,
    **given: str | None,
) -> None:
    """
    Run CMD and record what it does to the GPUs: one run of a dataset.

    CMD has your terminal and gets your signals, and its exit code is the exit code. Metrics
    and spans that it sends are recorded too: unless they are set, OTEL_EXPORTER_OTLP_ENDPOINT
    and its kin lead an OpenTelemetry SDK in any language to a port of this machine that takes
    OTLP by HTTP and gRPC. When CMD has ended, a table on stderr says what was recorded.
    Processes that CMD leaves in the background are not waited for.

    If this command is killed, what was recorded is in the journal: hubmeter recover.
    """
    settings = load_settings(**given)
    for problem in settings.problems:
        say(f"hubmeter: {problem}")
    if settings.disabled:
        _become(command, os.environ)
    _run(command, settings, interval_s=interval_s, budget_s=budget_s, is_quiet=is_quiet)


def _run(
    command: tuple[str, ...],
    settings: Settings,
    *,
    interval_s: float,
    budget_s: float,
    is_quiet: bool,
) -> NoReturn:
    from ..child import Child, HeldSignals, end_like

    signals = HeldSignals()

    from ..wrapping import begin

    environment = _environment_of_command()
    notes = _Notes(logging.ERROR if is_quiet else logging.WARNING)
    recording = begin(settings, environment, command, interval_s=interval_s, say=say)
    signals.end_if_asked()
    if recording is None:
        notes.show()
        signals.release()
        _become(command, environment)
    try:
        child = Child(command, recording.environment, signals)
    except OSError as error:
        _cannot_run(command, error)
    status = child.wait(patience_s=PATIENCE_S, out_of_patience=recording.publish_part)
    try:
        signals.release()
        deadline = _deadline(budget_s, child.asked_to_end_for_s())
        _conclude(recording, deadline, notes, is_quiet=is_quiet)
    finally:  # nothing of ours changes how it ends
        end_like(status)


def _become(command: tuple[str, ...], environment: Mapping[str, str]) -> NoReturn:
    from ..child import replace_this_process

    try:
        replace_this_process(command, environment)
    except OSError as error:
        _cannot_run(command, error)


def _cannot_run(command: tuple[str, ...], error: OSError) -> NoReturn:
    """At once: nothing was recorded yet."""
    say(f"hubmeter: cannot run {command[0]}: {error.strerror}")
    os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_RUN)


def _environment_of_command() -> dict[str, str]:
    """A copy of ours. Then ours is changed: this process is not silent if its command is."""
    environment = dict(os.environ)
    os.environ.pop("OTEL_SDK_DISABLED", None)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return environment


def _deadline(budget_s: float, asked_for_s: float | None) -> Deadline:
    """For publishing. Whoever asked for an end by a signal will not wait for all of *budget_s*."""
    from ..deadline import Deadline

    if asked_for_s is None:
        return Deadline.after(budget_s)
    return Deadline.after(min(budget_s, max(LEAST_S, GRACE_S - asked_for_s)))


def _conclude(recording: Recording, deadline: Deadline, notes: _Notes, *, is_quiet: bool) -> None:
    """Publish, then say what there is to say: stderr was the command's until now."""
    try:
        is_published = recording.end(deadline)
    except KeyboardInterrupt:
        is_published = False
    if not is_published:
        recording.leave()
    notes.show()
    if not is_quiet:
        _show(recording, is_published=is_published)


def _show(recording: Recording, *, is_published: bool) -> None:
    from ..views.summary import summarize
    from ..views.summary_text import gpu_text

    table = recording.pipeline.table()
    found = summarize(table)
    if any(gpu.gpu_id is not None for gpu in found.gpus):
        say(f"\n{gpu_text(found)}\n")
    if is_published:
        sizes = (table.num_rows, "row"), (recording.pipeline.counts().published, "data point")
        what = ", ".join(counted(size, noun) for size, noun in sizes if size)
        where = f"run {recording.pipeline.run_id} is in {recording.place()}"
        say(f"hubmeter: {where}: {what or 'nothing was measured'}")


class _Notes(logging.Handler):
    """Keeps what is logged, a line for each, until it may be shown."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._lines: dict[str, None] = {}
        logging.getLogger().addHandler(self)
        logging.captureWarnings(True)

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().removeprefix("hubmeter: ")
        if record.exc_info and record.exc_info[1] is not None:
            text = f"{text}: {record.exc_info[1]!r}"
        if len(self._lines) < MOST_NOTES:
            self._lines[" ".join(text.split())] = None

    def show(self) -> None:
        for line in self._lines:
            say(f"hubmeter: {line}")
