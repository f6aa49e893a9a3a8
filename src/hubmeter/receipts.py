"""
What was published from a journal, and where to: one small file each, the newest are kept.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .shard import Shard
from .whole_files import write_whole

log = logging.getLogger(__name__)

FOLDER = "done"
MOST_RECEIPTS, SLACK = 200, 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """
    A published segment. ``received`` = ``published`` + the sum of ``rejected``.

    Attributes:
        name: Of the segment.
        rejected: Reason to number of data points.
    """

    name: str
    run_id: str
    destination: str
    published_unix_nano: int
    rows: int = 0
    received: int = 0
    published: int = 0
    rejected: Mapping[str, int]


def receipt_of(name: str, shard: Shard, destination: str, now_unix_nano: int) -> Receipt:
    """The receipt for *shard*, which was made of segment *name*."""
    return Receipt(
        name=name,
        run_id=shard.run_id,
        destination=destination,
        published_unix_nano=now_unix_nano,
        rows=shard.rows,
        received=shard.received,
        published=shard.published,
        rejected=shard.rejected,
    )


def write_receipt(folder: Path, receipt: Receipt) -> None:
    """Note *receipt* in the journal directory *folder*. What is published stays so without it."""
    path = folder / FOLDER / f"{receipt.name}.json"
    try:
        write_whole({path: json.dumps(asdict(receipt)).encode()}, mode=0o600)
        if len(os.listdir(path.parent)) > MOST_RECEIPTS + SLACK:  # noqa: PTH208 - for each shard
            found = path.parent.glob("*.json")  # by time: what began early may be published late
            for old in sorted(found, key=lambda one: one.stat().st_mtime_ns)[:-MOST_RECEIPTS]:
                old.unlink(missing_ok=True)
    except OSError as error:
        log.debug("hubmeter: no receipt for %s: %s", receipt.name, error)


def read_receipts(folder: Path) -> list[Receipt]:
    """All receipts in the journal directory *folder*, the oldest first, without broken ones."""
    found = (_read(path) for path in (folder / FOLDER).glob("*.json"))
    receipts = [receipt for receipt in found if receipt is not None]
    return sorted(receipts, key=lambda receipt: (receipt.published_unix_nano, receipt.name))


def receipt_text(receipt: Receipt) -> str:
    """One line, whose numbers add up."""
    reasons = "; ".join(f"{n} x {why}" for why, n in receipt.rejected.items())
    return (
        f"run {receipt.run_id}: {receipt.rows} rows in {receipt.destination}; {receipt.received} "
        f"points received = {receipt.published} published + {sum(receipt.rejected.values())} "
        f"rejected" + (f" ({reasons})" if reasons else "")
    )


def _read(path: Path) -> Receipt | None:
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
        receipt = Receipt(**{field.name: value[field.name] for field in fields(Receipt)})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return receipt if _is_sound(receipt) else None


def _is_sound(receipt: Receipt) -> bool:
    texts = (receipt.name, receipt.run_id, receipt.destination)
    if not isinstance(receipt.rejected, dict) or not all(isinstance(t, str) for t in texts):
        return False
    rejected = receipt.rejected.values()
    counts = (receipt.rows, receipt.received, receipt.published, receipt.published_unix_nano)
    return all(isinstance(count, int) for count in (*counts, *rejected))
