"""The hub that tests hold in their hands."""

from __future__ import annotations

import secrets
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from typing_extensions import Self

from .faults import Fault, FaultBook, Plan
from .messages import Answer, Refusal, RequestInfo
from .protocol import Caller, Endpoints
from .repositories import Repo
from .routes import find_route
from .server import Server


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked and answered.

    Attributes:
        path: As it was sent, without the query.
        status: None for a request that got no answer.
        at_s: When the answer was ready, on the clock of `time.monotonic`.
        kind: See `RequestInfo.kind`.
        query: What followed the "?".
    """

    method: str
    path: str
    status: int | None
    at_s: float
    kind: str = "other"
    query: str = ""


class LoopbackHub:
    """A Hub for one test; a context manager.

    Attributes:
        url: What HF_ENDPOINT takes.
        user: Who the tokens belong to.
        token: May write.
        read_token: May read.
        requests: Everything that was served, in the order of the answers.
        delay_s: Added to every request.
        quota_bytes: What the LFS objects may take together; None for any amount.
        busy_commit_s: How long a commit takes.
        is_busy_409: A commit that meets another one gets 409 instead of queueing.
        page_size: Most entries in one page of a tree.
        errors: Tracebacks of mistakes in the hub itself.
    """

    user = "me"

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.token = f"hf_write{secrets.token_hex(14)}"
        self.read_token = f"hf_read{secrets.token_hex(14)}"
        self.quota_bytes: int | None = None
        self.busy_commit_s = 0.0
        self.is_busy_409 = False
        self.page_size = 1000
        self.requests: list[Request] = []
        self.errors: list[str] = []
        self._book = FaultBook()
        self._closed = threading.Event()
        callers = {
            self.token: Caller(self.user, "write"),
            self.read_token: Caller(self.user, "read"),
        }
        self._endpoints = Endpoints(self, callers)
        self._server = Server(self)
        self.url = self._server.url
        self._server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of every client and stop listening. Idempotent."""
        if not self._closed.is_set():
            self._closed.set()
            self._server.stop()

    @property
    def faults(self) -> list[Fault]:
        """What goes wrong, in this order. Append to it."""
        return self._book.faults

    @faults.setter
    def faults(self, faults: list[Fault]) -> None:
        self._book.faults = faults

    @property
    def fault_plan(self) -> Plan | None:
        """Decides by request; asked before `faults`."""
        return self._book.plan

    @fault_plan.setter
    def fault_plan(self, plan: Plan | None) -> None:
        self._book.plan = plan

    def repo(self, repo_id: str) -> Repo | None:
        """The dataset repository *repo_id*, or None."""
        return self._endpoints.repositories.get(repo_id)

    def create(
        self, repo_id: str, *, private: bool = True, files: Mapping[str, bytes] | None = None
    ) -> Repo:
        """A repository that is there already, with *files* in its first commit."""
        return self._endpoints.repositories.create(repo_id, private=private, files=files or {})

    def environment(self, home: Path) -> dict[str, str]:
        """What a process needs to take this hub for the real one, with its caches in *home*."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    # What the server asks

    def read(self, method: str, target: str, headers: dict[str, str], body: bytes) -> RequestInfo:
        """The request, with its kind."""
        parts = urlsplit(target)
        route, match = find_route(method, parts.path)
        return RequestInfo(
            method=method,
            path=parts.path,
            query=parts.query,
            kind=route.kind,
            headers=headers,
            body=body,
            match=match,
        )

    def choose(self, request: RequestInfo) -> Fault | None:
        """The fault that befalls *request*."""
        return self._book.choose(request)

    def serve(self, request: RequestInfo) -> Answer:
        """The answer of the endpoint; a 500 for a mistake in the hub."""
        route, _ = find_route(request.method, request.path)
        try:
            return self._endpoints.answer(request, route.serve)
        except Exception:
            self.errors.append(traceback.format_exc())
            return Refusal(500, f"Mistake in the loopback hub:\n{self.errors[-1]}").answer()

    def record(self, request: RequestInfo, status: int | None) -> None:
        """Note what *request* gets, before the client can know."""
        now = time.monotonic()
        self.requests.append(
            Request(request.method, request.path, status, now, request.kind, request.query)
        )

    def wait(self, seconds: float | None) -> None:
        """Sleep, but not past the closing of the hub. None: until then."""
        if seconds != 0:
            self._closed.wait(seconds)
