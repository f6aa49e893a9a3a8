"""
A dataset in a repository on the Hugging Face Hub.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from ..card import card_text, config_entry
from ..deadline import Deadline
from ..errors import PublicRepository, PublishError, PublishRejected, WrongRepository
from ..hub import CARD, HubRefusal, Repository, RepoState, account, pause, user_name
from ..schema import CONFIGS
from ..shard import Shard
from ..text import printable

MOST_FILES = 100
"""In one commit, the card included; the Hub asks for no more."""


class HubDataset:
    """
    Publishes shards into *repo*, each call in one commit.

    Many processes may share the repository: each file has its own name, and is committed
    whatever the head is. Only the card is shared; it is read, merged, and written if the
    head is still the same.

    Args:
        repo: ``user/name``; ``{user}`` stands for whoever the token belongs to.
        is_private: Make a private repository, and refuse a public one.
        pooled: Upload files in parallel, for commands.
        endpoint: Of the Hub; None for the one that ``huggingface_hub`` uses.
    """

    def __init__(
        self,
        repo: str,
        *,
        is_private: bool = True,
        pooled: bool = False,
        endpoint: str | None = None,
    ) -> None:
        self._name = repo
        self._is_private = is_private
        self._pooled = pooled
        self._endpoint = endpoint
        self._repository: Repository | None = None
        self._declared: set[str] = set()

    def __str__(self) -> str:
        repo_id = self._repository.repo_id if self._repository else self._name
        return f"hf://datasets/{repo_id}"

    def publish(self, shards: Sequence[Shard], deadline: Deadline) -> None:
        """
        Put all files of *shards* into the repository, which is made if need be.

        Publishing the same shards again changes nothing.

        Raises:
            PublishRejected: The Hub said no; or the repository is public.
            PublishUnavailable: The Hub did not answer in time; shards may have arrived.
        """
        try:
            for batch in _batches(shards):
                self._publish_batch(batch, deadline)
        except HubRefusal as refusal:
            if refusal.is_name_wrong or (refusal.status == 403 and self._is_of_others(deadline)):
                raise WrongRepository(str(refusal)) from None
            raise

    def _publish_batch(self, shards: Sequence[Shard], deadline: Deadline) -> None:
        was_known = bool(self._declared)
        try:
            self._publish(shards, deadline)
        except HubRefusal as refusal:
            if refusal.status != 404 or not was_known:
                raise
            self._declared.clear()  # somebody deleted the repository
            self._publish(shards, deadline)

    def _publish(self, shards: Sequence[Shard], deadline: Deadline) -> None:
        repository = self._opened(deadline)
        files = {path: content for shard in shards for path, content in shard.files.items()}
        configs = {path.split("/")[1] for path in files}
        if configs <= self._declared:
            repository.commit(files, _message(shards), deadline=deadline)
            return
        is_new = self._made(repository, deadline)
        for attempt in itertools.count():
            state = self._allowed(repository, deadline)
            is_declared = _declares(state, configs)
            card = {} if is_declared else _card(repository, state, configs, deadline, is_new)
            parent = state.sha if card else None
            try:
                repository.commit(
                    {**card, **files}, _message(shards), deadline=deadline, parent=parent
                )
            except HubRefusal as refusal:
                if refusal.status != 412:
                    raise
                pause(attempt, deadline)  # somebody else committed first
            else:
                break
        self._declared |= configs

    def _opened(self, deadline: Deadline) -> Repository:
        if self._repository is None:
            name = self._name
            if "{user}" in name:
                name = name.replace("{user}", user_name(deadline, self._endpoint))
            if name.count("/") != 1:
                raise WrongRepository(f"{printable(name)} is no repository: write user/name")
            self._repository = Repository(name, endpoint=self._endpoint, pooled=self._pooled)
        return self._repository

    def _made(self, repository: Repository, deadline: Deadline) -> bool:
        """Whether the repository is new; else it was there."""
        try:
            return repository.create(is_private=self._is_private, deadline=deadline)
        except HubRefusal:
            # A token for one repository may not create it, but may well write to it.
            if not _is_visible(repository, deadline):
                raise
            return False

    def _allowed(self, repository: Repository, deadline: Deadline) -> RepoState:
        state = repository.state(deadline)
        if self._is_private and not state.is_private:
            raise PublicRepository(
                f"{repository.repo_id} is public: set HUBMETER_PRIVATE=0 to publish there, "
                "or name another repository"
            )
        return state

    def _is_of_others(self, deadline: Deadline) -> bool:
        """Whether the namespace is known to be neither the user's nor an organization's of hers."""
        if self._repository is None:
            return False
        try:
            owner = account(deadline, self._endpoint)
        except PublishError:
            return False
        return not owner.has(self._repository.repo_id.partition("/")[0])


def _is_visible(repository: Repository, deadline: Deadline) -> bool:
    try:
        repository.state(deadline)
    except HubRefusal:
        return False
    return True


def _declares(state: RepoState, configs: Iterable[str]) -> bool:
    """Whether readers of the repository find the files of *configs*."""
    return all(
        any(config_entry(config, "").items() <= declared.items() for declared in state.configs)
        for config in configs
    )


def _card(
    repository: Repository, state: RepoState, needed: set[str], deadline: Deadline, is_new: bool
) -> dict[str, bytes]:
    """The card that declares the configs *needed*, and what the card declares already."""
    existing = b""
    if state.has_metadata or not is_new:
        existing = repository.read(CARD, revision=state.sha, deadline=deadline)
    known = needed | {str(declared.get("config_name")) for declared in state.configs}
    try:
        text = existing.decode()
    except UnicodeDecodeError:  # the client would not send it
        raise PublishRejected(
            f"{repository.repo_id}: its {CARD} is not UTF-8 and cannot be edited; save it as UTF-8"
        ) from None
    configs = [config for config in CONFIGS if config in known]
    return {CARD: card_text(repository.repo_id, configs=configs, existing=text).encode()}


def _batches(shards: Iterable[Shard]) -> Iterator[list[Shard]]:
    """Whole shards, as many as fit into a commit beside the card."""
    batch: list[Shard] = []
    number = 1
    for shard in shards:
        if batch and number + len(shard.files) > MOST_FILES:
            yield batch
            batch, number = [], 1
        if shard.files:
            batch.append(shard)
            number += len(shard.files)
    if batch:
        yield batch


def _message(shards: Sequence[Shard]) -> str:
    runs = {shard.run_id for shard in shards}
    whose = f"{len(runs)} runs" if len(runs) > 1 else f"run {_short(min(runs))}"
    rows = sum(shard.rows + shard.points for shard in shards)
    return f"Add {len(shards)} shard{'s'[: len(shards) > 1]} of {whose} ({rows} rows)"


def _short(run_id: str) -> str:
    text = printable(run_id)
    return text if len(text) <= 40 else text[:39] + "…"
