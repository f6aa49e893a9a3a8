"""
What a run had grown to when a part of it began. Pure, standard library only.

Columns that count since the run began go on from part to part. So flattening hands
on where each sum and each integral of power ended: a few numbers per series and
GPU, never points.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, get_args

from .batch import AttributesJson, Kind, Series, Temporality
from .errors import DecodeError


class SumEnd(NamedTuple):
    """
    The last finite point of a series, and what the series had grown to with it.

    Attributes:
        total: Since the run began, in the sender's unit.
        value: As sent.
        start_unix_nano: Start time of the point, 0 where unknown.
    """

    total: float
    value: float
    start_unix_nano: int
    time_unix_nano: int


class PowerEnd(NamedTuple):
    """
    The last power reading of a GPU whose energy is integrated.

    Attributes:
        joules: Since the run began.
        interval_s: What was typical between two readings so far.
        intervals: How many intervals that was judged by.
    """

    joules: float
    watts: float
    time_unix_nano: int
    interval_s: float = 0.0
    intervals: int = 0


class GpuKey(NamedTuple):
    """What tells the GPUs of a run apart; no *gpu_id*: what is about the run."""

    run_id: str
    resource: AttributesJson
    host_name: str | None
    gpu_id: str | None


@dataclass(frozen=True, slots=True)
class Opening:
    """
    Where a part of a run starts from: the closing of the part before.

    Attributes:
        sums: Every series that had a value and counts since the run began.
        power: GPUs whose energy is integrated from power.
        sent: The cumulative columns that were sent for a GPU, so that they are
            not made up in a part where they are missing.
    """

    sums: Mapping[Series, SumEnd]
    power: Mapping[GpuKey, PowerEnd]
    sent: Mapping[GpuKey, frozenset[str]] = field(default_factory=dict)


START = Opening({}, {})
"""A run that begins."""

_NOT_FINITE = ("inf", "-inf", "nan")


def as_json(opening: Opening) -> Any:
    """*opening* as what JSON can say, to the last bit."""
    return {
        "sums": [[asdict(one), *map(_plain, end)] for one, end in opening.sums.items()],
        "power": [[list(gpu), *map(_plain, end)] for gpu, end in opening.power.items()],
        "sent": [[list(gpu), sorted(columns)] for gpu, columns in opening.sent.items()],
    }


def from_json(value: Any) -> Opening:
    """
    The opening that :func:`as_json` gave as *value*.

    Raises:
        DecodeError: It did not.
    """
    try:
        return Opening(
            {_series(one): _sum_end(*end) for one, *end in _list(value["sums"])},
            {_gpu(*_list(gpu)): _power_end(*end) for gpu, *end in _list(value["power"])},
            {_gpu(*_list(gpu)): _texts(columns) for gpu, columns in _list(value["sent"])},
        )
    except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise DecodeError(f"the totals of a run cannot be read: {error!r}") from error


def _plain(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)


def _series(value: Any) -> Series:
    series = Series(**value)
    for attributes in (series.resource, series.scope, series.attributes):
        _expect(isinstance(json.loads(attributes), dict), attributes)
    for text in (series.scope_name, series.metric_name, series.unit):
        _text(text)
    _expect(series.run_id is None or isinstance(series.run_id, str), series.run_id)
    _expect(series.kind in get_args(Kind), series.kind)
    _expect(series.temporality in (None, *get_args(Temporality)), series.temporality)
    _expect(series.is_monotonic is None or isinstance(series.is_monotonic, bool), series)
    return series


def _sum_end(total: Any, value: Any, start: Any, time: Any) -> SumEnd:
    return SumEnd(_number(total), _number(value), _integer(start), _integer(time))


def _power_end(joules: Any, watts: Any, time: Any, interval: Any, intervals: Any) -> PowerEnd:
    return PowerEnd(
        _number(joules), _number(watts), _integer(time), _number(interval), _integer(intervals)
    )


def _gpu(run_id: Any, resource: Any, host_name: Any, gpu_id: Any) -> GpuKey:
    _expect(isinstance(json.loads(resource), dict), resource)
    host, gpu = (None if one is None else _text(one) for one in (host_name, gpu_id))
    return GpuKey(_text(run_id), resource, host, gpu)


def _texts(value: Any) -> frozenset[str]:
    return frozenset(map(_text, _list(value)))


def _list(value: Any) -> list[Any]:
    _expect(isinstance(value, list), value)
    return list(value)


def _text(value: Any) -> str:
    _expect(isinstance(value, str), value)
    return str(value)


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    _expect(is_number or value in _NOT_FINITE, value)
    return float(value)


def _integer(value: Any) -> int:
    """What OTLP's fixed64 can hold: times do."""
    _expect(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64, value)
    return int(value)


def _expect(is_right: bool, value: Any) -> None:
    if not is_right:
        raise TypeError(f"unexpected {value!r}")
