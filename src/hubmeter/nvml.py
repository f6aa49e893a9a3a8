"""
The driver's side: which GPUs there are, and what each of them reports now.

The only importer of `pynvml`. Knows what every NVML error means, and keeps the
trouble of one GPU away from the others. Does no arithmetic over time.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import NvmlError

log = logging.getLogger(__name__)

MIB = 2.0**20
FIRST_RETRY_S = 1
LAST_RETRY_S = 60

# NVML return codes. What is in none of these sets is transient: ask again next time.
UNINITIALIZED, INVALID_ARGUMENT, NO_PERMISSION, UNKNOWN = 1, 2, 4, 999
NOT_SUPPORTED = 3
UNSUPPORTED = frozenset({INVALID_ARGUMENT, NOT_SUPPORTED, 13, 25, 26})
"""Also NotSupported, FunctionNotFound, wrong version, Deprecated: not with this GPU or driver."""
GONE = frozenset({UNINITIALIZED, INVALID_ARGUMENT, 9, 15, 16, 17, 18, 28, UNKNOWN})
"""Driver not loaded, GPU lost, reset required, blocked by the system, driver replaced."""
AMBIGUOUS = frozenset({INVALID_ARGUMENT, UNKNOWN})
"""About the call if the GPU answered another one just before; else about the GPU."""

ADVICE = {
    12: "there is no NVIDIA driver, or the container lacks it: "
    "start it with --gpus all and NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    9: "the driver is installed but not loaded: does nvidia-smi work?",
    18: "the driver was updated while in use: reboot, or reload it",
    NO_PERMISSION: "this user may not open /dev/nvidiactl: check its permissions",
    UNKNOWN: "the container may have lost its devices: start a new one",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MigInstance:
    """A part of a GPU in MIG mode; *index* is its position on that GPU."""

    index: int
    uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuDevice:
    """
    A GPU as the driver listed it at the start.

    Attributes:
        index: As NVML counted then; stays, even if NVML counts anew.
        uuid: Finds the GPU again after trouble. ``GPU-<index>`` if it would not say.
    """

    index: int
    uuid: str
    name: str
    pci_bus_id: str | None = None
    mig_instances: tuple[MigInstance, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """
    What one GPU reported at one moment; None where it offers nothing.

    Attributes:
        energy_counter_joules: Since the driver was loaded.
        ecc_errors_uncorrected: Since the driver was loaded.
        throttle_reasons: NVML's bit mask of clocks event reasons.
    """

    utilization_percent: float | None = None
    memory_utilization_percent: float | None = None
    memory_used_mib: float | None = None
    memory_total_mib: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    fan_speed_percent: float | None = None
    ecc_errors_uncorrected: float | None = None
    energy_counter_joules: float | None = None
    throttle_reasons: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """
    One question to the driver.

    Attributes:
        function: In pynvml; older bindings do not have every one.
        fields: Of :class:`Reading`, in the order of the answer.
        read: Asks, given pynvml and the handle of a GPU.
    """

    function: str
    fields: tuple[str, ...]
    read: Callable[[Any, Any], tuple[float, ...]]


VALUE_TYPES = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""Where a field value is, by its type; the type of a field varies among drivers."""

_MEMORY = ("memory_used_mib", "memory_total_mib")
_UTILIZATION = ("utilization_percent", "memory_utilization_percent")


def _utilization(nvml: Any, handle: Any) -> tuple[float, ...]:
    rates = nvml.nvmlDeviceGetUtilizationRates(handle)
    return float(rates.gpu), float(rates.memory)


def _memory_v2(nvml: Any, handle: Any) -> tuple[float, ...]:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)
    return memory.used / MIB, memory.total / MIB


def _memory_v1(nvml: Any, handle: Any) -> tuple[float, ...]:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return memory.used / MIB, memory.total / MIB


def _number(field_name: str, function: str, *arguments: int, per: float = 1.0) -> Call:
    """A call that answers with one number; *per* is how many of its units make ours."""
    return Call(
        function,
        (field_name,),
        lambda nvml, handle: (getattr(nvml, function)(handle, *arguments) / per,),
    )


def _field(field_name: str, field_id: int, *, per: float) -> Call:
    """A field value; the outer return code says nothing about it."""

    def read(nvml: Any, handle: Any) -> tuple[float, ...]:
        [answer] = nvml.nvmlDeviceGetFieldValues(handle, [field_id])
        if answer.nvmlReturn or not 0 <= answer.valueType < len(VALUE_TYPES):
            raise nvml.NVMLError(answer.nvmlReturn or NOT_SUPPORTED)
        return (getattr(answer.value, VALUE_TYPES[answer.valueType]) / per,)

    return Call("nvmlDeviceGetFieldValues", (field_name,), read)


