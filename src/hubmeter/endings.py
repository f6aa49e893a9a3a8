"""
How signals end a process that is observed.

SIGTERM and SIGHUP run no exit hook: here the run is published before they end the process.

Only where nothing else handles them. For the program it is as without us, only later: no
``finally`` block and no exit hook runs, and it ends by its signal. ``SystemExit`` instead
would let it live on: a pool of processes would replace the workers that the same signal
ended, and wait for them for ever.

Process 1 of a container is not ended by signals that it does not handle. So it goes on, and
what comes later is published at its end, or at the next signal.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from .deadline import Deadline

GRACE_S = 8.0
"""Longest delay. ``docker stop`` kills after 10 s."""

ONCE_S = 1.0
"""``timeout`` signals its child, and then the child's group: two signals, one wish."""

FIRST_PROCESS = 1
"""The kernel keeps the default actions of signals from it."""

_handled = {"owner": 0, "signal": 0, "at_s": -ONCE_S}
_publishers: list[Callable[[Deadline], None]] = []


def publish_on_signals(publish: Callable[[Deadline], None]) -> None:
    """
    Call *publish* before SIGTERM or SIGHUP ends the process.

    Args:
        publish: Called in another thread: the main thread stands still somewhere, and may
            hold any lock.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    _publishers.append(publish)
    if _handled["owner"] == os.getpid():
        return
    if not _handled["owner"] and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_end_in_child)
    _handled["owner"] = os.getpid()
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", None)):
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def goes_on() -> bool:
    """Whether this process outlives the signal that it was published for."""
    return os.getpid() == FIRST_PROCESS


def stay_interrupted() -> None:
    """
    Let a program that Ctrl-C ended still end by SIGINT after we published.

    CPython notes an unhandled KeyboardInterrupt, but forgets it when it evaluates text,
    as the imports do that publishing needs: the exit code would become 1. Importing them
    earlier would load numpy before a program could say with how many threads.
    """
    if getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1"):
        with suppress(KeyboardInterrupt):
            exec("raise KeyboardInterrupt")  # noqa: S102 - evaluates text, and so notes it again


def _end(number: int, _: FrameType | None) -> None:
    if os.getpid() == _handled["owner"]:
        if time.monotonic() - _handled["at_s"] < ONCE_S:
            return
        if not _handled["signal"]:  # who sends a second one insists
            _handled.update(signal=number, at_s=time.monotonic())
            _publish(Deadline.after(GRACE_S))
        if goes_on():
            _handled["signal"] = 0
            return
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _publish(deadline: Deadline) -> None:
    helper = threading.Thread(target=_call_publishers, args=(deadline,), daemon=True)
    try:
        helper.start()
    except RuntimeError:  # the interpreter ends already
        _call_publishers(deadline)
    else:
        helper.join(deadline.remaining_s())


def _call_publishers(deadline: Deadline) -> None:
    for publish in _publishers:
        publish(deadline)


def _end_in_child() -> None:
    """A child that was forked after its parent's signal would not have been there without us."""
    if _handled["signal"] and _handled["owner"] != FIRST_PROCESS:
        os._exit(128 + int(_handled["signal"]))
