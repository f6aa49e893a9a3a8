"""
Which GPUs are meant by a selection such as ``visible`` or ``0,2``. Pure.

A GPU is metered as a whole board, because power and energy exist only for the
board: naming a MIG instance selects the GPU that it is a part of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from .errors import SettingsError


class Instance(Protocol):
    """A MIG instance: its position on its GPU, and its UUID."""

    @property
    def index(self) -> int: ...
    @property
    def uuid(self) -> str: ...


class Gpu(Protocol):
    """What a selection can be about; *index* as NVML counts."""

    @property
    def index(self) -> int: ...
    @property
    def uuid(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def mig_instances(self) -> Sequence[Instance]: ...


GpuT = TypeVar("GpuT", bound=Gpu)


def select_gpus(
    spec: str, devices: Sequence[GpuT], cuda_visible_devices: str | None = None
) -> tuple[GpuT, ...]:
    """
    Choose from *devices* what *spec* says, in the order of *devices*.

    Args:
        spec:
            ``visible`` (what *cuda_visible_devices* leaves), ``all``, ``none``, or a
            comma-separated list of NVML indices, ``GPU-<start of UUID>``,
            ``MIG-<UUID>`` and ``<index>:<instance>``.
        devices: All GPUs there are.
        cuda_visible_devices: Value of the environment variable; None if it is not set.

    Raises:
        SettingsError: *spec* names what does not exist, or is no selection.
    """
    match spec.strip().lower():
        case "all":
            chosen = list(devices)
        case "none":
            chosen = []
        case "visible":
            chosen = _visible(devices, cuda_visible_devices)
        case _:
            chosen = [_named(item.strip(), devices) for item in spec.split(",")]
    return tuple(device for device in devices if device in chosen)


def _visible(devices: Sequence[GpuT], cuda_visible_devices: str | None) -> list[GpuT]:
    """As CUDA does: the first entry that names nothing ends the list, empty means none.

    Indices are taken in NVML's order, which is CUDA's with CUDA_DEVICE_ORDER=PCI_BUS_ID
    and between equal GPUs.
    """
    if cuda_visible_devices is None:
        return list(devices)
    chosen: list[GpuT] = []
    for item in cuda_visible_devices.split(","):
        device = _find(item.strip(), devices)
        if device is None:
            break
        chosen.append(device)
    return chosen


def _named(item: str, devices: Sequence[GpuT]) -> GpuT:
    device = _find(item, devices)
    if device is None:
        raise SettingsError(
            f"GPU selection: {item!r} names no GPU, or more than one. "
            f"There are: {_inventory(devices)}. Use visible, all, none or a list of these."
        )
    return device


def _find(item: str, devices: Sequence[GpuT]) -> GpuT | None:
    if item.isascii() and item.isdigit():
        return _only([device for device in devices if device.index == int(item)])
    if item.startswith("MIG-GPU-"):  # before driver 470: MIG-<GPU UUID>/<GPU instance>/<compute>
        gpu_uuid = item.removeprefix("MIG-").partition("/")[0]
        return _only([device for device in devices if device.uuid == gpu_uuid])
    if item.startswith("MIG-"):
        return _only([device for device in devices if _has_instance(device, item)])
    if item.startswith("GPU-"):
        return _only([device for device in devices if device.uuid.startswith(item)])
    index, colon, instance = item.partition(":")
    if colon and index.isdigit() and instance.isdigit():
        return _only(
            [device for device in devices if _has_position(device, int(index), int(instance))]
        )
    return None


def _only(found: Sequence[GpuT]) -> GpuT | None:
    return found[0] if len(found) == 1 else None


def _has_instance(device: Gpu, uuid: str) -> bool:
    return any(instance.uuid == uuid for instance in device.mig_instances)


def _has_position(device: Gpu, index: int, position: int) -> bool:
    return device.index == index and any(
        instance.index == position for instance in device.mig_instances
    )


def _inventory(devices: Sequence[Gpu]) -> str:
    lines = [
        f"{device.index} = {device.uuid} ({device.name})"
        + "".join(f", {device.index}:{part.index} = {part.uuid}" for part in device.mig_instances)
        for device in devices
    ]
    return "; ".join(lines) or "no GPUs"
