"""
Journals that ended the process which read them: too big for its memory, for one.

Who reads a journal leaves a mark beside it for that time. A mark that is found later means that
its process was killed: the journal is read when all others are published.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .waiting import in_handfuls, process_of

MOST_ATTEMPTS = 3
"""Unasked; each may take all the memory that there is."""

GIVEN_UP = f"reading it ended {MOST_ATTEMPTS} processes; hubmeter recover tries again, at last"


@contextmanager
def attempt(path: Path) -> Iterator[None]:
    """Around reading the journal at *path*."""
    mark = _mark(path)
    with suppress(OSError), mark.open("ab") as file:
        file.write(b"1")
    try:
        yield
    finally:
        with suppress(OSError):
            mark.unlink()


def without_given_up(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """*paths*, and those of them that nobody should read unasked: all parts of their runs."""
    runs = {_run(path) for path in paths if _attempts(path) >= MOST_ATTEMPTS}
    others = [path for path in paths if _run(path) not in runs]
    return others, [path for path in paths if _run(path) in runs]


def in_groups(paths: list[Path], most: int, *, is_mixed: bool) -> Iterator[list[Path]]:
    """As :func:`in_handfuls`; the parts of dangerous runs come last, and by themselves."""
    dangerous = dict.fromkeys(_run(path) for path in paths if _attempts(path))
    groups = [[path for path in paths if _run(path) not in dangerous]]
    groups += [[path for path in paths if _run(path) == run] for run in dangerous]
    for group in groups:
        yield from in_handfuls(group, most, is_mixed=is_mixed)


def _attempts(path: Path) -> int:
    """How many processes ended that read the journal at *path*."""
    try:
        return _mark(path).stat().st_size
    except OSError:
        return 0


def _run(path: Path) -> str:
    return process_of(path) or path.stem


def _mark(path: Path) -> Path:
    return path.with_name(f".{path.name}.reading")
