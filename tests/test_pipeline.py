"""The road from batches to a shard, and the errors along it."""

import math
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from hubmeter import errors
from hubmeter.batch import PointBatch
from hubmeter.deadline import Deadline
from hubmeter.decode.sdk_objects import SdkDecoder
from hubmeter.errors import PublishError, PublishUnavailable
from hubmeter.pipeline import Counts, Pipeline
from hubmeter.settings import Settings, load_settings
from hubmeter.shard import Shard, seal
from hubmeter.tables import arrow_schema
from observed import Machine, column, shards, undisturbed  # noqa: F401


class Shelf:
    """A destination in memory, that can be full."""

    def __init__(self) -> None:
        self.shards: list[Shard] = []
        self.is_full = False

    def publish(self, shards: Sequence[Shard], deadline: Deadline) -> None:
        if self.is_full:
            raise PublishUnavailable("the shelf is full")
        self.shards += shards


def batches(*watts: float) -> list[PointBatch]:
    """What an SDK collected at each of *watts*."""
    machine, decoder = Machine(), SdkDecoder()
    return [decoder.decode(machine.collect(value)) for value in watts]


def soon() -> Deadline:
    return Deadline.after(30)


def test_a_run_is_one_shard_at_its_destination() -> None:
    """Closing publishes what was consumed, once."""
    shelf = Shelf()
    pipeline = Pipeline(Settings(), sink=shelf)
    for batch in batches(1, 2):
        pipeline.consume(batch)
    assert shelf.shards == []
    pipeline.close(soon())
    pipeline.close(soon())

    [shard] = shelf.shards
    assert (shard.rows, shard.points) == (2, 0)
    assert shard.name.startswith(pipeline.run_id)


def test_a_destination_that_refuses_leaves_the_rows_readable() -> None:
    """The error comes out, the table stays, and closing again tries again."""
    shelf = Shelf()
    shelf.is_full = True
    pipeline = Pipeline(Settings(), sink=shelf)
    for batch in batches(1, 2):
        pipeline.consume(batch)
    with pytest.raises(PublishError, match="the shelf is full"):
        pipeline.close(soon())
    assert (pipeline.unpublished(), pipeline.counts().stored) == (1, 2)
    shelf.is_full = False
    pipeline.close(soon())
    pipeline.close(soon())

    assert [shard.rows for shard in shelf.shards] == [2]
    assert pipeline.table()["gpu_power_watts"].to_pylist() == [1, 2]
    assert pipeline.counts() == Counts(received=2, stored=0, published=2, rejected=0)


def test_a_late_batch_is_refused_aloud_and_kept() -> None:
    """Whoever closes late learns that it is not published; the next close tries again."""
    shelf = Shelf()
    pipeline = Pipeline(Settings(), sink=shelf)
    first, second, third = batches(1, 2, 3)
    pipeline.consume(first)
    pipeline.close(soon())
    pipeline.consume(second)
    shelf.is_full = True
    with pytest.raises(PublishError):
        pipeline.close(soon())
    shelf.is_full = False
    pipeline.consume(third)
    pipeline.close(soon())
    pipeline.close(soon())

    assert pipeline.table()["gpu_power_watts"].to_pylist() == [1, 2, 3]
    assert [shard.rows for shard in shelf.shards] == [1, 1, 1]
    assert len({shard.name for shard in shelf.shards}) == 3


def test_a_late_batch_without_points_is_no_shard() -> None:
    """Nothing is published when nothing came."""
    shelf = Shelf()
    pipeline = Pipeline(Settings(), sink=shelf)
    pipeline.close(soon())
    [batch] = batches(1)
    empty = PointBatch(
        layout=SdkDecoder().decode(Machine().collect(1)).layout,
        times_unix_nano=(),
        start_times_unix_nano=(),
        values=[],
        skipped={"broken": 1},
    )
    pipeline.consume(empty)
    pipeline.close(soon())
    assert len(shelf.shards) == 1
    pipeline.consume(batch)
    pipeline.close(soon())
    assert len(shelf.shards) == 2


def test_points_that_nobody_keeps_are_no_late_shard() -> None:
    """With `points="none"` a late histogram leaves nothing to publish."""
    shelf = Shelf()
    pipeline = Pipeline(Settings(points="none"), sink=shelf)
    pipeline.close(soon())
    machine = Machine()
    machine.meter.create_histogram("latency").record(1)
    pipeline.consume(SdkDecoder().decode(machine.collect()))
    pipeline.close(soon())

    assert len(shelf.shards) == 1


