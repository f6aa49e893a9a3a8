"""
Reads the GPUs at a steady rate, in one thread, and publishes what it saw last.

The thread is the only caller of NVML in the process. Whoever wants values reads
``sampler.snapshot``, an immutable object that is replaced as a whole; so readers
neither wait for the driver nor take anything away from each other.

Nothing here knows about OpenTelemetry.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from ..errors import NvmlError
from ..nvml import GpuDevice, Reading
from .gpu_windows import GpuState, GpuTrack

log = logging.getLogger(__name__)

SHORTEST_WINDOW_S = 1.0
MOST_WINDOWS = 30
"""Longer spans get longer windows, so that closing one stays cheap."""

START_WAIT_S = 1.0
"""How long a program waits for the first reading; a slow driver goes on alone."""

SAMPLE_WAIT_S = 0.5
STOP_WAIT_S = 2.0
"""How long a program waits for a sample, and for the last one."""

STALE_AFTER_S = 5.0
"""A snapshot that is older, and older than three intervals, is no news of the GPUs."""


class GpuSource(Protocol):
    """What the sampler reads: :class:`hubmeter.nvml.Nvml`, or a simulation."""

    @property
    def devices(self) -> Sequence[GpuDevice]: ...

    def read(self, device: GpuDevice, now_ns: int) -> Reading | None:
        """What the GPU reports now; None while it is lost."""
        ...

    def close(self) -> None: ...


Selection = Callable[[Sequence[GpuDevice]], Sequence[GpuDevice]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All GPUs after one tick; *time_ns* is monotonic."""

    time_ns: int
    gpus: tuple[GpuState, ...]


NOTHING = Snapshot(time_ns=0, gpus=())


