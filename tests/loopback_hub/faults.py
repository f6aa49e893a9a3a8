"""What shall go wrong, and when. Deciding is here, carrying out is the server's."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .messages import Answer, Refusal, RequestInfo


@dataclass(frozen=True, slots=True, eq=False)
class Fault:
    """One thing that goes wrong.

    Attributes:
        on: The kind of request, see `RequestInfo.kind`, or "any".
        times: For so many requests (`math.inf`: for ever).
        after: So many requests of the kind are served well first.
        status: Answer this without doing anything.
        acts: Do it before *status* is answered.
        headers: Sent with the answer, whichever it is.
        delay_s: Wait before anything else.
        hang: Never answer; the hub lets go when it closes.
        drop_before: Close the connection without doing anything.
        drop_after: Do it, then close the connection without an answer.
        slow_headers_bytes_per_s: Send the answer's status and headers this slowly.
        slow_body_bytes_per_s: Send the answer's body this slowly.
        error: The message that goes with *status*.
        body: Sent instead of JSON with *status*, as a gateway sends its HTML page.
    """

    on: str = "any"
    times: float = 1
    after: int = 0
    status: int | None = None
    acts: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    hang: bool = False
    drop_before: bool = False
    drop_after: bool = False
    slow_headers_bytes_per_s: float | None = None
    slow_body_bytes_per_s: float | None = None
    error: str | None = None
    body: bytes | None = None

    def __post_init__(self) -> None:
        if self.on not in KINDS:
            raise ValueError(f"no such kind of request: {self.on!r}")

    def concerns(self, request: RequestInfo) -> bool:
        """Whether *request* is of the kind."""
        return self.on in ("any", request.kind)

    def answer(self) -> Answer | None:
        """The answer that stands for the endpoint's own, if there is one."""
        if self.status is None:
            return None
        if self.body is not None:
            return Answer(self.status, self.body, {"Content-Type": "text/html"})
        return Refusal(self.status, self.error or f"fault: {self.status}").answer()


KINDS = frozenset(
    {"any", "whoami", "create", "validate", "info", "tree", "resolve", "other"}
    | {"preupload", "batch", "put", "verify", "commit"}
)

Plan = Callable[[RequestInfo], "Fault | None"]


class FaultBook:
    """Chooses the fault for each request and counts; thread safe.

    A fault sees the requests that the faults before it in the list let through. So the list
    reads as a sequence: two 500, then one 503.
    """

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.plan: Plan | None = None
        self._lock = threading.Lock()
        self._seen: Counter[Fault] = Counter()

    def choose(self, request: RequestInfo) -> Fault | None:
        """The fault that befalls *request*: the plan's, else the first that is due."""
        planned = self.plan(request) if self.plan else None
        if planned is not None:
            return planned
        with self._lock:
            return next((fault for fault in self.faults if self._is_due(fault, request)), None)

    def _is_due(self, fault: Fault, request: RequestInfo) -> bool:
        if not fault.concerns(request):
            return False
        self._seen[fault] += 1
        return fault.after < self._seen[fault] <= fault.after + fault.times