def _reasons(function: str) -> Call:
    return Call(
        function, ("throttle_reasons",), lambda nvml, handle: (getattr(nvml, function)(handle),)
    )


CALLS: tuple[Call, ...] = (
    Call("nvmlDeviceGetUtilizationRates", _UTILIZATION, _utilization),
    # Version 1 counts what the driver reserves as used; version 2 equals nvidia-smi.
    Call("nvmlDeviceGetMemoryInfo", _MEMORY, _memory_v2),
    Call("nvmlDeviceGetMemoryInfo", _MEMORY, _memory_v1),
    _number("temperature_celsius", "nvmlDeviceGetTemperatureV", 0),
    _number("temperature_celsius", "nvmlDeviceGetTemperature", 0),
    # Field 186 is power at this instant; PowerUsage is a mean over 1 s on most GPUs.
    _field("power_watts", 186, per=1e3),
    _number("power_watts", "nvmlDeviceGetPowerUsage", per=1e3),
    _number("energy_counter_joules", "nvmlDeviceGetTotalEnergyConsumption", per=1e3),
    _field("energy_counter_joules", 83, per=1e3),
    _number("power_limit_watts", "nvmlDeviceGetEnforcedPowerLimit", per=1e3),
    _number("sm_clock_mhz", "nvmlDeviceGetClockInfo", 1),
    _number("memory_clock_mhz", "nvmlDeviceGetClockInfo", 2),
    _number("fan_speed_percent", "nvmlDeviceGetFanSpeed"),
    _number("ecc_errors_uncorrected", "nvmlDeviceGetTotalEccErrors", 1, 0),
    _reasons("nvmlDeviceGetCurrentClocksEventReasons"),
    _reasons("nvmlDeviceGetCurrentClocksThrottleReasons"),
)
"""
Everything that is asked at a tick. Of several calls for one field the first that the
GPU supports is used. Never nvmlDeviceGetPcieThroughput: it takes 20 ms per call.
"""


@dataclass(slots=True)
class _Contact:
    """
    How we stand with one GPU.

    Attributes:
        silenced: Calls that it will never answer.
        failures: Attempts since it was lost; 0 while it is there.
    """

    handle: Any = None
    silenced: set[Call] = field(default_factory=set)
    failures: int = 0
    retry_at_ns: int = 0


def load_pynvml() -> Any:
    """
    The binding, imported at first use.

    Raises:
        NvmlError: nvidia-ml-py is not installed.
    """
    if sys.modules.get("pynvml"):
        return sys.modules["pynvml"]
    # A deprecated package of the same name warns whenever anybody imports pynvml.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import pynvml
        except ImportError as error:
            raise NvmlError(f"no GPU metrics: {error}; pip install nvidia-ml-py") from error
    return pynvml


def open_nvml(pynvml: Any = None) -> Nvml:
    """
    Start NVML and list the GPUs.

    Args:
        pynvml: The binding, if not the installed one.

    Raises:
        NvmlError: There is no usable driver.
    """
    pynvml = pynvml or load_pynvml()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise _unusable(error) from error
    try:
        return Nvml(pynvml, tuple(_devices(pynvml)))
    except pynvml.NVMLError as error:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
        raise _unusable(error) from error


