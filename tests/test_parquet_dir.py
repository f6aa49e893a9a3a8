"""The local dataset: whole files, a card, and readers that open it."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from hubmeter import HubMetricExporter, open_dataset
from hubmeter.deadline import Deadline
from hubmeter.errors import DecodeError, PublishError
from hubmeter.schema import CONFIGS, DEFAULT
from hubmeter.shard import Shard
from hubmeter.sinks.parquet_dir import ParquetDir
from hubmeter.tables import arrow_schema
from observed import HEAD, Machine, column, leftovers, shards, undisturbed  # noqa: F401

SOON = Deadline.after(3600)


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def publish(folder: Path, *watts: float, run_id: str = "r1", steps: int = 0) -> None:
    """One run with a row for each of *watts*, and one point if there are *steps*."""
    exporter, machine = HubMetricExporter(str(folder), run_id=run_id), Machine()
    if steps:
        machine.meter.create_counter("agent.steps").add(steps)
    for value in watts:
        exporter.export(machine.collect(value))
    exporter.shutdown()


def shard(name: str, size: int = 10) -> Shard:
    """A shard of which the sink needs to know nothing but its bytes."""
    files = {f"data/default/2025-01/{name}.parquet": bytes(size)}
    return Shard(name=name, run_id="r", files=files, rows=1, points=0)


def configs(folder: Path) -> list[str]:
    """The configs that the card names."""
    known = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    return [config["config_name"] for config in known["configs"]]


def test_the_layout_is_config_month_shard(folder: Path) -> None:
    """One file per config, by the month of its first row, and the card."""
    publish(folder, 1, steps=1)

    [row] = open_dataset(folder).to_pylist()
    month = row["timestamp"][:7]
    for config in CONFIGS:
        [path] = shards(folder, config)
        assert path.parent == folder / "data" / config / month
        assert path.name.startswith("r1-")
    assert configs(folder) == ["default", "points"]
    assert leftovers(folder) == []


def test_a_config_without_rows_has_no_file(folder: Path) -> None:
    """`datasets` cannot open a config with empty files only, so it is not named either."""
    publish(folder, 1)
    assert shards(folder, "points") == []
    assert configs(folder) == ["default"]

    publish(folder, 1, steps=1)
    assert configs(folder) == ["default", "points"]


def test_encodings_are_those_of_the_contract(folder: Path) -> None:
    """zstd over all; floats split by byte, what repeats as a dictionary, no null types."""
    publish(folder, *range(100))
    file = pq.ParquetFile(shards(folder)[0])
    group = file.metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}

    assert file.schema_arrow.remove_metadata() == arrow_schema("default")
    assert pa.null() not in file.schema_arrow.types
    assert {one.compression for one in columns.values()} == {"ZSTD"}
    assert "BYTE_STREAM_SPLIT" in columns["gpu_power_watts"].encodings
    assert "BYTE_STREAM_SPLIT" in columns["energy_joules"].encodings
    assert "DELTA_BYTE_ARRAY" in columns["timestamp"].encodings
    for name in ("run_id", "gpu_id", "gpu_memory_total_mib"):
        assert "RLE_DICTIONARY" in columns[name].encodings


def test_metadata_say_how_the_numbers_were_made(folder: Path) -> None:
    """The factors and their origins, the version, and how many points there were."""
    exporter = HubMetricExporter(str(folder), pue=1.5)
    exporter.export(Machine().collect(1))
    exporter.shutdown()
    metadata = pq.read_metadata(shards(folder)[0]).metadata

    assert metadata[b"hubmeter.pue"] == b"1.5"
    assert metadata[b"hubmeter.carbon_source"] == b"default"
    assert metadata[b"hubmeter.points_received"] == b"1"
    assert b"hubmeter.version" in metadata


def test_two_runs_share_a_folder(folder: Path) -> None:
    """The second run touches no file of the first."""
    publish(folder, 1, run_id="a")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards(folder)}
    publish(folder, 2, run_id="b")
    publish(folder, 3, run_id="b")

    assert len(shards(folder)) == 3
    for path, was in before.items():
        assert (path.read_bytes(), path.stat().st_mtime_ns) == was
    assert column(folder, "gpu_power_watts") == [1, 2, 3]


def test_processes_share_a_folder(folder: Path, tmp_path: Path) -> None:
    """Processes that publish at once lose nothing, and the card knows what is there."""
    code = """