def test_late_batches_are_published_once_each() -> None:
    """However many threads come late and close, each row is in one shard."""
    shelf = Shelf()
    pipeline = Pipeline(Settings(), sink=shelf)
    pipeline.close(soon())

    def come_late(batch: PointBatch) -> None:
        pipeline.consume(batch)
        pipeline.close(soon())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(come_late, batches(*range(40))))

    assert sum(shard.rows for shard in shelf.shards) == 41
    assert len({shard.name for shard in shelf.shards}) == len(shelf.shards)


def test_closing_from_many_threads_publishes_once() -> None:
    """The first one publishes, the others do nothing."""
    shelf = Shelf()
    pipeline = Pipeline(Settings(), sink=shelf)
    barrier = threading.Barrier(8)

    def close(_: int) -> None:
        barrier.wait()
        pipeline.close(soon())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(close, range(8)))
    assert len(shelf.shards) == 1


def test_an_empty_run_has_the_time_of_its_end() -> None:
    """The row that stands for an empty run is made with the clock that was given."""
    shelf = Shelf()
    Pipeline(
        Settings(run_id="r"), sink=shelf, wall_clock_ns=lambda: 1_761_544_695_460_017_000
    ).close(soon())
    [shard] = shelf.shards
    [path] = shard.files
    assert path.startswith("data/default/2025-10/r-")


def test_the_same_tables_are_sealed_to_the_same_bytes() -> None:
    """A repetition publishes the same files."""
    pipeline = Pipeline(Settings(run_id="r"), sink=Shelf())
    for batch in batches(1, 2):
        pipeline.consume(batch)
    tables = {config: pipeline.table(config) for config in ("default", "points")}
    sealed = [seal(tables, run_id="r", process_id="p", metadata={"a": "b"}) for _ in range(2)]

    assert sealed[0] == sealed[1]
    assert sealed[0].name == "r-p"


def test_no_config_is_sealed_without_rows() -> None:
    """Points alone are a shard too."""
    pipeline = Pipeline(Settings(points="all"), sink=Shelf())
    [batch] = batches(1)
    pipeline.consume(batch)
    tables = {"default": arrow_schema("default").empty_table(), "points": pipeline.table("points")}
    shard = seal(tables, run_id="r", process_id="p", metadata={})

    assert [path.split("/")[1] for path in shard.files] == ["points"]
    assert (shard.rows, shard.points) == (0, 1)


def test_the_metadata_of_a_late_shard_count_its_own_points(tmp_path: Path) -> None:
    """Over all shards the received points add up."""
    pipeline = Pipeline(load_settings(to=tmp_path / "data"))
    first, second, third = batches(1, 2, 3)
    pipeline.consume(first)
    pipeline.consume(second)
    pipeline.close(soon())
    pipeline.consume(third)
    pipeline.close(soon())

    received = [
        int(pq.read_metadata(path).metadata[b"hubmeter.points_received"])
        for path in shards(tmp_path / "data")
    ]
    assert sum(received) == 3
    assert column(tmp_path / "data", "gpu_power_watts") == [1, 2, 3]


@pytest.mark.parametrize("seconds", [-1, 0, -math.inf])
def test_a_deadline_in_the_past_has_no_time_left(seconds: float) -> None:
    """Time left is never negative."""
    assert Deadline.after(seconds).remaining_s() == 0


def test_a_deadline_is_handed_down_and_not_restarted() -> None:
    """It comes nearer while it is passed on."""
    deadline = Deadline.after(10)
    time.sleep(0.01)
    assert 9 < deadline.remaining_s() <= 9.99
    assert Deadline.after(math.inf).remaining_s() == math.inf


def test_the_errors_are_those_that_are_drawn() -> None:
    """The tree in the documentation and the classes are the same."""
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or ""))
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.HubmeterError)
    }

    assert classes == drawn | {"HubmeterError"}
    assert issubclass(errors.SettingsError, ValueError)
    assert issubclass(errors.DecodeError, ValueError)
    assert issubclass(errors.PublishError, OSError)


def test_closing_inside_a_publish_does_not_wait_for_itself() -> None:
    """A signal handler that ends the run may interrupt its publishing."""

    class Impatient(Shelf):
        def publish(self, shards: Any, deadline: Deadline) -> None:
            pipeline.close(soon())
            super().publish(shards, deadline)

    shelf = Impatient()
    pipeline = Pipeline(Settings(), sink=shelf)
    pipeline.close(soon())

    assert len(shelf.shards) == 1


def test_only_the_destination_is_filled_in_not_the_folder_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Braces in the working folder stay, and so does it when the program moves on."""
    (tmp_path / "{date}").mkdir()
    monkeypatch.chdir(tmp_path / "{date}")
    pipeline = Pipeline(load_settings(to="./d"))
    monkeypatch.chdir("/")
    pipeline.close(soon())

    assert len(shards(tmp_path / "{date}" / "d")) == 1