class GpuSampler(AbstractContextManager["GpuSampler"]):
    """
    Samples GPUs from :meth:`start` to :meth:`stop`, once.

    Windows have a fixed length on the sampler's own clock. Means and maxima cover
    as many of the latest closed windows as fit into *span_s*, so that a reader that
    comes by every *span_s* seconds misses nothing, and no reader disturbs another.

    Without a thread (in tests) call :meth:`open`, :meth:`tick` and :meth:`stop`.

    Args:
        open_source: Opens what is sampled; it is closed by the sampler.
        select: Which of the source's GPUs are sampled; by default all.
        interval_s: Time between samples.
        span_s: Time that means and maxima cover; by default one window.
        monotonic_ns: The clock.

    Attributes:
        snapshot: The latest values. Read it once, then use what was read.
    """

    def __init__(
        self,
        open_source: Callable[[], GpuSource],
        *,
        select: Selection = tuple,
        interval_s: float = 1.0,
        span_s: float = 0.0,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.snapshot = NOTHING
        self.interval_s = interval_s
        self._open_source = open_source
        self._select = select
        window_s = max(SHORTEST_WINDOW_S, interval_s, span_s / MOST_WINDOWS)
        self._window_ns = round(window_s * 1e9)
        self._windows = max(1, math.ceil(span_s / window_s - 1e-9))
        self._monotonic_ns = monotonic_ns
        self._stale_after_ns = max(STALE_AFTER_S, 3 * interval_s) * 1e9
        self._start_ns = 0
        self._source: GpuSource | None = None
        self._tracks: dict[GpuDevice, GpuTrack] = {}
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._is_stopping = False
        self._waiting: deque[threading.Event] = deque()
        self._failure_level = logging.ERROR
        _samplers.add(self)

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the thread, and wait a moment for its first sample. Never raises."""
        if self._thread is not None or self._is_stopping:
            return
        is_ready = threading.Event()
        self._waiting.append(is_ready)
        thread = threading.Thread(target=self._run, name="hubmeter-gpu-sampler", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # too many threads, or the interpreter is ending
            log.warning("no GPU metrics: %s", error)
            return
        self._thread = thread
        is_ready.wait(START_WAIT_S)

    def sample_now(self, timeout_s: float = SAMPLE_WAIT_S) -> bool:
        """Take a sample out of turn. Says whether it was there in time."""
        thread = self._thread
        if thread is None:
            self.tick()
            return True
        return thread.is_alive() and self._ask_for_sample().wait(timeout_s)

    def stop(self, timeout_s: float = STOP_WAIT_S) -> bool:
        """
        Take a last sample, close the windows and the source. May be called again.

        Returns:
            False if the driver did not return within *timeout_s*; the thread then
            finishes whenever the driver does, or never.
        """
        self._is_stopping = True
        self._wake.set()
        thread = self._thread
        if thread is None:
            self._finish()
            return True
        thread.join(timeout_s)
        if thread.is_alive():
            log.warning("GPU sampler did not stop within %g s: the driver hangs", timeout_s)
        return not thread.is_alive()

    @property
    def is_stale(self) -> bool:
        """Whether the snapshot is too old to speak for the present."""
        return self._monotonic_ns() - self.snapshot.time_ns > self._stale_after_ns

    def open(self) -> None:
        """
        Open the source and take the first sample.

        Raises:
            NvmlError: There is no usable driver.
        """
        self._source = source = self._open_source()
        self._start_ns = self._monotonic_ns()
        self._tracks = {
            device: GpuTrack(device, interval_s=self.interval_s, windows=self._windows)
            for device in self._select(source.devices)
        }
        if not self._tracks:
            log.warning("no GPU metrics: none of %d GPUs is selected", len(source.devices))
        self.tick()

    def tick(self) -> None:
        """Take one sample of each GPU and publish the snapshot."""
        source = self._source
        if source is None:
            return
        for device, track in self._tracks.items():
            now_ns = self._monotonic_ns()
            track.add(
                self._read(source, device, now_ns),
                now_ns,
                (now_ns - self._start_ns) // self._window_ns,
            )
        self._publish()

    def _read(self, source: GpuSource, device: GpuDevice, now_ns: int) -> Reading | None:
        try:
            return source.read(device, now_ns)
        except Exception:  # whatever one GPU does, the others are read
            self._complain(f"GPU {device.index} cannot be read")
            return None

    def _complain(self, message: str) -> None:
        """Once is enough: the next tick may fail in the same way."""
        log.log(self._failure_level, "%s", message, exc_info=True)
        self._failure_level = logging.DEBUG

    def _publish(self) -> None:
        gpus = tuple(track.state() for track in self._tracks.values())
        self.snapshot = Snapshot(time_ns=self._monotonic_ns(), gpus=gpus)

    def _finish(self) -> None:
        source, tracks = self._source, self._tracks.values()
        if source is None:
            return
        try:
            self.tick()
            for track in tracks:
                track.finish()
            self._publish()
        finally:
            self._source = None
            source.close()

    def _run(self) -> None:
        try:
            self.open()
        except NvmlError as error:
            log.warning("%s", error)
        except Exception:  # the thread's border: nobody above could tell
            log.exception("GPU sampler did not start")
        self._answer(list(self._waiting))
        while self._tracks and not self._is_stopping:
            self._wake.wait(self._seconds_to_next())
            self._wake.clear()
            with self._answering():
                self.tick()
        with self._answering():
            self._finish()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Release who waits for a sample, also if taking it failed."""
        waiting = list(self._waiting)
        try:
            yield
        except Exception:  # the thread's border
            self._complain("GPU sampler failed")
        self._answer(waiting)

    def _answer(self, waiting: Sequence[threading.Event]) -> None:
        for event in waiting:
            self._waiting.remove(event)
            event.set()

    def _ask_for_sample(self) -> threading.Event:
        event = threading.Event()
        self._waiting.append(event)
        self._wake.set()
        return event

    def _seconds_to_next(self) -> float:
        """To the next multiple of the interval; those that were missed are skipped."""
        interval_ns = round(self.interval_s * 1e9)
        passed_ns = (self._monotonic_ns() - self._start_ns) % interval_ns
        return (interval_ns - passed_ns) / 1e9

    def _abandon(self) -> None:
        """In a forked child: the thread is not there and the handles are not ours."""
        self.snapshot = NOTHING
        self._source = None
        self._thread = None
        self._tracks = {}
        self._is_stopping = True


class _Shared:
    """The one sampler of this process, for as long as anybody uses it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sampler: GpuSampler | None = None
        self.users = 0
        self.wanted = ""


_samplers: weakref.WeakSet[GpuSampler] = weakref.WeakSet()
_shared = _Shared()


def acquire_shared(make: Callable[[], GpuSampler], wanted: str = "") -> GpuSampler:
    """
    The sampler that this process shares, started; each call needs a :func:`release_shared`.

    Args:
        make: Builds it, if nobody uses one yet; the first user's settings count.
        wanted: Those settings in words; who wants others is warned.
    """
    with _shared.lock:
        if _shared.sampler is None:
            _shared.sampler, _shared.wanted = make(), wanted
        elif wanted != _shared.wanted:
            log.warning("GPUs are sampled already: %s. Not: %s", _shared.wanted, wanted)
        _shared.users += 1
        sampler = _shared.sampler
    sampler.start()
    return sampler


def release_shared(sampler: GpuSampler, timeout_s: float = STOP_WAIT_S) -> None:
    """Give *sampler* back; the last one stops it, everyone gets a last sample."""
    with _shared.lock:
        if sampler is not _shared.sampler:
            return
        _shared.users -= 1
        is_last = _shared.users == 0
        if is_last:
            _shared.sampler = None
    if is_last:
        sampler.stop(timeout_s)
    else:
        sampler.sample_now(timeout_s)


def _after_fork_in_child() -> None:
    global _shared  # noqa: PLW0603  the lock may have been held in the parent
    _shared = _Shared()
    for sampler in _samplers:
        sampler._abandon()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