for number in range(6):
    exporter = HubMetricExporter("data", run_id="same")
    provider = provider_of(exporter)
    measure(provider, int(sys.argv[1]) + number)
    if number == 5:
        provider.get_meter("t").create_counter("agent.steps").add(1)
    provider.shutdown()
"""
    (tmp_path / "program.py").write_text(HEAD + code)
    processes = [
        subprocess.Popen([sys.executable, "program.py", str(first)]) for first in (0, 100, 200)
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]

    assert len(shards(folder)) == 18
    expected = sorted(first + number for first in (0, 100, 200) for number in range(6))
    assert sorted(column(folder, "gpu_power_watts")) == expected
    assert configs(folder) == ["default", "points"]
    files = len(shards(folder)) + len(shards(folder, "points"))
    assert f"description: {files} files" in (folder / "README.md").read_text()
    assert leftovers(folder) == []


def test_a_reader_never_sees_half_a_file(folder: Path) -> None:
    """While others publish, every file of that name is whole, and so is the card."""
    sink, size = ParquetDir(folder), 200_000
    with ThreadPoolExecutor(2) as pool:
        done = [
            pool.submit(sink.publish, [shard(f"s{number}", size)], SOON) for number in range(30)
        ]
        while not all(one.done() for one in done):
            assert {path.stat().st_size for path in shards(folder)} <= {size}
            if (folder / "README.md").exists():
                assert configs(folder) == ["default"]
    assert [one.exception() for one in done] == [None] * 30
    assert len(shards(folder)) == 30


def test_publishing_again_changes_nothing(folder: Path) -> None:
    """A repetition writes the same bytes under the same names."""
    sink = ParquetDir(folder)
    sink.publish([shard("s")], SOON)
    before = sorted((path, path.read_bytes()) for path in folder.rglob("*") if path.is_file())
    sink.publish([shard("s")], SOON)

    assert sorted((p, p.read_bytes()) for p in folder.rglob("*") if p.is_file()) == before


def test_a_killed_process_leaves_no_half_file(folder: Path, tmp_path: Path) -> None:
    """What SIGKILL interrupts has another name, which no reader looks at."""
    code = """
from pathlib import Path
from hubmeter.deadline import Deadline
from hubmeter.shard import Shard
from hubmeter.sinks.parquet_dir import ParquetDir
for number in range(1000):
    files = {f"data/default/2025-01/{number}.parquet": bytes(1_000_000)}
    shard = Shard(name=str(number), run_id="r", files=files, rows=1, points=0)
    ParquetDir(Path("data")).publish([shard], Deadline.after(30))
"""
    (tmp_path / "program.py").write_text(code)
    process = subprocess.Popen([sys.executable, "program.py"])
    deadline = time.monotonic() + 30
    while len(shards(folder)) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    assert len(shards(folder)) >= 5
    assert {path.stat().st_size for path in shards(folder)} == {1_000_000}
    assert {path.suffix for path in leftovers(folder)} <= {".tmp"}


def test_nothing_is_there_if_one_of_the_files_cannot_be_written(folder: Path) -> None:
    """Files of a shard come together or not at all."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "points").write_text("in the way")
    files = {f"data/{config}/2025-01/s.parquet": b"x" for config in CONFIGS}

    with pytest.raises(PublishError, match=r"^3 rows not written to .*: .*HUBMETER_TO") as error:
        ParquetDir(folder).publish(
            [Shard(name="s", run_id="r", files=files, rows=3, points=1)], SOON
        )

    assert isinstance(error.value.__cause__, OSError)
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["points"]


