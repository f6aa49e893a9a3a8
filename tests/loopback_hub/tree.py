"""The endpoints that list and read files: tree, paths-info, resolve."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlencode

from .messages import Answer, Refusal, RequestInfo, json_answer
from .repositories import Blob, Commit, git_oid


def list_tree(commit: Commit, request: RequestInfo, *, url: str, page_size: int) -> Answer:
    """One page of a folder; the next one is named in the Link header."""
    folder = request.match.get("path") or ""
    is_recursive = request.parameter("recursive", "false").lower() in ("true", "1")
    entries = _entries(commit.blobs, folder, is_recursive=is_recursive)
    size = min(page_size, int(request.parameter("limit", str(page_size))))
    start = int(request.parameter("cursor", "0"))
    answer = json_answer(entries[start : start + size])
    if start + size >= len(entries):
        return answer
    query = {name: values[-1] for name, values in parse_qs(request.query).items()}
    following = urlencode({**query, "cursor": start + size})
    return answer.adding({"Link": f'<{url}{request.path}?{following}>; rel="next"'})


def paths_info(commit: Commit, request: RequestInfo) -> Answer:
    """The entries of the paths asked for; unknown ones are left out."""
    wanted = parse_qs(request.body.decode()).get("paths", [])
    known = {entry["path"]: entry for entry in _entries(commit.blobs, "", is_recursive=True)}
    return json_answer([known[path] for path in wanted if path in known])


def _entries(blobs: Mapping[str, Blob], folder: str, *, is_recursive: bool) -> list[dict[str, Any]]:
    """What lies in *folder*, sorted by path; a 404 for a folder that is not there."""
    prefix = folder.rstrip("/") + "/" if folder else ""
    inside = {path: blob for path, blob in blobs.items() if path.startswith(prefix)}
    if prefix and not inside:
        raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
    found = {path: _file_entry(path, blob) for path, blob in inside.items()}
    for path in inside:
        found |= {parent: _folder_entry(parent, inside) for parent in _parents(path, prefix)}
    names = sorted(path for path in found if is_recursive or "/" not in path[len(prefix) :])
    return [found[path] for path in names]


def _parents(path: str, prefix: str) -> list[str]:
    """The folders between *prefix* and *path*."""
    return [path[: at.start()] for at in re.finditer("/", path) if at.start() >= len(prefix)]


def _file_entry(path: str, blob: Blob) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.git_oid}
    if not blob.is_lfs:
        return entry
    lfs = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
    return {**entry, "lfs": lfs}


def _folder_entry(path: str, blobs: Mapping[str, Blob]) -> dict[str, Any]:
    inside = sorted(
        f"{name} {blob.oid}" for name, blob in blobs.items() if name.startswith(path + "/")
    )
    return {
        "type": "directory",
        "path": path,
        "size": 0,
        "oid": git_oid("\n".join(inside).encode()),
    }


def resolve(commit: Commit, request: RequestInfo) -> Answer:
    """The bytes of one file, or the range of them that was asked for."""
    path = request.match["path"]
    blob = commit.blobs.get(path)
    # Clients find the commit here, also when the file is not there.
    found_at = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    if blob is None:
        return Refusal(404, "Entry not found", "EntryNotFound").answer().adding(found_at)
    return _bytes_of(blob, request.headers.get("range")).adding({**found_at, **_tags(blob)})


def _tags(blob: Blob) -> dict[str, str]:
    tags = {"ETag": f'"{blob.oid}"', "Content-Type": "application/octet-stream"}
    if not blob.is_lfs:
        return tags
    return {**tags, "X-Linked-Size": str(len(blob.data)), "X-Linked-ETag": f'"{blob.oid}"'}


def _bytes_of(blob: Blob, wanted: str | None) -> Answer:
    """All bytes, or those of a `bytes=first-last` header, either end open."""
    spelled = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
    if not spelled or not any(spelled.groups()):
        return Answer(200, blob.data)
    size = len(blob.data)
    first, last = _range(spelled[1], spelled[2], size)
    if first >= size or first > last:
        return Answer(416, b"", {"Content-Range": f"bytes */{size}"})
    headers = {"Content-Range": f"bytes {first}-{last}/{size}"}
    return Answer(206, blob.data[first : last + 1], headers)


def _range(first: str, last: str, size: int) -> tuple[int, int]:
    """The first and the last position; without a first one, *last* counts from the end."""
    if not first:
        return max(0, size - int(last)), size - 1
    return int(first), min(int(last), size - 1) if last else size - 1
