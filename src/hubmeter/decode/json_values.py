"""
Values of OTLP/JSON: names, attributes, times, numbers, distributions, exemplars. Pure.

What is not what OTLP says is a :class:`BadPoint`, never another number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..batch import (
    DEEPEST,
    NO_RECORDED_VALUE,
    TOO_DEEP,
    Distribution,
    Extra,
    Kind,
    Value,
    canonical_json,
    finite,
    writable,
)

BAD_TIME = "a timestamp is not an integer"
BAD_NUMBER = "a value is not a number"
BAD_ID = "an exemplar has a trace or span id that is not one"
SPAN_ID_BYTES, TRACE_ID_BYTES = 8, 16


class BadPoint(ValueError):
    """One data point cannot be used; the message is the reason that is counted."""


def name_of(value: Any) -> str:
    """A name as text that can be stored; empty where it is none."""
    return writable(str(value)) if isinstance(value, str | int | float) else ""


def attributes_of(pairs: list[Any], depth: int = 0) -> dict[str, Any]:
    """A list of OTLP KeyValues; of one key the last counts."""
    objects = (pair for pair in pairs if isinstance(pair, Mapping))
    return {name_of(pair.get("key")): any_value(pair.get("value"), depth) for pair in objects}


def any_value(value: Any, depth: int = 0) -> Any:
    """An OTLP AnyValue; the first of its fields that is not null."""
    if not isinstance(value, Mapping):
        return value
    fields = ((kind, content) for kind, content in value.items() if content is not None)
    match next(fields, None):
        case None:
            found: Any = None
        case _ if depth > DEEPEST:
            found = TOO_DEEP
        case "intValue", str(text):
            found = _or_as_sent(_integer_in, text)
        case "doubleValue", int() | str() as number:
            found = _or_as_sent(_double_in, number)
        case "arrayValue", Mapping() as array:
            found = [any_value(item, depth + 1) for item in _list(array.get("values"))]
        case "kvlistValue", Mapping() as pairs:
            found = attributes_of(_list(pairs.get("values")), depth + 1)
        case _, content:
            found = content
    return found


def _or_as_sent(read: Callable[[Any], int | float], content: Any) -> Any:
    try:
        return read(content)
    except (ValueError, OverflowError):
        return content


# What protobuf reads in JSON. Python also reads "1_000", "inf", white space, digits of any script.
_INTEGER = re.compile(r"[+-]?[0-9]+")
_DOUBLE = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|NaN|-?Infinity")


def _integer_in(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError(BAD_NUMBER)
    return int(text)


def _double_in(value: Any) -> float:
    if isinstance(value, str) and not _DOUBLE.fullmatch(value):
        raise ValueError(BAD_NUMBER)
    return float(value)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def nanos_of(time: Any) -> int:
    """Nanoseconds; 0 where there are none."""
    if time is None or time == "":
        return 0
    if isinstance(time, bool) or not isinstance(time, int | str):
        raise BadPoint(BAD_TIME)
    if isinstance(time, str) and not (time.isdigit() and time.isascii()):
        raise BadPoint(BAD_TIME)
    try:
        nanos = int(time)
    except ValueError:
        raise BadPoint(BAD_TIME) from None
    if not 0 <= nanos < 2**64:
        raise BadPoint(BAD_TIME)
    return nanos


def value_of(point: Mapping[str, Any], kind: Kind) -> Value:
    """What was measured; integers stay integers."""
    if _flags(point) & NO_RECORDED_VALUE:
        return None
    if kind in ("gauge", "sum"):
        double, integer = point.get("asDouble"), point.get("asInt")
        return _number(double) if double is not None else _integer(integer)
    return _distribution(point, kind)


LONGEST_INTEGER = 40
"""Characters; 64 bits need 20, and Python refuses to read some thousands."""


def _number(value: Any) -> float | None:
    """A double; "NaN" and "Infinity" are words in JSON."""
    if value is None or type(value) is float:
        return value
    try:
        if isinstance(value, bool):
            raise BadPoint(BAD_NUMBER)
        return _double_in(value)
    except (TypeError, ValueError, OverflowError):
        raise BadPoint(BAD_NUMBER) from None


def _double(value: Any) -> float:
    """A double that protobuf leaves out where it is 0."""
    number = _number(value)
    return 0.0 if number is None else number


def _integer(value: Any) -> int | float | None:
    if isinstance(value, bool):
        raise BadPoint(BAD_NUMBER)
    if value is None or isinstance(value, int):
        return _in_range(value)
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return _in_range(int(value)) if len(value) < LONGEST_INTEGER else _in_range(2**64)
    return _number(value)


def _in_range(value: int | None) -> int | None:
    if value is not None and not -(2**63) <= value < 2**64:
        raise BadPoint(BAD_NUMBER)
    return value


def _distribution(point: Mapping[str, Any], kind: Kind) -> Distribution:
    """
    What *kind* has. As in protobuf, a count that is not there is 0.

    ``sum``, ``min`` and ``max`` of histograms are optional: not there is not known.
    """
    count = _count(point.get("count")) or 0
    if kind == "summary":
        quantiles = _quantiles(point.get("quantileValues"))
        return Distribution(count=count, sum=_double(point.get("sum")), quantiles=quantiles)
    total = _number(point.get("sum"))
    low, high = finite(_number(point.get("min"))), finite(_number(point.get("max")))
    if kind == "histogram":
        return Distribution(
            count=count,
            sum=total,
            min=low,
            max=high,
            bucket_counts=_counts(point.get("bucketCounts")),
            explicit_bounds=_numbers(point.get("explicitBounds")),
        )
    positive, negative = _buckets(point, "positive"), _buckets(point, "negative")
    return Distribution(
        count=count,
        sum=total,
        min=low,
        max=high,
        scale=_signed(point.get("scale")) or 0,
        zero_count=_count(point.get("zeroCount")) or 0,
        zero_threshold=_double(point.get("zeroThreshold")),
        positive_offset=_signed(positive.get("offset")) or 0,
        positive_bucket_counts=_counts(positive.get("bucketCounts")),
        negative_offset=_signed(negative.get("offset")) or 0,
        negative_bucket_counts=_counts(negative.get("bucketCounts")),
    )


def _buckets(point: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = point.get(key)
    if found is not None and not isinstance(found, Mapping):
        raise BadPoint(BAD_NUMBER)
    return found or {}


def _count(value: Any, limit: int = 2**64) -> int | None:
    count = _whole(value)
    if count is not None and not 0 <= count < limit:
        raise BadPoint(BAD_NUMBER)
    return count


def _signed(value: Any) -> int | None:
    number = _whole(value)
    if number is not None and not -(2**31) <= number < 2**31:
        raise BadPoint(BAD_NUMBER)
    return number


def _whole(value: Any) -> int | None:
    number = _integer(value)
    if isinstance(number, float):
        if not number.is_integer():
            raise BadPoint(BAD_NUMBER)
        return int(number)
    return number


def _counts(values: Any) -> tuple[int, ...] | None:
    return tuple(_count(value) or 0 for value in _items(values)) or None


def _numbers(values: Any) -> tuple[float, ...] | None:
    return tuple(_double(value) for value in _items(values)) or None


def _quantiles(values: Any) -> tuple[tuple[float, float], ...] | None:
    return tuple(
        (_double(pair.get("quantile")), _double(pair.get("value")))
        for pair in _items(values, Mapping)
    ) or None  # fmt: skip


def _items(values: Any, kind: type = object) -> list[Any]:
    """The items of a repeated field, where null is not a value."""
    items = [] if values is None else values
    if not isinstance(items, list) or None in items or not all(isinstance(i, kind) for i in items):
        raise BadPoint(BAD_NUMBER)
    return items


def extra_of(point: Mapping[str, Any]) -> Extra | None:
    """
    Flags and exemplars of *point*, if it has any.

    Raises:
        BadPoint: The flags are no number, or an identifier in an exemplar is not one.
    """
    flags, exemplars = _flags(point), _list(point.get("exemplars"))
    if not flags and not exemplars:
        return None
    return Extra(flags=flags, exemplars=exemplars_json(map(_exemplar, exemplars)))


def exemplars_json(exemplars: Iterable[Any]) -> str | None:
    """The list of *exemplars* as canonical JSON, or None if there are none; one at a time."""
    texts = ",".join(map(canonical_json, exemplars))
    return f"[{texts}]" if texts else None


def _exemplar(exemplar: Any) -> Any:
    """As it was sent, but attributes are a plain object and numbers and ids have one form."""
    if not isinstance(exemplar, Mapping):
        return exemplar
    plain = {
        key: _FORMS[key](value) if key in _FORMS else value
        for key, value in exemplar.items()
        if value not in (None, "")
    }
    return plain | {"filteredAttributes": attributes_of(_list(exemplar.get("filteredAttributes")))}


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) else value


def _double_or_as_sent(value: Any) -> Any:
    return _or_as_sent(_double_in, value) if isinstance(value, int | float | str) else value


def _identifier(size: int) -> Callable[[Any], str]:
    pattern = re.compile(f"[0-9a-fA-F]{{{2 * size}}}")

    def form(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise BadPoint(BAD_ID)
        return value.lower()

    return form


_FORMS: Mapping[str, Callable[[Any], Any]] = {
    "timeUnixNano": _text,
    "asInt": _text,
    "asDouble": _double_or_as_sent,
    "spanId": _identifier(SPAN_ID_BYTES),
    "traceId": _identifier(TRACE_ID_BYTES),
}


def _flags(point: Mapping[str, Any]) -> int:
    return _count(point.get("flags"), 2**32) or 0
