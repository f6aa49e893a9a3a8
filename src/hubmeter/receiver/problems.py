"""What goes wrong with senders: counted, and said when it happens first and ever more rarely."""

from __future__ import annotations

import logging
import threading
from collections import Counter

from ..text import printable

log = logging.getLogger(__name__)

LONGEST_DETAIL = 300


class Problems:
    """
    Counts problems by kind. Thread safe.

    The first of a kind is logged, then the tenth, the hundredth and so on: a thousand senders
    with a wrong token are not a thousand lines.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(self, kind: str, detail: str = "", error: BaseException | None = None) -> None:
        """
        One more of *kind*.

        Args:
            kind: What went wrong; not a word from outside, as these would be many.
            detail: Of this one; only what is said first shows it.
            error: What nobody foresaw, for its traceback.
        """
        with self._lock:
            self._counts[kind] += 1
            count = self._counts[kind]
        if count == 10 ** (len(str(count)) - 1):
            times = f" ({count} times so far)" if count > 1 else ""
            said = printable(f": {detail}"[:LONGEST_DETAIL]) if detail else ""
            log.warning("hubmeter: receiver: %s%s%s", kind, said, times, exc_info=error)

    def counts(self) -> dict[str, int]:
        """Kind to how often."""
        with self._lock:
            return dict(self._counts)
