"""A point in time by which something must be done; handed down, never restarted."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in monotonic time."""

    at_s: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + max(0.0, seconds))

    def remaining_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at_s - time.monotonic())

    def is_over(self) -> bool:
        return self.remaining_s() == 0.0

    def no_later_than(self, other: Deadline) -> Deadline:
        """The earlier of the two."""
        return self if self.at_s <= other.at_s else other
