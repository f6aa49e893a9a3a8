import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from reported_counts import *  # noqa: F403
from standin.fixtures import *  # noqa: F403

# What a shell runs in the background, or `nohup` does, ignores these, and so would all programs
# that the tests start.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        is_python_s = _number == signal.SIGINT
        signal.signal(_number, signal.default_int_handler if is_python_s else signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _no_journal_of_the_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fixtures of modules begin before those of tests."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        yield


@pytest.fixture(autouse=True)
def _own_journal(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals, and whatever else the Hub's client keeps, are not those of the machine."""
    home: Path = tmp_path_factory.mktemp("hf")
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.delenv("HF_TOKEN", raising=False)
