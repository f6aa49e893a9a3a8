"""
What must be known about a run to make its shard: now, or after a crash from the journal.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DecodeError
from .settings import Settings, fill_in_date, new_run_id

if TYPE_CHECKING:
    from .energy import Factors


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """
    A run as one process sees it. Plain values only: it is in the header of every journal.

    Attributes:
        run_id: For resources without ``run.id``.
        process_id: Tells the processes of a run apart.
        to: Destination; ``{user}`` and ``{run_id}`` may still be open.
        base: Folder that a relative destination starts from.
        carbon_source: Where the factor came from, likewise *price_source*.
        is_received: A receiver keeps it: its parts end one by one, while the receiver lives on.
    """

    run_id: str
    process_id: str
    started_unix_nano: int
    to: str
    base: str
    private: bool = True
    missing: str = "null"
    points: str = "other"
    carbon_g_per_kwh: float = 475.0
    carbon_source: str = "default"
    price_usd_per_kwh: float = 0.12
    price_source: str = "default"
    pue: float = 1.0
    is_received: bool = False


def factors_of(source: Run | Settings) -> Factors:
    """What a joule costs."""
    from .energy import Factors

    return Factors(
        carbon_g_per_kwh=source.carbon_g_per_kwh,
        price_usd_per_kwh=source.price_usd_per_kwh,
        pue=source.pue,
    )


def begin_run(
    settings: Settings,
    now_unix_nano: int,
    *,
    run_id: str | None = None,
    is_received: bool = False,
) -> Run:
    """A new run of this process under *settings*, which name it if *run_id* does not."""
    return Run(
        run_id=run_id or new_run_id(settings),
        process_id=os.urandom(6).hex(),
        started_unix_nano=now_unix_nano,
        to=fill_in_date(settings.to),
        base=working_folder(),  # the program may change it before it ends
        private=settings.private,
        missing=settings.missing,
        points=settings.points,
        carbon_g_per_kwh=settings.carbon_g_per_kwh,
        carbon_source=settings.origins.get("carbon_g_per_kwh", "default"),
        price_usd_per_kwh=settings.price_usd_per_kwh,
        price_source=settings.origins.get("price_usd_per_kwh", "default"),
        pue=settings.pue,
        is_received=is_received,
    )


def segment_name(run: Run, part: int) -> str:
    """File name of a segment without suffix; names sort by run, process and part."""
    started = datetime.fromtimestamp(run.started_unix_nano // 10**9, timezone.utc)
    return f"{started:%Y%m%dT%H%M%SZ}-{run.process_id}-{part:04d}"


def as_json(run: Run) -> dict[str, Any]:
    """Plain data, for :func:`from_json`."""
    return asdict(run)


def from_json(value: Any) -> Run:
    """
    The run that :func:`as_json` wrote; a newer version's fields are ignored.

    Raises:
        DecodeError: It is something else.
    """
    known = {field.name: field.type for field in fields(Run)}
    if not isinstance(value, Mapping):
        raise DecodeError("no run in the header of the journal")
    found = {name: value[name] for name in known if name in value}
    if wrong := [n for n in found if not _is_a(str(known[n]), found[n])]:
        raise DecodeError(f"the header of the journal has a wrong {', '.join(wrong)}")
    try:
        return Run(**found)
    except TypeError as error:
        raise DecodeError(f"the header of the journal is incomplete: {error}") from error


def _is_a(kind: str, value: Any) -> bool:
    kinds: Mapping[str, tuple[type, ...]] = {
        "str": (str,), "bool": (bool,), "int": (int,), "float": (int, float)
    }  # fmt: skip
    return isinstance(value, kinds[kind])


def working_folder() -> str:
    """Where the process is; empty if somebody removed that folder."""
    try:
        return str(Path.cwd())
    except OSError:
        return ""


def absolute(folder: str, base: str) -> Path:
    """*folder* as seen from *base*, with ``~`` expanded."""
    # Unlike Path.expanduser() this takes the `~` of nobody as it stands.
    return Path(base) / os.path.expanduser(folder)  # noqa: PTH111
