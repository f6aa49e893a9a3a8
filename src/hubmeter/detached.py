"""
A hubmeter command in a process of its own, which outlives the one that starts it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

_PROGRAM = (
    "import json, signal, sys; "
    "signal.pthread_sigmask(signal.SIG_SETMASK, []); "  # who starts it may hold some back
    "sys.path += [p for p in json.loads(sys.argv.pop(1)) if p not in sys.path]; "
    "from hubmeter.cli import main; main()"
)
"""Isolated from what is in PYTHONPATH and the working folder; packages found there come last."""


def start_detached(arguments: Sequence[str], *, pass_fds: Sequence[int] = ()) -> bool:
    """
    Start ``hubmeter`` *arguments*; False if no process can be started.

    It is no child of this process, which may be waiting for its children, gets no signal
    of its terminal, and writes nothing. Its environment is ours, so is the Hub's token.
    """
    if not sys.executable:  # Python inside another program
        return False
    shell = ["/bin/sh", "-c", '"$@" &', "sh"]
    try:
        subprocess.run(  # noqa: S603 - our own program
            [*shell, *command_of(arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=pass_fds,
            env=environment(),
            cwd="/",  # the program's folder may be on a disk that somebody wants to unmount
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        log.debug("hubmeter: no process for what is left: %s", error)
        return False
    return True


def command_of(arguments: Sequence[str]) -> list[str]:
    """The command line of ``hubmeter`` *arguments* with this process's Python and packages."""
    return [sys.executable, "-I", "-c", _PROGRAM, json.dumps(_places()), *arguments]


def environment() -> dict[str, str]:
    """Ours, without what would observe that process too."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}


def _places() -> list[str]:
    """Where this process finds packages, without its working folder."""
    own = str(Path(__file__).parents[1])
    return list(dict.fromkeys([p for p in sys.path if Path(p).is_absolute()] + [own]))
