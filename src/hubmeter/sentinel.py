"""
A process that waits for another one to end, however it ends, and publishes what it left.

The only way to publish after SIGKILL without anybody's help. In a container it dies with
process 1: start that under an init (``docker run --init``).
"""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

from .detached import start_detached

POLL_S = 0.5


def start_sentinel(journal_dir: Path, process_id: str) -> bool:
    """
    Watch over this process. False if the system cannot.

    The descriptor of a process (pidfd, Linux 5.3) is made here and handed over, so that
    another process that gets our number is not taken for us.
    """
    arguments = ["sentinel", str(journal_dir), "--process", process_id]
    if not hasattr(os, "pidfd_open"):
        return start_detached([*arguments, "--pid", str(os.getpid())])
    try:
        watched = os.pidfd_open(os.getpid())
    except OSError:
        return start_detached([*arguments, "--pid", str(os.getpid())])
    try:
        return start_detached([*arguments, "--fd", str(watched)], pass_fds=[watched])
    finally:
        os.close(watched)


def wait_for_end(*, fd: int | None, pid: int | None) -> None:
    """Return when the process has ended that *fd* (a pidfd), or else *pid*, stands for."""
    if fd is not None:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll()
        return
    while pid is not None and _exists(pid):
        time.sleep(POLL_S)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
