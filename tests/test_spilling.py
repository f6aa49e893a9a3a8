"""Long runs publish in parts, and keep to the limits of memory and disk."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import random
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from hubmeter import HubMetricExporter, destinations
from hubmeter.batch import PointBatch, SeriesLayout
from hubmeter.deadline import Deadline
from hubmeter.decode.otlp_json import JsonDecoder
from hubmeter.errors import JournalError, PublishUnavailable
from hubmeter.pipeline import Counts, Pipeline
from hubmeter.recovery import recover
from hubmeter.settings import load_settings
from loopback_hub import Fault, LoopbackHub
from makers import POWER, SECOND, T0, gauge, point, request
from observed import HEAD, Machine, shards, undisturbed  # noqa: F401
from orphans import contents, journals, kill, program, rows, run, watts


def soon() -> Deadline:
    return Deadline.after(30)


def pipeline_in(folder: Path, **options: Any) -> Pipeline:
    options = {"journal_dir": str(folder / "journal"), **options}
    return Pipeline(load_settings(to=str(folder / "data"), **options))


def power(second: int, value: float | None = None) -> PointBatch:
    """One reading of one GPU."""
    at = point(float(second if value is None else value), T0 + second * SECOND, gpu=0)
    return JsonDecoder().decode(request(gauge(POWER, "W", at)))


def _layout(series: int) -> SeriesLayout:
    points = [point(1.0, T0, gpu=0, which=str(number)) for number in range(series)]
    return JsonDecoder().decode(request(gauge("my.gauge", "1", *points))).layout


LAYOUT = _layout(1_000)


def wide(second: int, values: list[float] | None = None) -> PointBatch:
    """1,000 values of one layout: about 8 kB in memory and in the journal."""
    return PointBatch(
        layout=LAYOUT,
        times_unix_nano=[T0 + second * SECOND],
        start_times_unix_nano=(),
        values=values or [float(second)] * 1_000,
    )


def on_disk(folder: Path) -> int:
    """Bytes of everything in the journal directory."""
    return sum(path.stat().st_size for path in folder.glob("journal/*") if path.is_file())


def eventually(happens: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = Deadline.after(seconds)
    while not deadline.is_over():
        if happens():
            return True
        time.sleep(0.05)
    return False


def test_parts_appear_while_the_run_goes_on(tmp_path: Path) -> None:
    """HUBMETER_FLUSH_EVERY=1: nobody calls anything, and no part is lost or doubled."""
    pipeline = pipeline_in(tmp_path, flush_every_s=1)
    for second in range(25):
        pipeline.consume(power(second, 100))
        time.sleep(0.1)
    parts_before_the_end = len(contents(tmp_path / "data"))
    pipeline.close(soon())

    found = rows(contents(tmp_path / "data"))
    assert parts_before_the_end >= 1
    assert [row["energy_joules"] for row in found] == pytest.approx([100 * s for s in range(25)])
    assert journals(tmp_path) == []
    assert pipeline.counts() == Counts(received=25, stored=0, published=25, rejected=0)


@pytest.mark.parametrize("text", ["0.5", "-1", "nan", "often"])
def test_parts_are_at_least_a_second(text: str) -> None:
    """Each may be a commit, and the Hub allows 128 in an hour."""
    settings = load_settings(flush_every_s=text)
    assert settings.flush_every_s == 0
    assert "expected a number from 1" in settings.problems[0]


def memory_after_parts(pipeline: Pipeline, parts: int) -> list[int]:
    """Bytes that Python has allocated after each part of 50,000 values, 400 kB."""
    seen = []
    tracemalloc.start()
    try:
        for part in range(parts):
            for second in range(50):
                pipeline.consume(wide(50 * part + second))
            pipeline.publish_part()
            gc.collect()
            seen.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    return seen


def test_memory_stays_flat_over_parts(tmp_path: Path) -> None:
    """However many there were, only what is not published yet takes memory."""
    pipeline = pipeline_in(tmp_path)
    seen = memory_after_parts(pipeline, 8)
    pipeline.close(soon())

    assert max(seen[2:]) < seen[1] + 100_000, seen
    assert pipeline.counts() == Counts(received=400_000, stored=0, published=400_000, rejected=0)
    assert len(shards(tmp_path / "data", "points")) == 8


def test_memory_stays_flat_while_the_destination_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Parts that wait are on the disk, not in memory, and not in the error that is kept."""
    caplog.set_level(logging.CRITICAL, "hubmeter")  # a handler that keeps errors would count too
    (tmp_path / "data").write_text("in the way")
    pipeline = pipeline_in(tmp_path)
    seen = memory_after_parts(pipeline, 8)
    assert max(seen[2:]) < seen[1] + 100_000, seen
    assert pipeline.unpublished() == 8

    (tmp_path / "data").unlink()
    pipeline.close(soon())
    assert len(shards(tmp_path / "data", "points")) == 8
    assert len(rows(contents(tmp_path / "data"), "points")) == 8 * 50_000
    assert journals(tmp_path) == []


