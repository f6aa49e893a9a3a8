"""However a program ends, on every Python: what the Hub, the journal and its parent see."""

from __future__ import annotations

import io
import math
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import interpreters
from loopback_hub import Fault, LoopbackHub
from observed import HEAD, undisturbed  # noqa: F401

PYTHONS = sorted(interpreters.found(), key=lambda minor: int(minor.split(".")[1]))

BEGIN = """
provider = provider_of(HubMetricExporter())
measure(provider, 7)
provider.force_flush()
measure(provider, 8)
"""

# How it ends, its exit status, and what is published without anybody's help.
ENDINGS = {
    "normal": ("", 0, [7, 8]),
    "exception": ("raise RuntimeError('broken')", 1, [7, 8]),
    "sys.exit": ("sys.exit(3)", 3, [7, 8]),
    "exit in a thread": ("threading.Thread(target=sys.exit, args=[5]).start()", 0, [7, 8]),
    "Ctrl-C": ("os.kill(os.getpid(), signal.SIGINT); time.sleep(30)", -signal.SIGINT, [7, 8]),
    "Ctrl-C in asyncio": (
        """
        import asyncio
        async def main():
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(30)
        asyncio.run(main())
        """,
        -signal.SIGINT,
        [7, 8],
    ),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)", -signal.SIGTERM, [7, 8]),
    "SIGTERM in asyncio": (
        """
        import asyncio
        async def main():
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(30)
        asyncio.run(main())
        """,
        -signal.SIGTERM,
        [7, 8],
    ),
    "SIGHUP": ("os.kill(os.getpid(), signal.SIGHUP); time.sleep(30)", -signal.SIGHUP, [7, 8]),
    "handled SIGTERM": (
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
        """,
        9,
        [7, 8],
    ),
    "SIGTERM while it waits for a thread": (
        """
        def later():
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        threading.Thread(target=later).start()
        """,
        -signal.SIGTERM,
        [7, 8],
    ),
    "SIGTERM in an exit hook": (
        """
        import atexit
        def hook():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        atexit.register(hook)
        """,
        -signal.SIGTERM,
        [7, 8],
    ),
    # These run nothing: the journal has what was exported.
    "SIGQUIT": ("os.kill(os.getpid(), signal.SIGQUIT); time.sleep(30)", -signal.SIGQUIT, []),
    "os._exit": ("os._exit(4)", 4, []),
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL); time.sleep(30)", -signal.SIGKILL, []),
    "SEGV": ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV, []),
    "exec": ("os.execv('/bin/sh', ['sh', '-c', 'exit 6'])", 6, []),
}
IN_THE_JOURNAL = [7]

SIGTERM = (
    "open('signalled', 'w').write(str(time.monotonic())); "
    "os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)"
)
DOCKER_STOP_S = 10
"""After that it kills."""

SENTINEL = {
    "os._exit": ("os._exit(4)", 4),
    "SEGV": ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV),
    "SIGKILL, and a child lives on": (
        """
        child = os.fork()
        if not child:
            os.closerange(0, 3)  # the test waits for these
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(30)
        """,
        -signal.SIGKILL,
    ),
}


@pytest.fixture(name="hub")
def _hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub
        assert hub.errors == []


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("minor", PYTHONS)
def test_each_ending_publishes_or_leaves_a_journal(
    minor: str, ending: str, hub: LoopbackHub, tmp_path: Path
) -> None:
    """One commit, or nothing until `hubmeter recover`; the exit status is that of the program."""
    code, status, published = ENDINGS[ending]
    python = interpreters.environment(minor)
    ended = _run(python, BEGIN + _dedented(code), hub, tmp_path)

    assert (ended.returncode, ended.stdout) == (status, ""), ended.stderr
    assert "hubmeter" not in _without_paths(ended.stderr, tmp_path)
    assert _watts(hub) == published
    if not published:
        recovered = _recover(python, hub, tmp_path)
        assert recovered.returncode == 0, recovered.stderr
        assert _watts(hub) == IN_THE_JOURNAL
    assert len(hub.repo("me/run-metrics").commits) == 1
    assert hub.repo("me/run-metrics").private
    assert list(_journal(tmp_path).glob("*.*")) == []


@pytest.mark.parametrize("minor", PYTHONS)
def test_the_dataset_opens_on_each_python(minor: str, hub: LoopbackHub, tmp_path: Path) -> None:
    """`HUBMETER_TO=me/run-metrics python agent.py`, which ends by an exception, then load it."""
    python = interpreters.environment(minor)
    _run(python, BEGIN + "raise RuntimeError('broken')", hub, tmp_path)
    code = (
        "from datasets import load_dataset\n"
        "rows = load_dataset('me/run-metrics', split='train')\n"
        "print(rows.num_rows, rows['gpu_power_watts'][:], len(rows.column_names))"
    )
    loaded = subprocess.run(
        [python, "-c", code],
        env=_environment(hub, tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert loaded.stdout.strip() == "2 [7.0, 8.0] 31", loaded.stderr
    assert len(hub.repo("me/run-metrics").commits) == 1


@pytest.mark.parametrize("minor", PYTHONS)
def test_a_forked_child_publishes_nothing_of_its_parent(
    minor: str, hub: LoopbackHub, tmp_path: Path
) -> None:
    """Children that end by sys.exit, os._exit or SIGTERM; each row is there once."""
    code = """
    import multiprocessing
    multiprocessing.set_start_method("fork")
    child = os.fork()
    if child == 0:
        measure(provider, 99)
        sys.exit(0)
    os.waitpid(child, 0)
    process = multiprocessing.Process(target=time.sleep, args=[30])
    process.start()
    time.sleep(0.2)
    process.terminate()
    process.join()
    assert process.exitcode == -signal.SIGTERM, process.exitcode
    """
    ended = _run(
        interpreters.environment(minor),
        BEGIN + _dedented(code),
        hub,
        tmp_path,
        PYTHONWARNINGS="ignore::DeprecationWarning",
    )

    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    assert _watts(hub) == [7, 8]
    assert len(hub.repo("me/run-metrics").commits) == 1


@pytest.mark.parametrize("minor", PYTHONS)
def test_the_sentinel_publishes_after_sigkill(minor: str, hub: LoopbackHub, tmp_path: Path) -> None:
    """Without anybody's help; and the program has no child that it did not start."""
    code = """
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        print("no children")
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(30)
    """
    ended = _run(
        interpreters.environment(minor),
        BEGIN + _dedented(code),
        hub,
        tmp_path,
        HUBMETER_SENTINEL="1",
    )
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, "no children\n"), ended.stderr

    assert _eventually(lambda: _watts(hub) == IN_THE_JOURNAL)


