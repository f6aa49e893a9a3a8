"""What the Hub refuses: one line says why, and the command in it publishes once that is mended."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from loopback_hub import Fault, LoopbackHub
from observed import program, run, undisturbed  # noqa: F401
from orphans import watts

RUN = """
provider = provider_of(HubMetricExporter())
measure(provider, 7)
provider.force_flush()
measure(provider, 8)
"""
MINE = "me/run-metrics"


@pytest.fixture(name="hub")
def _hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub
        assert hub.errors == []


def nothing(_: LoopbackHub) -> None:
    """Is to be prepared or mended on the Hub."""


def full(hub: LoopbackHub) -> None:
    hub.quota_bytes = 10


def room(hub: LoopbackHub) -> None:
    hub.quota_bytes = None


def public(hub: LoopbackHub) -> None:
    hub.create(MINE, private=False)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A cause, its words, its command, and how it is mended; the environment is mended too."""

    words: str
    command: str = "hubmeter recover"
    to: str = MINE
    environment: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[LoopbackHub], None] = nothing
    mend: Callable[[LoopbackHub], None] = nothing


ELSEWHERE = "hubmeter recover --to user/name"
REFUSALS = {
    "no token": Refusal(words="no token for the Hub was found", environment={"HF_TOKEN": ""}),
    "wrong token": Refusal(
        words="the Hub does not accept the token (401", environment={"HF_TOKEN": "hf_wrongwrong"}
    ),
    "read-only token": Refusal(
        words="the token may not do this (403", environment={"HF_TOKEN": "read"}
    ),
    "another's name": Refusal(
        words="somebody/x: the token may not do this (403", to="somebody/x", command=ELSEWHERE
    ),
    "no name": Refusal(words="this is no name for a repository", to="me/a..b", command=ELSEWHERE),
    "offline": Refusal(words="HF_HUB_OFFLINE is set", environment={"HF_HUB_OFFLINE": "1"}),
    "quota": Refusal(words="there is no room left (403", prepare=full, mend=room),
    "public": Refusal(
        words=f"{MINE} is public", prepare=public, command="HUBMETER_PRIVATE=0 hubmeter recover"
    ),
}


@pytest.mark.parametrize("cause", REFUSALS)
def test_the_command_that_is_named_publishes_later(
    cause: str, hub: LoopbackHub, tmp_path: Path
) -> None:
    """The program ends well, with one line; what that promises is what happens."""
    refusal = REFUSALS[cause]
    refusal.prepare(hub)
    home = hub.environment(tmp_path / "home")
    wrong = {
        name: hub.read_token if value == "read" else value
        for name, value in refusal.environment.items()
    }
    ended = run(program(RUN, tmp_path), **{**home, "HUBMETER_TO": refusal.to, **wrong})

    assert (ended.returncode, ended.stdout) == (0, "")
    [line] = ended.stderr.splitlines()
    assert refusal.words in line
    assert "tried again" not in line
    assert hub.token not in line
    named = re.search(r"Nothing is lost, the run is in the journal: ([^;]+)", line)
    assert named is not None
    assert named[1] == refusal.command

    too_early = shell("hubmeter recover", {**home, **wrong})
    assert (too_early.returncode, "Traceback" in too_early.stderr) == (1, False)
    assert refusal.words in too_early.stdout
    journal = tmp_path / "home/hubmeter"
    again = named[1].replace("recover", f"recover {journal}")
    assert f"Try again: {again}\n" in too_early.stdout

    refusal.mend(hub)
    published = shell(named[1].replace("user/name", "me/another"), home)
    assert (published.returncode, published.stderr.count("Traceback")) == (0, 0)
    [repo] = filter(None, map(hub.repo, (MINE, "me/another")))
    assert watts(repo.files) == [7, 8]
    assert not list(journal.glob("*.*"))


def shell(command: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """*command* as somebody types it who uses this Python."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return run(["/bin/sh", "-c", command], **environment, PATH=path)


SOON_OVER = f"{RUN}provider.shutdown(timeout_millis=500)\n"
LATE_S = 3.0
"""Longer than a run waits that is granted no more, here and at its exit."""

PROMISE = "It is tried again when this process has ended. "


@pytest.mark.parametrize("is_possible", [True, False], ids=["a process", "no process"])
def test_only_what_happens_is_promised(is_possible: bool, hub: LoopbackHub, tmp_path: Path) -> None:
    """That it is tried again is said if a process could be started that does so."""
    hub.faults.append(Fault(on="create", times=9, delay_s=LATE_S))
    code = SOON_OVER + ("" if is_possible else "sys.executable = ''  # as in another program\n")
    environment = {**hub.environment(tmp_path / "home"), "HUBMETER_TO": MINE}
    ended = run(program(code, tmp_path), **environment)

    promise = PROMISE if is_possible else ""
    words = f"hubmeter: the run is not published yet. {promise}Nothing is lost, the run is in"
    [line] = ended.stderr.splitlines()
    assert line.startswith(words)
    journal = tmp_path / "home/hubmeter"
    while is_possible and list(journal.glob("*.*")):
        time.sleep(0.1)
    assert bool(list(journal.glob("*.*"))) is not is_possible


def test_what_failed_is_tried_again_by_a_process(hub: LoopbackHub, tmp_path: Path) -> None:
    """A Hub that is busy: one line says how it is published later, and then it is by itself."""
    hub.faults.append(Fault(on="create", status=429, headers={"Retry-After": "3600"}))
    environment = {**hub.environment(tmp_path / "home"), "HUBMETER_TO": MINE}
    ended = run(program(RUN, tmp_path), **environment)

    [line] = ended.stderr.splitlines()
    assert "too many requests" in line
    assert PROMISE not in line  # nobody knows yet whether a process can be started at the end
    while list((tmp_path / "home/hubmeter").glob("*.*")):
        time.sleep(0.1)
    assert watts(hub.repo(MINE).files) == [7, 8]


@pytest.mark.skipif(sys.platform != "linux", reason="command lines are read in /proc")
def test_a_token_is_in_no_argument_list_and_no_file(hub: LoopbackHub, tmp_path: Path) -> None:
    """Of a sentinel, and of the process that goes on: they have it from their environment."""
    hub.faults.append(Fault(on="create", times=9, delay_s=LATE_S))
    environment = {**hub.environment(tmp_path / "home"), "HUBMETER_TO": MINE}
    with subprocess.Popen(
        program(f"{SOON_OVER}sys.stdin.read()\n", tmp_path),
        env={**os.environ, **environment, "HUBMETER_SENTINEL": "1"},
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as agent:
        sentinel = command_line("sentinel", tmp_path)
        agent.communicate(b"")
    goes_on = command_line("recover", tmp_path)
    while list((tmp_path / "home/hubmeter").glob("*.*")):
        time.sleep(0.1)

    assert hub.token not in sentinel + goes_on
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in written if hub.token.encode() in path.read_bytes()] == []
    assert watts(hub.repo(MINE).files) == [7, 8]


def command_line(command: str, folder: Path) -> str:
    """Of the process with *command* for what is in *folder*, as soon as there is one."""
    began = time.monotonic()
    while time.monotonic() - began < 30:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has ended
                text = path.read_bytes().decode(errors="replace").replace("\0", " ")
                if f" {command} {folder}" in text and "--process" in text:
                    return text
        time.sleep(0.05)
    raise AssertionError(f"no process for {command}")
