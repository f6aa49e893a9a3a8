"""The endpoints of the Hub: one function each, from a request to an answer or a refusal."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from . import tree
from .cards import card_data, front_matter
from .changes import read_change, uploaded_object
from .messages import Answer, Refusal, RequestInfo, json_answer
from .repositories import MAIN, Blob, Change, Commit, Repo, Repositories, is_lfs_path

NO_REPO = "RepoNotFound"

GIT_ATTRIBUTES = b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"
"""A new repository has this file on the real Hub."""
"""Goes with a 401 too: without it, clients guess so from an https address only."""

CREATED_AT = "2026-01-01T00:00:00.000Z"


class Settings(Protocol):
    """What a test may turn while the hub runs."""

    url: str
    quota_bytes: int | None
    busy_commit_s: float
    is_busy_409: bool
    page_size: int

    def wait(self, seconds: float) -> None:
        """Sleep, but not past the closing of the hub."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: nobody when *name* is None."""

    name: str | None = None
    role: str = "none"

    def sees(self, repo: Repo) -> bool:
        """Whether *repo* is there for the caller at all."""
        return not repo.private or self.name == repo.owner

    def writes(self, namespace: str) -> bool:
        """Whether the caller may change what is in *namespace*."""
        return self.role == "write" and self.name == namespace


Endpoint = Callable[["Endpoints", RequestInfo, Caller], Answer]


