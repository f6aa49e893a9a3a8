"""However a program ends, its run is published; and in forks, once."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from observed import column, leftovers, program, run, shards, undisturbed  # noqa: F401

BEGIN = """
provider = provider_of(HubMetricExporter("data"))
measure(provider, 7)
"""

ENDINGS = {
    "normal": ("", 0),
    "exception": ("raise RuntimeError('the program is broken')", 1),
    "exit code": ("sys.exit(3)", 3),
    "interrupt": ("os.kill(os.getpid(), signal.SIGINT); time.sleep(30)", -signal.SIGINT),
    "interrupted event loop": (
        """
        import asyncio
        async def main():
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(30)
        asyncio.run(main())
        """,
        -signal.SIGINT,
    ),
    "handled termination": (
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
        """,
        143,
    ),
    "non-daemon thread": ("threading.Thread(target=time.sleep, args=[0.3]).start()", 0),
    "exit in a thread": ("threading.Thread(target=sys.exit, args=[5]).start()", 0),
    "explicit shutdown": ("provider.shutdown()", 0),
    "thread pool": (
        """
        from concurrent.futures import ThreadPoolExecutor
        pool = ThreadPoolExecutor()
        pool.submit(measure, provider, 7)
        """,
        0,
    ),
    "closed streams": ("sys.stdout.close(); sys.stderr.close()", 0),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_run_is_published_however_the_program_ends(tmp_path: Path, ending: str) -> None:
    """The shard is complete, and exit code and output are those of the program."""
    code, exit_code = ENDINGS[ending]
    ended = run(program(BEGIN + _dedented(code), tmp_path))

    assert ended.returncode == exit_code
    assert ended.stdout == ""
    assert "hubmeter" not in ended.stderr.lower().replace(str(tmp_path).lower(), "")
    assert column(tmp_path / "data", "gpu_power_watts") == [7]
    assert leftovers(tmp_path / "data") == []


def _dedented(code: str) -> str:
    import textwrap

    return textwrap.dedent(code) + "\n"


@pytest.mark.parametrize(
    "code",
    [
        # opentelemetry-python #4818: a provider forgets readers that were added late
        """
        provider = MeterProvider()
        reader = PeriodicExportingMetricReader(HubMetricExporter("data"), 60_000)
        provider.add_metric_reader(reader)
        measure(provider, 7)
        reader.collect()
        """,
        """
        provider = provider_of(HubMetricExporter("data"), shutdown_on_exit=False)
        measure(provider, 7)
        provider.force_flush()
        """,
        """
        provider = provider_of(HubMetricExporter("data"), shutdown_on_exit=False)
        measure(provider, 7)
        provider.force_flush()
        del provider
        import gc; gc.collect()
        """,
    ],
    ids=["added late", "no hook", "forgotten"],
)
def test_what_nobody_shuts_down_is_published_at_the_end(tmp_path: Path, code: str) -> None:
    """What was exported is published even if nobody ever calls shutdown."""
    ended = run(program(_dedented(code), tmp_path))

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert column(tmp_path / "data", "gpu_power_watts") == [7]


def test_an_exporter_that_nobody_uses_leaves_no_trace(tmp_path: Path) -> None:
    """To build an exporter is no run yet."""
    ended = run(program("exporter = HubMetricExporter('data')\n", tmp_path))

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert not (tmp_path / "data").exists()


