"""
Files that this process holds: open, and locked against other processes.

The kernel releases a POSIX record lock when its process dies, however that happens, and
gives none to forked children. Its trap: closing *any* descriptor of a file drops the locks
that this process has on it. So what this process holds is in a registry, and is read
through the descriptor that holds it.
"""

from __future__ import annotations

import errno
import math
import os
import threading
import weakref
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no such locks
    fcntl = None  # type: ignore[assignment]

try:
    import resource
except ImportError:  # pragma: no cover - Windows has no such limits
    resource = None  # type: ignore[assignment]

OPEN_FILES = 65_536

_PIECE_BYTES = 2**26
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)

_held: dict[tuple[int, int], int] = {}
"""Device and inode to the descriptor that holds the file."""

_files: weakref.WeakSet[HeldFile] = weakref.WeakSet()

_mutex = threading.RLock()
"""Around opening, reading and closing, never around a write. A signal handler may come again."""


def _forget() -> None:
    """A forked child holds nothing; the mutex that it inherits may be locked for ever."""
    global _mutex  # noqa: PLW0603
    _mutex = threading.RLock()
    _held.clear()
    for file in _files:
        file.is_mine = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class HeldFile:
    """
    A file that is open and registered; locked after :meth:`lock`.

    Args:
        flags: For ``os.open``, beside reading and writing.

    Raises:
        OSError: It cannot be opened.

    Attributes:
        fd: Its descriptor; -1 once released.
        file_id: Device and inode.
        is_locked: No other process has it; False where the file system knows no locks.
        is_mine: It is open, and this is the process that opened it, not a child that was
            forked since. An attribute, because every export asks.
    """

    def __init__(self, path: Path, flags: int = 0) -> None:
        self.is_locked = False
        self._pid = os.getpid()
        with _mutex:
            self.fd = os.open(path, os.O_RDWR | _CLOEXEC | flags, 0o600)
            self.file_id = _file_id(os.fstat(self.fd))
            _held[self.file_id] = self.fd
        self.is_mine = True
        _files.add(self)

    @property
    def is_open(self) -> bool:
        return self.fd >= 0

    def is_there(self) -> bool:
        """
        Whether the descriptor still is that file, and the file has a name.

        A program that becomes a daemon closes all descriptors, and its next file gets ours.
        """
        try:
            status = os.fstat(self.fd)
        except OSError:
            return False
        return status.st_nlink > 0 and _file_id(status) == self.file_id

    @property
    def was_mine(self) -> bool:
        """This is the process that opened it, not a child that was forked since."""
        return self._pid == os.getpid()

    def lock(self) -> None:
        """
        Lock it, where that is possible.

        Raises:
            OSError: Another process has the lock.
        """
        if fcntl is None:
            return
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.is_locked = True
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise

    def read(self, most: int | None = None) -> bytes:
        """The first *most* bytes, or all."""
        return _read(self.fd, most)

    def release(self) -> None:
        """Close it. Idempotent; in a forked child the parent's lock stays."""
        with _mutex:
            fd, self.fd, self.is_mine = self.fd, -1, False
            if fd < 0:
                return
            if self.was_mine:
                _held.pop(self.file_id, None)
            with suppress(OSError):  # it may be a file of the program by now
                if _file_id(os.fstat(fd)) == self.file_id:
                    os.close(fd)


def take_file(path: Path) -> HeldFile | None:
    """
    The file at *path*, locked; None if this process has it already, or it was replaced.

    Raises:
        OSError: It is gone, not ours to write, or locked by another process.
    """
    with _mutex:
        if _file_id(path.stat()) in _held:
            return None
        file = HeldFile(path, os.O_APPEND)
        try:
            file.lock()
            if _file_id(path.stat()) == file.file_id:
                return file
        except OSError:
            file.release()
            raise
        file.release()
        return None


def read_file(path: Path, most: int | None = None, first: int = 0) -> bytes:
    """
    *most* bytes of the file at *path* from *first* on, or all; no lock of this process is lost.

    Raises:
        OSError: It cannot be read.
    """
    with _mutex:
        held = _held.get(_file_id(path.stat()))
        if held is not None:
            return _read(held, most, first)
        with path.open("rb") as file:
            file.seek(first)
            return file.read(-1 if most is None else most)


def most_open() -> float:
    """How many files this process may have open; the limit of the system is raised for that."""
    if resource is None:
        return math.inf
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    return math.inf if soft == resource.RLIM_INFINITY else soft


def _read(fd: int, most: int | None, first: int = 0) -> bytes:
    pieces: list[bytes] = []
    position, end = first, None if most is None else first + most
    while end is None or position < end:
        piece = os.pread(fd, _PIECE_BYTES if end is None else end - position, position)
        if not piece:
            break
        pieces.append(piece)
        position += len(piece)
    return b"".join(pieces)


def _file_id(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
