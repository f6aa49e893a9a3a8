"""
Every error that this package raises on purpose.

::

    HubmeterError
    ├── SettingsError           the caller's configuration is wrong
    ├── DecodeError             the sender's data is wrong
    ├── NvmlError               the GPU driver is missing or refused
    └── PublishError            the destination refused; the rows are still in memory

Each message says what failed, why, and what to do next.
"""

from __future__ import annotations


class HubmeterError(Exception):
    """Base of all errors of this package."""


class SettingsError(HubmeterError, ValueError):
    """A setting or an argument has a value that cannot be used."""


class DecodeError(HubmeterError, ValueError):
    """Input that holds no usable OpenTelemetry metrics at all."""


class NvmlError(HubmeterError, RuntimeError):
    """NVML cannot be used on this machine: no library, no driver, no rights."""


class PublishError(HubmeterError, OSError):
    """
    A shard did not reach its destination.

    The rows stay readable through ``HubMetricExporter.table()``.
    """
