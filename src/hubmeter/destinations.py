"""
Where a dataset goes: a folder, or a repository on the Hugging Face Hub.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

from .deadline import Deadline
from .run import absolute
from .settings import HUB_URL, fill_in_run

if TYPE_CHECKING:
    from .shard import Shard

MOST_FILES = 99
MOST_BYTES = 256 * 2**20
"""Of one commit: the Hub takes 100 files, one of them may be the card; and what memory holds."""

T = TypeVar("T")

_HUB_NAME = re.compile(r"(?:\{user\}|[\w-][\w.-]*)/[\w-](?:[\w.-]|\{user\})*")


class Sink(Protocol):
    """Publishes shards whole, and the same shard twice as once."""

    def publish(self, shards: Sequence[Shard], deadline: Deadline) -> None:
        """
        Raises PublishRejected or PublishUnavailable if not all of *shards* arrived.
        """
        ...


@dataclass(frozen=True, slots=True)
class Folder:
    """A dataset in a local folder."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class HubRepo:
    """A dataset on the Hub, ``user/repo``; ``{user}`` is whoever the token belongs to."""

    name: str

    def __str__(self) -> str:
        return f"hf://datasets/{self.name}"


Destination: TypeAlias = Folder | HubRepo


def destination_of(to: str, run_id: str = "run", base: str = "") -> Destination:
    """
    What *to* means: ``user/repo`` is the Hub, unless there is a folder of that name.

    Args:
        to: ``user/repo``, ``hf://datasets/user/repo``, or anything else for a folder.
        run_id: What stands for ``{run_id}``.
        base: Folder that a relative one starts from.
    """
    filled = fill_in_run(to, run_id)
    if HUB_URL.fullmatch(filled):
        return HubRepo(filled.removeprefix("hf://datasets/").rstrip("/"))
    folder = absolute(filled, base)
    if _HUB_NAME.fullmatch(filled) and not folder.is_dir():
        return HubRepo(filled)
    return Folder(folder)


def commits(parts: Iterable[T], size_of: Callable[[T], tuple[int, int]]) -> Iterator[list[T]]:
    """
    Groups of *parts*, in their order, each as large as a commit may be.

    *size_of* says how many files a part is, and how many bytes these are.
    """
    commit: list[T] = []
    files = size_bytes = 0
    for one in parts:
        more_files, more_bytes = size_of(one)
        is_full = files + more_files > MOST_FILES or size_bytes + more_bytes > MOST_BYTES
        if commit and is_full:
            yield commit
            commit, files, size_bytes = [], 0, 0
        commit.append(one)
        files, size_bytes = files + more_files, size_bytes + more_bytes
    if commit:
        yield commit


def is_folder_named_like_repo(to: str, base: str) -> bool:
    """Whether ``user/repo`` means a folder only because there is one."""
    return bool(_HUB_NAME.fullmatch(to)) and absolute(to, base).is_dir()


def sink_of(destination: Destination, *, private: bool = True, pooled: bool = False) -> Sink:
    """
    What publishes there.

    Args:
        destination: As :func:`destination_of` found it.
        private: A repository that is made is private, and a public one is refused.
        pooled: Upload several files at once; not while an interpreter shuts down.
    """
    match destination:
        case HubRepo(name):
            from .sinks.hub_dataset import HubDataset

            return HubDataset(name, is_private=private, pooled=pooled)
        case Folder(path):
            from .sinks.parquet_dir import ParquetDir

            return ParquetDir(path)
