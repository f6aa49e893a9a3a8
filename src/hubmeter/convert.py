"""
Anything that holds OpenTelemetry metrics to points and tables, in one call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .batch import PointBatch
from .decode.otlp_json import JsonDecoder
from .errors import DecodeError, SettingsError
from .ledger import Points, gather
from .run import begin_run
from .schema import CONFIGS
from .sealing import options_of, tables_of
from .settings import load_settings

if TYPE_CHECKING:
    import pyarrow as pa

    from .decode.sdk_objects import SdkDecoder


def flatten(source: Any, *, config: str = "default", **settings: Any) -> pa.Table:
    """
    Flatten nested OpenTelemetry metrics into one row per instant and GPU.

    Args:
        source: SDK ``MetricsData``; a dict with ``resourceMetrics``; a list of either;
            OTLP/JSON as text or bytes; or the path of a file with one JSON document or
            one per line.
        config: ``default``, or ``points`` for the data points without a column.
        settings: Any setting by name, for example ``run_id`` or ``missing="zero"``.

    Returns:
        A table with exactly the columns of the dataset contract.

    Raises:
        DecodeError: Nothing in *source* is a metric.
        SettingsError: There is no such config.
    """
    if config not in CONFIGS:
        raise SettingsError(f"no config {config!r}: there are {', '.join(CONFIGS)}")
    loaded = load_settings(**settings)
    return tables_of(read_points(source), options_of(begin_run(loaded, 0)))[config]


def read_points(source: Any) -> Points:
    """
    All data points in *source*, see :func:`flatten`.

    Raises:
        DecodeError: There is no usable data point.
    """
    points = gather(_Reader().batches(source))
    if not points.blocks:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in points.skipped.items())
        raise DecodeError(
            "no metric data point found"
            + (f": {reasons}" if reasons else ": the request is empty")
            + ". Expected OTLP/JSON: one document or one per line"
        )
    return points


class _Reader:
    """Keeps its decoders, so that all parts of a source share their layouts."""

    def __init__(self) -> None:
        self._json = JsonDecoder()

    @cached_property
    def _sdk(self) -> SdkDecoder:
        from .decode.sdk_objects import SdkDecoder

        return SdkDecoder()

    def batches(self, source: Any) -> Iterator[PointBatch]:
        match source:
            case Path():
                yield from self._json.decode_text(source.read_bytes())
            case bytes() | bytearray():
                yield from self._json.decode_text(bytes(source))
            case str() if source.lstrip("\ufeff \t\r\n")[:1] in ("{", "["):
                yield from self._json.decode_text(source.lstrip("\ufeff"))
            case str():
                yield from self.batches(Path(source))
            case Mapping():
                yield from self._json.decode_document(source)
            case _ if hasattr(source, "resource_metrics"):
                yield self._sdk.decode(source)
            case Iterable():
                for part in source:
                    yield from self.batches(part)
            case _:
                raise DecodeError(f"cannot read metrics from a {type(source).__name__}")