def test_an_attempt_takes_the_memory_of_one_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many parts wait; they are read from the disk when their turn comes."""
    monkeypatch.setattr(destinations, "MOST_BYTES", 2**19)
    (tmp_path / "data").write_text("in the way")
    pipeline = pipeline_in(tmp_path)
    dice = random.Random(1)
    for part in range(10):
        for second in range(50):
            pipeline.consume(wide(50 * part + second, [dice.random() for _ in range(1_000)]))
        pipeline.publish_part()
    waiting = sum(path.stat().st_size for path in tmp_path.glob("journal/*.sealed"))
    (tmp_path / "data").unlink()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        pipeline.publish_part()
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()

    assert pipeline.unpublished() == 0
    assert len(shards(tmp_path / "data", "points")) == 10
    assert waiting > 3 * 2**20
    assert peak < waiting * 2 / 3, (peak, waiting)


def test_what_the_table_has_is_what_it_says(tmp_path: Path) -> None:
    """Without the parts that were published; what waits for its destination is still there."""
    pipeline = pipeline_in(tmp_path)
    pipeline.consume(power(0))
    pipeline.publish_part()
    pipeline.consume(power(1))
    assert pipeline.table()["gpu_power_watts"].to_pylist() == [1]
    pipeline.consume(power(2))
    pipeline.close(soon())
    assert pipeline.table()["gpu_power_watts"].to_pylist() == [1, 2]
    assert watts(contents(tmp_path / "data")) == [0, 1, 2]


def test_totals_go_on_over_parts(tmp_path: Path) -> None:
    """Energy, CO2 and cost of a run in parts are those of the run in one piece."""
    names = ("timestamp", "energy_joules", "co2_emissions_gco2e", "power_cost_usd")
    found = []
    for parts in (0, 4):
        folder = tmp_path / str(parts)
        pipeline = pipeline_in(folder, run_id="r")
        for second in range(20):
            pipeline.consume(power(second, 100 + second))
            if parts and second % 5 == 4:
                pipeline.publish_part()
        pipeline.close(soon())
        found.append([[row[name] for name in names] for row in rows(contents(folder / "data"))])
    assert found[0] == found[1]
    assert len(contents(tmp_path / "4/data")) == 4


def test_a_part_without_points_is_none(tmp_path: Path) -> None:
    """An idle run makes no commits, and one row at its end."""
    pipeline = pipeline_in(tmp_path)
    for _ in range(3):
        pipeline.publish_part()
    assert not (tmp_path / "data").exists()
    pipeline.close(soon())
    assert len(rows(contents(tmp_path / "data"))) == 1

    pipeline = pipeline_in(tmp_path / "other")
    pipeline.consume(power(1))
    pipeline.publish_part()
    pipeline.close(soon())
    assert watts(contents(tmp_path / "other/data")) == [1]


def test_parts_from_many_threads_lose_nothing(tmp_path: Path) -> None:
    """Points that come while a part is published are in the next one."""
    pipeline = pipeline_in(tmp_path)
    stop = threading.Event()

    def publish() -> None:
        while not stop.is_set():
            pipeline.publish_part()

    threads = [threading.Thread(target=publish) for _ in range(3)]
    for thread in threads:
        thread.start()
    for second in range(300):
        pipeline.consume(power(second))
    stop.set()
    for thread in threads:
        thread.join()
    pipeline.close(soon())

    assert watts(contents(tmp_path / "data")) == list(range(300))
    assert journals(tmp_path) == []


@pytest.fixture(name="hub")
def _hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub
        assert hub.errors == []


def test_parts_that_the_hub_refused_come_with_a_later_one(hub: LoopbackHub, tmp_path: Path) -> None:
    """The token is wrong for a while; nothing is lost, the order stays, and stdout is empty."""
    hub.faults.append(Fault(on="create", status=403, times=1))
    hub.faults.append(Fault(on="any", status=403, times=3))
    code = """
    agent = begin("me/x", "r", flush_every_s=1)
    for second in range(40):
        feed(agent, 100, first=second)
        time.sleep(0.1)
    agent.close(soon())
    """
    done = run(program(code, tmp_path), tmp_path, **hub.environment(tmp_path / "home"))

    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "the run goes on, and the next part tries again" in done.stderr
    found = rows(hub.repo("me/x").files)
    assert [row["energy_joules"] for row in found] == pytest.approx([100 * s for s in range(40)])
    assert journals(tmp_path) == []


def test_a_commit_that_fails_does_not_undo_those_before_it(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    """250 parts, and the end, are three commits; what has arrived is settled."""
    hub.faults.append(Fault(on="commit", status=403, after=1))
    code = """
    agent = begin("me/x", "r")
    for second in range(250):
        feed(agent, second, first=second)
        cut(agent)
    try:
        agent.close(soon())
    except PublishError:
        print(agent.unpublished(), len(os.listdir("journal/done")))
    agent.close(soon())
    print(agent.unpublished(), agent.counts().published)
    """
    done = run(program(code, tmp_path), tmp_path, **hub.environment(tmp_path / "home"))

    assert (done.returncode, done.stdout) == (0, "152 99\n0 250\n"), done.stderr
    assert watts(hub.repo("me/x").files) == list(range(250))
    assert [len(commit.paths) for commit in hub.repo("me/x").commits] == [100, 99, 52]
    assert journals(tmp_path) == []


def test_a_killed_run_with_parts_is_whole_after_recovery(tmp_path: Path) -> None:
    """Some parts are published, one is sealed and waits, one is being written."""
    kill(
        """
        agent = feed(begin("./data", "r"), *[100] * 5)
        agent.publish_part()
        feed(agent, *[100] * 5, first=5)
        os.rename("data", "elsewhere"); open("data", "w").close()
        agent.publish_part()
        feed(agent, *[100] * 5, first=10)
        os.remove("data"); os.rename("elsewhere", "data")
        """,
        tmp_path,
    )
    assert [path.suffix for path in journals(tmp_path)] == [".journal", ".sealed", ".journal"]
    result = recover(tmp_path / "journal", say=lambda _: None)

    assert len(result.published) == 2
    found = rows(contents(tmp_path / "data"))
    assert [row["energy_joules"] for row in found] == pytest.approx([100 * s for s in range(15)])


def test_the_end_of_a_long_run_is_short(tmp_path: Path) -> None:
    """What was published in parts need not be flattened again: the end takes its last part."""

    def end_s(*, in_parts: bool) -> float:
        pipeline = pipeline_in(tmp_path / str(in_parts))
        for second in range(300):
            pipeline.consume(wide(second))
            if in_parts and second % 30 == 29:
                pipeline.publish_part()
        started = time.perf_counter()
        pipeline.close(soon())
        return time.perf_counter() - started

    assert end_s(in_parts=True) < 0.4 * end_s(in_parts=False)


def test_a_full_journal_refuses_and_takes_again_after_a_part(tmp_path: Path) -> None:
    """Back-pressure: the export fails, nothing else is lost, and room comes with a part."""
    exporter = HubMetricExporter(
        pipeline=(pipeline := pipeline_in(tmp_path, journal_limit_mib=1, points="none"))
    )
    machine = Machine()
    refused = []
    second = 0
    while not refused:
        try:
            pipeline.consume(wide(second))
        except JournalError as error:
            refused.append(str(error))
        second += 1
    assert "the journal has reached 1 MiB" in refused[0]
    assert on_disk(tmp_path) < 2**20 + 50_000
    size = on_disk(tmp_path)
    for _ in range(5):
        assert exporter.export(machine.collect(1)).name == "FAILURE"
    assert on_disk(tmp_path) < size + 1_000

    pipeline.publish_part()
    assert exporter.export(machine.collect(2)).name == "SUCCESS"
    exporter.shutdown()
    counts = pipeline.counts()
    assert watts(contents(tmp_path / "data")) == [2]
    assert (counts.received, counts.stored) == (1_000 * second + 6, 0)


def test_the_oldest_are_dropped_and_the_disk_stays_within_the_limit(tmp_path: Path) -> None:
    """The newest points are kept; at no moment is there more than the limit and one record."""
    pipeline = pipeline_in(tmp_path, journal_limit_mib=1, journal_full="drop-oldest")
    most = 0
    for second in range(500):
        pipeline.consume(wide(second))
        pipeline.consume(power(second))
        most = max(most, on_disk(tmp_path))
    assert most < 2**20 + 100_000
    pipeline.close(soon())

    kept = watts(contents(tmp_path / "data"))
    assert kept == list(range(500 - len(kept), 500))
    assert 50 < len(kept) < 150
    counts = pipeline.counts()
    assert (counts.received, counts.stored) == (500 * 1_001, 0)
    assert counts.published == len(kept) + len(rows(contents(tmp_path / "data"), "points"))
    assert journals(tmp_path) == []


def test_dropping_goes_on_while_a_part_is_being_published(tmp_path: Path) -> None:
    """A destination that takes its time must not make the disk overflow."""
    is_publishing, may_end = threading.Event(), threading.Event()

    class Slow:
        def publish(self, shards: Any, deadline: Deadline) -> None:
            is_publishing.set()
            may_end.wait(30)
            raise PublishUnavailable("too slow")

    pipeline = Pipeline(
        load_settings(
            journal_dir=str(tmp_path / "journal"), journal_limit_mib=1, journal_full="drop-oldest"
        ),
        sink=Slow(),
    )
    pipeline.consume(wide(0))
    thread = threading.Thread(target=pipeline.publish_part)
    thread.start()
    try:
        assert is_publishing.wait(20)
        most = 0
        for second in range(1, 500):
            pipeline.consume(wide(second))
            most = max(most, on_disk(tmp_path))
    finally:
        may_end.set()
        thread.join()
    assert most < 2 * 2**20, f"{most / 2**20:.1f} MiB"


def noise(second: int) -> PointBatch:
    """1,000 values that no compression makes smaller."""
    return wide(second)._replace(values=[random.random() for _ in range(1_000)])


@pytest.mark.parametrize("policy", ["refuse", "drop-oldest"])
def test_parts_that_wait_keep_to_the_limit_with_their_sealed_files(
    policy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The destination is away: at most the limit, and the part that is being sealed."""
    caplog.set_level(logging.CRITICAL, "hubmeter")
    (tmp_path / "data").write_text("in the way")
    pipeline = pipeline_in(tmp_path, journal_limit_mib=1, journal_full=policy)
    most = 0
    for second in range(300):
        with suppress(JournalError):
            pipeline.consume(noise(second))
        if second % 10 == 9:
            pipeline.publish_part()
        most = max(most, on_disk(tmp_path))
    part = 10 * 8_000
    assert most < 2**20 + 3 * part, f"{most / 2**20:.2f} MiB"

    (tmp_path / "data").unlink()
    pipeline.close(soon())
    counts = pipeline.counts()
    assert (counts.received, counts.stored) == (300_000, 0)
    assert 30_000 < counts.published < 2**17
    found = rows(contents(tmp_path / "data"), "points")
    newest = max(int(row["timestamp_unix_nano"]) for row in found)
    assert (newest == T0 + 299 * SECOND) == (policy == "drop-oldest")


