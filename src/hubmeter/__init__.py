"""
What your agent's GPUs did, as a flat dataset.

::

    sources                decode          journal, ledger   flattening      sinks
     sdk_exporter (SDK)  ─┐
     gpu_meter (NVML)    ─┼─> PointBatch ─> points ────────> rows, points ─> parquet_dir
     files, dictionaries ─┘                                                  hub_dataset

Importing this package loads nothing heavy: names are imported when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .convert import flatten
    from .dataset import open_dataset
    from .sources.attachment import attach
    from .sources.gpu_meter import gpu_meter_provider, instrument_gpus
    from .sources.sdk_exporter import HubMetricExporter

__all__ = [
    "HubMetricExporter",
    "attach",
    "flatten",
    "gpu_meter_provider",
    "instrument_gpus",
    "open_dataset",
]

_HOMES = {
    "HubMetricExporter": ".sources.sdk_exporter",
    "attach": ".sources.attachment",
    "flatten": ".convert",
    "gpu_meter_provider": ".sources.gpu_meter",
    "instrument_gpus": ".sources.gpu_meter",
    "open_dataset": ".dataset",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from .version import version

        return version()
    if name == "smoltrace":
        return import_module(".smoltrace", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
