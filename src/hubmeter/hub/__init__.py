"""
The only door to ``huggingface_hub``: requests with a deadline, refusals in words.

Works with 1.x (httpx) and 2.x (httpx2). The client finds the token by itself; it is
never held here, and no exception of the client, whose request holds it, leaves this package.
Sessions and settings of the client belong to the observed program: our hooks act on our
own requests only, and are gone when nothing is published.

::

    repository.py   what is asked of the Hub
    asking.py       one question, many attempts, one deadline
    failures.py     what went wrong, in words
    client.py       what we use of the client, loaded late
    watching.py     limits for our requests, in a session that is not ours
"""

from __future__ import annotations

from .asking import HubRefusal, pause
from .client import load
from .repository import CARD, Account, Repository, RepoState, account, user_name

__all__ = [
    "CARD",
    "Account",
    "HubRefusal",
    "RepoState",
    "Repository",
    "account",
    "load",
    "pause",
    "user_name",
]
