"""
Anything that holds OpenTelemetry metrics to points and tables, in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from io import IOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .batch import PointBatch
from .captures.reading import CaptureReader, Source, nobody
from .captures.rotation import captures_in
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
        source: A file, as path, bytes or open binary file: what a Collector's ``file``
            exporter writes in any of its forms, OTLP/JSON, or a protobuf message. A folder of
            such files. SDK ``MetricsData``; a dict with ``resourceMetrics``; OTLP/JSON as
            text. A list of any of these.
        config: ``default``, or ``points`` for the data points without a column.
        settings: Any setting by name, for example ``run_id`` or ``missing="zero"``.

    Returns:
        A table with exactly the columns of the dataset contract.

    Raises:
        DecodeError: Nothing in *source* is a metric.
        SettingsError: There is no such config.
        OSError: A file cannot be read.
    """
    if config not in CONFIGS:
        raise SettingsError(f"no config {config!r}: there are {', '.join(CONFIGS)}")
    loaded = load_settings(**settings)
    return tables_of(read_points(source), options_of(begin_run(loaded, 0)))[config]


def read_points(
    source: Any,
    *,
    watch: Callable[[bytes], object] = nobody,
    say: Callable[[str], object] = lambda _: None,
) -> Points:
    """
    All data points in *source*, see :func:`flatten`.

    Args:
        source: As there.
        watch: Is shown the bytes of files as they are read.
        say: Is told what is no error, but not read either, such as logs.

    Raises:
        DecodeError: There is no usable data point.
        OSError: A file cannot be read.
    """
    reader = _Reader(watch)
    points = gather(reader.batches(source))
    passed_over = [
        f"{count} record{'s'[: count != 1]} of {what}"
        for what, count in reader.captures.passed_over.items()
    ]
    if not points.blocks:
        reasons = [f"{count} x {reason}" for reason, count in points.skipped.items()]
        found = "; ".join(reasons + passed_over)
        if not found:
            raise DecodeError(
                "the input is empty: expected a Collector's file, or OTLP/JSON"
                if reader.is_empty
                else "no metric data point found: the request is empty"
            )
        raise DecodeError(
            f"no metric data point found: {found}. Expected what a Collector's file exporter "
            "writes, or OTLP/JSON: one document or one per line"
        )
    for what in passed_over:
        say(f"passed over {what}")
    return points


class _Reader:
    """Keeps its decoders, so that all parts of a source share their layouts."""

    def __init__(self, watch: Callable[[bytes], object]) -> None:
        self.captures = CaptureReader(watch)
        self.is_empty = True

    @cached_property
    def _sdk(self) -> SdkDecoder:
        from .decode.sdk_objects import SdkDecoder

        return SdkDecoder()

    def batches(self, source: Any) -> Iterator[PointBatch]:
        for batch in self._batches(source):
            self.is_empty = False
            yield batch

    def _batches(self, source: Any) -> Iterator[PointBatch]:
        files = _files(source)
        if files is not None:
            yield from self.captures.read(files)
        elif isinstance(source, Mapping):
            yield from self.captures.decode(source)
        elif hasattr(source, "resource_metrics"):
            yield self._sdk.decode(source)
        elif isinstance(source, Iterable):
            for part in source:
                yield from self._batches(part)
        else:
            raise DecodeError(f"cannot read metrics from a {type(source).__name__}")


def _files(source: Any) -> Sequence[Source] | None:
    """What *source* is as files; None if it is none."""
    found: Sequence[Source] | None = None
    match source:
        case str() if source.lstrip("\ufeff \t\r\n")[:1] in ("{", "["):
            found = [source.encode("utf-8", "surrogatepass")]
        case str():
            found = _files(Path(source))
        case Path() if source.is_dir():
            found = captures_in(source)[0]
        case bytearray():
            found = [bytes(source)]
        case [Path() | IOBase(), *others] if all(isinstance(o, Path | IOBase) for o in others):
            found = source  # a record may go on from one to the next
        case Path() | bytes():
            found = [source]
        case _ if hasattr(source, "read"):
            found = [source]
    return found
