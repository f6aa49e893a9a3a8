"""A loopback Hub on which nothing of a process happens after whoever follows it has begun."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from pathlib import Path

from loopback_hub import Fault, LoopbackHub, RequestInfo

NOBODY = -1


def introduce(group: int, pid: int) -> None:
    """Let the Hub know who asks: process *pid*, of one of several groups."""
    from huggingface_hub import constants

    constants.HF_HUB_USER_AGENT_ORIGIN = f"group-{group}.{pid}"


@dataclass(frozen=True)
class Asker:
    """Who sent a request; NOBODY where it does not say, as a PUT to a signed address."""

    group: int
    pid: int


def asker_of(request: RequestInfo) -> Asker:
    said = re.search(r"origin/group-(\d+)\.(\d+)", request.headers.get("user-agent", ""))
    return Asker(int(said[1]), int(said[2])) if said else Asker(NOBODY, NOBODY)


class WatchedHub(LoopbackHub):
    """
    Keeps the order of processes that follow one another.

    A commit that is on its way when its process ends, and is overtaken by a recovery,
    cannot be told from one that never came: the same bytes would be committed twice. So
    requests of a group wait while a commit of that group is in progress, and a commit
    that is read only after its process has ended is dropped.
    """

    def __init__(self) -> None:
        self._moved = threading.Condition()
        self._committing: set[Asker] = set()
        super().__init__()

    def choose(self, request: RequestInfo) -> Fault | None:
        asker = asker_of(request)
        with self._moved:
            self._moved.wait_for(lambda: asker.group not in {a.group for a in self._committing})
            if _is_watched(request, asker):
                self._committing.add(asker)
        if _is_watched(request, asker) and _has_ended(asker.pid):
            return Fault(drop_before=True)
        return super().choose(request)

    def record(self, request: RequestInfo, status: int | None) -> None:
        super().record(request, status)
        with self._moved:
            if _is_watched(request, asker_of(request)):
                self._committing.discard(asker_of(request))
            self._moved.notify_all()

    def settle(self) -> None:
        """Wait until no commit is in progress."""
        with self._moved:
            self._moved.wait_for(lambda: not self._committing)


def _is_watched(request: RequestInfo, asker: Asker) -> bool:
    return request.kind == "commit" and asker.group != NOBODY


def _has_ended(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return status.rpartition(")")[2].split()[0] in "ZX"
