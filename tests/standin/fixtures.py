"""pytest fixtures around the stand-in driver; import them all into a conftest."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from standin import CompilerMissing, StandIn, compile_standin, loaded

__all__ = ["build_old_standin", "build_standin", "fresh_standin"]


@pytest.fixture(scope="session", name="standin_library")
def build_standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the stand-in driver, built once."""
    return _build(tmp_path_factory.mktemp("standin"), old_driver=False)


@pytest.fixture(scope="session", name="old_standin_library")
def build_old_standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a stand-in for a driver without nvmlDeviceGetTemperatureV."""
    return _build(tmp_path_factory.mktemp("old_standin"), old_driver=True)


@pytest.fixture(name="standin")
def fresh_standin(standin_library: Path) -> Iterator[StandIn]:
    """Two default GPUs, seen by `pynvml` of this process."""
    with loaded(standin_library) as standin:
        yield standin


def _build(folder: Path, *, old_driver: bool) -> Path:
    # Without the official inner name, so that a test after ours still finds
    # the machine's own driver, or none.
    try:
        return compile_standin(folder, old_driver=old_driver, soname=False)
    except CompilerMissing as missing:
        if os.environ.get("STANDIN_IS_REQUIRED"):
            raise
        pytest.skip(f"NOTHING ABOUT REAL NVML CALLS IS TESTED: {missing}")
