"""Disks that are full, read-only or gone: the program does not notice, and its rows arrive."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from hubmeter.segment import LOOK_EVERY_S
from loopback_hub import LoopbackHub
from observed import HEAD, undisturbed  # noqa: F401
from orphans import HUBMETER, contents, hubmeter, journals, run, watts


def _has_chattr() -> bool:
    """Whether a folder can be frozen, also for root."""
    if shutil.which("chattr") is None:
        return False
    with TemporaryDirectory() as folder:
        tried = subprocess.run(["chattr", "+i", folder], capture_output=True, check=False)
        subprocess.run(["chattr", "-i", folder], capture_output=True, check=False)
    return tried.returncode == 0


HAS_MOUNTS = (
    shutil.which("unshare") is not None
    and subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
)
needs_mounts = pytest.mark.skipif(
    not HAS_MOUNTS, reason="LOUD: this user cannot mount: full and read-only disks are untested"
)

needs_chattr = pytest.mark.skipif(
    not _has_chattr(), reason="LOUD: chattr +i does nothing here: frozen folders are untested"
)

ROWS = [7, 8, 8]
"""Collected by the first flush, by the last one, and by the shutdown."""

BEGIN = """
provider = provider_of(HubMetricExporter())
wide = provider.get_meter("t").create_gauge("my.gauge")

def fill(count=400):
    # Points of many new series: a record of about a hundred bytes for each.
    for number in range(count):
        wide.set(number, {"which": f"{number}-{time.monotonic_ns()}"})

