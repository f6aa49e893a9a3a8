"""
Imports that publishing needs, made beforehand: at the end of a program they would take longer
than the publishing.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from itertools import chain

log = logging.getLogger(__name__)

LONGEST_FORK_DELAY_S = 15.0
"""Then the fork goes on: what the imports wait for may be held by whoever forks."""

FORK_HOOKS = {"concurrent.futures.thread": ("concurrent.futures._base",)}
HUB_FORK_HOOKS = {
    **FORK_HOOKS,
    "filelock": ("asyncio", "decimal", "secrets", "sqlite3", "tempfile"),
}
"""
They hold locks during a fork that imports want, so their hooks have to run after ours; hooks that
were registered last run first. A fork amid their own import would run only their second hook, so
they import nothing then: it was imported before.
"""

LOCAL = (
    "hubmeter.sealing",
    "hubmeter.tables",
    "hubmeter.shard",
    "hubmeter.sealed",
    "hubmeter.card",
    "hubmeter.receipts",
    "hubmeter.sinks.parquet_dir",
    "email.parser",
    "importlib.metadata",
    "numpy.ma",
    "yaml",
)
HUB = (
    *LOCAL,
    "hubmeter.sinks.hub_dataset",
    "huggingface_hub.hf_api",
    "huggingface_hub._commit_api",
    "encodings.idna",
    "_strptime",
)
"""What publishing imports, also what libraries import when they are first used."""


class _Imports:
    """Imports and forks take turns: a child forked amid an import could never import the same."""

    def __init__(self) -> None:
        self._known: set[Sequence[str]] = set()
        self._reset()

    def _reset(self) -> None:
        self._turn = threading.Lock()
        self._forks = 0  # the thread whose turn it is

    def make(self, name: str) -> None:
        with self._turn:
            import_module(name)

    def know_forks(self, others: Sequence[str] = ()) -> None:
        """From now on forks wait for their turn, before the hooks of *others* do anything."""
        if others not in self._known and hasattr(os, "register_at_fork"):
            self._known.add(others)
            os.register_at_fork(
                before=self._before, after_in_parent=self._after, after_in_child=self._reset
            )

    def _before(self) -> None:
        me = threading.get_ident()
        if self._forks != me and self._turn.acquire(timeout=LONGEST_FORK_DELAY_S):
            self._forks = me

    def _after(self) -> None:
        if self._forks == threading.get_ident():
            self._forks = 0
            self._turn.release()


_imports = _Imports()


def warm(names: Sequence[str]) -> None:
    """Import modules. What cannot be imported now is complained of when it is needed."""
    _imports.know_forks()
    hooks = HUB_FORK_HOOKS if names is HUB else FORK_HOOKS
    _each(_imports.make, chain.from_iterable(hooks.values()))
    _each(import_module, hooks)
    _imports.know_forks(tuple(hooks))
    _each(_imports.make, names)


def _each(imports: Callable[[str], object], names: Iterable[str]) -> None:
    for name in names:
        try:
            imports(name)
        except ImportError as error:
            log.debug("hubmeter: not imported beforehand: %s", error)
