"""
What has ended and waits to be published, and the process that publishes it.

The receiver itself asks no Hub and makes no Parquet: its child does, one at a time.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from .deadline import Deadline
from .detached import command_of, environment, start_detached
from .journal import Claim, sealed_path
from .run_log import Ended
from .text import counted

log = logging.getLogger(__name__)

FIRST_DELAY_S, LONGEST_DELAY_S = 30.0, 600.0
"""After a failure; each further one doubles it."""

LEFT_DELAY_S = 600.0
"""Until what could not be published is tried again: there may be memory, or files, by then."""

LONGEST_SILENCE_S = 1200.0
"""A process that says nothing for so long hangs: it speaks before each commit, which has 600 s."""

POLL_S, AGAIN_S = 0.05, 0.5

Say = Callable[[str], None]


class Publisher:
    """
    Publishes what receivers have ended in a journal directory.

    :meth:`add` and :meth:`drop_oldest` may be called while another thread is in :meth:`tick`.

    Args:
        folder: Journal directory, absolute.
        every_s: A process is started at most so often.
        say: Is told what was published, and what was not.

    Attributes:
        failure: Why the last attempt failed; empty if it did not.
        size_bytes: What the waiting segments have on disk, sealed ones too.
        published_points: How many data points were published.
        published_unix_nano: When that was the last time; 0 for never.
    """

    def __init__(self, folder: Path, *, every_s: float, say: Say) -> None:
        self.failure = ""
        self.size_bytes = 0
        self.published_points = self.published_unix_nano = 0
        self._folder = folder
        self._every_s = every_s
        self._say = say
        self._waiting: dict[str, Ended] = {}
        self._left: dict[str, float] = {}  # what could not be published; when to try again
        self._child: _Child | None = None
        self._attempts = 0
        self._next_s = 0.0
        self._delay_s = FIRST_DELAY_S

    @property
    def segments(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def is_busy(self) -> bool:
        """Whether a process publishes."""
        return self._child is not None

    def has(self, path: Path) -> bool:
        """Whether the journal at *path* waits."""
        return path.name in self._waiting

    def add(self, ended: Ended) -> None:
        """*ended* waits from now on."""
        self._waiting[ended.path.name] = ended
        self.size_bytes += ended.size_bytes

    def tick(self) -> None:
        """See what became of what waits; start a process if it is time."""
        if self._child is not None and self._child.is_silent():
            self._child.end()
        if self._child is not None and self._child.has_ended():
            child, self._child = self._child, None
            self._attempts += 1
            with child:
                self._learn(child)
        self._look()
        if self._child is None and self._has_work() and time.monotonic() >= self._next_s:
            self._start()

    def drop_oldest(self, size_bytes: float) -> list[Ended]:
        """Remove the oldest until *size_bytes* are free, but not what is just being published."""
        dropped: list[Ended] = []
        freed = 0
        for name, ended in list(self._waiting.items()):
            claim = Claim.take(ended.path) if freed < size_bytes else None
            if claim is None:
                continue
            with claim:
                sealed_path(ended.path).unlink(missing_ok=True)
                ended.path.unlink(missing_ok=True)
            self._waiting.pop(name, None)
            dropped.append(ended)
            freed += ended.size_bytes
        self.size_bytes -= freed
        return dropped

    def finish(self, deadline: Deadline) -> bool:
        """
        Publish all, however short ago the last attempt was.

        Returns:
            Whether nothing waits any more. If the time is over, a process of its own goes on.
        """
        # A process that runs already may not have seen what ended last.
        before = self._attempts + (self._child is not None)
        while not deadline.is_over() and (self._child is not None or self._has_work()):
            if self._attempts > before and self.failure:
                return False
            pause_s = AGAIN_S if self._attempts > before else 0.0  # somebody else has some of it
            self._next_s = min(self._next_s, time.monotonic() + pause_s)
            self.tick()
            time.sleep(min(POLL_S, deadline.remaining_s()))
        if self._child is not None or self._has_work():
            self._leave(has_seen_all=self._attempts >= before)
        return not self._waiting

    def _leave(self, *, has_seen_all: bool) -> None:
        """The process that publishes outlives this one."""
        child, self._child = self._child, None
        if child is not None:
            with child:
                if has_seen_all:
                    child.let_go()
                    return
                child.kill()  # it may be killed at any moment; the next one goes on
        start_detached(_recover(self._folder))

    def _has_work(self) -> bool:
        now_s = time.monotonic()
        return any(self._left.get(name, now_s) <= now_s for name in list(self._waiting))

    def _look(self) -> None:
        """Forget what is no longer there: published by the child, or by somebody else."""
        known = list(self._waiting)
        if not known:
            self.size_bytes = 0
            return
        try:
            with os.scandir(self._folder) as entries:
                sizes = Counter({entry.name: _size(entry) for entry in entries})
        except FileNotFoundError:
            sizes = Counter()
        except OSError as error:
            log.debug("hubmeter: cannot look into %s: %s", self._folder, error)
            return
        for name in known:
            if name not in sizes:
                self._waiting.pop(name, None)
        still = [ended.path for ended in list(self._waiting.values())]
        self.size_bytes = sum(sizes[path.name] + sizes[sealed_path(path).name] for path in still)

    def _start(self) -> None:
        self._next_s = time.monotonic() + self._every_s
        try:
            self._child = _Child(self._folder)
        except OSError as error:
            self._attempts += 1
            self._fail(f"no process can be started: {error}", has_published=False)

    def _learn(self, child: _Child) -> None:
        """What *child* did."""
        result = child.result()
        if result is None:
            self._fail(child.last_words(), has_published=False)
            return
        self._count(result["segments"])
        for entry in result["left"]:
            is_known = entry["file"] in self._left
            self._left[entry["file"]] = time.monotonic() + LEFT_DELAY_S
            if not is_known:
                self._say(f"left in {self._folder}: {entry['file']}: {entry['reason']}")
        for damage in result["damage"]:
            self._say(f"not readable: {damage}")
        if result["failures"]:
            self._fail("; ".join(result["failures"]), has_published=bool(result["segments"]))
        else:
            self.failure, self._delay_s = "", FIRST_DELAY_S

    def _count(self, segments: list[dict[str, Any]]) -> None:
        rows: Counter[str] = Counter()
        points = 0
        for segment in segments:
            if segment["destination"]:
                rows[segment["destination"]] += segment["rows"]
                points += segment["published"]
        if segments:
            self.published_unix_nano = time.time_ns()
            self.published_points += points
        for destination, count in rows.items():
            self._say(f"published {counted(count, 'row')} to {destination}")

    def _fail(self, why: str, *, has_published: bool) -> None:
        """Wait longer and longer, as long as nothing at all arrives."""
        self._delay_s = FIRST_DELAY_S if has_published else self._delay_s
        self._next_s = time.monotonic() + self._delay_s
        if why != self.failure:
            self._say(f"not published: {why.rstrip('.')}. It is kept, and tried again")
        self.failure = why
        self._delay_s = min(2 * self._delay_s, LONGEST_DELAY_S)


class _Child:
    """
    A recovery that runs.

    Its words are in files, not in pipes, which would break if it outlives this process. It has
    a session of its own: Ctrl-C is not for it.
    """

    def __init__(self, folder: Path) -> None:
        if not sys.executable:
            raise OSError("there is no Python to run")
        self._out, self._err = _scratch(), _scratch()
        self._said_bytes, self._said_s = 0, time.monotonic()
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            command_of([*_recover(folder), "--format", "json"]),
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
            env=environment(),
            cwd="/",
        )

    def __enter__(self) -> None:
        """A context manager: what it wrote is gone in the end."""

    def __exit__(self, *_: object) -> None:
        self._out.close()
        self._err.close()

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def is_silent(self) -> bool:
        """Whether it has said nothing for so long that it hangs."""
        said_bytes = os.fstat(self._err.fileno()).st_size
        if said_bytes != self._said_bytes:
            self._said_bytes, self._said_s = said_bytes, time.monotonic()
        return time.monotonic() - self._said_s >= LONGEST_SILENCE_S

    def let_go(self) -> None:
        """It goes on when this process has ended, which does not wait for it."""
        self._process.returncode = 0  # else its finalizer complains

    def end(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()

    def kill(self) -> None:
        """End it and wait for its end."""
        self.end()
        self._process.wait()

    def result(self) -> Any:
        """What it did, as :func:`hubmeter.recovery_report.as_json` says it; None if it failed."""
        try:
            return json.loads(_text(self._out))
        except ValueError:
            return None

    def last_words(self) -> str:
        """The last line that it wrote."""
        lines = _text(self._err).split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        return f"the process that publishes ended with {self._process.returncode}: {said}"


def _recover(folder: Path) -> list[str]:
    return ["recover", str(folder), "--received"]


def _size(entry: os.DirEntry[str]) -> int:
    """Of a file that may just be removed."""
    try:
        return entry.stat().st_size
    except OSError:
        return 0


def _scratch() -> IO[bytes]:
    """A file without a name, in memory where possible: the disk may be full."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("hubmeter"), "w+b")
    return tempfile.TemporaryFile()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")
