"""The metadata at the head of a dataset card."""

from __future__ import annotations

import re
from typing import Any

import yaml

from .repositories import Commit


def front_matter(content: str) -> dict[str, Any]:
    """The YAML at the head of a card, {} without one, ValueError for a broken one."""
    head = re.match(r"\A---\r?\n(.*?)\r?\n---\s*(\r?\n|\Z)", content, re.DOTALL)
    try:
        data = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError as error:
        raise ValueError(f"Invalid YAML: {error}") from None
    if data is not None and not isinstance(data, dict):
        raise ValueError("The metadata must be a mapping")
    return data or {}


def card_data(commit: Commit) -> dict[str, Any]:
    """The metadata of README.md, {} where there is none that can be read."""
    card = commit.blobs.get("README.md")
    try:
        return front_matter(card.data.decode()) if card else {}
    except ValueError:
        return {}
