"""The border to the Hub: deadlines, retries, refusals in words, no trace in the program."""

from __future__ import annotations

import email.utils
import importlib
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import close_session, constants, get_session, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import are_progress_bars_disabled
from opentelemetry import context
from opentelemetry.instrumentation.utils import (
    is_http_instrumentation_enabled,
    is_instrumentation_enabled,
)

from hubmeter.deadline import Deadline
from hubmeter.errors import PublishError, PublishRejected, PublishUnavailable
from hubmeter.hub import HubRefusal, Repository, asking, user_name
from hubmeter.hub.client import stream_class
from hubmeter.shard import Shard
from hubmeter.sinks.hub_dataset import HubDataset
from interpreters import hub_overlays
from loopback_hub import Fault, LoopbackHub

transport = importlib.import_module(HfHubHTTPError.__mro__[1].__module__.split(".")[0])
client = importlib.import_module("huggingface_hub.utils._http")

X = "me/x"
FILE = {"data/default/2026-01/a.parquet": b"PAR1" + bytes(range(256)) * 8}
SHARD = Shard(name="a", run_id="a", files=FILE, rows=1, points=0)
STAGES = ["preupload", "batch", "put", "verify", "commit"]
NEEDED = ["preupload", "batch", "put", "commit"]
"""Stages of each attempt: an object that is there is not verified again."""

SHORT_S = 0.25
SECRET = "hf_" + "s3cr3t" * 5


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of at most 20 ms."""
    monkeypatch.setattr(asking, "LONGEST_PAUSE_S", 0.02)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub with the empty repository me/x, and a token for it in the environment."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with LoopbackHub() as hub:
        monkeypatch.setenv("HF_TOKEN", hub.token)
        hub.create(X)
        yield hub
    close_session()
    assert hub.errors == []


def commit(hub: LoopbackHub, seconds: float = 10.0, **wanted: Any) -> None:
    """One small file to me/x."""
    repository = Repository(
        wanted.pop("repo", X), endpoint=hub.url, pooled=wanted.pop("pooled", False)
    )
    files = wanted.pop("files", FILE)
    repository.commit(files, "Add a file", deadline=Deadline.after(seconds), **wanted)


def refused(hub: LoopbackHub, seconds: float = 10.0, **wanted: Any) -> PublishError:
    """The error of a commit that fails."""
    with pytest.raises(PublishError) as caught:
        commit(hub, seconds, **wanted)
    return caught.value


def refused_run(to: HubDataset, seconds: float) -> PublishError:
    """The error of a whole run that fails; no frame of its traceback has our secrets."""
    with pytest.raises(PublishError) as caught:
        to.publish([SHARD], Deadline.after(seconds))
    return caught.value


def kinds(hub: LoopbackHub) -> list[str]:
    return [request.kind for request in hub.requests]


# Faults that pass


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "fault",
    [
        *({"status": status} for status in (408, 409, 412, 425, 429, 500, 503)),
        {"drop_before": True},
        {"drop_after": True},
    ],
    ids=str,
)
def test_a_fault_that_passes_costs_nothing(
    hub: LoopbackHub, stage: str, fault: dict[str, Any]
) -> None:
    """Whatever fails twice, at whichever request: one commit, with the file, at once."""
    hub.faults.append(Fault(on=stage, times=2, **fault))
    began = time.monotonic()
    commit(hub)
    assert time.monotonic() - began < 1
    repo = hub.repo(X)
    assert repo is not None
    assert len(repo.commits) == 1
    assert repo.files == FILE
    assert len(hub.requests) > len(STAGES)


@pytest.mark.parametrize(
    "fault",
    [{"drop_after": True}, *({"status": status, "acts": True} for status in (409, 500, 504))],
    ids=str,
)
def test_a_lost_answer_makes_no_second_commit(hub: LoopbackHub, fault: dict[str, Any]) -> None:
    """The commit landed, the answer did not: the second attempt finds the file in place."""
    hub.faults.append(Fault(on="commit", **fault))
    commit(hub)
    assert kinds(hub).count("commit") == 1
    assert len(hub.repo(X).commits) == 1  # type: ignore[union-attr]


def test_the_hub_decides_how_long_to_wait(hub: LoopbackHub) -> None:
    """A Retry-After that fits is waited for."""
    hub.faults.append(Fault(on="commit", status=503, headers={"Retry-After": "1"}))
    began = time.monotonic()
    commit(hub)
    assert 1 <= time.monotonic() - began < 2


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "3600"},
        {"Retry-After": email.utils.formatdate(time.time() + 3600, usegmt=True)},
        {"RateLimit": '"api";r=0;t=3600'},
    ],
    ids=["seconds", "date", "RateLimit"],
)
def test_a_wait_that_does_not_fit_is_not_begun(
    hub: LoopbackHub, stage: str, headers: dict[str, str]
) -> None:
    """Given up at once, at every stage, with the time of the next try."""
    hub.faults.append(Fault(on=stage, status=429, headers=headers))
    began = time.monotonic()
    error = refused(hub)
    assert time.monotonic() - began < 1
    assert isinstance(error, PublishUnavailable)
    assert "come back in 3" in str(error)
    assert "128 commits per hour" in str(error)


def test_pauses_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full jitter: drawn from 0 to a bound that doubles up to the longest pause."""
    monkeypatch.setattr(asking, "LONGEST_PAUSE_S", 8.0)
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    for attempt in (0, 2, 40):
        for _ in range(200):
            asking.pause(attempt, Deadline.after(100))
    first, third, last = slept[:200], slept[200:400], slept[400:]
    assert max(first) <= 0.25 < max(third) <= 1 < max(last) <= 8
    assert min(last) < 1