class Nvml(contextlib.AbstractContextManager["Nvml"]):
    """
    An initialised NVML. Made by :func:`open_nvml`; whoever opens it closes it.

    Not for several threads: all calls come from the one that samples.

    Attributes:
        devices: The GPUs that were there at the start, in NVML's order.
    """

    def __init__(self, pynvml: Any, devices: tuple[GpuDevice, ...]) -> None:
        self.devices: Sequence[GpuDevice] = devices
        self._pynvml = pynvml
        self._calls = tuple(call for call in CALLS if hasattr(pynvml, call.function))
        self._contacts: dict[str, _Contact] = {}
        self._is_initialised = True

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def read(self, device: GpuDevice, now_ns: int) -> Reading | None:
        """
        Ask one GPU everything that it is known to answer.

        Args:
            device: One of ``devices``.
            now_ns: Monotonic time; a lost GPU is asked again only after a while.

        Returns:
            None if the GPU is lost. Never raises.
        """
        contact = self._contacts.setdefault(device.uuid, _Contact())
        if contact.failures and now_ns < contact.retry_at_ns:
            return None
        try:
            reading = self._ask_everything(device, contact)
        except self._pynvml.NVMLError as error:
            self._lose(device, contact, error, now_ns)
            return None
        if contact.failures:
            log.info("GPU %d (%s) is back", device.index, device.uuid)
            contact.failures = 0
        return reading

    def close(self) -> None:
        """Shut NVML down, if it is still as we started it. May be called again."""
        if self._is_initialised:
            self._is_initialised = False
            with contextlib.suppress(self._pynvml.NVMLError):
                self._pynvml.nvmlShutdown()

    def _ask_everything(self, device: GpuDevice, contact: _Contact) -> Reading:
        if contact.handle is None:
            contact.handle = self._find(device)
        values: dict[str, Any] = {}
        for call in self._calls:
            if call.fields[0] in values or call in contact.silenced:
                continue
            try:
                answer: Sequence[float | None] = call.read(self._pynvml, contact.handle)
            except self._pynvml.NVMLError as error:
                is_there = any(value is not None for value in values.values())
                if error.value in GONE and not (error.value in AMBIGUOUS and is_there):
                    raise
                if error.value in UNSUPPORTED or error.value == NO_PERMISSION:
                    contact.silenced.add(call)
                    _tell(device, call, error)
                    continue
                answer = [None] * len(call.fields)  # transient: no second choice in its place
            values.update(zip(call.fields, answer, strict=True))
        return Reading(**values)

    def _find(self, device: GpuDevice) -> Any:
        """Handle of a GPU, wherever NVML lists it now."""
        contacts = self._contacts.values()
        if all(contact.failures for contact in contacts):
            # Restarting NVML takes the handles of GPUs that work, so only without any.
            self._restart()
        if device.uuid == _placeholder(device.index):
            return self._pynvml.nvmlDeviceGetHandleByIndex(device.index)
        return self._pynvml.nvmlDeviceGetHandleByUUID(device.uuid)

    def _restart(self) -> None:
        self.close()
        self._pynvml.nvmlInit()
        self._is_initialised = True
        for contact in self._contacts.values():
            contact.handle = None

    def _lose(self, device: GpuDevice, contact: _Contact, error: Any, now_ns: int) -> None:
        if not contact.failures:
            log.warning("GPU %d (%s) is lost: %s", device.index, device.uuid, error)
        if error.value == UNINITIALIZED:  # somebody shut down more than they had started
            self._is_initialised = False
        wait_s = min(FIRST_RETRY_S << min(contact.failures, 6), LAST_RETRY_S)
        contact.failures += 1
        contact.retry_at_ns = now_ns + wait_s * 1_000_000_000
        contact.handle = None


def _tell(device: GpuDevice, call: Call, error: Any) -> None:
    level = logging.WARNING if error.value == NO_PERMISSION else logging.DEBUG
    log.log(level, "GPU %d: no %s: %s", device.index, ", ".join(call.fields), error)


def _unusable(error: Any) -> NvmlError:
    advice = ADVICE.get(error.value, "does nvidia-smi work?")
    return NvmlError(f"no GPU metrics: NVML says {error}; {advice}")


def _placeholder(index: int) -> str:
    return f"GPU-{index}"


def _devices(pynvml: Any) -> Iterator[GpuDevice]:
    for index in range(pynvml.nvmlDeviceGetCount()):
        unknown = _placeholder(index)
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        except pynvml.NVMLError as error:
            log.warning("GPU %d cannot be opened: %s", index, error)
            yield GpuDevice(index=index, uuid=unknown, name=unknown)
            continue
        yield GpuDevice(
            index=index,
            uuid=_answer(pynvml, unknown, "nvmlDeviceGetUUID", handle),
            name=_answer(pynvml, unknown, "nvmlDeviceGetName", handle),
            pci_bus_id=_pci_bus_id(pynvml, handle),
            mig_instances=tuple(_mig_instances(pynvml, handle)),
        )


def _mig_instances(pynvml: Any, handle: Any) -> Iterator[MigInstance]:
    is_enabled, _ = _answer(pynvml, (0, 0), "nvmlDeviceGetMigMode", handle)
    count = _answer(pynvml, 0, "nvmlDeviceGetMaxMigDeviceCount", handle) if is_enabled else 0
    for index in range(count):
        part = _answer(pynvml, None, "nvmlDeviceGetMigDeviceHandleByIndex", handle, index)
        uuid = part and _answer(pynvml, None, "nvmlDeviceGetUUID", part)
        if uuid:
            yield MigInstance(index=index, uuid=uuid)


def _pci_bus_id(pynvml: Any, handle: Any) -> str | None:
    info = _answer(pynvml, None, "nvmlDeviceGetPciInfo", handle)
    return None if info is None else str(info.busId)


def _answer(pynvml: Any, otherwise: Any, function: str, *arguments: Any) -> Any:
    """What a function says about a GPU's identity, or *otherwise* if it fails."""
    try:
        return getattr(pynvml, function)(*arguments)
    except pynvml.NVMLError:
        return otherwise
