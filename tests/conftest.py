from pathlib import Path

import pytest

from standin.fixtures import *  # noqa: F403


@pytest.fixture(autouse=True)
def _own_journal(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals, and whatever else the Hub's client keeps, are not those of the machine."""
    home: Path = tmp_path_factory.mktemp("hf")
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.delenv("HF_TOKEN", raising=False)
