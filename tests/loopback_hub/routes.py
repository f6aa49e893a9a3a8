"""Which endpoint serves which request."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from .protocol import Endpoint, Endpoints


@dataclass(frozen=True, slots=True)
class Route:
    """Which endpoint serves which requests."""

    method: str
    pattern: re.Pattern[str]
    kind: str
    serve: Endpoint


D = r"/api/datasets/(?P<repo>[^/]+/[^/]+)"
GIT = r"/datasets/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects"
REVISION = r"(?P<revision>[^/]+)"

ROUTES = tuple(
    Route(method, re.compile(pattern), kind, serve)
    for method, pattern, kind, serve in [
        ("GET", r"/api/whoami-v2", "whoami", Endpoints.whoami),
        ("POST", r"/api/repos/create", "create", Endpoints.create),
        ("POST", r"/api/validate-yaml", "validate", Endpoints.validate),
        ("GET", rf"{D}(?:/revision/{REVISION})?", "info", Endpoints.info),
        ("POST", rf"{D}/preupload/{REVISION}", "preupload", Endpoints.preupload),
        ("POST", rf"{GIT}/batch", "batch", Endpoints.batch),
        ("PUT", r"/lfs-storage/(?P<repo>[^/]+/[^/]+)/(?P<oid>\w+)", "put", Endpoints.put),
        ("POST", rf"{GIT}/verify", "verify", Endpoints.verify),
        ("POST", rf"{D}/commit/{REVISION}", "commit", Endpoints.commit),
        ("GET", rf"{D}/tree/{REVISION}(?:/(?P<path>.*))?", "tree", Endpoints.tree),
        ("POST", rf"{D}/paths-info/{REVISION}", "tree", Endpoints.paths_info),
        (
            "GET",
            rf"/datasets/(?P<repo>[^/]+/[^/]+)/resolve/{REVISION}/(?P<path>.+)",
            "resolve",
            Endpoints.resolve,
        ),
    ]
)


ELSEWHERE = Route("", re.compile(""), "other", Endpoints.missing)


def find_route(method: str, path: str) -> tuple[Route, dict[str, str]]:
    """The endpoint of a request and the decoded parts of its path. HEAD goes where GET goes."""
    wanted = "GET" if method == "HEAD" else method
    for route in ROUTES:
        found = route.pattern.fullmatch(path) if route.method == wanted else None
        if found:
            parts = found.groupdict()
            return route, {name: unquote(part) for name, part in parts.items() if part is not None}
    return ELSEWHERE, {}
