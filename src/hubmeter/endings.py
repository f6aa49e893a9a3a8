"""
How a process ends. SIGTERM and SIGHUP run no exit hook by themselves; this makes them.

Only where nothing else handles them. The process still ends by its signal, so that who
started it sees what it would see without us.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

GRACE_S = 8.0
"""A program that has not ended so long after its signal is ended. ``docker stop`` waits 10 s."""

LAST_S = 1.5
"""What is left for publishing then."""

_handled = {"owner": 0, "signal": 0}
_last_chance: list[Callable[[float], None]] = []


def publish_on_signals(publish: Callable[[float], None]) -> None:
    """
    Let SIGTERM and SIGHUP end the program in order, as ``sys.exit`` would.

    Args:
        publish: Called with a number of seconds, from another thread, if the program
            has not ended after a while: a thread of its own may keep it alive, which
            without us would have been ended by the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    _last_chance.append(publish)
    if _handled["owner"] == os.getpid():
        return
    _handled["owner"] = os.getpid()
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", None)):
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    atexit.register(_end_by_signal)


def _end(number: int, _: FrameType | None) -> None:
    # In a forked child as if we were not here; and who sends a second signal insists.
    if os.getpid() != _handled["owner"] or _handled["signal"]:
        _default(number)
        return
    _handled["signal"] = number
    with suppress(RuntimeError):  # the interpreter is ending already
        threading.Thread(target=_insist, args=(number,), daemon=True).start()
    raise SystemExit(128 + number)


def _insist(number: int) -> None:
    """End a process that a thread or a handler keeps alive."""
    time.sleep(GRACE_S)
    for publish in _last_chance:
        publish(LAST_S)
    os._exit(128 + number)


def _end_by_signal() -> None:
    """The last thing at exit: what waits for us sees a process that its signal ended."""
    if _handled["signal"] and os.getpid() == _handled["owner"]:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):
                stream.flush()
        _default(_handled["signal"])


def _default(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
