"""The body of a commit: newline-delimited JSON, first a header, then one operation a line."""

from __future__ import annotations

import base64
from typing import Any

from .messages import Refusal, read_json
from .repositories import Blob, Change, Repo


def uploaded_object(repo: Repo, oid: str, size: int | None) -> bytes:
    """An LFS object that was uploaded before, or a 400."""
    data = repo.objects.get(oid)
    if data is None or size not in (None, len(data)):
        raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {oid}")
    return data


def read_change(body: bytes, repo: Repo) -> Change:
    """The lines of a commit: first the header, then the operations."""
    lines = [read_json(line) for line in body.splitlines() if line.strip()]
    if not lines or lines[0].get("key") != "header":
        raise Refusal(400, "The first line must be the header")
    added: dict[str, Blob] = {}
    deleted: dict[str, list[str]] = {"deletedFile": [], "deletedFolder": []}
    for line in lines[1:]:
        key, value = line["key"], line["value"]
        path = _clean(value["path"])
        if key in deleted:
            deleted[key].append(path)
        else:
            added[path] = _read_blob(key, value, repo)
    return Change(
        message=lines[0]["value"]["summary"],
        added=added,
        deleted=tuple(deleted["deletedFile"]),
        deleted_folders=tuple(deleted["deletedFolder"]),
        parent=lines[0]["value"].get("parentCommit"),
    )


def _read_blob(key: str, value: dict[str, Any], repo: Repo) -> Blob:
    match key:
        case "file":
            return Blob(base64.b64decode(value["content"], validate=True))
        case "lfsFile":
            return Blob(uploaded_object(repo, value["oid"], value.get("size")), is_lfs=True)
    raise Refusal(400, f"Unknown operation: {key}")


def _clean(path: str) -> str:
    """*path*, if a repository can hold it."""
    if not path or not {"", ".", "..", ".git"}.isdisjoint(path.rstrip("/").split("/")):
        raise Refusal(400, f"Invalid path: {path!r}")
    return path