@pytest.mark.parametrize("policy", ["refuse", "drop-oldest"])
@pytest.mark.parametrize("journal_dir", ["off", "/dev/null/journal"])
def test_without_a_journal_the_limit_is_that_of_memory(
    journal_dir: str, policy: str, tmp_path: Path
) -> None:
    """What is over it is refused, or the oldest dropped, and counted."""
    pipeline = pipeline_in(
        tmp_path, journal_dir=journal_dir, journal_limit_mib=1, journal_full=policy
    )
    layout = _layout(100)
    for second in range(4_000):
        with suppress(JournalError):
            pipeline.consume(wide(second)._replace(layout=layout, values=[float(second)] * 100))
    stored = sum(len(block.values) for block in pipeline.points().blocks)
    assert 50_000 < stored < 2**17 + 64 * 100, "eight bytes each, looked at every 64 batches"
    pipeline.close(soon())
    counts = pipeline.counts()
    assert (counts.received, counts.stored) == (400_000, 0)
    assert counts.published == stored
    newest = max(row["value"] for row in rows(contents(tmp_path / "data"), "points"))
    assert newest == (3_999 if policy == "drop-oldest" else stored / 100 - 1)


@pytest.mark.parametrize("kind", ["series", "histograms"])
def test_what_takes_more_memory_than_numbers_counts_as_that(kind: str) -> None:
    """New attributes with each batch, and histograms: hundreds of bytes per point."""
    pipeline = Pipeline(load_settings(journal_dir="off", journal_limit_mib=1))
    batches = map(_heavy, repeat(kind), range(10_000))
    with pytest.raises(JournalError, match="the points in memory have reached 1 MiB"):
        deque(map(pipeline.consume, batches), maxlen=0)
    assert 500 < pipeline.counts().received < 2_500


