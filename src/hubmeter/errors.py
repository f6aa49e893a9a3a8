"""
Every error that this package raises on purpose.

::

    HubmeterError
    ├── SettingsError           the caller's configuration is wrong
    ├── DecodeError             the sender's data is wrong
    ├── NvmlError               the GPU driver is missing or refused
    ├── JournalError            this machine's disk refused
    └── PublishError            the destination refused; the points are still here
        ├── PublishRejected     asking again cannot help
        └── PublishUnavailable  asking again may help

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


class JournalError(HubmeterError, OSError):
    """Points did not reach the journal: the disk is full, or the journal at its limit."""


class PublishError(HubmeterError, OSError):
    """
    A shard did not reach its destination.

    Its points are in the journal, and readable through ``HubMetricExporter.table()``.
    """


class PublishRejected(PublishError):
    """The destination said no: a bad token, a wrong name, a public repository, a full quota."""


class PublishUnavailable(PublishError):
    """The destination did not answer in time, or asked us to come back later."""