# Time


@pytest.mark.parametrize("stage", NEEDED)
@pytest.mark.parametrize(
    "fault",
    [
        {"hang": True},
        {"status": 503},
        {"drop_before": True},
        {"status": 500, "slow_body_bytes_per_s": 20},
        {"slow_headers_bytes_per_s": 20},
    ],
    ids=str,
)
def test_no_fault_outlives_the_deadline(
    hub: LoopbackHub, stage: str, fault: dict[str, Any]
) -> None:
    """A Hub that hangs, fails for ever or drips its refusals: over when the time is over."""
    hub.faults.append(Fault(on=stage, times=999, **fault))
    began = time.monotonic()
    error = refused(hub, SHORT_S)
    assert time.monotonic() - began < SHORT_S + 0.6
    assert isinstance(error, PublishUnavailable)
    assert str(error).startswith("me/x: ")


@pytest.mark.parametrize("stage", ["preupload", "batch", "commit"])
def test_no_dripping_answer_outlives_the_deadline(hub: LoopbackHub, stage: str) -> None:
    """Each byte comes in time, the last one would not."""
    hub.faults.append(Fault(on=stage, times=999, slow_body_bytes_per_s=20))
    began = time.monotonic()
    assert isinstance(refused(hub, SHORT_S), PublishUnavailable)
    assert time.monotonic() - began < SHORT_S + 0.6


def test_a_name_server_that_hangs_does_not_hold_a_command(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system would wait for it much longer: given up in time, and the next one works."""
    has_waited = threading.Event()
    lookup = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: has_waited.wait(30) and [])
    began = time.monotonic()
    error = refused(hub, SHORT_S, pooled=True)
    assert time.monotonic() - began < SHORT_S + asking.GRACE_S + 0.6
    assert str(error).startswith("me/x: the Hub did not answer in time; ")
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    commit(hub, pooled=True)
    has_waited.set()
    for thread in threading.enumerate():
        if thread.name == "hubmeter-attempt":
            thread.join(10)


def test_a_server_that_is_gone(hub: LoopbackHub) -> None:
    """Nobody listens: asked until the deadline, then said so, and no session is closed."""
    session = get_session()
    hub.close()
    error = refused(hub, SHORT_S)
    assert isinstance(error, PublishUnavailable)
    assert "no answer from 127.0.0.1 (ConnectError: " in str(error)
    assert get_session() is session
    assert not session.is_closed


def test_a_session_that_is_replaced_meanwhile_is_watched_too(hub: LoopbackHub) -> None:
    """The program closes the client's session between two of our requests: still bounded."""

    def replace(response: Any) -> None:
        if response.request.url.path.endswith("/preupload/main"):
            response.read()
            close_session()

    get_session().event_hooks["response"].append(replace)
    hub.faults.append(Fault(on="batch", times=999, hang=True))
    factory = client._GLOBAL_CLIENT_FACTORY
    began = time.monotonic()
    assert isinstance(refused(hub, SHORT_S), PublishUnavailable)
    assert time.monotonic() - began < SHORT_S + 0.6
    assert client._GLOBAL_CLIENT_FACTORY is factory
    assert len(get_session().event_hooks["request"]) == 1


def test_the_time_is_over_before_it_begins(hub: LoopbackHub) -> None:
    """No request is made."""
    assert isinstance(refused(hub, 0), PublishUnavailable)
    assert hub.requests == []


# Refusals


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422])
def test_a_refusal_is_final(hub: LoopbackHub, stage: str, status: int) -> None:
    """Said once, not asked again, also when the client wraps it (an upload)."""
    hub.faults.append(Fault(on=stage, status=status, error="because of the moon"))
    error = refused(hub)
    assert isinstance(error, HubRefusal)
    assert error.status == status
    assert f"({status}: because of the moon); " in str(error)
    assert kinds(hub).count(stage) == 1


