"""Which process wrote a file, and whether it still runs. A pid alone says little: it is reused."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SILENT_S = 900.0
"""A process that we cannot see and that wrote nothing for so long is presumed dead."""

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """
    A process among all processes of all machines.

    Attributes:
        boot_id: Of the machine's kernel, new at every start; empty where it has none.
        started: Start of the process in clock ticks since boot; None where it is unknown.
        pid_namespace: In which *pid* counts: containers have their own; empty where unknown.
    """

    pid: int
    boot_id: str
    started: int | None
    pid_namespace: str
    host: str


def this_process() -> Owner:
    """The calling process; another one after a fork."""
    pid = os.getpid()
    return Owner(
        pid=pid,
        boot_id=_text(_PROC / "sys/kernel/random/boot_id"),
        started=_started(pid),
        pid_namespace=_pid_namespace(),
        host=platform.node(),
    )


def as_json(owner: Owner) -> dict[str, Any]:
    """*owner* as JSON can say it."""
    return asdict(owner)


def from_json(value: Any) -> Owner | None:
    """The owner in *value*; None if it is none."""
    match value:
        case {
            "pid": int(pid),
            "boot_id": str(boot_id),
            "started": int() | None as started,
            "pid_namespace": str(pid_namespace),
            "host": str(host),
        } if isinstance(value, Mapping):
            return Owner(
                pid=pid, boot_id=boot_id, started=started, pid_namespace=pid_namespace, host=host
            )
    return None


def is_alive(owner: Owner, *, last_written_s_ago: float, has_lock: bool = True) -> bool:
    """
    Whether *owner* runs, as far as this process can know.

    Args:
        owner: As found in a file.
        last_written_s_ago: Since the owner wrote to the file.
        has_lock: The caller holds the file's lock. A process in another container of this
            machine cannot be asked by its pid, but could not have lost the lock alive.
    """
    here = this_process()
    is_recent = last_written_s_ago < SILENT_S
    if owner.boot_id != here.boot_id:
        return owner.host != here.host and is_recent
    if not here.boot_id and owner.host != here.host:
        return is_recent
    if owner.pid_namespace != here.pid_namespace:
        return is_recent and not has_lock
    return _runs(owner)


def _runs(owner: Owner) -> bool:
    """Whether the process is there; its pid counts here."""
    if owner.started is not None:
        return _started(owner.pid) == owner.started
    try:
        os.kill(owner.pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _started(pid: int) -> int | None:
    """When process *pid* began; None if it ended, also if nobody has waited for it yet."""
    # The name of the program stands in parentheses and may contain some, and spaces.
    fields = _text(_PROC / str(pid) / "stat").rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in ("Z", "X"):
        return None
    return int(fields[19])


def _pid_namespace() -> str:
    with suppress(OSError):
        return str((_PROC / "self/ns/pid").readlink())
    return ""


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace").strip()
    return ""
