"""What doctor says about a destination on the Hub: no, where a run would not be published."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from loopback_hub import Fault, LoopbackHub
from loopback_hub.protocol import Caller
from observed import undisturbed  # noqa: F401
from orphans import hubmeter

FINE_GRAINED = "hf_finefinefinefinefine"


@pytest.fixture(name="hub")
def _hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub._endpoints.callers[FINE_GRAINED] = Caller(hub.user, "fineGrained")
        yield hub
        assert hub.errors == []


def finding(
    hub: LoopbackHub, folder: Path, to: str, **environment: str
) -> tuple[str, str, Mapping[str, Any]]:
    """State, text and the whole of the one finding about the destination; nothing is changed."""
    home = {**hub.environment(folder / "home"), "HUBMETER_TO": "./unused", **environment}
    done = hubmeter("doctor", "--to", to, "--format", "json", folder=folder, **home)
    found = json.loads(done.stdout)["findings"]
    [one] = [one for one in found if one["subject"] == "destination"]
    assert (done.returncode == 1) >= (one["state"] == "error")
    if one["state"] != "ok":
        assert one["advice"]
    for token in (hub.token, hub.read_token, FINE_GRAINED, "hf_wrong"):
        assert token not in done.stdout + done.stderr
    assert {request.kind for request in hub.requests} <= {"whoami", "info"}
    return one["state"], one["text"], one


def test_a_repository_that_is_there(hub: LoopbackHub, tmp_path: Path) -> None:
    """Named with the user that {user} stands for."""
    hub.create("me/x", private=True)
    assert finding(hub, tmp_path, "{user}/x")[:2] == ("ok", "hf://datasets/me/x, as me")


@pytest.mark.parametrize(("private", "kind"), [("1", "private"), ("0", "public")])
def test_a_repository_that_will_be_made(
    private: str, kind: str, hub: LoopbackHub, tmp_path: Path
) -> None:
    """As HUBMETER_PRIVATE says; doctor does not make it."""
    state, text, _ = finding(hub, tmp_path, "me/new", HUBMETER_PRIVATE=private)
    assert (state, text) == ("ok", f"hf://datasets/me/new, as me, will be made, {kind}")
    assert hub.repo("me/new") is None


@pytest.mark.parametrize("name", ["me/x--y", "me/x..y", "me/x.git", "me/" + "x" * 97, "me/x-"])
def test_an_invalid_name(name: str, hub: LoopbackHub, tmp_path: Path) -> None:
    """It looks like a name to us; the client knows the rules."""
    state, text, _ = finding(hub, tmp_path, name)
    assert state == "error"
    assert f"{name}: this is no name for a repository on the Hub; use user/name" in text


def test_a_token_that_may_only_read(hub: LoopbackHub, tmp_path: Path) -> None:
    """It sees the repository, and could not write to it."""
    hub.create("me/x", private=True)
    state, text, one = finding(hub, tmp_path, "me/x", HF_TOKEN=hub.read_token)
    assert (state, text) == ("error", "hf://datasets/me/x, as me: the token may only read")
    assert "https://huggingface.co/settings/tokens" in one["advice"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_token_for_some_repositories(is_there: bool, hub: LoopbackHub, tmp_path: Path) -> None:
    """What a fine-grained one may do depends on the repository, and is not known."""
    if is_there:
        hub.create("me/x", private=True)
    state, text, _ = finding(hub, tmp_path, "me/x", HF_TOKEN=FINE_GRAINED)
    assert state == "ok"
    assert text.endswith("; unknown whether this kind of token may write there")


def test_a_public_repository(hub: LoopbackHub, tmp_path: Path) -> None:
    """Refused as a run would be, unless HUBMETER_PRIVATE=0."""
    hub.create("me/shown", private=False)
    state, text, one = finding(hub, tmp_path, "{user}/shown")
    assert (state, text) == ("error", "hf://datasets/me/shown, as me: the repository is public")
    assert "HUBMETER_PRIVATE=0" in one["advice"]
    state, text, _ = finding(hub, tmp_path, "{user}/shown", HUBMETER_PRIVATE="0")
    assert (state, text) == ("ok", "hf://datasets/me/shown, as me")


def test_a_namespace_of_others(hub: LoopbackHub, tmp_path: Path) -> None:
    """A warning: an organization may let the token in without showing."""
    hub.create("you/x", private=True)
    for name in ("you/x", "you/new"):
        state, text, _ = finding(hub, tmp_path, name)
        assert state == "warning"
        assert "you is neither this user nor one of its organizations" in text


def test_an_organization_of_the_user(hub: LoopbackHub, tmp_path: Path) -> None:
    """Its namespace is the user's too, however it is written."""
    said = {"name": "me", "orgs": [{"name": "Lab"}], "auth": {"accessToken": {"role": "write"}}}
    hub.faults.append(Fault(on="whoami", times=9, status=200, body=json.dumps(said).encode()))
    state, text, _ = finding(hub, tmp_path, "lab/x")
    assert (state, text) == ("ok", "hf://datasets/lab/x, as me, will be made, private")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"HF_TOKEN": ""}, "no token for the Hub was found"),
        ({"HF_TOKEN": "hf_wrongwrongwrong"}, "the Hub does not accept the token"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "no answer from 127.0.0.1"),
    ],
)
def test_nobody_to_ask(
    environment: dict[str, str], said: str, hub: LoopbackHub, tmp_path: Path
) -> None:
    """In words, with the way out."""
    state, text, _ = finding(hub, tmp_path, "me/x", **environment)
    assert state == "error"
    assert text.startswith(f"me/x: {said}")


@pytest.mark.parametrize("kind", ["whoami", "info"])
def test_a_hub_that_hangs(kind: str, hub: LoopbackHub, tmp_path: Path) -> None:
    """Five seconds for both questions together."""
    hub.faults += [Fault(on=kind, hang=True, times=99), Fault(on="whoami", delay_s=2)]
    started = time.monotonic()
    state, text, _ = finding(hub, tmp_path, "me/x")
    assert time.monotonic() - started < 9  # the rest of doctor takes a second or two
    assert state == "error"
    assert "did not answer" in text or "no answer" in text