def _heavy(kind: str, second: int) -> PointBatch:
    one = point(1.0, T0 + second * SECOND, text=str(second) if kind == "series" else "")
    if kind == "series":
        return JsonDecoder().decode(request(gauge("my.gauge", "1", one)))
    counts = {"count": "3", "sum": 1.0, "bucketCounts": ["1", "2"], "explicitBounds": [1.0]}
    histogram = {name: one[name] for name in ("timeUnixNano", "attributes")} | counts
    data = {"dataPoints": [histogram], "aggregationTemporality": 2}
    return HISTOGRAMS.decode(request({"name": "h", "unit": "1", "histogram": data}))


HISTOGRAMS = JsonDecoder()


@pytest.mark.parametrize("policy", ["refuse", "drop-oldest"])
def test_a_record_larger_than_the_limit_is_no_trouble(policy: str, tmp_path: Path) -> None:
    """One batch may fill the journal: it is taken, the next ones get the policy."""
    large = point(1.0, T0, gpu=0, text=random.Random(1).randbytes(2**20).hex())
    layout = JsonDecoder().decode(request(gauge("my.gauge", "1", large))).layout
    pipeline = pipeline_in(tmp_path, journal_limit_mib=1, journal_full=policy)
    outcomes = []
    for second in range(4):
        batch = PointBatch(
            layout=layout,
            times_unix_nano=[T0 + second * SECOND],
            start_times_unix_nano=(),
            values=[1.0],
        )
        try:
            pipeline.consume(batch)
            outcomes.append("taken")
        except JournalError:
            outcomes.append("refused")
    assert on_disk(tmp_path) > 2**20
    assert outcomes == ["taken"] + ["refused" if policy == "refuse" else "taken"] * 3
    pipeline.close(soon())
    counts = pipeline.counts()
    assert (counts.received, counts.stored) == (4, 0)
    assert counts.published >= 1


