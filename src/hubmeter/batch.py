"""
The one type in flight: a batch of data points that share a layout.

What repeats from collection to collection (names, units, attributes) is in the
:class:`SeriesLayout`; what changes (times, values) is in parallel sequences.
Standard library only, no I/O.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["gauge", "sum", "histogram", "exponential_histogram", "summary"]
Temporality: TypeAlias = Literal["delta", "cumulative"]

AttributesJson: TypeAlias = str
"""
Attributes as canonical JSON: keys sorted, no white space.

Equal sets are equal strings, and ``True`` is not ``1``, which plain Python
comparison would mix up.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """
    Identity of one stream of data points (OTLP metrics data model, "Timeseries").

    Attributes:
        resource: Attributes of the resource that reported.
        scope: What else identifies the instrumentation scope: version, schema, attributes.
        attributes: Attributes of the data points.
        temporality: Of sums and histograms; None for gauges and summaries.
        is_monotonic: Of sums; None otherwise.
        run_id: What the sender's envelope called the run (smoltrace), if it did.
    """

    resource: AttributesJson
    scope_name: str
    scope: AttributesJson = "{}"
    metric_name: str
    unit: str
    kind: Kind
    temporality: Temporality | None = None
    is_monotonic: bool | None = None
    attributes: AttributesJson = "{}"
    run_id: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SeriesLayout:
    """
    The series of a batch, in the order of its values. Compared by identity.

    Decoders hand out the same object as long as a source keeps sending the same
    series, so that everything costly happens once per layout.
    """

    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """
    Value of a histogram, exponential histogram or summary data point.

    Fields that the kind does not have, or the sender did not send, are None.
    """

    count: int | None = None
    sum: float | None = None
    min: float | None = None
    max: float | None = None
    bucket_counts: tuple[int, ...] | None = None
    explicit_bounds: tuple[float, ...] | None = None
    scale: int | None = None
    zero_count: int | None = None
    zero_threshold: float | None = None
    positive_offset: int | None = None
    positive_bucket_counts: tuple[int, ...] | None = None
    negative_offset: int | None = None
    negative_bucket_counts: tuple[int, ...] | None = None
    quantiles: tuple[tuple[float, float], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """What few data points carry: flags other than 0, and exemplars as JSON."""

    flags: int = 0
    exemplars: str | None = None


NO_RECORDED_VALUE = 1
"""OTLP DataPointFlags: the point says that it has no value."""

NO_TIME = "a point has no timestamp"
"""Why a point is in no table."""

Value: TypeAlias = int | float | Distribution | None
"""A measured value; None where the sender says that none was recorded."""


class PointBatch(NamedTuple):
    """
    Data points that arrived together: one collection, or one OTLP request.

    Attributes:
        layout: Whose points these are.
        times_unix_nano: One time per point, or a single one that all points share.
        values: One per point.
        start_times_unix_nano: One per point, 0 where unknown; empty if all are.
        extras: Position to what only few points carry.
        skipped: Reason to number of points that were too broken to be decoded.
        kinds: :func:`kinds_of` the types of the values, from a decoder that had to look at them.
    """

    layout: SeriesLayout
    times_unix_nano: Sequence[int]
    values: Sequence[Value]
    start_times_unix_nano: Sequence[int] = ()
    extras: Mapping[int, Extra] = {}
    skipped: Mapping[str, int] = {}
    kinds: bytes | None = None


@lru_cache(maxsize=256)
def kinds_of(types: tuple[type, ...]) -> bytes:
    """1 per integer, 0 per other type of value."""
    return bytes([one is int for one in types])


DEEPEST = 16
"""Levels of nesting in an attribute; deeper than this, nobody means it."""

TOO_DEEP = "(nested too deeply)"
"""Stands where an attribute goes deeper than that."""


def attributes_json(attributes: Mapping[str, Any] | None) -> AttributesJson:
    """Canonical JSON of *attributes*; every OTLP AnyValue kind is representable."""
    return canonical_json(attributes or {})


def canonical_json(value: Any) -> str:
    """Equal values are equal texts: keys sorted, no white space, no lone surrogates."""
    return writable(_encoded(_plain(value)))


# json.dumps() with arguments makes an encoder each time, which takes longer than to encode.
_encoded = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def writable(text: str) -> str:
    """*text* as far as UTF-8, and so Parquet, can say it; the rest as question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def finite(value: float | None) -> float | None:
    """None instead of the infinity that the SDK has where no minimum or maximum was kept."""
    return float(value) if value is not None and math.isfinite(value) else None


def _plain(value: Any, depth: int = 0) -> Any:
    """Follow OTLP/JSON: bytes are base64, non-finite numbers are words."""
    match value:
        case None | bool() | int() | str():
            plain: Any = value
        case float():
            plain = value if math.isfinite(value) else _word(value)
        case bytes():
            plain = base64.b64encode(value).decode()
        case Mapping() | Sequence() if depth > DEEPEST:
            plain = TOO_DEEP
        case Mapping():
            plain = {str(key): _plain(item, depth + 1) for key, item in value.items()}
        case Sequence():
            plain = [_plain(item, depth + 1) for item in value]
        case _:
            plain = str(value)
    return plain


def _word(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