def test_a_moved_head_is_the_callers_business(hub: LoopbackHub) -> None:
    """412 is final for a commit with a parent, and only for that."""
    error = refused(hub, parent="0" * 40)
    assert isinstance(error, HubRefusal)
    assert error.status == 412
    assert kinds(hub).count("commit") == 1


@dataclass(frozen=True)
class Scene:
    """What a setup may change."""

    hub: LoopbackHub
    patch: pytest.MonkeyPatch
    folder: Path


def no_token(scene: Scene) -> None:
    scene.patch.delenv("HF_TOKEN")
    scene.patch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    scene.patch.setattr(constants, "HF_TOKEN_PATH", str(scene.folder / "none"))


def offline(scene: Scene) -> None:
    scene.patch.setattr(constants, "HF_HUB_OFFLINE", True)


def bad_token(scene: Scene) -> None:
    scene.patch.setenv("HF_TOKEN", SECRET)


def read_token(scene: Scene) -> None:
    scene.patch.setenv("HF_TOKEN", scene.hub.read_token)


def full(scene: Scene) -> None:
    scene.hub.quota_bytes = 10


def hotel(scene: Scene) -> None:
    scene.hub.faults.append(Fault(on="preupload", status=200, body=b"<html>Log in</html>"))


@pytest.mark.parametrize(
    ("setup", "kind", "words", "most_requests"),
    [
        (no_token, PublishRejected, "no token for the Hub was found; run `hf auth login`", 0),
        (offline, PublishRejected, "HF_HUB_OFFLINE is set; unset it", 0),
        (bad_token, PublishRejected, "does not accept the token (401: Invalid credentials", 1),
        (read_token, PublishRejected, "may not do this (403: You don't have the rights", 3),
        (full, PublishRejected, "no room left (403: Private repository storage limit", 2),
        (hotel, PublishUnavailable, "the client of the Hub failed (JSONDecodeError", 1),
    ],
)
def test_words_to_act_on(
    hub: LoopbackHub,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    setup: Callable[[Scene], None],
    kind: type[PublishError],
    words: str,
    most_requests: int,
) -> None:
    """What a person can mend is named, at once, with hardly a request."""
    setup(Scene(hub, monkeypatch, tmp_path))
    began = time.monotonic()
    error = refused(hub)
    assert time.monotonic() - began < 1
    assert isinstance(error, kind)
    assert words in str(error)
    assert len(hub.requests) <= most_requests


@pytest.mark.parametrize("name", ["me/a..b", "me/--", "me/x.git", "me/" + "x" * 97, "me/x y"])
def test_a_wrong_name_is_refused_here(hub: LoopbackHub, name: str) -> None:
    """No request is made for it."""
    error = refused(hub, repo=name)
    assert isinstance(error, HubRefusal)
    assert "no name for a repository" in str(error)
    assert hub.requests == []


