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

LONGEST_FORK_DELAY_S = 3.0
"""Others' hooks may hold what the imports wait for; then the fork has to go on."""

FORK_HOOKS = ("filelock",)
"""They have hooks before and after a fork; imported inside one, the second misses the first."""

LOCAL = (
    "hubmeter.sealing",
    "hubmeter.tables",
    "hubmeter.shard",
    "hubmeter.sealed",
    "hubmeter.card",
)
HUB = (*LOCAL, "hubmeter.sinks.hub_dataset", "huggingface_hub.hf_api")

_idle = threading.Event()
_idle.set()


def warm(names: Sequence[str]) -> None:
    """Import modules. What cannot be imported now is complained of when it is needed."""
    if any("huggingface" in name for name in names):
        with suppress(ImportError):
            for name in FORK_HOOKS:
                import_module(name)
    _idle.clear()
    try:
        for name in names:
            import_module(name)
    except ImportError as error:
        log.debug("hubmeter: not imported beforehand: %s", error)
    finally:
        _idle.set()


def _wait() -> None:
    """A child that is forked while we import could never import the same."""
    _idle.wait(LONGEST_FORK_DELAY_S)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_wait, after_in_child=_idle.set)
