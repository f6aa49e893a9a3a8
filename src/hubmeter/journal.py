"""
Journals on disk: appending to one's own, reading any, taking over those of dead processes.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, final

from .errors import JournalError
from .frames import PREAMBLE_SIZE
from .held_files import HeldFile, read_file, take_file
from .ledger import Packed
from .owners import SILENT_S, Owner, as_json, from_json, is_alive, this_process
from .records import Contents, Encoder, decode
from .whole_files import make_folder, sync_folders

if TYPE_CHECKING:
    from typing_extensions import Self

JOURNAL = ".journal"
OURS = (JOURNAL, ".sealed")
"""Endings of what we keep in a journal directory."""

OWED_MOST = 16 * 2**20
"""Bytes that may wait in memory for room on the disk; the last record may go beyond it."""

PEEK_BYTES = 2**16
"""The header is in here."""


@dataclass(frozen=True, slots=True)
class Replay:
    """
    What a journal says.

    Attributes:
        header: What :meth:`Journal.create` was given; None if it is lost.
        owner: Who wrote it; None if that is lost.
    """

    path: Path
    header: Mapping[str, Any] | None
    owner: Owner | None
    contents: Contents

    @property
    def has_ended(self) -> bool:
        """Its owner said that nothing follows."""
        return "end" in self.contents.notes


class Journal:
    """
    The journal of one segment, written by the process that created it. Not thread safe.

    A write that fails leaves no torn record: the file is cut back, and the record waits in
    memory for the next attempt. Use :meth:`create`.

    Attributes:
        size_bytes: Of the file.
        owed_bytes: Of the records that wait in memory.
        owes_last: After a failure: whether the record of that call waits too.
    """

    def __init__(self, path: Path, *, fsync: bool, file: HeldFile | None = None) -> None:
        self.path = path
        self.size_bytes = 0
        self.owed_bytes = 0
        self.owes_last = False
        self._owed: deque[bytes] = deque()
        self._encoder = Encoder(int.from_bytes(os.urandom(4), "little"))
        self._fsync = fsync
        self._file = file or HeldFile(path, os.O_CREAT | os.O_EXCL | os.O_APPEND)

    @classmethod
    def create(
        cls, folder: Path, name: str, header: Mapping[str, Any], *, fsync: bool = False
    ) -> Self:
        """
        Begin the journal *name* in *folder*, which is made if need be.

        With *fsync*, all that was written survives a power cut, not only the process.

        Raises:
            JournalError: It exists, or nothing can be written there.
        """
        path = folder / f"{name}{JOURNAL}"
        try:
            changed = make_folder(folder, mode=0o700)
            if fsync:
                sync_folders(changed)
            # Under this name nobody takes it for an orphan before it is locked.
            journal = cls(folder / f".{path.name}.new", fsync=fsync)
            journal._publish(path, {"owner": as_json(this_process()), "header": dict(header)})
        except OSError as error:
            raise JournalError(
                f"cannot write the journal {path}: {_why(error)}. Free some space or access"
                " there, or set HUBMETER_JOURNAL_DIR to another folder"
            ) from error
        return journal

    @property
    def is_open(self) -> bool:
        return self._file.is_open

    def is_there(self) -> bool:
        """
        Whether the file is where it was; a descriptor that the program closed is opened again.
        """
        if self._file.is_there():
            return True
        if not self._file.is_mine:
            return self._file.is_open  # closed by us, or a child's: append() says so
        self._file.release()
        with suppress(OSError):
            found = HeldFile(self.path, os.O_APPEND)
            if found.file_id == self._file.file_id:
                self._file = found
                found.lock()
                return True
            found.release()
        return False

    def append(self, packed: Packed) -> None:
        """
        Write a batch in one piece, after what earlier calls owe.

        Raises:
            JournalError: It is not on disk. If :attr:`owes_last` it waits in memory and the
                next call tries again; else it was refused.
            TypeError, ValueError: It holds something that OTLP cannot say.
        """
        if self._owed or not self._file.is_mine:
            self._check()
        self._put(self._encoder.batch(packed))
        self._encoder.confirm()

    def note(self, kind: str, value: Any) -> None:
        """
        Write a note, like :meth:`append`.

        Raises:
            JournalError, TypeError, ValueError: Likewise.
        """
        self._check()
        self._put(self._encoder.note(kind, value))

    def close(self) -> None:
        """Let others have it. What is owed is tried once more. Idempotent."""
        if self._file.is_mine:
            with suppress(OSError):
                self._pay()
            self._encoder = Encoder(0)  # writes no more; it knew every series
        self._file.release()

    def discard(self) -> None:
        """
        Close and remove it; a forked child only closes its copy.

        Raises:
            OSError: It is closed, but could not be removed.
        """
        try:
            # Before the lock goes: nobody shall take what is about to vanish.
            if self._file.was_mine:
                self.path.unlink(missing_ok=True)
        finally:
            self._file.release()

    def _publish(self, path: Path, header: Mapping[str, Any]) -> None:
        """Give the file its header and then its name."""
        try:
            self._file.lock()
            self._write(self._encoder.preamble + self._encoder.note("header", header))
            _refuse_existing(path)
            self.path = self.path.rename(path)
            if self._fsync:
                sync_folders([path.parent])
        except BaseException:
            self.discard()
            raise

    def _check(self) -> None:
        """Whether a record can be taken; one that is encoded must be kept."""
        self.owes_last = False
        if not self._file.is_mine:
            why = "it is closed" if self._file.was_mine else "it belongs to the parent process"
            raise JournalError(f"cannot write the journal {self.path}: {why}")
        if self.owed_bytes >= OWED_MOST:
            try:
                self._pay()
            except OSError as error:
                raise self._unwritten(error) from error

    def _put(self, record: bytes) -> None:
        try:
            if self._owed:
                self._pay()
            # As _write() does it, in fewer steps: every export comes along here.
            if self._fsync or os.write(self._file.fd, record) != len(record):
                self._cut_back()
                self._write(record)
            else:
                self.size_bytes += len(record)
        except OSError as error:
            self._owed.append(record)
            self.owed_bytes += len(record)
            self.owes_last = True
            self._encoder.confirm()
            raise self._unwritten(error) from error

    def _pay(self) -> None:
        while self._owed:
            self._write(self._owed[0])
            self.owed_bytes -= len(self._owed.popleft())

    def _write(self, record: bytes) -> None:
        """Write *record* as a whole, or leave the file as it was."""
        fd = self._file.fd
        try:
            written = os.write(fd, record)
            while written < len(record):  # the next write says why
                written += os.write(fd, record[written:])
            if self._fsync:
                os.fsync(fd)
        except OSError:
            self._cut_back()
            raise
        self.size_bytes += written

    def _cut_back(self) -> None:
        with suppress(OSError):
            os.ftruncate(self._file.fd, self.size_bytes)
        with suppress(OSError):  # a torn record that stays does no harm to those behind it
            self.size_bytes = os.fstat(self._file.fd).st_size

    def _unwritten(self, error: OSError) -> JournalError:
        kept = "the points wait in memory" if self.owes_last else "refused"
        failure = JournalError(
            f"cannot write the journal {self.path}: {_why(error)} ({kept}). Free some space there"
        )
        failure.errno = error.errno
        return failure


@final
class Claim:
    """
    The right to publish and remove a journal whose process has ended. A context manager.

    Use :meth:`take`.

    Attributes:
        file: The journal, locked.
    """

    def __init__(self, path: Path, file: HeldFile) -> None:
        self.path = path
        self.file = file

    @classmethod
    def take(cls, path: Path) -> Claim | None:
        """
        Take over the journal at *path*.

        Returns:
            None if somebody holds it, its process lives and has not said that it ended, it
            is gone, or this user may not write it.
        """
        try:
            file = take_file(path)
        except OSError:
            return None
        if file is None:
            return None
        try:
            if _is_live(path, file):
                file.release()
                return None
        except BaseException:
            file.release()
            raise
        return cls(path, file)

    def release(self) -> None:
        """Idempotent."""
        self.file.release()

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def read_journal(path: Path) -> Replay:
    """
    Everything readable of the file at *path*, whatever it is.

    Raises:
        OSError: The file cannot be read.
    """
    return _replay(path, read_file(path), only_notes=False)


def peek(path: Path, *, only_notes: bool = True) -> Replay:
    """
    The beginning of the file at *path*: header and owner, but not all notes, or batches.

    Raises:
        OSError: The file cannot be read.
    """
    return _replay(path, read_file(path, PEEK_BYTES), only_notes=only_notes)


def says_end(path: Path) -> bool:
    """
    Whether the end of the journal at *path* says that nothing follows; only that is read.

    Raises:
        OSError: The file cannot be read.
    """
    first = max(PREAMBLE_SIZE, path.stat().st_size - PEEK_BYTES)
    tail = read_file(path, PREAMBLE_SIZE) + read_file(path, PEEK_BYTES, first)
    return "end" in decode(tail, only_notes=True).notes


def sealed_path(journal: Path) -> Path:
    """Where the sealed shard of the journal at *journal* is."""
    return journal.with_suffix(".sealed")


def segments(folder: Path) -> list[Path]:
    """All journals in *folder*, by name."""
    return [path for path in _files(folder) if path.suffix == JOURNAL]


def strangers(folder: Path) -> list[Path]:
    """Files in *folder* that are not ours, by name."""
    return [path for path in _files(folder) if path.suffix not in OURS]


def _is_live(path: Path, file: HeldFile) -> bool:
    """Whether the owner of a file that we could lock may still write to it."""
    owner = _replay(path, file.read(PEEK_BYTES)).owner
    silent_s = time.time() - os.fstat(file.fd).st_mtime
    if owner is None:
        may_write = not file.is_locked and silent_s < SILENT_S
    elif owner == this_process():  # then it has closed it
        may_write = False
    else:
        may_write = is_alive(owner, last_written_s_ago=silent_s, has_lock=file.is_locked)
    return may_write and not _replay(path, file.read()).has_ended


def _replay(path: Path, data: bytes, *, only_notes: bool = True) -> Replay:
    contents = decode(data, only_notes=only_notes)
    note = contents.notes.get("header")
    if not isinstance(note, dict) or not isinstance(note.get("header"), dict):
        return Replay(path, None, None, contents)
    return Replay(path, note["header"], from_json(note.get("owner")), contents)


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    except FileNotFoundError:
        return []


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise FileExistsError(errno.EEXIST, "it exists")


def _why(error: OSError) -> str:
    return error.strerror or str(error)
