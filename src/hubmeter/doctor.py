"""
Is everything in place on this machine? One finding per question, each with what to do.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from shlex import quote
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from .deadline import Deadline
from .destinations import Folder, HubRepo, destination_of
from .errors import NvmlError, PublishError, SettingsError
from .gpu_selection import select_gpus
from .nvml import GpuDevice, Nvml, Reading, open_nvml
from .receipts import read_receipts, receipt_text
from .run import absolute
from .settings import SETTINGS, Settings, fill_in_date
from .waiting import waiting_text

if TYPE_CHECKING:
    from .hub import Account, RepoState

State: TypeAlias = Literal["ok", "warning", "error"]

PACKAGES = (
    "hubmeter",
    "opentelemetry-sdk",
    "nvidia-ml-py",
    "pyarrow",
    "datasets",
    "huggingface-hub",
)
ENOUGH_BYTES = 100 * 2**20
READINGS_TIMED = 20
SLOW_READING_S = 0.05
HUB_ANSWERS_WITHIN_S = 5.0
RECEIPTS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """
    Answer to one question.

    Attributes:
        advice: What to do, where the state is not ok.
    """

    subject: str
    state: State
    text: str
    advice: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at this machine, one finding after the other."""
    yield from _software()
    yield from _gpus(settings)
    yield destination_finding(settings)
    yield from _journal(settings)
    yield _clock()
    yield from _settings(settings)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Plain data with ``schema_version``, for machines."""
    return {"schema_version": 1, "findings": [asdict(finding) for finding in findings]}


def _software() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()}, {platform.system()}")
    yield from map(_package, PACKAGES)
    if entry_points(group="opentelemetry_metrics_exporter", name="hubmeter"):
        yield Finding("exporter", "ok", "OTEL_METRICS_EXPORTER=hubmeter will be found")
    else:
        advice = "install hubmeter with pip into this environment"
        yield Finding("exporter", "error", "the entry point is not visible", advice)


def _package(name: str) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        return Finding(name, "error", "not installed", f"pip install {name}")


def _gpus(settings: Settings) -> Iterator[Finding]:
    try:
        nvml = open_nvml()
    except NvmlError as error:
        yield Finding("gpu", "warning", str(error), "runs are recorded without GPU rows until then")
        return
    with nvml:
        chosen: Sequence[GpuDevice] = ()
        try:
            chosen = select_gpus(settings.gpus, nvml.devices, settings.cuda_visible_devices)
        except SettingsError as error:
            yield Finding("gpu", "error", str(error), "correct HUBMETER_GPUS")
        for device in nvml.devices:
            yield _gpu(nvml, device, is_chosen=device in chosen)


def _gpu(nvml: Nvml, device: GpuDevice, *, is_chosen: bool) -> Finding:
    subject = f"gpu {device.index}"
    seconds: list[float] = []
    reading = None
    for _ in range(READINGS_TIMED):
        started = time.perf_counter()
        reading = nvml.read(device, time.monotonic_ns())
        seconds.append(time.perf_counter() - started)
    if reading is None:
        advice = "nvidia-smi -q shows why; a container may need a restart"
        return Finding(subject, "error", f"{device.name}: lost", advice)
    missing = [field.name for field in fields(Reading) if getattr(reading, field.name) is None]
    text = f"{device.name}, {device.uuid}, {median(seconds) * 1e6:.0f} µs per reading"
    text += "" if is_chosen else ", not selected"
    text += f", not offered: {', '.join(missing)}" if missing else ""
    if median(seconds) > SLOW_READING_S:
        return Finding(subject, "warning", text, "slow driver: raise HUBMETER_SAMPLE_INTERVAL")
    return Finding(subject, "ok", text)


def destination_finding(settings: Settings) -> Finding:
    """Whether runs can be published to where they shall go."""
    destination = destination_of(fill_in_date(settings.to), settings.run_id or "run")
    match destination:
        case HubRepo():
            return _hub(destination, is_private=settings.private)
        case Folder(path):
            advice = "set HUBMETER_TO to a folder with room that you may write"
            return _writable("destination", path, advice)


def _hub(repo: HubRepo, *, is_private: bool) -> Finding:
    """What the Hub says about *repo*, without writing anything."""
    from .hub import Repository, account

    deadline = Deadline.after(HUB_ANSWERS_WITHIN_S)
    try:
        owner = account(deadline, subject=repo.name)
        repo = HubRepo(repo.name.replace("{user}", owner.name))
        state = Repository(repo.name).state_if_any(deadline)
    except PublishError as error:
        advice = "until then runs stay in the journal; publish them with: hubmeter recover"
        return Finding("destination", "error", str(error), advice)
    return _verdict(repo, owner, state, is_private=is_private)


def _verdict(
    repo: HubRepo, account: Account, state: RepoState | None, *, is_private: bool
) -> Finding:
    """Whether a run under *account* can be published to *repo*, which has no *state* if new."""
    text = f"{repo}, as {account.name}"
    namespace = repo.name.partition("/")[0]
    if account.role == "read":
        advice = "use one with write access (https://huggingface.co/settings/tokens)"
        return Finding("destination", "error", f"{text}: the token may only read", advice)
    if state and is_private and not state.is_private:
        advice = "set HUBMETER_PRIVATE=0 to publish there, or name another repository"
        return Finding("destination", "error", f"{text}: the repository is public", advice)
    if not state:
        text += f", will be made, {'private' if is_private else 'public'}"
    if account.role != "write":
        text += "; unknown whether this kind of token may write there"
    if not account.has(namespace):
        text += f"; {namespace} is neither this user nor one of its organizations"
        advice = "check the name, and that the token may write there"
        return Finding("destination", "warning", text, advice)
    return Finding("destination", "ok", text)


def _writable(subject: str, folder: Path, advice: str) -> Finding:
    existing = next(p for p in (folder, *folder.parents) if os.path.exists(p))  # noqa: PTH110
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Finding(subject, "error", f"{folder} cannot be written", advice)
    free = shutil.disk_usage(existing).free
    text = f"{folder}, {free / 2**30:.1f} GiB free"
    if free < ENOUGH_BYTES:
        return Finding(subject, "warning", text, advice)
    return Finding(subject, "ok", text)


def _journal(settings: Settings) -> Iterator[Finding]:
    """The journal directory, what waits in it, and what became of the runs before."""
    if not settings.journal_dir:
        advice = "a killed run is lost: unset HUBMETER_JOURNAL_DIR"
        yield Finding("journal", "warning", "off, points are in memory only", advice)
        return
    folder = absolute(settings.journal_dir, "")
    yield _writable("journal", folder, "set HUBMETER_JOURNAL_DIR to a folder that you may write")
    if waits := waiting_text(folder):
        yield Finding("journal", "warning", waits, f"hubmeter recover {quote(str(folder))}")
    for receipt in read_receipts(folder)[-RECEIPTS_SHOWN:]:
        yield Finding("published", "ok", receipt_text(receipt))


def _clock() -> Finding:
    now = datetime.now(timezone.utc)
    text = f"{now:%Y-%m-%d %H:%M:%S} UTC; local zone {time.strftime('%Z')}, rows are always UTC"
    if now.year < 2025:
        return Finding("clock", "error", text, "set the clock of this machine")
    return Finding("clock", "ok", text)


def _settings(settings: Settings) -> Iterator[Finding]:
    for problem in settings.problems:
        yield Finding("settings", "warning", problem, "correct or unset it")
    for setting in SETTINGS:
        value = getattr(settings, setting.name)
        shown = "not set" if value is None else value
        origin = settings.origins.get(setting.name, "default")
        yield Finding(setting.variable, "ok", f"{shown} ({origin}) - {setting.meaning}")
