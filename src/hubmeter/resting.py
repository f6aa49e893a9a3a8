"""
Where a run is noted that has ended and may come back: to this receiver, or to the next one.

Each is a small journal without points. It says how the run goes on: its next part, and the
last batches, should they be sent again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from .journal import JOURNAL
from .receipts import FOLDER as DONE
from .routing import RunKey

FOLDER = "resting"


def resting_path(folder: Path, key: RunKey) -> Path:
    """Of the run *key*, in the journal directory *folder*."""
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    return folder / FOLDER / f"{name}{JOURNAL}"


def is_taken(folder: Path, name: str) -> bool:
    """Whether there is a segment *name* already: a receiver was killed as it began that."""
    return (folder / f"{name}{JOURNAL}").exists() or (folder / DONE / f"{name}.json").exists()
