"""What a destination means: the Hub or a folder, and whose."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmeter.destinations import Folder, HubRepo, destination_of, sink_of
from hubmeter.settings import load_settings
from hubmeter.sinks.hub_dataset import HubDataset
from hubmeter.sinks.parquet_dir import ParquetDir
from observed import undisturbed  # noqa: F401


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("me/runs", "me/runs"),
        ("me-2/run_metrics.v1", "me-2/run_metrics.v1"),
        ("{user}/runs", "{user}/runs"),
        ("{user}/smoltrace-metrics-20260101_000000", "{user}/smoltrace-metrics-20260101_000000"),
        ("me/of-{user}", "me/of-{user}"),
        ("hf://datasets/me/runs", "me/runs"),
        ("hf://datasets/me/runs/", "me/runs"),
        ("hf://datasets/{user}/runs", "{user}/runs"),
        ("me/{run_id}", "me/r1"),
        ("hf://datasets/me/{run_id}", "me/r1"),
    ],
)
def test_names_of_repositories(to: str, name: str, tmp_path: Path) -> None:
    """`user/repo` and addresses, with what they may leave open."""
    assert destination_of(to, "r1", str(tmp_path)) == HubRepo(name)
    assert str(HubRepo(name)) == f"hf://datasets/{name}"


@pytest.mark.parametrize(
    "to",
    [".", "..", "data", "./me/runs", "../me/runs", "me/runs/2", "me/runs/", "a b/c", ".hidden/x",
     "me/.hidden", "me//runs", "~no-one/x", "me/ru ns", "{date}/x", "me/{run_id}/x", "me\\runs"],
)  # fmt: skip
def test_names_of_folders(to: str, tmp_path: Path) -> None:
    """Everything else is a folder, as seen from where the run began."""
    found = destination_of(to, "r1", str(tmp_path))
    assert isinstance(found, Folder)
    assert found.path.is_relative_to(tmp_path)


def test_absolute_folders_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a run began; and `~` is the home of whoever runs it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert destination_of("/data", "r1", str(tmp_path)) == Folder(Path("/data"))
    assert destination_of("~/data", "r1", "/elsewhere") == Folder(tmp_path / "data")


def test_a_folder_that_exists_is_meant(tmp_path: Path) -> None:
    """A file of that name is not; an address is the Hub whatever there is."""
    (tmp_path / "me/runs").mkdir(parents=True)
    (tmp_path / "me/file").write_text("x")
    assert destination_of("me/runs", base=str(tmp_path)) == Folder(tmp_path / "me/runs")
    assert destination_of("hf://datasets/me/runs", base=str(tmp_path)) == HubRepo("me/runs")
    assert destination_of("me/file", base=str(tmp_path)) == HubRepo("me/file")


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_a_run_cannot_lead_out_of_its_destination(run_id: str) -> None:
    """Whatever an agent calls its run, it stays below the folder, or one name on the Hub."""
    folder = destination_of("./data/{run_id}", run_id, "/base")
    assert isinstance(folder, Folder)
    assert folder.path.parent == Path("/base/data")
    assert folder.path.name not in ("", ".", "..")
    repo = destination_of("me/x-{run_id}", run_id, "/base")
    assert isinstance(repo, HubRepo)
    assert repo.name.count("/") == 1
    assert set(repo.name) <= set(string.ascii_letters + string.digits + "/-_.")


def test_sinks_are_those_of_the_destination(tmp_path: Path) -> None:
    """And say in messages where they publish."""
    assert isinstance(sink_of(HubRepo("me/x")), HubDataset)
    assert isinstance(sink_of(Folder(tmp_path)), ParquetDir)
    for one in (HubRepo("me/x"), Folder(tmp_path)):
        assert str(sink_of(one)) == str(one)


@pytest.mark.parametrize("to", ["s3://b/x", "hf://models/me/x", "hf://datasets/x", "a\0b"])
def test_what_is_no_destination_is_a_problem(to: str) -> None:
    """Settings fall back to the default and say so."""
    settings = load_settings(to=to)
    assert settings.to == "./hubmeter-data"
    assert len(settings.problems) == 1
