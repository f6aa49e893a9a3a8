"""A request as the endpoints see it, an answer, and a refusal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestInfo:
    """One request, read whole.

    Attributes:
        kind: Which endpoint: "commit", "preupload", "batch", "put", "verify", "create", "validate",
            "info", "resolve", "whoami", "tree", or "other".
        path: Path as it was sent, still %-encoded, without the query.
        query: What follows the "?", undecoded.
        headers: Names are in lower case.
        match: The named parts of *path*, decoded.
    """

    method: str
    path: str
    query: str
    kind: str
    headers: Mapping[str, str]
    body: bytes
    match: Mapping[str, str] = field(default_factory=dict)

    @property
    def repo_id(self) -> str | None:
        """The "namespace/name" that the path names, if it names one."""
        return self.match.get("repo")

    def parameter(self, name: str, default: str) -> str:
        """The last value of the query parameter *name*."""
        return parse_qs(self.query).get(name, [default])[-1]

    def json(self) -> Any:
        """The body, or a 400."""
        return read_json(self.body)


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def adding(self, headers: Mapping[str, str]) -> Answer:
        """The same answer with *headers* on top."""
        return Answer(self.status, self.body, {**self.headers, **headers})


class Refusal(Exception):
    """The Hub says no.

    Attributes:
        status: HTTP status.
        code: The X-Error-Code by which clients choose their exception, or "".
        more: Further keys of the JSON body.
    """

    def __init__(self, status: int, message: str, code: str = "", **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.more = more

    def answer(self) -> Answer:
        """The refusal as the Hub words it: headers and a JSON body."""
        headers = {"X-Error-Message": _one_line(str(self))}
        if self.code:
            headers["X-Error-Code"] = self.code
        return json_answer({"error": str(self), **self.more}, self.status).adding(headers)


def _one_line(message: str) -> str:
    """*message* as a header can carry it."""
    return " ".join(message.split()).encode("ascii", "replace").decode()


def json_answer(content: Any, status: int = 200) -> Answer:
    """*content* as JSON."""
    body = json.dumps(content, default=str).encode()
    return Answer(status, body, {"Content-Type": "application/json; charset=utf-8"})


def read_json(text: bytes) -> Any:
    """*text* as JSON, or a 400."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise Refusal(400, f"Invalid JSON: {error}") from None
