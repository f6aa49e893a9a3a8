"""
A daemon thread that does what may take long. Started early: at exit it may be too late.

Python 3.12.0 to 3.12.2 starts no thread while the interpreter shuts down, and no version
takes new work for thread pools then (opentelemetry-python #4752, #5568). A thread that
runs already goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from .deadline import Deadline

log = logging.getLogger(__name__)

LONGEST_JOIN_S = 0.5


class Job:
    """Work that was handed over."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._done = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do it. What it raises is for whoever waits."""
        try:
            self._work()
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def wait(self, deadline: Deadline) -> bool:
        """
        Wait until it is done; False if that was not before *deadline*.

        Raises what the work raised.
        """
        if not self._done.wait(min(deadline.remaining_s(), threading.TIMEOUT_MAX)):
            return False
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return True


class Uploader:
    """
    Does jobs one after the other.

    Args:
        interval_s: Seconds between two calls of *tick*; 0 for never.
        tick: Called in between, in the same thread.
    """

    def __init__(self, *, interval_s: float = 0.0, tick: Callable[[], None] | None = None) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread = threading.Thread(
            target=_serve,
            args=(self._jobs, interval_s, tick),
            name="hubmeter-uploader",
            daemon=True,
        )
        self._lock = threading.Lock()
        self._has_stopped = False
        with suppress(RuntimeError):  # no thread can start any more: callers do the work
            self._thread.start()

    def submit(self, work: Callable[[], None]) -> Job | None:
        """Hand over *work*; None if nobody else is there to do it, as in a forked child."""
        if not self._thread.is_alive() or self._thread is threading.current_thread():
            return None
        job = Job(work)
        with self._lock:
            if self._has_stopped:
                return None
            self._jobs.put(job)
        return job

    def stop(self) -> None:
        """End after the jobs that wait; from now on callers do the work."""
        with self._lock:
            self._has_stopped = True
            self._jobs.put(None)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(LONGEST_JOIN_S)

    def abandon(self) -> None:
        """The same, for a garbage collector, which may interrupt anything: it waits for nothing."""
        self._jobs.put(None)


def _serve(
    jobs: SimpleQueue[Job | None], interval_s: float, tick: Callable[[], None] | None
) -> None:
    due_s = time.monotonic() + interval_s
    while True:
        try:
            job = jobs.get(timeout=max(0.0, due_s - time.monotonic()) if interval_s else None)
        except Empty:
            if tick is not None:
                _run(tick)
            due_s = time.monotonic() + interval_s
            continue
        if job is None:
            return
        job.run()


def _run(tick: Callable[[], None]) -> None:
    try:
        tick()
    except Exception:
        log.exception("hubmeter: a part is not published, the run goes on")