def test_a_card_that_cannot_be_written_does_not_cost_the_rows(folder: Path) -> None:
    """The error says that the rows are there; the next run writes the card."""
    sink = ParquetDir(folder)
    (folder / "README.md").mkdir(parents=True)
    with pytest.raises(PublishError, match=r"1 rows are in .*, but README\.md"):
        sink.publish([shard("s")], SOON)
    assert len(shards(folder)) == 1

    (folder / "README.md").rmdir()
    sink.publish([shard("t")], SOON)
    assert "2 files" in (folder / "README.md").read_text()


def test_a_card_of_a_person_is_kept(folder: Path) -> None:
    """Text, YAML, other configs and bytes that are no UTF-8 survive every run."""
    folder.mkdir()
    mine = b"---\nlicense: mit # mine\n---\n# My runs\r\nJ\xe9r\xf4me\r\n"
    (folder / "README.md").write_bytes(mine)
    publish(folder, 1)
    publish(folder, 2, steps=1)

    card = (folder / "README.md").read_bytes()
    assert b"license: mit # mine\n" in card
    assert card.endswith(b"\n# My runs\r\nJ\xe9r\xf4me\r\n")
    assert card.count(b"hubmeter:start") == 1


def test_other_files_in_the_folder_do_not_disturb(folder: Path) -> None:
    """What others keep there is neither read nor changed."""
    folder.mkdir()
    (folder / "notes.txt").write_text("notes")
    (folder / "data").mkdir()
    (folder / "data" / "train.parquet").write_bytes(b"not parquet")
    (folder / "data" / "broken").symlink_to("nowhere")
    publish(folder, 1)

    assert column(folder, "gpu_power_watts") == [1]
    assert (folder / "notes.txt").read_text() == "notes"


def test_pandas_polars_and_duckdb_read_it(folder: Path) -> None:
    """The files as they are, with nulls as nulls, by the libraries that people use."""
    pd = pytest.importorskip("pandas")
    pl = pytest.importorskip("polars")
    duckdb = pytest.importorskip("duckdb")
    publish(folder, 1, 2, run_id="a", steps=3)
    publish(folder, 4, run_id="b")
    files = f"{folder}/data/default/*/*.parquet"

    frame = pd.read_parquet(folder / "data" / "default")
    assert sorted(frame["gpu_power_watts"]) == [1, 2, 4]
    assert frame["gpu_fan_speed_percent"].isna().all()
    assert list(frame.columns)[: len(DEFAULT)] == [one.name for one in DEFAULT]
    lazy = pl.scan_parquet(files).group_by("run_id").agg(pl.col("gpu_power_watts").sum())
    assert dict(lazy.collect().iter_rows()) == {"a": 3.0, "b": 4.0}
    query = f"SELECT max(gpu_power_watts), count(gpu_fan_speed_percent) FROM '{files}'"
    assert duckdb.sql(query).fetchall() == [(4.0, 0)]
    points = f"SELECT metric_name, value_int FROM '{folder}/data/points/*/*.parquet'"
    assert set(duckdb.sql(points).fetchall()) == {("agent.steps", 3)}


def test_duckdb_runs_the_query_of_the_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the card tells people to run, runs."""
    duckdb = pytest.importorskip("duckdb")
    publish(folder, 1)
    monkeypatch.chdir(folder)
    query = (folder / "README.md").read_text().split("```sql\n")[1].split("```")[0]

    assert duckdb.sql(query).fetchall() == [("r1", "0", None, 0.0)]


LOADER = """
import json, sys
from datasets import load_dataset
answers = []
for line in sys.stdin:
    folder, *config = json.loads(line)
    rows = load_dataset(folder, *config, split="train")
    features = {name: getattr(one, "dtype", "nested") for name, one in rows.features.items()}
    wanted = "metric_name" if config == ["points"] else "gpu_power_watts"
    splits = str(list(load_dataset(folder, *config)))
    print(json.dumps([rows[wanted][:], features, splits]), flush=True)
