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
        │   ├── WrongRepository     another repository can
        │   └── PublicRepository    saying that it may be public can
        └── PublishUnavailable  asking again may help

Each message says what failed, why, and what to do next.
"""

from __future__ import annotations

from typing import ClassVar


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

    Attributes:
        command: Publishes them later; ``{}`` stands for a journal directory, if one is needed.
    """

    command: ClassVar[str] = "hubmeter recover{}"


class PublishRejected(PublishError):
    """The destination said no: a bad token, a wrong name, a public repository, a full quota."""


class WrongRepository(PublishRejected):
    """There is no such repository and none can be made: no name, or the namespace of others."""

    command = "hubmeter recover{} --to user/name"


class PublicRepository(PublishRejected):
    """The repository is public, and nobody has said that the run may be."""

    command = "HUBMETER_PRIVATE=0 hubmeter recover{}"


class PublishUnavailable(PublishError):
    """The destination did not answer in time, or asked us to come back later."""


def fresh(error: OSError) -> PublishError:
    """*error* to be kept: without its traceback, which would keep all shards in memory."""
    kind = type(error) if isinstance(error, PublishError) else PublishUnavailable
    return kind(str(error))
