"""A Hugging Face Hub on the loopback interface, for the real clients.

    with LoopbackHub() as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("me/runs", repo_type="dataset", private=True)

The protocol is modelled as far as huggingface_hub 1.x and 2.x and datasets need it to write and
read a dataset repository. What the server answers to a collision or an overload is a model.

    hub.py           the public face: starts, stops, hands out tokens and environments
    server.py        HTTP/1.1: reads requests, carries out faults, writes answers
    routes.py        which endpoint serves which request
    protocol.py      one function for each endpoint: who may, what it answers
    tree.py          the endpoints that list and read files
    changes.py       the body of a commit
    cards.py         the metadata of a dataset card
    repositories.py  repositories, commits and objects in memory
    faults.py        what shall go wrong, and when
    messages.py      a request, an answer, a refusal
"""

from __future__ import annotations

from .faults import Fault
from .hub import LoopbackHub, Request
from .messages import RequestInfo
from .repositories import Commit, Repo

__all__ = ["Commit", "Fault", "LoopbackHub", "Repo", "Request", "RequestInfo"]
