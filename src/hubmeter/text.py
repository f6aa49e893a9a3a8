"""Names from outside are text: never commands for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """*text* with a question mark for each character that is not to be seen."""
    return "".join(c if c.isprintable() else "?" for c in text)
