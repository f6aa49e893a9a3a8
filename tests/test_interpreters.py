"""The Pythons and huggingface_hub versions that endings are tested on are really there."""

import subprocess
import sys

import pytest

import hubmeter
from interpreters import ARE_REQUIRED, MINORS, OWN_MINOR, environment, found, hub_overlays
from observed import run

IDENTITY = """
import sys, datasets, hubmeter
print("%d.%d" % sys.version_info[:2], hubmeter.__version__)
"""
HUB = """
import datasets, huggingface_hub, huggingface_hub.errors as errors
print(huggingface_hub.__version__, errors.HfHubHTTPError.__mro__[1].__module__.split(".")[0])
"""


def test_there_are_enough_pythons() -> None:
    """One Python says little about endings, which differ in each."""
    pythons = found()
    if len(pythons) < 2 and not ARE_REQUIRED:
        pytest.skip(f"only Python {OWN_MINOR} was found, of {', '.join(MINORS)}")
    assert len(pythons) >= 2, pythons


@pytest.mark.parametrize("minor", found())
def test_hubmeter_is_installed_on_each_python(minor: str) -> None:
    """Each interpreter is of the version that it is listed under, and loads this hubmeter."""
    ended = run([str(environment(minor)), "-c", IDENTITY])
    assert (ended.stdout, ended.stderr) == (f"{minor} {hubmeter.__version__}\n", "")


def test_each_interpreter_that_was_found_runs() -> None:
    """What is found are programs, not names of programs."""
    for minor, python in found().items():
        version = subprocess.check_output([python, "--version"], text=True)
        assert version.startswith(f"Python {minor}.")


def test_both_majors_of_the_hub_client_can_be_chosen() -> None:
    """A program gets the version that the overlay names, and the HTTP client that belongs to it."""
    overlays = hub_overlays()
    if len(overlays) < 2 and not ARE_REQUIRED:
        pytest.skip("no other huggingface_hub: `make pythons` says why")
    answers = [run([sys.executable, "-c", HUB], **chosen).stdout for _, chosen in overlays]
    versions = [version for version, _ in overlays]
    assert answers == [f"{versions[0]} httpx\n", f"{versions[1]} httpx2\n"]
