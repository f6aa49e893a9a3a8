"""
What is asked of the Hub, each question a few lines over the client.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ..deadline import Deadline
from .asking import HubRefusal, ask
from .client import addition, download

CARD = "README.md"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoState:
    """
    What a writer must know of a repository.

    Attributes:
        sha: Head of ``main``.
        configs: As the card declares them.
        has_metadata: Whether the card has any; without, there may still be a card.
    """

    is_private: bool
    sha: str
    configs: tuple[Mapping[str, Any], ...]
    has_metadata: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """
    Whom the token belongs to.

    Attributes:
        role: What the token may do: ``read``, ``write``; anything else depends on the repository.
        orgs: Names of the user's organizations, as far as the token shows them.
    """

    name: str
    role: str
    orgs: frozenset[str]

    def has(self, namespace: str) -> bool:
        """Whether *namespace* is the user's own, or one of its organizations."""
        return namespace.lower() in {name.lower() for name in (self.name, *self.orgs)}


class Repository:
    """
    One dataset repository.

    All methods ask again while that may help and the deadline allows, and raise
    HubRefusal or PublishUnavailable.

    Args:
        repo_id: ``user/name``.
        endpoint: None for the one that the client uses.
        pooled: Send files in parallel: for commands, whose threads are all ours. A pool
            cannot start while the interpreter exits.
    """

    def __init__(self, repo_id: str, *, endpoint: str | None = None, pooled: bool = False) -> None:
        self.repo_id = repo_id
        self._endpoint = endpoint
        self._pooled = pooled

    def create(self, *, is_private: bool, deadline: Deadline) -> bool:
        """Create the repository. Returns False if its name is taken."""
        try:
            self._ask(
                lambda api: api.create_repo(
                    self.repo_id, repo_type="dataset", private=is_private, exist_ok=False
                ),
                deadline,
            )
        except HubRefusal as refusal:
            if refusal.status != 409:
                raise
            return False
        return True

    def state(self, deadline: Deadline) -> RepoState:
        """The repository as it is now; a refusal with 404 if there is none to be seen."""
        # A narrow question: the full answer lists every file.
        wanted = ["sha", "private", "cardData"]
        info = self._ask(lambda api: api.dataset_info(self.repo_id, expand=wanted), deadline)
        configs = info.card_data.get("configs") if info.card_data else None
        return RepoState(
            is_private=bool(info.private),
            sha=info.sha,
            configs=tuple(c for c in _listed(configs) if isinstance(c, Mapping)),
            has_metadata=bool(info.card_data),
        )

    def state_if_any(self, deadline: Deadline) -> RepoState | None:
        """The repository as it is now; None if there is none to be seen."""
        try:
            return self.state(deadline)
        except HubRefusal as refusal:
            if refusal.status != 404:
                raise
            return None

    def read(self, path: str, *, revision: str, deadline: Deadline) -> bytes:
        """The bytes of a file; none if there is no such file."""
        try:
            return self._ask(lambda api: download(api, self.repo_id, path, revision), deadline)
        except HubRefusal as refusal:
            if refusal.status != 404:
                raise
            return b""

    def commit(
        self,
        files: Mapping[str, bytes],
        message: str,
        *,
        deadline: Deadline,
        parent: str | None = None,
    ) -> None:
        """
        Put *files* into the repository, all or none, in one commit.

        The same files again make no commit. That settles the case of a lost answer.

        Args:
            files: Path to bytes.
            message: Of the commit.
            deadline: For all attempts together.
            parent: If it is no longer the head: a refusal with 412.
        """

        def send(api: Any) -> None:
            # Made anew for each attempt: the client marks them as used.
            operations = {path: addition(path, content) for path, content in files.items()}
            large = [path for path in operations if path != CARD]
            if len(large) > 1 and not self._pooled:
                for path in large:  # the client sends two or more through a pool
                    api.preupload_lfs_files(self.repo_id, [operations[path]], repo_type="dataset")
            api.create_commit(
                self.repo_id,
                operations.values(),
                commit_message=message,
                repo_type="dataset",
                parent_commit=parent,
            )

        self._ask(send, deadline, final={412} if parent else ())

    def _ask(
        self, call: Callable[[Any], _T], deadline: Deadline, final: Collection[int] = ()
    ) -> _T:
        return ask(
            call,
            deadline,
            subject=self.repo_id,
            endpoint=self._endpoint,
            every_thread=self._pooled,
            final=final,
        )


def account(deadline: Deadline, endpoint: str | None = None, *, subject: str = "{user}") -> Account:
    """
    Whom the token belongs to. Raises HubRefusal or PublishUnavailable.

    Args:
        deadline: For all attempts together.
        endpoint: None for the one that the client uses.
        subject: What the words of an error begin with.
    """
    return ask(lambda api: _account(api.whoami()), deadline, subject=subject, endpoint=endpoint)


def user_name(deadline: Deadline, endpoint: str | None = None) -> str:
    """What stands for ``{user}``. Raises HubRefusal or PublishUnavailable."""
    return account(deadline, endpoint).name


def _account(said: Mapping[str, Any]) -> Account:
    token = said.get("auth", {}).get("accessToken") or {}
    return Account(
        name=str(said["name"]),
        role=str(token.get("role")),
        orgs=frozenset(str(org["name"]) for org in _listed(said.get("orgs"))),
    )


def _listed(value: Any) -> list[Any]:
    """People write cards: anything may stand where a list should."""
    return value if isinstance(value, list) else []
