"""
How commands speak: the result goes to stdout, all else to stderr; errors are one line.

Exit codes: 0 done, 1 an error (one line says which), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from shlex import quote
from typing import IO, Any

import click

from .errors import HubmeterError
from .text import printable

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


def say(text: str) -> None:
    """Words for a person; what stands in them from outside cannot steer the terminal."""
    click.echo("\n".join(map(printable, text.split("\n"))), err=True)


def input_of(src: str) -> Any:
    """Bytes of stdin, or the path."""
    if src == "-":
        return sys.stdin.buffer.read()
    path = Path(src)
    if not src or (path.is_dir() and not (path / "data").is_dir()):
        raise Failure(f"{src or 'an empty name'}: expected a file with OTLP/JSON, or -")
    if path.suffix == ".parquet" or path.is_dir():
        raise Failure(f"{src} is flat already: hubmeter summary {quote(src)}")
    return path
