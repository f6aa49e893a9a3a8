"""Which GPUs a selection means, in every form that CUDA and hubmeter know."""

import pytest

from hubmeter.errors import SettingsError
from hubmeter.gpu_selection import select_gpus
from hubmeter.nvml import GpuDevice, MigInstance

DEVICES = (
    GpuDevice(index=0, uuid="GPU-aaaa1111", name="A"),
    GpuDevice(index=1, uuid="GPU-aaaa2222", name="B"),
    GpuDevice(
        index=2,
        uuid="GPU-bbbb3333",
        name="C",
        mig_instances=(
            MigInstance(index=0, uuid="MIG-c0c0"),
            MigInstance(index=2, uuid="MIG-c2c2"),
        ),
    ),
)


def indices(spec, visible=None):
    return [device.index for device in select_gpus(spec, DEVICES, visible)]


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        ("all", [0, 1, 2]),
        ("ALL", [0, 1, 2]),
        (" none ", []),
        ("visible", [0, 1, 2]),
        ("0", [0]),
        ("2, 0", [0, 2]),
        ("1,1", [1]),
        ("GPU-aaaa2222", [1]),
        ("GPU-b", [2]),
        ("GPU-aaaa1,GPU-aaaa2", [0, 1]),
        ("MIG-c2c2", [2]),
        ("MIG-c0c0,MIG-c2c2", [2]),
        ("2:0", [2]),
        ("2:2,0", [0, 2]),
        ("MIG-GPU-bbbb3333/7/0", [2]),
    ],
)
def test_selection(spec, want):
    """Each form selects whole GPUs, in their own order."""
    assert indices(spec) == want


@pytest.mark.parametrize(
    "spec",
    ["3", "-1", "", "0,", "GPU-", "GPU-aaaa", "GPU-zz", "MIG-", "MIG-zz", "2:1", "0:0", "a:b", "x"],
)
def test_wrong_selection_lists_what_exists(spec):
    """What names no GPU, or more than one, is refused with a list of what there is."""
    with pytest.raises(SettingsError, match=r"GPU-aaaa1111 \(A\).*2:2 = MIG-c2c2"):
        select_gpus(spec, DEVICES)


def test_wrong_selection_without_any_gpu():
    """Without GPUs the message says so."""
    with pytest.raises(SettingsError, match="no GPUs"):
        select_gpus("0", ())


@pytest.mark.parametrize(
    ("visible", "want"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1", [1]),
        ("2,0", [0, 2]),
        (" 0 , 1 ", [0, 1]),
        ("0,-1,2", [0]),
        ("0,9,2", [0]),
        ("0,x,2", [0]),
        ("GPU-aaaa", []),
        ("GPU-aaaa2", [1]),
        ("GPU-bbbb3333,GPU-aaaa1111", [0, 2]),
        ("MIG-c0c0", [2]),
        ("MIG-GPU-bbbb3333/1/0", [2]),
        ("0,,1", [0]),
    ],
)
def test_cuda_visible_devices(visible, want):
    """``visible`` is what CUDA would leave: the list ends at the first wrong entry."""
    assert indices("visible", visible) == want


def test_other_selections_ignore_cuda_visible_devices():
    """Who names GPUs gets them."""
    assert indices("all", "0") == [0, 1, 2]
    assert indices("1", "0") == [1]
