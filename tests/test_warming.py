"""Imports made beforehand, and programs that fork meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from loopback_hub import LoopbackHub
from observed import shards, undisturbed  # noqa: F401

BEGIN = """
import os, signal, sys, threading, time
from hubmeter import warming

def warm(name):
    thread = threading.Thread(target=warming.warm, args=[(name,)])
    thread.start()
    return thread

def until_importing(name):
    while name not in sys.modules:
        time.sleep(0.001)

def in_child(act):
    child = os.fork()
    if not child:
        signal.alarm(10)
        act()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def test_a_child_forked_amid_an_import_can_import_the_same(tmp_path: Path) -> None:
    """The fork waits for its turn; else the child would wait for a thread that it does not have."""
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(0.5)\nDONE = True")
    code = """
    thread = warm("slow")
    until_importing("slow")
    def act():
        import slow
        assert slow.DONE
    print(in_child(act))
    """
    assert _said(code, tmp_path) == "0"


def test_an_import_that_wants_what_a_fork_holds_goes_first(tmp_path: Path) -> None:
    """concurrent.futures locks its pools during forks, and modules make pools at import."""
    (tmp_path / "pooled.py").write_text(
        "import time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "time.sleep(0.5)\n"
        "THREE = ThreadPoolExecutor(1).submit(lambda: 3).result()"
    )
    code = """
    thread = warm("pooled")
    until_importing("pooled")
    began = time.monotonic()
    def act():
        import pooled
        assert pooled.THREE == 3
    print(in_child(act), time.monotonic() - began < warming.LONGEST_FORK_DELAY_S / 2)
    """
    assert _said(code, tmp_path) == "0 True"


def test_a_fork_does_not_wait_forever(tmp_path: Path) -> None:
    """An import may want what the thread holds that forks."""
    (tmp_path / "wanting.py").write_text("import __main__\nwith __main__.lock: pass")
    code = """
    warming.LONGEST_FORK_DELAY_S = 0.2
    lock = threading.Lock()
    with lock:
        thread = warm("wanting")
        until_importing("wanting")
        print(in_child(lambda: None))
    thread.join()
    print(in_child(lambda: warming.warm(("colorsys",))))
    """
    assert _said(code, tmp_path).split() == ["0", "0"]


WATCH = """
class Watch:
    def find_spec(self, name, path=None, target=None):
        is_ours = threading.current_thread().name.startswith("hubmeter")
        if is_ours and not warming._imports._turn.locked():
            print(name)

sys.meta_path.insert(0, Watch())

from hubmeter import HubMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

provider = MeterProvider([PeriodicExportingMetricReader(HubMetricExporter())])
provider.get_meter("t").create_gauge("gen_ai.gpu.power", "W").set(7)
provider.force_flush()
provider.shutdown()
"""


@pytest.mark.parametrize("to", ["./data", "me/data"])
def test_all_that_we_import_beside_a_program_takes_turns(to: str, tmp_path: Path) -> None:
    """What did not would make a child hang that was forked meanwhile. Codecs are let off."""
    with LoopbackHub() as hub:
        environment = {**hub.environment(tmp_path / "home"), "HUBMETER_TO": to}
        imported = set(_said(WATCH, tmp_path, **environment).split())
        assert [bool(hub.repo(to)), len(shards(tmp_path / to))] == [to == "me/data", to == "./data"]
    others = {name for name in imported if not name.startswith(("encodings.", "filelock"))}
    assert others <= {"concurrent.futures.thread"}


def test_what_cannot_be_imported_is_complained_of_when_it_is_needed(tmp_path: Path) -> None:
    assert _said("warming.warm(('no_such_module',)); print('fine')", tmp_path) == "fine"


def _said(code: str, folder: Path, **environment: str) -> str:
    warnings = ("-W", "error", "-W", "ignore::DeprecationWarning")
    ended = subprocess.run(
        [sys.executable, *warnings, "-c", BEGIN + textwrap.dedent(code)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.strip()
