"""
What went wrong, in words that a person can act on.

Nothing from outside enters them unchanged: no token, no query of an address, one line.
"""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..text import printable
from .client import transport

TRANSIENT = frozenset({408, 409, 412, 425, 429})
"""With 5xx: statuses after which the same request may succeed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """
    Why one attempt failed, in plain values only.

    Attributes:
        can_pass: The same request may succeed later.
        after_s: The Hub asked to wait so long; infinite if there is nothing to wait for.
        is_name_wrong: Another repository would do.
    """

    why: str
    advice: str
    can_pass: bool = False
    after_s: float = 0.0
    status: int | None = None
    is_name_wrong: bool = False


class Failed(Exception):
    """Carries a failure through the client, past its own retries."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.why)
        self.failure = failure


OVER = Failure(
    why="the Hub did not answer in time",
    advice="check the network, or allow more time",
    can_pass=True,
)

_OF_THE_CLIENT: Mapping[str, Failure] = {
    "OfflineModeIsEnabled": Failure(why="HF_HUB_OFFLINE is set", advice="unset it to publish"),
    "LocalTokenNotFoundError": Failure(
        why="no token for the Hub was found",
        advice="run `hf auth login`, or set HF_TOKEN to a token with write access",
    ),
    "HFValidationError": Failure(
        why="this is no name for a repository on the Hub",
        advice="use user/name with letters, digits, '-', '_' and '.', at most 96; "
        "no '--' or '..', no '-' or '.' at an end, no '.git'",
        is_name_wrong=True,
    ),
}
"""By the name of the exception: all are raised before a request."""

_REFUSALS: Mapping[int, tuple[str, str]] = {
    401: ("the Hub does not accept the token", "renew it with `hf auth login`, or set HF_TOKEN"),
    402: ("the Hub asks for payment", "publish to another namespace"),
    403: (
        "the token may not do this",
        "use one with write access (https://huggingface.co/settings/tokens)",
    ),
    404: (
        "no such repository or namespace, or the token cannot see it",
        "check the name and the token",
    ),
    409: ("the Hub is busy with another change", "publish later"),
    412: ("others commit at the same time", "publish later"),
    413: ("the files are too large for the Hub", "publish smaller parts"),
    429: (
        "too many requests, or more than 128 commits per hour to one repository",
        "publish later, and less often",
    ),
}

_FULL = ("there is no room left", "free some, or publish to another repository")


def refusal_of(response: Any) -> Failure:
    """The failure that an HTTP answer of 400 or more stands for."""
    status: int = response.status_code
    said = _server_words(response)
    why, advice = _REFUSALS.get(status) or (
        ("the Hub has a problem", "publish later")
        if status >= 500
        else ("the Hub refused", "see https://huggingface.co/docs/hub")
    )
    if status in (402, 403, 413) and re.search(r"storage|quota", said, re.IGNORECASE):
        why, advice = _FULL
    is_taken = (
        status == 409
        and response.request.url.path.endswith("/api/repos/create")
        and "conflicting operation" not in said
    )
    return Failure(
        why=f"{why} ({status}{': ' if said else ''}{said})",
        advice=advice,
        can_pass=(status in TRANSIENT or status >= 500) and not is_taken,
        after_s=_retry_after_s(response.headers),
        status=status,
        is_name_wrong=status == 404,
    )


def _server_words(response: Any) -> str:
    """What the Hub says itself; never the body of others, which can repeat the request."""
    words = response.headers.get("X-Error-Message")
    if not words:
        try:
            content = response.json()
        except ValueError:
            return ""
        words = content.get("error") if isinstance(content, dict) else ""
    token = response.request.headers.get("authorization", "").partition(" ")[2]
    return one_line(str(words or "").replace(token or "\0", "***"))


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """The wait that the Hub asks for, in seconds; 0 if it does not say."""
    limit = re.search(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d{1,9})\b", headers.get("RateLimit", ""))
    text = limit[1] if limit else headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def failure_of(error: Exception) -> Failure:
    """The failure that an exception of the client stands for."""
    for link in _chain(error):  # the client wraps what happens in an upload
        if isinstance(link, Failed):
            return link.failure
    for kind in type(error).__mro__:
        if kind.__name__ in _OF_THE_CLIENT:
            return _OF_THE_CLIENT[kind.__name__]
    if isinstance(error, (transport().HTTPError, ConnectionError)):
        return no_answer("the Hub", error)
    return Failure(
        why=f"the client of the Hub failed ({_named(error)})",
        advice="check HF_ENDPOINT and the version of huggingface_hub",
        can_pass=True,  # in another process, or later
        after_s=math.inf,
    )


def no_answer(host: str, error: Exception) -> Failure:
    """The failure of a connection."""
    return Failure(
        why=f"no answer from {one_line(host)} ({_named(error)})",
        advice="check the network and HF_ENDPOINT",
        can_pass=True,
    )


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(str(error))}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def one_line(text: str) -> str:
    """*text* from outside in one line: no signed addresses, no tokens, nothing to blink."""
    text = re.sub(r"(\w+://[^\s?]*)\?\S*", r"\1", " ".join(text.split()))
    text = printable(re.sub(r"\b(hf|api_org)_\w{8,}", r"\1_***", text))
    return text if len(text) <= 200 else text[:199] + "…"