@pytest.mark.parametrize("ending", SENTINEL)
def test_the_sentinel_publishes_after_each_hard_end(
    ending: str, hub: LoopbackHub, tmp_path: Path
) -> None:
    """At once, and not when the last child has ended that knew the program."""
    code, status = SENTINEL[ending]
    ended = _run(
        interpreters.environment(PYTHONS[-1]),
        BEGIN + _dedented(code),
        hub,
        tmp_path,
        HUBMETER_SENTINEL="1",
        PYTHONWARNINGS="ignore::DeprecationWarning",
    )
    children = [int(line) for line in ended.stdout.splitlines()]
    try:
        assert ended.returncode == status, ended.stderr
        assert _eventually(lambda: _watts(hub) == IN_THE_JOURNAL)
        assert [os.kill(child, 0) for child in children] == [None] * len(children)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
    assert _eventually(lambda: _sentinels(tmp_path) == 0)


def test_the_sentinel_of_a_program_that_ends_well_ends_quietly(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    """It watches until then, and has nothing to publish."""
    program = _start(BEGIN + "input(); sys.exit(3)", hub, tmp_path, HUBMETER_SENTINEL="1")
    with program:
        try:
            assert _eventually(lambda: _sentinels(tmp_path) == 1)
        finally:
            said = program.communicate(b"\n")
    assert (program.returncode, said) == (3, (b"", b""))
    assert _watts(hub) == [7, 8]

    assert _eventually(lambda: _sentinels(tmp_path) == 0)
    assert len(hub.repo("me/run-metrics").commits) == 1
    assert list(_journal(tmp_path).glob("*.*")) == []


def test_a_hub_that_never_answers_costs_no_more_than_was_granted(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    """After the deadline the program ends; a process of its own goes on and publishes."""
    hub.faults.append(Fault(on="create", hang=True))
    code = "started = time.monotonic()\nprovider.shutdown(timeout_millis=1_000)\n"
    code += "assert time.monotonic() - started < 2.5\n"
    started = time.monotonic()
    ended = _run(interpreters.environment(PYTHONS[-1]), BEGIN + code, hub, tmp_path)
    lasted_s = time.monotonic() - started

    assert ended.returncode == 0, ended.stderr
    assert lasted_s < 20
    [line] = ended.stderr.splitlines()
    assert line.startswith("hubmeter: the run is not published yet. It is tried again when")
    assert _eventually(lambda: _watts(hub) == [7, 8])
    assert len(hub.repo("me/run-metrics").commits) == 1


def test_a_program_that_a_thread_keeps_alive_still_ends_by_sigterm(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    """Without us the signal would have ended it at once; with us, once it is published."""
    code = """
    threading.Thread(target=time.sleep, args=[60]).start()
    """
    ended = _run(
        interpreters.environment(PYTHONS[-1]), BEGIN + _dedented(code) + SIGTERM, hub, tmp_path
    )

    assert _seconds_since_the_signal(tmp_path) < DOCKER_STOP_S
    assert ended.returncode == -signal.SIGTERM
    assert _watts(hub) == [7, 8]


def test_readers_that_tick_on_while_sigterm_publishes_leave_nothing_behind(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    """What they collect after the signal would be a part, and a commit, of its own each time."""
    hub.faults.append(Fault(delay_s=0.1, times=math.inf))
    code = """
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    exporter = HubMetricExporter()
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=20)
    provider = MeterProvider([reader])
    measure(provider, 7)
    provider.force_flush()
    """
    ended = _run(interpreters.environment(PYTHONS[-1]), _dedented(code) + SIGTERM, hub, tmp_path)

    assert (ended.returncode, ended.stderr) == (-signal.SIGTERM, "")
    assert len(hub.repo("me/run-metrics").commits) == 1
    assert list(_journal(tmp_path).glob("*.*")) == []


def test_sigterm_while_the_main_thread_stands_in_our_code_leaves_the_run(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    """It may hold a lock that publishing needs: then a process of its own goes on."""
    code = """
    exporter = HubMetricExporter()
    provider = provider_of(exporter)
    measure(provider, 7)
    provider.force_flush()
    with exporter._pipeline._lock:
    """
    ended = _run(
        interpreters.environment(PYTHONS[-1]), _dedented(code) + f"    {SIGTERM}", hub, tmp_path
    )

    assert _seconds_since_the_signal(tmp_path) < DOCKER_STOP_S
    assert ended.returncode == -signal.SIGTERM
    [line] = ended.stderr.splitlines()
    assert line.startswith("hubmeter: the run is not published yet. It is tried again when")
    assert _eventually(lambda: _watts(hub) == IN_THE_JOURNAL)


def test_a_pool_of_processes_ends_with_its_parent(hub: LoopbackHub, tmp_path: Path) -> None:
    """The group is signalled, as supervisors do; a pool may not replace its workers then."""
    code = """
    import multiprocessing
    if __name__ == "__main__":
        pool = multiprocessing.get_context("fork").Pool(2)
        pool.map(abs, range(4))
        os.killpg(os.getpgrp(), signal.SIGTERM)
        time.sleep(30)
    """
    started = time.monotonic()
    ended = _run(
        interpreters.environment(PYTHONS[-1]),
        BEGIN + _dedented(code),
        hub,
        tmp_path,
        PYTHONWARNINGS="ignore::DeprecationWarning",
    )

    # The pipes end when the last process ends that has them.
    assert time.monotonic() - started < 10
    assert (ended.returncode, ended.stdout) == (-signal.SIGTERM, ""), ended.stderr
    assert _watts(hub) == [7, 8]


def test_a_supervisor_that_signals_twice_means_it_once(hub: LoopbackHub, tmp_path: Path) -> None:
    """`timeout` signals its child and then the group."""
    python = interpreters.environment(PYTHONS[-1])
    ended = _run(python, BEGIN + "time.sleep(30)", hub, tmp_path, before=("timeout", "3"))

    assert ended.returncode == 124, ended.stderr
    assert _watts(hub) == [7, 8]


def test_sigterm_while_the_hub_is_down_is_said_and_left_to_a_process(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    """It ends before `docker stop` would kill it, says what to do, and is published later."""
    hub.faults.append(Fault(on="create", status=503, times=12))
    ended = _run(interpreters.environment(PYTHONS[-1]), BEGIN + SIGTERM, hub, tmp_path)

    assert _seconds_since_the_signal(tmp_path) < DOCKER_STOP_S
    assert ended.returncode == -signal.SIGTERM
    assert "hubmeter recover" in ended.stderr
    assert _eventually(lambda: _watts(hub) == [7, 8])


def test_the_first_process_of_a_container_goes_on_after_sigterm(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    """Without us the kernel would ignore the signal; so would its children live on."""
    if not _may_be_first():
        pytest.skip("NOT TESTED as process 1: only a superuser may make a pid namespace")
    code = """
    assert os.getpid() == 1
    os.kill(1, signal.SIGTERM)
    measure(provider, 9)
    child = os.fork()
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    time.sleep(1.1)  # two signals at once are one
    os.kill(1, signal.SIGTERM)
    measure(provider, 10)
    print("alive")
    """
    ended = _run(
        interpreters.environment(PYTHONS[-1]),
        BEGIN + _dedented(code),
        hub,
        tmp_path,
        before=FIRST,
        PYTHONWARNINGS="ignore::DeprecationWarning",
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "alive\n", "")
    assert _watts(hub) == [7, 8, 9, 10]
    assert len(hub.repo("me/run-metrics").commits) == 3
    assert list(_journal(tmp_path).glob("*.*")) == []


def test_what_a_program_did_about_signals_before_us_stays(hub: LoopbackHub, tmp_path: Path) -> None:
    """Its own handler runs and decides, and what it ignores is ignored, as under `nohup`."""
    code = """
    def own(number, frame):
        sys.exit(9)
    signal.signal(signal.SIGTERM, own)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    """
    then = """
    assert signal.getsignal(signal.SIGTERM) is own
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGHUP)
    print("goes on", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
    """
    python = interpreters.environment(PYTHONS[-1])
    ended = _run(python, _dedented(code) + BEGIN + _dedented(then), hub, tmp_path)

    assert (ended.returncode, ended.stdout, ended.stderr) == (9, "goes on\n", "")
    assert _watts(hub) == [7, 8]
    assert len(hub.repo("me/run-metrics").commits) == 1


def test_signals_may_be_left_alone(hub: LoopbackHub, tmp_path: Path) -> None:
    """With HUBMETER_SIGNALS=0 a SIGTERM is what it always was."""
    code = """
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
    """
    python = interpreters.environment(PYTHONS[-1])
    ended = _run(python, BEGIN + _dedented(code), hub, tmp_path, HUBMETER_SIGNALS="0")

    assert (ended.returncode, _watts(hub)) == (-signal.SIGTERM, [])


FIRST = ("unshare", "--pid", "--fork", "--mount-proc")
"""Before a command: it is the first process of a pid namespace of its own."""


def _may_be_first() -> bool:
    try:
        return subprocess.run([*FIRST, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _run(
    python: Path,
    code: str,
    hub: LoopbackHub,
    folder: Path,
    *,
    before: tuple[str, ...] = (),
    **more: str,
) -> subprocess.CompletedProcess[str]:
    program = folder / "agent.py"
    program.write_text(HEAD + code)
    return subprocess.run(
        [*before, python, program],
        env=_environment(hub, folder) | {"HUBMETER_TO": "me/run-metrics", **more},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        cwd=folder,
        start_new_session=True,
    )


def _start(code: str, hub: LoopbackHub, folder: Path, **more: str) -> subprocess.Popen[bytes]:
    """The same, without waiting for its end; it may be spoken to."""
    program = folder / "agent.py"
    program.write_text(HEAD + code)
    return subprocess.Popen(
        [interpreters.environment(PYTHONS[-1]), program],
        env=_environment(hub, folder) | {"HUBMETER_TO": "me/run-metrics", **more},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
    )


def _sentinels(folder: Path) -> int:
    """How many processes watch over a program whose journal is in *folder*."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            commands.append(path.read_bytes().split(b"\0"))
    return sum(b"sentinel" in one and str(_journal(folder)).encode() in one for one in commands)


def _seconds_since_the_signal(folder: Path) -> float:
    return time.monotonic() - float((folder / "signalled").read_text())


def _recover(python: Path, hub: LoopbackHub, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-m", "hubmeter", "recover"],
        env=_environment(hub, folder),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def _environment(hub: LoopbackHub, folder: Path) -> dict[str, str]:
    return {**os.environ, **hub.environment(folder / "home")}


def _journal(folder: Path) -> Path:
    return folder / "home" / "hubmeter"


def _watts(hub: LoopbackHub) -> list[float]:
    """What is published, in order of time; nothing if there is no repository."""
    repo = hub.repo("me/run-metrics")
    tables = [
        pq.read_table(io.BytesIO(content))
        for path, content in (repo.files if repo else {}).items()
        if path.endswith(".parquet")
    ]
    rows = [(row["timestamp"], row["gpu_power_watts"]) for t in tables for row in t.to_pylist()]
    return [watts for _, watts in sorted(rows)]


def _eventually(happens) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if happens():
            return True
        time.sleep(0.1)
    return False


def _dedented(code: str) -> str:
    import textwrap

    return textwrap.dedent(code) + "\n"


def _without_paths(text: str, folder: Path) -> str:
    return text.replace(str(folder), "").lower()
