"""
What we use of the client, loaded when it is first needed: it costs a quarter of a second.
"""

from __future__ import annotations

import importlib
import io
import sys
from contextlib import suppress
from typing import Any


def load() -> None:
    """Import it, with the parts that it imports late itself."""
    from huggingface_hub import CommitOperationAdd, HfApi

    _ = CommitOperationAdd, HfApi


def new_api(endpoint: str | None) -> Any:
    """The client. It holds no token, it finds one for each request."""
    from huggingface_hub import HfApi

    # True: the token of this machine, also where implicit use of it is switched off.
    api: Any = HfApi(endpoint=endpoint, token=True)
    # The Hub validates cards on commit, too. Asking before costs a request, and shows the
    # observed program a warning for each thing that a person wrote in the card.
    api._validate_yaml = lambda *_, **__: None  # noqa: SLF001
    return api


def addition(path: str, content: bytes) -> Any:
    """The operation that puts one file into a commit."""
    from huggingface_hub import CommitOperationAdd

    # A buffer, not bytes: those go to xet, which cannot be bounded and starts threads.
    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=io.BytesIO(content))


def download(api: Any, repo_id: str, path: str, revision: str) -> bytes:
    """One file, past the cache: the observed program's disk is not ours."""
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(repo_id, path, repo_type="dataset", revision=revision, endpoint=api.endpoint)
    headers = utils().build_hf_headers(token=True)
    content: bytes = utils().get_session().get(url, headers=headers).content
    return content


def utils() -> Any:
    """The utilities of the client."""
    import huggingface_hub.utils

    return huggingface_hub.utils


def inner(name: str) -> Any:
    """A module of the client that has what nothing public offers."""
    return importlib.import_module(f"huggingface_hub.utils.{name}")


def transport() -> Any:
    """The HTTP library of the client: httpx, or httpx2."""
    from huggingface_hub.errors import HfHubHTTPError

    return sys.modules[HfHubHTTPError.__mro__[1].__module__.partition(".")[0]]


def stream_class() -> Any:
    """The class of connections that the HTTP library has; None if it has another."""
    name = transport().__name__.replace("httpx", "httpcore")
    with suppress(ImportError):
        return getattr(importlib.import_module(f"{name}._backends.sync"), "SyncStream", None)
    return None
