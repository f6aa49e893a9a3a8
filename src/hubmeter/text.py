"""
Words for people. Names from outside are text, never commands for a terminal; secrets never are.
"""

from __future__ import annotations

HIDDEN = "(hidden)"


def printable(text: str) -> str:
    """*text* with a question mark for each character that is not to be seen."""
    return "".join(c if c.isprintable() else "?" for c in text)


def counted(number: int, noun: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{number} {noun}{'s'[: number != 1]}"


class Secret:
    """A token. No log, message or exception can show it, and no pickle can carry it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return HIDDEN

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a secret is not to be pickled")

    def reveal(self) -> str:
        """The value, for the one who must send it."""
        return self._value