def test_an_attached_exporter_collects_last_when_the_program_ends(tmp_path: Path) -> None:
    """What was recorded since the last interval is in the shard, without a detach."""
    ended = run(
        program(
            "provider = MeterProvider()\nattach(provider, 'data')\nmeasure(provider, 7)", tmp_path
        )
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert column(tmp_path / "data", "gpu_power_watts") == [7]


FORKS = {
    "os.fork, sys.exit": """
        child = os.fork()
        if not child:
            measure(provider, 8)
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """,
    "os.fork, os._exit": """
        child = os.fork()
        if not child:
            measure(provider, 8)
            provider.force_flush()
            provider.shutdown()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """,
    "multiprocessing": """
        import multiprocessing
        process = multiprocessing.get_context("fork").Process(target=measure, args=[provider, 8])
        process.start()
        process.join()
        assert process.exitcode == 0
        """,
    "exporter in the child": """
        child = os.fork()
        if not child:
            collected = exporter.table().num_rows
            assert exporter.export(None).name == "FAILURE"
            assert exporter.force_flush()
            exporter.shutdown(timeout=-1)
            os._exit(collected)
        assert os.waitpid(child, 0)[1] == 0
        """,
    "attached": """
        handle = attach(provider, "attached")
        child = os.fork()
        if not child:
            measure(provider, 8)
            handle.detach()
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        handle.detach()
        """,
}


@pytest.mark.parametrize("fork", FORKS)
def test_a_forked_child_neither_exports_nor_publishes(tmp_path: Path, fork: str) -> None:
    """The child ends at once, whatever it calls, and the run is published once."""
    begin = "exporter = HubMetricExporter('data')\nprovider = provider_of(exporter)\n"
    code = f"{begin}measure(provider, 7)\n{_dedented(FORKS[fork])}"
    ended = run(program(code, tmp_path))

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    assert len(shards(tmp_path / "data")) == 1
    assert column(tmp_path / "data", "gpu_power_watts") == [7]


def test_a_child_with_an_exporter_of_its_own_publishes_it(tmp_path: Path) -> None:
    """An exporter belongs to the process that made it, parent or child."""
    code = """
    provider = provider_of(HubMetricExporter("data"))
    measure(provider, 7)
    child = os.fork()
    if not child:
        own = provider_of(HubMetricExporter("data"))
        measure(own, 8)
        own.shutdown()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    """
    ended = run(program(code, tmp_path))

    assert (ended.returncode, ended.stdout) == (0, "")
    assert sorted(column(tmp_path / "data", "gpu_power_watts")) == [7, 8]
    assert len(shards(tmp_path / "data")) == 2


def test_a_late_attachment_does_not_make_forks_hang(tmp_path: Path) -> None:
    """The SDK uses a thread pool in each child, and must not wait for a lock there."""
    code = """
    provider = MeterProvider(resource=Resource({}))
    assert "concurrent.futures.thread" not in sys.modules, "else this tests nothing"
    handle = attach(provider, "data")
    measure(provider, 7)
    for _ in range(3):
        child = os.fork()
        if not child:
            signal.alarm(10)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    from concurrent.futures import ThreadPoolExecutor
    assert ThreadPoolExecutor().submit(int, "3").result() == 3
    """
    # A child that hangs in os.fork() never sets its alarm.
    ended = run(["timeout", "-s", "KILL", "20", *program(code, tmp_path)])

    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    assert column(tmp_path / "data", "gpu_power_watts") == [7]


def test_forks_during_exports_do_not_hang(tmp_path: Path) -> None:
    """A child that is forked while other threads export, read and publish uses the exporter."""
    code = """
    import faulthandler
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    faulthandler.dump_traceback_later(40, exit=True)
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], resource=Resource({"run.id": "r1"}))
    gauge = provider.get_meter("t").create_gauge("gen_ai.gpu.power", "W")
    for gpu in range(500):
        gauge.set(gpu, {"gpu_id": str(gpu)})
    data = reader.get_metrics_data()
    exporter = HubMetricExporter("data")
    exporter.table()
    done, exported = threading.Event(), [0]

    def export():
        while not done.is_set():
            exporter.export(data)
            exported[0] += 1
            time.sleep(0.001)

    threads = [threading.Thread(target=export) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        child = os.fork()
        if not child:
            signal.alarm(10)
            refused = exporter.export(data).name == "FAILURE"
            exporter.force_flush()
            exporter.shutdown()
            exporter._pipeline.points()
            os._exit(0 if refused else 1)
        assert os.waitpid(child, 0)[1] == 0
    done.set()
    for thread in threads:
        thread.join()
    assert exported[0] > 5
    exporter.shutdown()
    """
    ended = run(program(code, tmp_path))

    assert ended.returncode == 0, ended.stderr
    assert len(shards(tmp_path / "data")) == 1
    assert column(tmp_path / "data", "gpu_power_watts") == list(map(float, _by_text(500)))


def _by_text(count: int) -> list[int]:
    """GPU ids are text, and sorted as such."""
    return sorted(range(count), key=str)


@pytest.mark.parametrize(
    "exits", ["os._exit(0)", "provider.shutdown(timeout_millis=500); os._exit(0)"]
)
def test_a_fork_while_a_reader_collects_does_not_hang(tmp_path: Path, exits: str) -> None:
    """The SDK's locks may stay taken in the child; ours are not, and the parent goes on."""
    code = f"""
    def slow(options):
        from opentelemetry.metrics import Observation
        collecting.set()
        time.sleep(0.5)
        yield Observation(7, {{"gpu_id": "0"}})

    collecting = threading.Event()
    reader = PeriodicExportingMetricReader(HubMetricExporter("data"), export_interval_millis=10)
    provider = MeterProvider([reader])
    provider.get_meter("t").create_observable_gauge("gen_ai.gpu.power", [slow], "W")
    collecting.wait()
    child = os.fork()
    if not child:
        signal.alarm(20)
        {exits}
    assert os.waitpid(child, 0)[1] == 0
    """
    ended = run(program(code, tmp_path))

    assert ended.returncode == 0, ended.stderr
    assert len(shards(tmp_path / "data")) == 1
    assert set(column(tmp_path / "data", "gpu_power_watts")) == {7}


def test_an_export_in_flight_at_shutdown_is_not_lost(tmp_path: Path) -> None:
    """A collection that is still under way when the SDK loses patience arrives all the same."""
    code = """
    def slow(options):
        from opentelemetry.metrics import Observation
        collecting.set()
        time.sleep(0.4)
        yield Observation(7, {"gpu_id": "0"})

    collecting = threading.Event()
    reader = PeriodicExportingMetricReader(HubMetricExporter("data"), export_interval_millis=10_000)
    provider = MeterProvider([reader], shutdown_on_exit=False)
    provider.get_meter("t").create_observable_gauge("gen_ai.gpu.power", [slow], "W")
    provider.shutdown(timeout_millis=50)
    reader._daemon_thread.join()
    """
    ended = run(program(code, tmp_path))

    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    watts = [watts for watts in column(tmp_path / "data", "gpu_power_watts") if watts is not None]
    assert watts == [7]


def test_a_folder_that_cannot_be_written_does_not_change_how_a_program_ends(tmp_path: Path) -> None:
    """One line on stderr, and the exit code of the program."""
    (tmp_path / "data").write_text("in the way")
    ended = run(program(f"{BEGIN}\nsys.exit(3)", tmp_path))

    assert (ended.returncode, ended.stdout) == (3, "")
    [line] = ended.stderr.splitlines()
    assert line.startswith("hubmeter: 1 rows not written to ")


FULL = """
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
reader = InMemoryMetricReader()
steps = MeterProvider([reader]).get_meter("t").create_counter("agent.steps")
exporter = HubMetricExporter("data")
for step in range(1000):
    steps.add(step, {"id": os.urandom(32).hex()})
exporter.export(reader.get_metrics_data())
"""


def test_a_file_that_grows_too_large_is_a_clear_error(tmp_path: Path) -> None:
    """Behind RLIMIT_FSIZE nothing half-written stays, and the rows can still be read."""
    code = f"""{FULL}
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
exporter.shutdown()
assert exporter.table("points").num_rows == 1000
"""
    ended = run(program(code, tmp_path))

    assert (ended.returncode, ended.stdout) == (0, "")
    [line] = ended.stderr.splitlines()
    assert line.endswith("Nothing is lost, the run is in the journal: hubmeter recover")
    assert "File too large" in line
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == []


def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    """On a device without room nothing half-written stays, and the rows can still be read."""
    if not _may_mount():
        pytest.skip("only a superuser may mount a small disk")
    (tmp_path / "data").mkdir()
    code = f"""{FULL}
exporter.shutdown()
assert exporter.table("points").num_rows == 1000
files = [name for _, _, names in os.walk("data") for name in names]
assert files == ["ballast"], files
"""
    mount = "mount -t tmpfs -o size=64k none data && head -c 20000 /dev/zero > data/ballast"
    command = program(code, tmp_path)
    ended = run(["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", *command])

    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    [line] = ended.stderr.splitlines()
    assert "No space left on device" in line


def _may_mount() -> bool:
    if not sys.platform.startswith("linux") or not shutil.which("unshare"):
        return False
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
