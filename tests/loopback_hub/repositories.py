"""Repositories, commits and objects in memory. Knows no HTTP but the status of a refusal."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from .messages import Refusal

MAIN = "main"

IS_NAME = re.compile(r"[\w.-]+", re.ASCII).fullmatch


@dataclass(frozen=True)
class Blob:
    """The bytes of one file; a large one is named by its sha256, a small one as git does."""

    data: bytes
    is_lfs: bool = False

    @cached_property
    def git_oid(self) -> str:
        """The object id in git: of the bytes, or of the pointer that stands for them."""
        return git_oid(self.pointer if self.is_lfs else self.data)

    @cached_property
    def sha256(self) -> str:
        """The object id in LFS."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """What preupload and ETag show."""
        return self.sha256 if self.is_lfs else self.git_oid

    @property
    def pointer(self) -> bytes:
        """The LFS pointer file."""
        head = "version https://git-lfs.github.com/spec/v1"
        return f"{head}\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()


def git_oid(data: bytes) -> str:
    """The id that git gives to a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def is_lfs_path(path: str) -> bool:
    """Whether the Hub keeps *path* as an LFS object, whatever its size."""
    return path.endswith(".parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One commit.

    Attributes:
        paths: What the commit named, whether or not its bytes changed.
        parent: The oid of the commit before, None for the first.
        wanted_parent: The oid that the client believed to be the head, None for any.
        blobs: Every file after this commit.
    """

    oid: str
    message: str
    paths: tuple[str, ...]
    parent: str | None
    wanted_parent: str | None
    blobs: Mapping[str, Blob] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a client asks to be committed.

    Attributes:
        added: Path -> its new bytes.
        deleted: Paths of files.
        deleted_folders: Paths of folders.
        parent: The oid that the client believes to be the head, None for any.
    """

    message: str
    added: Mapping[str, Blob]
    deleted: tuple[str, ...] = ()
    deleted_folders: tuple[str, ...] = ()
    parent: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path named."""
        return (*self.added, *self.deleted, *self.deleted_folders)

    def applied(self, blobs: Mapping[str, Blob]) -> dict[str, Blob]:
        """*blobs* after the change."""
        missing = [path for path in self.deleted if path not in blobs]
        if missing:
            raise Refusal(404, f"Entry not found: {missing[0]}", "EntryNotFound")
        folders = tuple(path.rstrip("/") + "/" for path in self.deleted_folders)
        kept = {
            path: blob
            for path, blob in blobs.items()
            if path not in self.deleted and not path.startswith(folders)
        }
        return {**kept, **self.added}


class Repo:
    """One dataset repository with a single, linear branch.

    Attributes:
        private: Whether only its owner sees it. May be set.
        objects: LFS objects by sha256, also those that no commit names yet.
        turn: Held while a commit is in progress.
    """

    def __init__(self, repo_id: str, *, private: bool, files: Mapping[str, bytes]) -> None:
        self.id = repo_id
        self.private = private
        self.turn = threading.Lock()
        blobs = {path: Blob(data, is_lfs_path(path)) for path, data in files.items()}
        self.objects = {blob.sha256: blob.data for blob in blobs.values() if blob.is_lfs}
        first = Change(message="initial commit", added=blobs)
        self._history = [_commit(repo_id, None, first, blobs)]

    @property
    def owner(self) -> str:
        """The namespace."""
        return self.id.partition("/")[0]

    @property
    def head(self) -> Commit:
        """The newest commit."""
        return self._history[-1]

    @property
    def commits(self) -> list[Commit]:
        """Every commit since the first, oldest first."""
        return self._history[1:]

    @property
    def files(self) -> dict[str, bytes]:
        """Path -> bytes at the head."""
        return {path: blob.data for path, blob in self.head.blobs.items()}

    def at(self, revision: str) -> Commit:
        """The commit that *revision* names: the branch, or a full oid."""
        if revision == MAIN:
            return self.head
        for commit in self._history:
            if commit.oid == revision:
                return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit(self, change: Change) -> Commit:
        """Add a commit, also one that changes nothing. The caller has the turn."""
        head = self.head
        if change.parent not in (None, head.oid):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        blobs = change.applied(head.blobs)
        self._history.append(_commit(self.id, head, change, blobs))
        return self.head


def _commit(
    repo_id: str, parent: Commit | None, change: Change, blobs: Mapping[str, Blob]
) -> Commit:
    """A commit with an oid made of what it holds and follows."""
    parent_oid = parent.oid if parent else None
    listing = [f"{path} {blob.oid}" for path, blob in sorted(blobs.items())]
    text = "\n".join([repo_id, str(parent_oid), change.message, *listing])
    oid = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    return Commit(
        oid=oid,
        message=change.message,
        paths=change.paths,
        parent=parent_oid,
        wanted_parent=change.parent,
        blobs=blobs,
    )


class Repositories:
    """Every repository of the hub; thread safe."""

    def __init__(self) -> None:
        self._repos: dict[str, Repo] = {}
        self._lock = threading.Lock()

    def get(self, repo_id: str) -> Repo | None:
        """The repository, or None."""
        return self._repos.get(repo_id)

    def create(self, repo_id: str, *, private: bool, files: Mapping[str, bytes]) -> Repo:
        """A new repository, or a 409."""
        if not all(map(IS_NAME, repo_id.split("/"))) or repo_id.count("/") != 1:
            raise Refusal(400, f"Invalid repository name: {repo_id}")
        with self._lock:
            if repo_id in self._repos:
                raise Refusal(409, "You already created this dataset repo")
            return self._repos.setdefault(repo_id, Repo(repo_id, private=private, files=files))

    def used_bytes(self) -> int:
        """What all LFS objects take."""
        return sum(map(len, self._objects()))

    def _objects(self) -> Iterable[bytes]:
        for repo in list(self._repos.values()):
            yield from list(repo.objects.values())