"""


class Loader:
    """One process with `datasets`, its own cache and no network, that opens what it is told."""

    def __init__(self, scratch: Path) -> None:
        environment = {
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(scratch),
            "HF_DATASETS_CACHE": str(scratch),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", LOADER],
            env={**os.environ, **environment, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __call__(self, folder: Path, *config: str) -> list[Any]:
        print(json.dumps([str(folder), *config]), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(name="load")
def _load(tmp_path: Path) -> Any:
    loader = Loader(tmp_path / "cache")
    yield loader
    loader.close()


def test_load_dataset_opens_it(folder: Path, load: Loader) -> None:
    """Both configs, by name and by default, with the types of the contract."""
    publish(folder, 1, 2, steps=1)

    watts, features, splits = load(folder)
    assert (watts, splits) == ([1, 2], "['train']")
    assert features == {one.name: one.type for one in DEFAULT}
    assert load(folder, "default")[0] == [1, 2]
    names, features, splits = load(folder, "points")
    assert (names, splits) == (["agent.steps"] * 2, "['train']")
    assert features["value_int"] == "int64"


def test_load_dataset_sees_a_run_that_came_later(folder: Path, load: Loader) -> None:
    """`datasets` caches a local folder under its card, so the card changes with the files."""
    publish(folder, 1)
    assert load(folder)[0] == [1]
    publish(folder, 2)
    assert sorted(load(folder)[0]) == [1, 2]
    publish(folder, 3, steps=1)
    assert sorted(load(folder)[0]) == [1, 2, 3]
    assert load(folder, "points")[0] == ["agent.steps"]


def test_load_dataset_tells_folders_of_one_name_apart(tmp_path: Path, load: Loader) -> None:
    """The cache does not show the rows of another folder."""
    for watts in (1, 2):
        publish(tmp_path / str(watts) / "data", watts)
    assert [load(tmp_path / str(watts) / "data")[0] for watts in (1, 2)] == [[1], [2]]


def test_load_dataset_opens_what_a_person_touched(folder: Path, load: Loader) -> None:
    """Other configs and a default of their own in the card do not make it unreadable."""
    folder.mkdir()
    pq.write_table(pa.table({"gpu_power_watts": [9]}), folder / "other.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: mine\n  data_files: other.parquet\n  default: true\n---\n"
    )
    publish(folder, 1)
    assert load(folder)[0] == [1]
    assert load(folder, "mine")[0] == [9]


def test_load_dataset_opens_a_run_without_any_metric(folder: Path, load: Loader) -> None:
    """A shard whose metrics are all null has its types all the same, before and after others."""
    publish(folder)
    watts, features, _ = load(folder)
    assert watts == [None]
    assert features["gpu_power_watts"] == "float64"
    publish(folder, 1)
    assert sorted(load(folder)[0], key=str) == [1, None]


def test_open_dataset_opens_folders_and_files(folder: Path) -> None:
    """All rows in order of time, or those of one shard."""
    publish(folder, 1, 2, run_id="a")
    publish(folder, 3, run_id="b")

    assert open_dataset(folder)["gpu_power_watts"].to_pylist() == [1, 2, 3]
    assert open_dataset(str(folder)).schema == arrow_schema("default")
    assert sorted(open_dataset(path).num_rows for path in shards(folder)) == [1, 2]


def test_open_dataset_of_a_config_without_rows_is_empty(folder: Path) -> None:
    """There is no file for it, but the dataset is there."""
    publish(folder, 1)

    assert open_dataset(folder, "points") == arrow_schema("points").empty_table()


def test_open_dataset_says_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    """A clear error for what is not there, not a dataset, or not a config."""
    publish(folder, 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("text")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")

    for path in ("nothing", "empty", "text.parquet", "other.parquet"):
        with pytest.raises(DecodeError, match=path):
            open_dataset(tmp_path / path)
    with pytest.raises(DecodeError, match=r"'nothing'.*default, points"):
        open_dataset(folder, "nothing")
