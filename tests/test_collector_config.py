"""Each file of ``collector-config/`` is what a real Collector takes, and does what it says."""

from __future__ import annotations

import hashlib
import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from collector_runs import (
    CONFIGS,
    Hubmeter,
    QueueingCollector,
    Sender,
    each_once,
    send_span,
    spans,
    spelled,
    until,
)
from observed import undisturbed  # noqa: F401
from real_collector import Collector, needs_collector


def _digit(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[0]


NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
FLEET = {_digit(name): name for name in (f"run-{n}" for n in range(200))}
"""Runs by the first digit of their hash, which decides where they go."""
PLACEHOLDER = re.compile(r"\$\{env:(\w+)(:-)?")


# -- as texts


def test_all_configurations_are_there() -> None:
    """The four that the README speaks of."""
    assert NAMES == ["agent", "file-capture", "gateway", "tee"]
    readme = (CONFIGS / "README.md").read_text()
    assert all(f"{name}.yaml" in readme for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_variable_has_a_default_and_is_explained(name: str) -> None:
    """Who copies the file reads at its top what can be set, and has to set nothing."""
    text = spelled(name, "new")
    top = text[: text.index("\nreceivers:")]
    used = PLACEHOLDER.findall(text)
    documented = set(re.findall(r"\b[A-Z][A-Z_0-9]{4,}\b", top))

    assert all(default for _, default in used)
    assert {variable for variable, _ in used} - documented <= {"OTEL_EXPORTER_OTLP_ENDPOINT"}


# -- as a Collector takes them


@needs_collector
@pytest.mark.parametrize("spelling", ["new", "old"])
@pytest.mark.parametrize("name", NAMES)
def test_a_collector_accepts_it(name: str, spelling: str, tmp_path: Path) -> None:
    """With nothing set, and by the names of components that old Collectors know."""
    assert Collector(spelled(name, spelling), tmp_path).validate() == ""


@needs_collector
def test_the_gateway_keeps_a_run_with_one_receiver(tmp_path: Path) -> None:
    """Runs with their spans, and resources without one: each is whole, at one of two receivers."""
    with ExitStack() as stack:
        receivers = [
            stack.enter_context(Hubmeter(tmp_path / name).start()) for name in ("first", "second")
        ]
        where = {f"HUBMETER_ENDPOINT_{n}": one.url for n, one in enumerate(receivers, 1)}
        gateway = stack.enter_context(QueueingCollector("gateway", tmp_path / "c", **where))
        named = [Sender(gateway.url, run_id=run_id) for run_id in FLEET.values()]
        nameless = [Sender(gateway.url, run_id="", service=f"s{n}") for n in range(16)]
        for _ in range(2):
            for sender in (*named, *nameless):
                sender.send(1)
        for run_id in FLEET.values():
            send_span(gateway.url, run_id)
        for sender in (*named, *nameless):
            stack.enter_context(sender)
        gateway.drain()
        for receiver in receivers:
            receiver.stop()

    found = [one.steps() for one in receivers]
    expected = each_once(named[0].sent)
    assert len(expected) == 10
    assert all(found)
    assert not set(found[0]) & set(found[1])
    assert all(steps == expected for one in found for steps in one.values())
    assert {digit: run_id in found[0] for digit, run_id in FLEET.items()} == {
        digit: digit in "01234567" for digit in "0123456789abcdef"
    }
    assert sum(map(len, found)) == 2 * 16
    for one, its in zip(receivers, found, strict=True):
        ours = {run_id for run_id in FLEET.values() if run_id in its}
        assert spans(one.folder / "data") == dict.fromkeys(ours, 1)


@needs_collector
def test_the_tee_gives_both_the_same(tmp_path: Path) -> None:
    """
    The backend gets all while hubmeter is away, which gets all when it is back.

    With the names of components that old Collectors know, and with a token.
    """
    token = {"HUBMETER_SERVE_TOKEN": "a-long-secret"}
    with (
        Hubmeter(tmp_path / "backend").start() as backend,
        Hubmeter(tmp_path / "ours", **token) as hubmeter,
        QueueingCollector(
            "tee",
            tmp_path / "c",
            spelling="old",
            **token,
            BACKEND_ENDPOINT=backend.target,
            HUBMETER_ENDPOINT=hubmeter.url,
        ) as collector,
        Sender(collector.url) as sender,
    ):
        sender.send(20)
        until(lambda: backend.status()["points_acknowledged"] == 100)
        hubmeter.start()
        collector.drain()
        hubmeter.stop()
        backend.stop()

    assert hubmeter.steps() == backend.steps() == {"r1": each_once(sender.sent)}
