"""
Values of OTLP messages: attributes, numbers, distributions, exemplars. Pure.

The same as :mod:`~hubmeter.decode.json_values` makes of the same request in JSON.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from ..batch import DEEPEST, TOO_DEEP, Distribution, Extra, Kind, finite
from .json_values import BAD_ID, SPAN_ID_BYTES, TRACE_ID_BYTES, BadPoint, exemplars_json

MOST_SHARED_BOUNDS = 1000
"""Longer bounds are nobody's histogram, and not worth keeping."""


def attributes_of(pairs: Iterable[Any], depth: int = 0) -> dict[str, Any]:
    """OTLP KeyValues; of one key the last counts."""
    return {pair.key: any_value(pair.value, depth) for pair in pairs}


def any_value(value: Any, depth: int = 0) -> Any:
    """An OTLP AnyValue; None where it is empty."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if depth > DEEPEST:
        return TOO_DEEP
    content = getattr(value, kind)
    if kind == "array_value":
        return [any_value(item, depth + 1) for item in content.values]
    if kind == "kvlist_value":
        return attributes_of(content.values, depth + 1)
    return content


def number_of(point: Any) -> int | float | None:
    """The number of a NumberDataPoint or an Exemplar; None where it has none."""
    kind = point.WhichOneof("value")
    return None if kind is None else getattr(point, kind)


def distribution_of(point: Any, kind: Kind) -> Distribution:
    """What *kind* has; ``sum``, ``min`` and ``max`` of histograms are optional."""
    if kind == "summary":
        quantiles = tuple((one.quantile, one.value) for one in point.quantile_values)
        return Distribution(count=point.count, sum=point.sum, quantiles=quantiles or None)
    common = {
        "count": point.count,
        "sum": _optional(point, "sum"),
        "min": finite(_optional(point, "min")),
        "max": finite(_optional(point, "max")),
    }
    if kind == "histogram":
        return Distribution(
            **common,
            bucket_counts=tuple(point.bucket_counts) or None,
            explicit_bounds=_bounds(point.explicit_bounds),
        )
    positive, negative = point.positive, point.negative
    return Distribution(
        **common,
        scale=point.scale,
        zero_count=point.zero_count,
        zero_threshold=point.zero_threshold,
        positive_offset=positive.offset,
        positive_bucket_counts=tuple(positive.bucket_counts) or None,
        negative_offset=negative.offset,
        negative_bucket_counts=tuple(negative.bucket_counts) or None,
    )


def _optional(point: Any, name: str) -> float | None:
    return getattr(point, name) if point.HasField(name) else None


def _bounds(bounds: Iterable[float]) -> tuple[float, ...] | None:
    """The same object for the same bounds, which come with every point of a histogram."""
    floats = array("d", bounds)
    return _shared(floats.tobytes()) if len(floats) <= MOST_SHARED_BOUNDS else tuple(floats)


@lru_cache(maxsize=256)
def _shared(floats: bytes) -> tuple[float, ...] | None:
    # By their bytes: 0.0 and -0.0 are equal, but not the same.
    return tuple(array("d", floats)) or None


def extra_of(point: Any) -> Extra | None:
    """
    Flags and exemplars of *point*, if it has any.

    Raises:
        BadPoint: An identifier in an exemplar has a wrong length.
    """
    exemplars = getattr(point, "exemplars", ())  # summaries have none
    if not point.flags and not exemplars:
        return None
    return Extra(flags=point.flags, exemplars=exemplars_json(map(_exemplar, exemplars)))


def _exemplar(exemplar: Any) -> dict[str, Any]:
    """As OTLP/JSON has it, where what is empty is not there."""
    value, time = number_of(exemplar), exemplar.time_unix_nano
    sent = {
        "timeUnixNano": str(time) if time else None,
        "asInt": str(value) if isinstance(value, int) else None,
        "asDouble": value if isinstance(value, float) else None,
        "spanId": _hexadecimal(exemplar.span_id, SPAN_ID_BYTES),
        "traceId": _hexadecimal(exemplar.trace_id, TRACE_ID_BYTES),
    }
    plain = {name: content for name, content in sent.items() if content is not None}
    return plain | {"filteredAttributes": attributes_of(exemplar.filtered_attributes)}


def _hexadecimal(identifier: bytes, size: int) -> str | None:
    if len(identifier) not in (0, size):
        raise BadPoint(BAD_ID)
    return identifier.hex() or None
