"""
One question to the Hub, asked again under one deadline while that may help.
"""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, NoReturn, TypeVar

from ..deadline import Deadline
from ..errors import PublishRejected, PublishUnavailable
from .client import new_api
from .failures import OVER, Failure, failure_of, one_line
from .watching import watching

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 8.0
"""Pauses are drawn from 0 to the first one doubled each time, at most the longest one."""

GRACE_S = 1.0
"""An attempt that ends by itself when the time is over has better words."""

_T = TypeVar("_T")


class HubRefusal(PublishRejected):
    """
    The Hub, or the client before any request, said no; asking again cannot help.

    Attributes:
        status: Of the HTTP answer; None without one.
        is_name_wrong: Another repository would do.
    """

    def __init__(
        self, words: str, *, status: int | None = None, is_name_wrong: bool = False
    ) -> None:
        super().__init__(words)
        self.status = status
        self.is_name_wrong = is_name_wrong


def ask(
    call: Callable[[Any], _T],
    deadline: Deadline,
    *,
    subject: str,
    endpoint: str | None,
    every_thread: bool = False,
    final: Collection[int] = (),
) -> _T:
    """What *call* returns, given the client; asked again after failures that can pass."""
    told: Failure | None = None
    once = partial(_attempt, call, deadline, endpoint, every_thread=every_thread)
    for attempt in itertools.count():
        outcome = _in_time(once, deadline) if every_thread else once()
        if not isinstance(outcome, Failure):
            return outcome
        if not outcome.can_pass or outcome.status in final:
            raise _refusal(_sentence(subject, outcome), outcome)
        if told is None or not deadline.is_over():  # an attempt that is cut short says less
            told = outcome
        if outcome.after_s >= deadline.remaining_s():
            _give_up(subject, told)
        pause(attempt, deadline, at_least_s=outcome.after_s)
    raise AssertionError("a count has no end")  # pragma: no cover


def _give_up(subject: str, failure: Failure) -> NoReturn:
    asked = 0 < failure.after_s < math.inf
    when = f"; the Hub asks to come back in {failure.after_s:.0f} s" if asked else ""
    raise PublishUnavailable(_sentence(subject, failure) + when)


def _refusal(words: str, failure: Failure) -> HubRefusal:
    return HubRefusal(words, status=failure.status, is_name_wrong=failure.is_name_wrong)


def _sentence(subject: str, failure: Failure) -> str:
    return f"{one_line(subject)}: {failure.why}; {failure.advice}"


def _attempt(
    call: Callable[[Any], _T], deadline: Deadline, endpoint: str | None, *, every_thread: bool
) -> _T | Failure:
    """One attempt. No exception of the client outlives it: their requests hold the token."""
    try:
        with watching(deadline, every_thread=every_thread):
            return call(new_api(endpoint))
    except Exception as error:  # noqa: BLE001 - the border to the client
        return failure_of(error)


def _in_time(attempt: Callable[[], _T | Failure], deadline: Deadline) -> _T | Failure:
    """
    What *attempt* returns; if it is late, it is left behind, in a thread of its own.

    The system has no limit for name servers, and tries all addresses of a name. Elsewhere
    than in commands nobody waits for that, and no thread may start while Python exits.
    """
    outcomes: SimpleQueue[_T | Failure] = SimpleQueue()
    threading.Thread(
        target=lambda: outcomes.put(attempt()), name="hubmeter-attempt", daemon=True
    ).start()
    with suppress(Empty):
        return outcomes.get(timeout=deadline.remaining_s() + GRACE_S)
    return OVER


def pause(attempt: int, deadline: Deadline, *, at_least_s: float = 0.0) -> None:
    """Wait before another attempt, a random while: others wait for the same Hub."""
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(attempt, 16))
    chosen = max(at_least_s, random.uniform(0.0, longest))  # noqa: S311 - no secret
    time.sleep(min(chosen, deadline.remaining_s()))
