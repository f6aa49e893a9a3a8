"""
Imports that publishing needs, made beforehand: at the end of a program they would take longer
than the publishing.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

log = logging.getLogger(__name__)

LONGEST_FORK_DELAY_S = 15.0
"""Then the fork goes on: what the imports wait for may be held by whoever forks."""

FORK_HOOKS = ("concurrent.futures.thread",)
HUB_FORK_HOOKS = (*FORK_HOOKS, "filelock")
"""
They hold locks during a fork that imports want, so their hooks have to run after ours; hooks that
were registered last run first. A fork amid their own import would run only their second hook.
"""

LOCAL = (
    "hubmeter.sealing",
    "hubmeter.tables",
    "hubmeter.shard",
    "hubmeter.sealed",
    "hubmeter.card",
)
HUB = (*LOCAL, "hubmeter.sinks.hub_dataset", "huggingface_hub.hf_api")


class _Imports:
    """Imports and forks take turns: a child forked amid an import could never import the same."""

    def __init__(self) -> None:
        self._knows_forks = False
        self._reset()

    def _reset(self) -> None:
        self._turn = threading.Lock()
        self._forks = 0  # the thread whose turn it is

    def make(self, name: str) -> None:
        with self._turn:
            import_module(name)

    def know_forks(self) -> None:
        if not self._knows_forks and hasattr(os, "register_at_fork"):
            self._knows_forks = True
            os.register_at_fork(
                before=self._before, after_in_parent=self._after, after_in_child=self._reset
            )

    def _before(self) -> None:
        if self._turn.acquire(timeout=LONGEST_FORK_DELAY_S):
            self._forks = threading.get_ident()

    def _after(self) -> None:
        if self._forks == threading.get_ident():
            self._forks = 0
            self._turn.release()


_imports = _Imports()


def warm(names: Sequence[str]) -> None:
    """Import modules. What cannot be imported now is complained of when it is needed."""
    with suppress(ImportError):
        for name in HUB_FORK_HOOKS if names is HUB else FORK_HOOKS:
            import_module(name)
    _imports.know_forks()
    try:
        for name in names:
            _imports.make(name)
    except ImportError as error:
        log.debug("hubmeter: not imported beforehand: %s", error)
