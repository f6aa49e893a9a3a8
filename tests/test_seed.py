"""What is written for today's datasets and dashboards reads ours, unchanged."""

import json
import os
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from hubmeter.schema import SEED_COLUMNS, SEED_METRICS
from hubmeter.smoltrace import flatten_metrics_for_hf
from seedlike import ABOVE_80, COLLECTIONS, GPU_NAME, RUN_ID, SeedRun, publish, seed_run

pd = pytest.importorskip("pandas")

RUN = seed_run()
UTILIZATION = RUN.readings["gen_ai.gpu.utilization"]

LOADER = """
import pickle, sys
from datasets import load_dataset
folder, answer = sys.argv[1:]
with open(answer, "wb") as file:
    pickle.dump(load_dataset(folder, split="train").to_pandas(), file)
"""


def load_as_users_do(folder: Path, scratch: Path) -> Any:
    """The data frame that `datasets` makes of *folder*, without a network or a warm cache."""
    answer = scratch / "frame.pickle"
    environment = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(scratch / "cache")}
    subprocess.run(
        [sys.executable, "-c", LOADER, str(folder), str(answer)],
        env={**os.environ, **environment},
        check=True,
        timeout=120,
    )
    return pickle.loads(answer.read_bytes())


@pytest.fixture(scope="module", name="loaded_frame")
def _loaded_frame(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("seed")
    publish(RUN.nested(), folder / "dataset", missing="zero")
    return load_as_users_do(folder / "dataset", folder)


@pytest.fixture(name="df")
def _df(loaded_frame: Any) -> Any:
    """The frame with real times, as the queries begin."""
    df = loaded_frame.copy()
    df["timestamp"] = pd.to_datetime(df["timestamp"])
    return df


def test_the_made_run_is_the_known_one() -> None:
    """The generator keeps the characteristics of the run of 2025-10-27."""
    assert len(RUN.times) == 917
    assert RUN.times[0] == 1761544695460017300
    assert round((RUN.times[-1] - RUN.times[0]) / 1e9) == 9177
    assert round(100 * ABOVE_80 / COLLECTIONS, 1) == 84.2


# -- the five questions


def test_maximum_temperature(df: Any) -> None:
    """The hottest sample is the one that was put there."""
    assert df["gpu_temperature_celsius"].max() == 96


def test_mean_utilization(df: Any) -> None:
    """The mean over all samples is the mean of what was measured."""
    assert df["gpu_utilization_percent"].mean() == 73686 / 917


def test_total_emissions(df: Any) -> None:
    """The largest value of the counter is the total of the run, to the last bit."""
    assert df["co2_emissions_gco2e"].max() == RUN.readings["gen_ai.co2.emissions"][-1]
    assert f"{df['co2_emissions_gco2e'].max():.3f}" == "175.744"


def test_mean_utilization_of_the_first_minute(df: Any) -> None:
    """Six samples are within 60 s of the first, and no other."""
    first_minute = df[df["timestamp"] < df["timestamp"].min() + pd.Timedelta(minutes=1)]
    assert len(first_minute) == 6
    assert first_minute["gpu_utilization_percent"].mean() == fmean(UTILIZATION[:6]) == 70


def test_share_of_high_utilization(df: Any) -> None:
    """Exactly 80 % is not above 80 %."""
    high = df[df["gpu_utilization_percent"] > 80]
    assert len(high) == 772
    assert f"{len(high) / len(df) * 100:.1f}" == "84.2"


# -- the frame


def test_every_sample_is_a_row_with_its_values(df: Any) -> None:
    """917 rows in order, each number as it was sent."""
    assert df["timestamp_unix_nano"].astype("uint64").tolist() == RUN.times
    for column, name in zip(SEED_METRICS, _names_in_column_order(), strict=True):
        assert df[column].tolist() == RUN.readings[name]


def _names_in_column_order() -> list[str]:
    """Names of the metrics behind the seven columns, in the order of the columns."""
    gauges = ["utilization", "memory.used", "memory.total", "temperature", "power"]
    return ["gen_ai.co2.emissions", "gen_ai.power.cost", *(f"gen_ai.gpu.{g}" for g in gauges)]


def test_the_first_thirteen_columns_have_the_known_names_and_types(loaded_frame: Any) -> None:
    """Names, order and types are what dashboards expect; the seven metrics are float64."""
    assert tuple(loaded_frame.columns[:13]) == SEED_COLUMNS
    for column in SEED_COLUMNS:
        is_number = loaded_frame[column].dtype == "float64"
        assert is_number == (column in SEED_METRICS), column
        assert is_number or isinstance(loaded_frame[column].iloc[0], str)
    assert set(loaded_frame["run_id"]) == {RUN_ID}
    assert set(loaded_frame["gpu_id"]) == {"0"}
    assert set(loaded_frame["gpu_name"]) == {GPU_NAME}


def test_times_are_utc_to_the_microsecond(loaded_frame: Any, df: Any) -> None:
    """One format throughout, which pandas reads as UTC whatever the machine's zone."""
    assert loaded_frame["timestamp"].iloc[0] == "2025-10-27T05:58:15.460017+00:00"
    assert set(loaded_frame["timestamp"].str.len()) == {32}
    assert str(df["timestamp"].dt.tz) == "UTC"
    assert df["timestamp"].is_monotonic_increasing


def test_a_sample_on_the_whole_second_is_readable_too(tmp_path: Path) -> None:
    """pandas wants one format, so the fraction stays where it is zero."""
    run = SeedRun(
        times=[1_761_544_695_000_000_000, 1_761_544_705_000_000_001],
        readings={"gen_ai.gpu.power": [1.0, 2.0]},
    )
    publish(run.nested(), tmp_path / "dataset")
    frame = load_as_users_do(tmp_path / "dataset", tmp_path)
    assert pd.to_datetime(frame["timestamp"]).dt.microsecond.tolist() == [0, 0]


def test_an_old_nested_dataset_flattens_to_the_same_rows(tmp_path: Path, df: Any) -> None:
    """What smoltrace once published, one row of nested data, has nulls in every gap."""
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "old.parquet"
    datasets.Dataset.from_list([RUN.nested()]).to_parquet(path)
    [old] = datasets.Dataset.from_parquet(str(path), cache_dir=tmp_path / "cache").to_list()
    flat = pd.DataFrame(flatten_metrics_for_hf(old))
    flat["timestamp"] = pd.to_datetime(flat["timestamp"])
    assert flat.to_dict("records") == df[list(SEED_COLUMNS)].to_dict("records")


# -- dashboards


@pytest.mark.parametrize(
    "column", ["gpu_utilization_percent", "gpu_temperature_celsius", "gpu_power_watts"]
)
def test_plotly_draws_a_line(df: Any, column: str) -> None:
    """Each sample is a point of the line."""
    px = pytest.importorskip("plotly.express")
    fig = px.line(df, x="timestamp", y=column, title="Over time")
    [line] = fig.data
    assert len(line.x) == COLLECTIONS
    assert list(line.y) == df[column].tolist()


def test_plotly_draws_a_heatmap(df: Any) -> None:
    """Temperature against utilisation, straight from the frame."""
    px = pytest.importorskip("plotly.express")
    fig = px.density_heatmap(df, x="gpu_temperature_celsius", y="gpu_utilization_percent")
    assert len(fig.data[0].x) == COLLECTIONS


GRADIO_DASHBOARD = """
import pickle, sys
import gradio as gr
import plotly.express as px

with open(sys.argv[1], "rb") as file:
    df = pickle.load(file)
fig = px.line(df, x="timestamp", y="gpu_utilization_percent")
with gr.Blocks() as dashboard:
    gr.Plot(fig)
    line_plot = gr.LinePlot(df, x="timestamp", y="gpu_utilization_percent")
interface = gr.Interface(fn=lambda: fig, inputs=None, outputs=gr.Plot())
print(len(line_plot.value["data"]), interface.fn() is fig)
"""


def test_gradio_shows_it(df: Any, tmp_path: Path) -> None:
    """A plot in Blocks, a LinePlot of the frame itself, and a function that returns a figure."""
    pytest.importorskip("plotly")
    if find_spec("gradio") is None:
        pytest.skip("gradio is not installed")
    frame = tmp_path / "frame.pickle"
    frame.write_bytes(pickle.dumps(df))
    # In a process of its own, as Gradio leaves an event loop behind.
    built = subprocess.run(
        [sys.executable, "-c", GRADIO_DASHBOARD, str(frame)],
        env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"},
        check=True,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert built.stdout.split() == ["917", "True"]


# -- TraceMind


CARDS = (
    "gpu_utilization_percent",
    "gpu_memory_used_mib",
    "gpu_temperature_celsius",
    "co2_emissions_gco2e",
    "gpu_power_watts",
    "gpu_memory_total_mib",
)


def test_the_cards_show_the_last_row(df: Any) -> None:
    """Cards compare the last row with zero and print one decimal."""
    last = df.sort_values("timestamp").iloc[-1]
    assert all(last[column] > 0 for column in CARDS)
    assert f"{last['gpu_memory_total_mib']:.1f}" == "6144.0"


def test_the_cards_survive_what_was_never_measured(tmp_path: Path) -> None:
    """A column without a single value is a float column of nulls, which compares."""
    run = SeedRun(times=[10**18], readings={"gen_ai.gpu.utilization": [7.0]})
    publish(run.nested(), tmp_path / "dataset")
    last = load_as_users_do(tmp_path / "dataset", tmp_path).iloc[-1]
    assert last["gpu_utilization_percent"] > 0
    assert not last["gpu_temperature_celsius"] > 0
    assert f"{last['gpu_power_watts']:.1f}" == "nan"


def test_the_cards_never_show_a_row_without_a_gpu(tmp_path: Path) -> None:
    """Where several GPUs share an instant with a reading of none, that one sorts first."""
    nested = SeedRun(times=[10**18], readings={"gen_ai.gpu.utilization": [7.0]}).nested()
    [metric] = nested["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
    [point] = metric["gauge"]["dataPoints"]
    second = [{"key": "gpu_id", "value": {"stringValue": "1"}}]
    metric["gauge"]["dataPoints"] = [
        point,
        {**point, "attributes": second},
        {**point, "attributes": []},
    ]
    publish(nested, tmp_path / "dataset", missing="zero")
    frame = load_as_users_do(tmp_path / "dataset", tmp_path)
    assert frame["gpu_id"].isna().tolist() == [True, False, False]
    assert frame.sort_values("timestamp", kind="stable").iloc[-1]["gpu_id"] == "1"


def test_the_newest_rows_become_json_without_help(loaded_frame: Any) -> None:
    """The newest 200 rows are plain JSON, the thirteen columns strictly so."""
    newest = loaded_frame.sort_values("timestamp", ascending=False).head(200)
    assert len(json.loads(json.dumps(newest.to_dict("records")))) == 200
    strict = json.dumps(newest[list(SEED_COLUMNS)].to_dict("records"), allow_nan=False)
    assert json.loads(strict)[0]["timestamp_unix_nano"] == str(RUN.times[-1])
