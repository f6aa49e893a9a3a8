"""The command that receives: OTLP from any sender, until it is told to stop."""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from ..deadline import Deadline
from ..settings import Settings, load_settings
from ..terminal import EXIT_INTERRUPTED, Failure, checked, reporting_errors, say
from ..text import counted

if TYPE_CHECKING:
    from ..fleet import Fleet
    from ..receiver.doors import Doors
    from ..receiver.serving import Receiver

DRAIN_S = 3.0
"""For requests in flight, after which nothing new is taken."""

PUBLISH_S = 5.0
"""For publishing at the end. ``docker stop`` kills after 10 s; what is left is in the journal."""

TICK_S = 1.0

SAME_SIGNAL_S = 1.0
"""A signal that comes so soon after the first is the same one."""

LONGEST_CHECK_S = 30.0

MOST_CONNECTIONS, LEAST_CONNECTIONS = 1000, 8
"""Of each door, as files are left; half of those that this process may open are for runs."""

OTHER_FILES = 32
"""That a door may need beside its connections: of the interpreter, libraries, what publishes."""

Command: TypeAlias = Callable[..., None]


def _option(*names: str, **about: Any) -> Callable[[Command], Command]:
    return click.option(*names, callback=checked, **about)


EPILOG = """\b
Senders need one variable:
  OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318   OTLP/HTTP
  OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317   OTLP/gRPC
To be reached from other machines, set HUBMETER_SERVE_TOKEN, and for senders:
  OTEL_EXPORTER_OTLP_HEADERS='Authorization=Bearer%20<token>'
"""


@click.command(epilog=EPILOG)
@_option(
    "--http",
    "serve_http",
    metavar="HOST:PORT",
    help="Where to take OTLP/HTTP, or off.  [default: 127.0.0.1:4318]",
)
@_option(
    "--grpc",
    "serve_grpc",
    metavar="HOST:PORT",
    help="Where to take OTLP/gRPC, or off.  [default: 127.0.0.1:4317]",
)
@_option("--to", metavar="DEST", help="Folder or user/repo.  [default: HUBMETER_TO]")
@_option(
    "--silence",
    "serve_silence_s",
    metavar="SECONDS",
    help="A run that is silent for so long is published.  [default: 180]",
)
@_option(
    "--flush-every",
    "flush_every_s",
    metavar="SECONDS",
    help="Publish longer runs in parts.  [default: 3600]",
)
@_option("--tls-cert", "serve_cert", metavar="FILE", help="PEM certificate chain; then TLS only.")
@_option("--tls-key", "serve_key", metavar="FILE", help="PEM private key of the certificate.")
@_option(
    "--tls-client-ca",
    "serve_client_ca",
    metavar="FILE",
    help="Senders need a certificate that one of these signed.",
)
@click.option(
    "--insecure", is_flag=True, help="Listen on an address that others reach, without a token."
)
@reporting_errors
def serve(*, insecure: bool, **given: str | None) -> None:
    """
    Receive OTLP from any agent or Collector, and publish each run as rows.

    Metrics become rows, spans say which trace and task ran at that time, logs are dropped.
    A request is acknowledged when the journal has it. A run is what has one run.id, or else
    what one resource sent. It is published when it has been silent for a while, and when
    this command is told to end by SIGTERM or Ctrl-C.

    GET /healthz and /readyz on the HTTP port answer whether it is alive and takes points.
    """
    settings = load_settings(**given)
    _complain(settings)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    doors = _doors(settings, is_insecure=insecure)
    _check_journal(settings)
    asked = _signals()

    from ..fleet import Fleet
    from ..receiver.intake import Intake
    from ..receiver.serving import Receiver

    fleet = Fleet(
        settings, silence_s=settings.serve_silence_s, most_runs=int(settings.serve_runs), say=say
    )
    receiver = Receiver(Intake(fleet.deliver), doors, status=fleet.status)
    place = _place(settings.to)
    try:
        receiver.start()
    except BaseException:
        fleet.close(Deadline.after(0))
        raise
    _introduce(receiver, doors, settings, fleet, place)
    with suppress(OSError):  # senders may have taken all files by now, also those of modules
        _check_destination(settings)
    number = _tick_until(asked, fleet)
    say("no new requests; what was taken is being published")
    receiver.stop(Deadline.after(DRAIN_S))
    fleet.close(Deadline.after(PUBLISH_S))
    _conclude(fleet)
    sys.exit(EXIT_INTERRUPTED if number == signal.SIGINT else 0)


def _complain(settings: Settings) -> None:
    for problem in settings.problems:
        if "HUBMETER_SERVE_" in problem:  # neither open doors nor other doors by mistake
            raise Failure(problem.replace(" is ignored: ", ": ").partition("; instead:")[0])
        say(f"hubmeter: {problem}")
    if settings.disabled:
        raise Failure("HUBMETER_DISABLED is set, so nothing is received")