def test_the_token_of_the_machine_is_used_also_where_implicit_use_is_off(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who named a destination asked for it."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    commit(hub)
    assert user_name(Deadline.after(5), hub.url) == "me"


# Secrets


FINAL = [{"status": 403}, {"status": 401}]
PASSING = [
    {"status": 503},
    {"status": 429, "headers": {"Retry-After": "99"}},
    {"status": 500, "body": b"x"},
    {"hang": True},
]


@pytest.mark.parametrize(
    ("stage", "fault"),
    [
        *product(["whoami", "create", "info", "resolve", *NEEDED], FINAL + PASSING),
        *product(["verify"], [*FINAL, {"status": 429, "headers": {"Retry-After": "99"}}]),
    ],
    ids=str,
)
def test_a_token_is_nowhere(
    hub: LoopbackHub, caplog: pytest.LogCaptureFixture, stage: str, fault: dict[str, Any]
) -> None:
    """Not in the error, its chain, frames and pickle, nor in a log, though the Hub echoes it."""
    caplog.set_level(logging.DEBUG)
    echo = f"for {hub.token} and {SECRET} at https://s3/bucket?X-Amz-Signature=abc\x1b[31m"
    hub.faults.append(Fault(on=stage, times=999, **{"error": echo, **fault}))
    # Of the one that is there the card is read.
    to = HubDataset("{user}/x" if stage == "resolve" else "{user}/new", endpoint=hub.url)
    error = refused_run(to, 2 * SHORT_S)
    assert stage in kinds(hub)
    assert error.__cause__ is None
    assert error.__context__ is None
    shown = "".join(
        traceback.TracebackException.from_exception(error, capture_locals=True).format()
    )
    everything = "\n".join([str(error), repr(error), shown, repr(pickle.dumps(error)), caplog.text])
    for secret in (hub.token, SECRET, "Signature=", "signature=", "\x1b"):
        assert secret not in everything


def test_a_token_of_another_kind(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known by what was sent, not by its look."""
    monkeypatch.setenv("HF_TOKEN", "eyJhbGciOi.JIUzI1")
    hub.faults.append(Fault(on="preupload", status=403, error="not for eyJhbGciOi.JIUzI1, no"))
    assert "(403: not for ***, no)" in str(refused(hub))


def test_the_last_attempt_hides_no_reason(hub: LoopbackHub) -> None:
    """The one that the deadline cuts short says less than those before it."""
    hub.faults += [Fault(on="commit", status=503), Fault(on="commit", times=9, hang=True)]
    assert "(503: fault: 503)" in str(refused(hub, SHORT_S))


def test_an_error_survives_a_pickle() -> None:
    """With its words and its status."""
    error = pickle.loads(pickle.dumps(HubRefusal("me/x: no", status=403)))
    assert (str(error), error.status) == ("me/x: no", 403)


# The observed program


def test_requests_of_other_threads_stay_as_they_are(hub: LoopbackHub) -> None:
    """While ours hang under our limits, another thread's have those of the program."""
    seen: list[tuple[str, Any, bool]] = []

    def note(request: Any) -> None:
        limits = set(request.extensions["timeout"].values())
        seen.append((threading.current_thread().name, limits, "trace" in request.extensions))

    session = get_session()
    session.event_hooks["request"] = [*session.event_hooks["request"]]
    hub.faults.append(Fault(on="preupload", hang=True))
    ours = threading.Thread(target=refused, args=(hub, SHORT_S), name="ours")
    ours.start()
    while "preupload" not in kinds(hub):
        time.sleep(0.01)
    session.event_hooks["request"].append(note)
    status = session.get(f"{hub.url}/api/datasets/{X}").status_code
    ours.join()
    assert status == 401  # not ours: no exception from our hooks
    assert seen == [(threading.main_thread().name, {None}, False)]


def test_nothing_stays_behind(hub: LoopbackHub) -> None:
    """Hooks, factory, filters and switches are as they were, after success and failure."""

    def traces() -> list[Any]:
        hooks = {event: list(hooks) for event, hooks in get_session().event_hooks.items()}
        names = ["httpx", "httpx2", "huggingface_hub", "huggingface_hub._commit_api"]
        filters = [list(logging.getLogger(name).filters) for name in names]
        bars = importlib.import_module("huggingface_hub.utils.tqdm").are_progress_bars_disabled
        steps = [stream_class().read, stream_class().write]
        factory = client._GLOBAL_CLIENT_FACTORY
        return [hooks, filters, steps, factory, bars, dict(context.get_current())]

    before = traces()
    commit(hub)
    hub.faults.append(Fault(on="commit", status=403))
    refused(hub, files={"data/default/2026-01/b.parquet": b"PAR1"})
    assert traces() == before


def test_threads_that_publish_side_by_side(hub: LoopbackHub) -> None:
    """The first to end takes nothing from the second."""
    hub.faults.append(Fault(on="preupload", delay_s=0.3))
    slow = threading.Thread(target=commit, args=(hub,))
    slow.start()
    time.sleep(0.1)
    commit(hub, files={"data/default/2026-01/b.parquet": b"PAR1"})
    slow.join()
    assert len(hub.repo(X).files) == 2  # type: ignore[union-attr]
    assert len(get_session().event_hooks["request"]) == 1


def test_our_requests_are_not_traced(hub: LoopbackHub) -> None:
    """Instrumented clients see the sign of OpenTelemetry to leave them alone."""
    seen: list[bool] = []
    get_session().event_hooks["request"].append(
        lambda _: seen.append(is_instrumentation_enabled() or is_http_instrumentation_enabled())
    )
    commit(hub)
    assert set(seen) == {False}
    assert is_instrumentation_enabled()
    assert is_http_instrumentation_enabled()


@pytest.mark.parametrize("is_xet_on", [True, False])
@pytest.mark.parametrize("pooled", [True, False])
def test_nothing_is_shown(
    hub: LoopbackHub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    is_xet_on: bool,
    pooled: bool,
) -> None:
    """No lines, bars or warnings of the client, with and without xet, new and repeated."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not is_xet_on)
    caplog.set_level(logging.INFO)
    files = {f"data/default/2026-01/{n}.parquet": b"PAR1" * n for n in (1, 2, 3)}
    hub.faults.append(Fault(on="commit", status=503))
    for _ in range(2):
        commit(hub, files=files, pooled=pooled)
    assert len(hub.repo(X).commits) == 1  # type: ignore[union-attr]
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


def test_others_are_logged_while_we_publish(
    hub: LoopbackHub, caplog: pytest.LogCaptureFixture
) -> None:
    """Only our own thread is quiet, and nobody's bars are switched off."""
    caplog.set_level(logging.INFO)
    hub.faults.append(Fault(on="preupload", delay_s=0.3))
    ours = threading.Thread(target=commit, args=(hub,))
    ours.start()
    while "preupload" not in kinds(hub) and ours.is_alive():
        get_session().get(f"{hub.url}/api/datasets/other/one")
        are_disabled = are_progress_bars_disabled()
    ours.join()
    assert "/other/one" in caplog.text
    assert "/preupload" not in caplog.text
    assert not are_disabled


def test_a_transport_of_the_programs_own(hub: LoopbackHub) -> None:
    """A client that the program made itself tells nothing of its steps: bounded all the same."""

    class Broken(transport.BaseTransport):  # type: ignore[misc,name-defined]
        def handle_request(self, request: Any) -> Any:
            raise transport.ReadTimeout("the tin can is silent", request=request)

    factory = client._GLOBAL_CLIENT_FACTORY
    set_client_factory(lambda: transport.Client(transport=Broken()))
    try:
        error = refused(hub, SHORT_S)
    finally:
        set_client_factory(factory)
    assert isinstance(error, PublishUnavailable)


EXITING = """
import atexit, concurrent.futures.thread, sys, threading
from hubmeter.deadline import Deadline
from hubmeter.hub import Repository, load
load()
def publish():
    files = {f"data/default/2026-01/{n}.parquet": b"PAR1" * n for n in (1, 2, 3)}
    Repository("me/x").commit(files, "At exit", deadline=Deadline.after(20))
atexit.register(publish)
"""


def test_three_files_while_the_interpreter_exits(hub: LoopbackHub, tmp_path: Path) -> None:
    """No pool is needed, which could not start any more."""
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", EXITING],
        env={**os.environ, **hub.environment(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(hub.repo(X).files) == 3  # type: ignore[union-attr]


def test_the_other_major_version() -> None:
    """Every test of this file and of the sink's, with huggingface_hub 1.x and 2.x."""
    others = [o for o in hub_overlays() if o[0] != huggingface_hub.__version__]
    if "PYTEST_OTHER_MAJOR" in os.environ:
        return
    if not others:
        pytest.skip("ONE MAJOR VERSION OF huggingface_hub IS NOT TESTED: make did not prepare it")
    ((version, environment),) = others
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", here.parent,
         here / "test_hub.py", here / "test_hub_dataset.py"],
        env={**os.environ, **environment, "PYTEST_OTHER_MAJOR": version},
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout


def test_the_version_that_is_meant() -> None:
    """In the run for the other major version, that one is tested."""
    expected = os.environ.get("PYTEST_OTHER_MAJOR", huggingface_hub.__version__)
    assert huggingface_hub.__version__ == expected