measure(provider, 7)
provider.force_flush()
"""

END = """
measure(provider, 8)
provider.force_flush()
print("result", flush=True)
sys.exit(3)
"""


def agent(code: str, folder: Path) -> list[str]:
    """A program that is observed, prints one line, and exits with 3."""
    path = folder / "program.py"
    path.write_text(HEAD + BEGIN + textwrap.dedent(code) + END)
    return [sys.executable, str(path)]


def mounted(mount: str, command: list[str]) -> list[str]:
    """*command* with a mount of its own, which nobody else sees."""
    return ["unshare", "-m", "bash", "-ec", f'{mount}; exec "$@"', "-", *command]


def check(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """The program did not notice, and there is one clear line with all of *words*."""
    assert (done.returncode, done.stdout) == (3, "result\n"), done.stderr
    ours = [line for line in done.stderr.splitlines() if "hubmeter" in line]
    assert ours == done.stderr.splitlines()
    assert len(ours) == (1 if words else 0), done.stderr
    for word in words:
        assert word in ours[0]


@pytest.fixture(name="hub")
def _hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub
        assert hub.errors == []


def test_a_file_size_limit_costs_nothing_but_the_journal(hub: LoopbackHub, tmp_path: Path) -> None:
    """Everything arrives at the end, from memory."""
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, resource.RLIM_INFINITY))"
    code = f"import resource; {limit}\nfill()\nprovider.force_flush()\n"
    done = run(
        agent(code, tmp_path),
        tmp_path,
        HUBMETER_TO="me/x",
        PYTHONDONTWRITEBYTECODE="1",
        HUBMETER_JOURNAL_DIR="./journal",
        **hub.environment(tmp_path / "home"),
    )
    check(done, "cannot write the journal", "File too large", "Free some space")
    assert watts(hub.repo("me/x").files) == [7, *ROWS]
    assert journals(tmp_path) == []


def test_after_room_is_made_the_journal_works_again(tmp_path: Path) -> None:
    """What waited in memory is written first; then even SIGKILL loses nothing."""
    code = """
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, resource.RLIM_INFINITY))
    fill()
    provider.force_flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    measure(provider, 9)
    provider.force_flush()
    os.kill(os.getpid(), signal.SIGKILL)
    """
    done = run(
        agent(code, tmp_path), tmp_path, HUBMETER_TO="./data", HUBMETER_JOURNAL_DIR="./journal"
    )
    assert done.returncode == -9
    assert hubmeter("recover", "journal", folder=tmp_path).returncode == 0
    assert watts(contents(tmp_path / "data")) == [7, 7, 9]


@needs_mounts
def test_a_full_disk_costs_nothing_but_the_journal(tmp_path: Path) -> None:
    """ENOSPC on a small disk of its own; the rows are on another one at the end."""
    (tmp_path / "journal").mkdir()
    code = """
    with open("journal/filler", "wb", 0) as filler:
        try:
            while filler.write(b"x" * 4096): pass
        except OSError:
            pass
    fill()
    provider.force_flush()
    """
    mount = "mount -t tmpfs -o size=256k none journal"
    environment = {"HUBMETER_TO": "./data", "HUBMETER_JOURNAL_DIR": "./journal"}
    done = run(mounted(mount, agent(code, tmp_path)), tmp_path, **environment)

    check(done, "cannot write the journal", "No space left on device")
    assert watts(contents(tmp_path / "data")) == [7, *ROWS]


@needs_mounts
def test_a_disk_that_is_full_from_the_start(tmp_path: Path) -> None:
    """The journal cannot even be made."""
    (tmp_path / "journal").mkdir()
    mount = "mount -t tmpfs -o size=16k none journal; head -c 16k /dev/zero > journal/filler"
    environment = {"HUBMETER_TO": "./data", "HUBMETER_JOURNAL_DIR": "./journal"}
    done = run(mounted(mount, agent("", tmp_path)), tmp_path, **environment)

    check(done, "cannot write the journal", "No space left on device")
    assert watts(contents(tmp_path / "data")) == ROWS


@needs_mounts
def test_a_full_destination_leaves_the_run_in_the_journal(tmp_path: Path) -> None:
    """One line with the command; when there is room it publishes."""
    (tmp_path / "data").mkdir()
    mount = "mount -t tmpfs -o size=8k none data"
    environment = {"HUBMETER_TO": "./data", "HUBMETER_JOURNAL_DIR": "./journal"}
    done = run(mounted(mount, agent("", tmp_path)), tmp_path, **environment)

    check(done, "not written to", "No space left on device", f"recover {tmp_path / 'journal'}")
    # A process that the agent left tries too, in the small disk, and lets go of the journal.
    again = run([*HUBMETER, "recover", "journal"], tmp_path)
    while not contents(tmp_path / "data"):
        again = run([*HUBMETER, "recover", "journal"], tmp_path)
    assert again.returncode == 0, again.stdout
    assert watts(contents(tmp_path / "data")) == ROWS


@needs_mounts
def test_a_recovery_on_a_full_disk_publishes(tmp_path: Path) -> None:
    """What cannot be sealed on the disk is published from memory."""
    environment = {"HUBMETER_TO": "./data", "HUBMETER_JOURNAL_DIR": "./journal"}
    code = "os.kill(os.getpid(), signal.SIGKILL)\n"
    assert run(agent(code, tmp_path), tmp_path, **environment).returncode == -9
    mount = (
        "mkdir disk; mount -t tmpfs -o size=256k none disk; cp journal/* disk;"
        " head -c 1M /dev/zero > disk/filler || true"
    )
    done = run(mounted(mount, [*HUBMETER, "recover", "disk"]), tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert watts(contents(tmp_path / "data")) == [7]


@needs_mounts
def test_a_journal_directory_that_is_read_only(tmp_path: Path) -> None:
    """The points are in memory, the rows arrive."""
    (tmp_path / "journal").mkdir()
    mount = "mount --bind journal journal; mount -o remount,ro,bind journal"
    environment = {"HUBMETER_TO": "./data", "HUBMETER_JOURNAL_DIR": "./journal"}
    done = run(mounted(mount, agent("", tmp_path)), tmp_path, **environment)

    check(done, "cannot write the journal", "Read-only file system", "HUBMETER_JOURNAL_DIR")
    assert watts(contents(tmp_path / "data")) == ROWS


@needs_chattr
def test_a_journal_directory_that_becomes_read_only(tmp_path: Path) -> None:
    """Nothing can be made or removed there any more: the rows arrive, and only once."""
    code = 'import subprocess; subprocess.run(["chattr", "+i", "journal"], check=True)\n'
    environment = {"HUBMETER_TO": "./data", "HUBMETER_JOURNAL_DIR": "./journal"}
    try:
        done = run(agent(code, tmp_path), tmp_path, **environment)
        stuck = hubmeter("recover", "journal", folder=tmp_path)
    finally:
        subprocess.run(["chattr", "-i", tmp_path / "journal"], check=True)

    check(done, "is published, but stays on disk")
    assert watts(contents(tmp_path / "data")) == ROWS
    assert stuck.returncode == 1
    assert "published, but it cannot be removed" in stuck.stdout
    assert hubmeter("recover", "journal", folder=tmp_path).returncode == 0
    assert watts(contents(tmp_path / "data")) == ROWS
    assert len(contents(tmp_path / "data")) == 1


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_journal_directory_that_is_a_file(place: str, tmp_path: Path) -> None:
    """Nothing is overwritten; the rows arrive."""
    (tmp_path / "file").write_text("mine")
    done = run(agent("", tmp_path), tmp_path, HUBMETER_TO="./data", HUBMETER_JOURNAL_DIR=place)

    check(done, "cannot write the journal", "HUBMETER_JOURNAL_DIR")
    assert watts(contents(tmp_path / "data")) == ROWS
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("is_late", [False, True])
def test_a_journal_directory_that_is_removed(is_late: bool, tmp_path: Path) -> None:
    """Somebody tidies up while the program runs, perhaps after a part: the rows arrive."""
    code = 'import shutil; shutil.rmtree("journal")\n'
    part = "provider._all_metric_readers.copy().pop()._exporter._pipeline.publish_part()\n"
    done = run(
        agent(part + code if is_late else code, tmp_path),
        tmp_path,
        HUBMETER_TO="./data",
        HUBMETER_JOURNAL_DIR="./journal",
    )
    check(done)
    assert watts(contents(tmp_path / "data")) == ROWS
    assert list(tmp_path.glob("journal/*.journal")) == []


GONE = {
    "removed": 'import shutil; shutil.rmtree("journal")',
    "closed": "os.closerange(3, 256)",
    "taken": "os.closerange(3, 256); mine = [open(f'mine{n}', 'w+') for n in range(20)]",
}


@pytest.mark.parametrize("how", GONE)
def test_a_journal_that_the_program_takes_away_is_made_anew(how: str, tmp_path: Path) -> None:
    """Also the points from before survive SIGKILL, and no file of the program is written to."""
    code = f"""
    {GONE[how]}
    time.sleep({LOOK_EVERY_S})
    measure(provider, 8)
    provider.force_flush()
    measure(provider, 9)
    provider.force_flush()
    os.kill(os.getpid(), signal.SIGKILL)
    """
    done = run(
        agent(code, tmp_path), tmp_path, HUBMETER_TO="./data", HUBMETER_JOURNAL_DIR="./journal"
    )
    assert done.returncode == -9, done.stderr
    assert hubmeter("recover", "journal", folder=tmp_path).returncode == 0
    assert watts(contents(tmp_path / "data")) == [7, 8, 9]
    assert [path.read_text() for path in tmp_path.glob("mine*")] == [""] * (
        20 if how == "taken" else 0
    )


NOT_JOURNALED = {
    "a file": 'import shutil; shutil.rmtree("journal"); open("journal", "w").close()',
    "full": """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, resource.RLIM_INFINITY))
fill()
provider.force_flush()
""",
}


@pytest.mark.parametrize("what", NOT_JOURNALED)
def test_a_journal_that_is_gone_is_not_promised(what: str, tmp_path: Path) -> None:
    """If the destination fails too, nobody is told that `hubmeter recover` has all rows."""
    (tmp_path / "data").write_text("in the way")
    done = run(
        agent(NOT_JOURNALED[what], tmp_path),
        tmp_path,
        HUBMETER_TO="./data",
        HUBMETER_JOURNAL_DIR="./journal",
        PYTHONDONTWRITEBYTECODE="1",
    )
    assert (done.returncode, done.stdout) == (3, "result\n")
    assert "Traceback" not in done.stderr
    assert "Not a directory" in done.stderr
    assert "the run is in the journal" not in done.stderr
    assert "the rows are lost when this process ends" in done.stderr.splitlines()[-1]


def test_the_limits_of_this_process_are_as_they_were() -> None:
    """Only child processes are limited."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