def test_two_exporters_in_one_process_are_two_runs(tmp_path: Path) -> None:
    """With the same settings and directory: nothing is mixed, nothing is left."""
    code = (
        HEAD
        + """
first = HubMetricExporter(to="./data", run_id="r")
second = HubMetricExporter(to="./data", run_id="r")
provider = MeterProvider(
    [PeriodicExportingMetricReader(e, export_interval_millis=60_000) for e in (first, second)]
)
measure(provider, 7)
provider.force_flush()
measure(provider, 8)
"""
    )
    path = tmp_path / "agent.py"
    path.write_text(code)
    done = run([sys.executable, str(path)], tmp_path, HUBMETER_JOURNAL_DIR="./journal")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert watts(contents(tmp_path / "data")) == [7, 7, 8, 8]
    assert len(contents(tmp_path / "data")) == 2
    assert journals(tmp_path) == []


def test_processes_with_one_run_id_do_not_overwrite_one_another(tmp_path: Path) -> None:
    """Torchrun starts eight of them: each has a shard of its own."""
    code = 'agent = feed(begin("./data", "same"), *range(3)); agent.close(soon())'
    command = program(code, tmp_path)
    processes = [subprocess.Popen(command, cwd=tmp_path) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert watts(contents(tmp_path / "data")) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert len(contents(tmp_path / "data")) == 4
    assert {row["run_id"] for row in rows(contents(tmp_path / "data"))} == {"same"}


def test_copies_of_an_exporter_leak_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be pickled, a shallow copy is the same run, and no text of it has the token."""
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    exporter = HubMetricExporter(
        to=str(tmp_path / "data"), journal_dir=str(tmp_path / "journal"), signals=False
    )
    machine = Machine()
    exporter.export(machine.collect(1))
    for way in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot pickle"):
            way(exporter)
    twin = copy.copy(exporter)
    twin.export(machine.collect(2))
    for one in (exporter, twin, exporter._pipeline, exporter._pipeline.settings):
        assert "hf_secret" not in repr(one) + repr(vars(one) if hasattr(one, "__dict__") else "")
    twin.shutdown()
    exporter.shutdown()

    assert watts(contents(tmp_path / "data")) == [1, 2]
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"hf_secret" in content for content in written)


@pytest.mark.parametrize("is_away", [False, True])
def test_descriptors_do_not_grow_with_parts(is_away: bool, tmp_path: Path) -> None:
    """Many parts leave no open file behind, also if their destination is away for long."""
    if is_away:
        (tmp_path / "data").write_text("in the way")
    pipeline = pipeline_in(tmp_path)
    counts = []
    for second in range(40):
        pipeline.consume(power(second))
        pipeline.publish_part()
        counts.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))
    assert max(counts[5:]) <= max(counts[:5])
    (tmp_path / "data").unlink() if is_away else None
    pipeline.close(soon())
    assert watts(contents(tmp_path / "data")) == list(range(40))
    assert pipeline.counts() == Counts(received=40, stored=0, published=40, rejected=0)


def test_a_recovery_may_publish_the_parts_that_wait(tmp_path: Path) -> None:
    """While the run goes on, by somebody else: it counts them, and publishes the rest."""
    (tmp_path / "data").write_text("in the way")
    pipeline = pipeline_in(tmp_path)
    for second in range(3):
        pipeline.consume(power(second, 100))
        pipeline.publish_part()
    pipeline.consume(power(3, 100))
    (tmp_path / "data").unlink()
    result = recover(tmp_path / "journal", say=lambda _: None)
    assert (len(result.published), result.live) == (3, 1)
    assert pipeline.counts().received == 4
    pipeline.close(soon())

    found = rows(contents(tmp_path / "data"))
    assert [row["energy_joules"] for row in found] == pytest.approx([0, 100, 200, 300])
    assert pipeline.counts() == Counts(received=4, stored=0, published=4, rejected=0)