@dataclass(slots=True)
class Endpoints:
    """Everything that the hub answers.

    Attributes:
        callers: Token -> who it belongs to.
    """

    settings: Settings
    callers: dict[str, Caller]
    repositories: Repositories = field(default_factory=Repositories)
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    def answer(self, request: RequestInfo, serve: Endpoint) -> Answer:
        """What *serve* answers, a refusal also being an answer."""
        try:
            return serve(self, request, self._caller(request))
        except Refusal as refusal:
            return refusal.answer()

    def _caller(self, request: RequestInfo) -> Caller:
        """Who asks; a 401 for a token that nobody was given."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if not scheme:
            return Caller()
        if scheme.lower() != "bearer" or token not in self.callers:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.callers[token]

    def missing(self, request: RequestInfo, caller: Caller) -> Answer:
        """Everything that is not modelled."""
        raise Refusal(404, f"No such endpoint: {request.method} {request.path}")

    # Accounts and repositories

    def whoami(self, request: RequestInfo, caller: Caller) -> Answer:
        """GET /api/whoami-v2."""
        _demand_token(caller)
        token = {"displayName": "loopback", "role": caller.role, "createdAt": CREATED_AT}
        person = {"type": "user", "id": "1", "name": caller.name, "fullname": caller.name}
        auth = {"type": "access_token", "accessToken": token}
        return json_answer({**person, "isPro": False, "orgs": [], "auth": auth})

    def create(self, request: RequestInfo, caller: Caller) -> Answer:
        """POST /api/repos/create; a 409 carries the url too, since clients read it."""
        _demand_token(caller)
        wanted = request.json()
        repo_id = f"{wanted.get('organization') or caller.name}/{wanted['name']}"
        if not caller.writes(repo_id.partition("/")[0]):
            raise Refusal(403, f"You don't have the rights to create {repo_id}")
        url = f"{self.settings.url}/datasets/{repo_id}"
        is_private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        try:
            self.repositories.create(
                repo_id, private=is_private, files={".gitattributes": GIT_ATTRIBUTES}
            )
        except Refusal as refusal:
            refusal.more["url"] = url
            raise
        return json_answer({"url": url, "name": repo_id, "id": repo_id})

    def info(self, request: RequestInfo, caller: Caller) -> Answer:
        """GET D and D/revision/{revision}."""
        repo = self._visible(request, caller)
        commit = repo.at(request.match.get("revision") or MAIN)
        about: dict[str, Any] = {
            "id": repo.id,
            "author": repo.owner,
            "sha": commit.oid,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "createdAt": CREATED_AT,
            "lastModified": CREATED_AT,
            "siblings": [{"rfilename": path} for path in sorted(commit.blobs)],
            "usedStorage": sum(map(len, repo.objects.values())),
        }
        card = card_data(commit)
        return json_answer({**about, "cardData": card} if card else about)

    # Writing

    def validate(self, request: RequestInfo, caller: Caller) -> Answer:
        """POST /api/validate-yaml."""
        content = request.json()["content"]
        try:
            metadata = front_matter(content)
        except ValueError as error:
            problem = {"message": str(error)}
            raise Refusal(400, "Invalid YAML", errors=[problem], warnings=[]) from None
        # Clients turn each of these into a Python warning.
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return json_answer({"errors": [], "warnings": warnings})

    def preupload(self, request: RequestInfo, caller: Caller) -> Answer:
        """POST D/preupload/{revision}: how to send each file, and which bytes are here now."""
        blobs = self._visible(request, caller).at(request.match["revision"]).blobs
        _demand_token(caller, NO_REPO)
        paths = [file["path"] for file in request.json()["files"]]
        return json_answer({"files": [_upload_mode(path, blobs.get(path)) for path in paths]})

    def batch(self, request: RequestInfo, caller: Caller) -> Answer:
        """POST .git/info/lfs/objects/batch: where to PUT the objects that are not here yet.

        An object that is asked for twice is answered twice.
        """
        repo = self._writable(request, caller)
        wanted = request.json()["objects"]
        new = [thing for thing in wanted if thing["oid"] not in repo.objects]
        self._demand_room(sum(thing["size"] for thing in new))
        objects = [
            {**thing, "actions": self._actions(repo, **thing)} if thing in new else thing
            for thing in wanted
        ]
        return json_answer({"transfer": "basic", "objects": objects})

    def _actions(self, repo: Repo, oid: str, size: int) -> dict[str, Any]:
        signed = f"size={size}&signature={self._signature(repo.id, oid, size)}"
        upload = f"{self.settings.url}/lfs-storage/{repo.id}/{oid}?{signed}"
        verify = f"{self.settings.url}/datasets/{repo.id}.git/info/lfs/objects/verify"
        return {"upload": {"href": upload}, "verify": {"href": verify}}

    def _signature(self, repo_id: str, oid: str, size: int) -> str:
        return hmac.new(self._secret, f"{repo_id} {oid} {size}".encode(), "sha256").hexdigest()

    def put(self, request: RequestInfo, caller: Caller) -> Answer:
        """PUT of one object. Whoever has the signed address may."""
        repo_id, oid = request.match["repo"], request.match["oid"]
        size = int(request.parameter("size", "-1"))
        signature = request.parameter("signature", "")
        if not hmac.compare_digest(signature, self._signature(repo_id, oid, size)):
            raise Refusal(403, "SignatureDoesNotMatch")
        if len(request.body) != size or hashlib.sha256(request.body).hexdigest() != oid:
            raise Refusal(400, "BadDigest: size or sha256 differ from what was announced")
        self._known(repo_id).objects[oid] = request.body
        return Answer(200, b"", {"ETag": f'"{oid}"'})

    def verify(self, request: RequestInfo, caller: Caller) -> Answer:
        """POST .git/info/lfs/objects/verify."""
        repo = self._writable(request, caller)
        wanted = request.json()
        uploaded_object(repo, wanted["oid"], wanted["size"])
        return json_answer({})

    def commit(self, request: RequestInfo, caller: Caller) -> Answer:
        """POST D/commit/{revision}: one at a time."""
        repo = self._writable(request, caller)
        if request.match["revision"] != MAIN:
            raise Refusal(404, "Only main can be committed to", "RevisionNotFound")
        change = read_change(request.body, repo)
        self._demand_room(sum(len(blob.data) for blob in change.added.values() if not blob.is_lfs))
        commit = self._commit_in_turn(repo, change)
        url = f"{self.settings.url}/datasets/{repo.id}/commit/{commit.oid}"
        return json_answer({"success": True, "commitUrl": url, "commitOid": commit.oid})

    def _commit_in_turn(self, repo: Repo, change: Change) -> Commit:
        """Commit when the ones before are done, or refuse if the hub does not queue."""
        if not repo.turn.acquire(blocking=not self.settings.is_busy_409):
            raise Refusal(409, "Another commit is in progress. Please retry later.")
        try:
            self.settings.wait(self.settings.busy_commit_s)
            return repo.commit(change)
        finally:
            repo.turn.release()

    def _demand_room(self, added_bytes: int) -> None:
        quota = self.settings.quota_bytes
        if quota is not None and self.repositories.used_bytes() + added_bytes > quota:
            raise Refusal(403, "Private repository storage limit reached")

    # Reading

    def tree(self, request: RequestInfo, caller: Caller) -> Answer:
        """GET D/tree/{revision}/{folder}."""
        commit = self._visible(request, caller).at(request.match["revision"])
        settings = self.settings
        return tree.list_tree(commit, request, url=settings.url, page_size=settings.page_size)

    def paths_info(self, request: RequestInfo, caller: Caller) -> Answer:
        """POST D/paths-info/{revision}."""
        return tree.paths_info(
            self._visible(request, caller).at(request.match["revision"]), request
        )

    def resolve(self, request: RequestInfo, caller: Caller) -> Answer:
        """GET and HEAD R/{revision}/{path}."""
        return tree.resolve(self._visible(request, caller).at(request.match["revision"]), request)

    # Who may

    def _known(self, repo_id: str) -> Repo:
        repo = self.repositories.get(repo_id)
        if repo is None:
            raise Refusal(404, "Repository not found", NO_REPO)
        return repo

    def _visible(self, request: RequestInfo, caller: Caller) -> Repo:
        """The repository, if the caller may know of it: a private one hides as a missing one."""
        repo = self.repositories.get(request.match["repo"])
        if repo is not None and caller.sees(repo):
            return repo
        raise Refusal(401 if caller.name is None else 404, "Repository not found", NO_REPO)

    def _writable(self, request: RequestInfo, caller: Caller) -> Repo:
        repo = self._visible(request, caller)
        _demand_token(caller, NO_REPO)
        if not caller.writes(repo.owner):
            raise Refusal(403, "You don't have the rights to write to this repository")
        return repo


def _demand_token(caller: Caller, code: str = "") -> None:
    if caller.name is None:
        raise Refusal(401, "Invalid username or password.", code)


def _upload_mode(path: str, current: Blob | None) -> dict[str, Any]:
    mode = {
        "path": path,
        "uploadMode": "lfs" if is_lfs_path(path) else "regular",
        "shouldIgnore": False,
    }
    return mode if current is None else {**mode, "oid": current.oid}