def _check_journal(settings: Settings) -> None:
    """A receiver that can keep nothing should not look as if it could."""
    from ..run import absolute, working_folder

    if not settings.journal_dir:
        return  # the fleet says so
    folder = absolute(settings.journal_dir, working_folder())
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        advice = "set HUBMETER_JOURNAL_DIR to a folder with room that you may write"
        raise Failure(f"no journal in {folder}: {error.strerror}; {advice}") from error


def _check_destination(settings: Settings) -> None:
    """Say in the beginning what publishing would say minutes after the first run."""
    from ..destinations import HubRepo, destination_of
    from ..doctor import destination_finding

    if isinstance(destination_of(settings.to), HubRepo):
        threading.Thread(target=_check_hub, args=(settings.to,), daemon=True).start()
    else:
        _warn(asdict(destination_finding(settings)))


def _check_hub(to: str) -> None:
    """In a process of its own, as the Hub's client takes 76 MB."""
    from ..detached import command_of, environment

    command = command_of(["doctor", "--to", to, "--format", "json"])
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        asked = subprocess.run(  # noqa: S603 - our own program
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False,
            env=environment(), start_new_session=True, timeout=LONGEST_CHECK_S,
        )  # fmt: skip
        for finding in json.loads(asked.stdout)["findings"]:
            _warn(finding)


def _warn(finding: Mapping[str, str]) -> None:
    if (finding["subject"], finding["state"]) == ("destination", "error"):
        say(f"not ready to publish: {finding['text']}; {finding['advice']}")


def _doors(settings: Settings, *, is_insecure: bool) -> Doors:
    from ..held_files import most_open
    from ..receiver.doors import Doors, address_of

    connections = min(MOST_CONNECTIONS, most_open() / 4 - OTHER_FILES)
    doors = Doors(
        http=address_of(settings.serve_http),
        grpc=address_of(settings.serve_grpc),
        token=settings.serve_token,
        tls=_tls(settings),
        is_insecure=is_insecure,
        most_bytes=int(settings.serve_limit_mib * 2**20),
        most_connections=int(max(LEAST_CONNECTIONS, connections)),
    )
    if doors.http is None and doors.grpc is None:
        raise Failure("both doors are off: leave --http or --grpc on")
    return doors


def _tls(settings: Settings) -> Any:
    cert, key, client_ca = settings.serve_cert, settings.serve_key, settings.serve_client_ca
    if not (cert or key or client_ca):
        return None
    if not (cert and key):
        raise Failure("TLS needs both a certificate and its key: --tls-cert and --tls-key")
    for path in filter(None, (cert, key, client_ca)):
        Path(path).read_bytes()  # the error says which; that of ssl does not
    from ..receiver.credentials import Tls

    tls = Tls(
        certificate=Path(cert), key=Path(key), client_ca=Path(client_ca) if client_ca else None
    )
    try:
        tls.http()
    except ssl.SSLError as error:
        names = ", ".join(filter(None, (cert, key, client_ca)))
        advice = "expected PEM files, a certificate and the key that belongs to it"
        raise Failure(f"{names}: {error.reason}; {advice}") from error
    return tls


def _signals() -> queue.SimpleQueue[int]:
    """
    Signals that ask for the end. Who sends a second one insists.

    Not at once: `timeout`, systemd and `hubmeter run` signal a process and then its group.
    """
    asked: queue.SimpleQueue[int] = queue.SimpleQueue()
    insisting = Deadline.after(math.inf)

    def ask(number: int, _: Any) -> None:
        nonlocal insisting
        if insisting.is_over():
            os._exit(128 + number)
        if math.isinf(insisting.at_s):
            insisting = Deadline.after(SAME_SIGNAL_S)
            asked.put(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, ask)
    return asked


def _tick_until(asked: queue.SimpleQueue[int], fleet: Fleet) -> int:
    """Look after the runs once a second, until a signal asks for the end."""
    while True:
        with suppress(queue.Empty):
            return asked.get(timeout=TICK_S)
        fleet.tick()


def _introduce(
    receiver: Receiver, doors: Doors, settings: Settings, fleet: Fleet, place: str
) -> None:
    scheme = "https" if doors.tls else "http"
    who = "senders need the token" if doors.token else "senders need no token"
    for name, address in (("HTTP", receiver.http_address), ("gRPC", receiver.grpc_address)):
        if address is not None:
            say(f"OTLP/{name} on {scheme}://{address}")
    when = f"{settings.serve_silence_s:g} s after their last request"
    say(f"runs go to {place}, {when}; {who}")
    if resumed := fleet.status()["runs_open"]:
        say(f"{counted(resumed, 'run')} of a receiver that was killed go on")


def _place(to: str) -> str:
    """The folder or the repository that a person meant, or did not mean."""
    from ..destinations import destination_of
    from ..run import working_folder

    return str(destination_of(to, "{run_id}", working_folder()))


def _conclude(fleet: Fleet) -> None:
    status = fleet.status()
    say(f"{counted(status['points_acknowledged'], 'data point')} taken")
    if waiting := status["segments_waiting"]:
        why = f": {status['failure']}" if status["failure"] else ""
        say(f"{counted(waiting, 'part')} of runs still to be published{why}; "
            "a process goes on with that, or else: hubmeter recover")  # fmt: skip
