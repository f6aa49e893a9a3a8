"""
How commands speak: the result goes to stdout, all else to stderr; errors are one line.

Exit codes: 0 done, 1 an error (one line says which), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from shlex import quote
from typing import IO, TYPE_CHECKING, Any

import click

from .captures.rotation import backups_beside, captures_in, in_order
from .errors import HubmeterError
from .schema import CONFIGS
from .settings import SETTINGS
from .text import printable

if TYPE_CHECKING:
    from .captures.reading import Source

EXIT_INTERRUPTED = 128 + 2


class Failure(click.ClickException):
    """One clear line on stderr, exit code 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        say(f"hubmeter: {self.message}")


def reporting_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Let *command* end with one line and an exit code instead of a traceback."""

    @wraps(command)
    def reporting(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            raise
        except KeyboardInterrupt:
            say("interrupted")
            sys.exit(EXIT_INTERRUPTED)
        except (HubmeterError, OSError) as error:
            raise Failure(_one_line(error)) from error

    return reporting


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'writing'}: {error.strerror}"
    return " ".join(str(error).split())


format_option = click.option(
    "--format", "form", type=click.Choice(["human", "json"]), default="human", show_default=True
)


def checked(_: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    """A flag for the setting of its name. Wrong, it is an error, unlike a variable."""
    if text is not None:
        [parse] = [setting.parse for setting in SETTINGS if setting.name == parameter.name]
        try:
            parse(text.strip())
        except ValueError as error:  # its words do not repeat the value
            raise click.BadParameter(f"{error}.") from None
    return text


def say(text: str) -> None:
    """
    Words for a person; what stands in them from outside cannot steer the terminal.

    If they cannot be written, nobody hears them: no work of ours ends for that.
    """
    with suppress(OSError):
        click.echo("\n".join(map(printable, text.split("\n"))), err=True)


def inputs_of(srcs: Sequence[str]) -> list[Source]:
    """
    What the arguments SRC name: stdin, files, and those in folders, in order of rotation.

    What is left out of it is said.
    """
    if "-" in srcs:
        if len(srcs) > 1:
            raise click.UsageError("- is stdin, and cannot stand beside other sources")
        return [sys.stdin.buffer]
    paths = in_order(path for src in srcs for path in _files(src))
    if len(srcs) == 1 and paths == [Path(srcs[0])]:
        _say_what_lies_beside(paths[0])
    return [*paths]


def is_flat(src: str) -> bool:
    """Whether *src* is a dataset, or a part of one: not what flatten reads."""
    path = Path(src)
    if src in {"", "-"}:
        return False
    if path.is_dir():
        return _is_dataset(path) or not captures_in(path)[0]
    return path.suffix == ".parquet"


def _is_dataset(folder: Path) -> bool:
    return any((folder / "data" / config).is_dir() for config in CONFIGS)


def _files(src: str) -> list[Path]:
    path = Path(src)
    if not src:
        raise Failure("an empty name: expected a file with OTLP, a folder of such files, or -")
    if path.suffix == ".parquet" or _is_dataset(path):
        raise Failure(f"{src} is flat already: hubmeter summary {quote(src)}")
    if not path.is_dir():
        return [path]
    captures, others = captures_in(path)
    if not captures:
        raise Failure(f"{src}: no file with OTLP is in that folder")
    if others:
        names = [str(other.relative_to(path)) for other in others[:_NAMED]]
        names += ["..."] * (len(others) > _NAMED)
        say(f"not read, without OTLP: {len(others)} of the files in {src}: {', '.join(names)}")
    return captures


def _say_what_lies_beside(path: Path) -> None:
    if backups := backups_beside(path):
        all_of_them = path.with_name(f"{path.stem}-*{path.suffix}")
        say(
            f"{len(backups)} rotated backup{'s'[: len(backups) != 1]} of {path} not read: "
            f"to read all, give {all_of_them} too"
        )


class Progress:
    """
    Says every few seconds how much of *sources* was read, if stderr is a terminal.

    It watches the bytes: call it with each piece.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        paths = [source for source in sources if isinstance(source, Path)]
        total = sum(path.stat().st_size for path in paths if path.is_file())
        self._total = f" of {_megabytes(total)}" if total else ""
        self._read = 0
        self._is_shown = sys.stderr.isatty()
        self._due = time.monotonic() + _PROGRESS_S

    def __call__(self, piece: bytes) -> None:
        self._read += len(piece)
        if self._is_shown and time.monotonic() >= self._due:
            self._due = time.monotonic() + _PROGRESS_S
            say(f"read {_megabytes(self._read)}{self._total} MB")


_PROGRESS_S = 3.0
_NAMED = 3
"""Files that are named; of more, there are more."""


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}"
