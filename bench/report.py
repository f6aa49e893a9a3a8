"""Results as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """
    One measurement.

    Attributes:
        limit: Highest ratio (if there is a peer) or highest value (if not) that is within budget.
    """

    what: str
    unit: str
    ours: float
    limit: float | None = None
    peer: float | None = None
    peer_name: str = ""

    @property
    def ratio(self) -> float | None:
        return None if self.peer is None else self.ours / self.peer

    @property
    def is_within_budget(self) -> bool:
        judged = self.ours if self.ratio is None else self.ratio
        return self.limit is None or judged <= self.limit


def table(results: Sequence[Result]) -> str:
    lines = ["| what | peer | peer's | ours | ratio | budget | |", "|---|---|--:|--:|--:|--:|---|"]
    lines += [
        f"| {r.what} | {r.peer_name} | {_value(r.peer, r.unit)} | {_value(r.ours, r.unit)} "
        f"| {'' if r.ratio is None else f'{r.ratio:.3f}'} | {_budget(r)} "
        f"| {'' if r.limit is None else 'ok' if r.is_within_budget else 'MISSED'} |"
        for r in results
    ]
    return "\n".join(lines)


def _value(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.4g} {unit}"


def _budget(result: Result) -> str:
    if result.limit is None:
        return ""
    if result.peer is None:
        return f"<= {result.limit:g} {result.unit}"
    return f"<= {result.limit:.3f}"
