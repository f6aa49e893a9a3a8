"""What the driver says, through the unmodified pynvml, and what is made of its errors."""

import subprocess
import sys

import pynvml
import pytest

from hubmeter.errors import NvmlError
from hubmeter.nvml import FIRST_RETRY_S, Reading, open_nvml
from standin import loaded

SECOND = 1_000_000_000

UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION = 1, 2, 3, 4
DRIVER_NOT_LOADED, TIMEOUT, FUNCTION_NOT_FOUND, GPU_IS_LOST, RESET_REQUIRED = 9, 10, 13, 15, 16
OPERATING_SYSTEM, VERSION_MISMATCH, IN_USE, NO_DATA, NOT_READY, UNKNOWN = 17, 18, 19, 21, 27, 999


@pytest.fixture(name="nvml")
def _nvml(standin):  # noqa: ARG001  the driver that is opened
    with open_nvml() as nvml:
        yield nvml


def test_devices_say_who_they_are(standin):
    """Index, UUID, name and PCI address come from the driver."""
    standin.set_name(1, "NVIDIA Test 9000")

    with open_nvml() as nvml:
        first, second = nvml.devices

    assert (first.index, second.index) == (0, 1)
    assert second.name == "NVIDIA Test 9000"
    assert first.uuid == "GPU-00000000-0000-0000-0000-000000000000"
    assert second.pci_bus_id == "00000000:02:00.0"
    assert first.mig_instances == ()


def test_mig_instances_are_listed(standin):
    """A GPU in MIG mode has its instances by position and UUID."""
    standin.set_mig(1, 2)
    standin.set_mig_uuid(1, 1, "MIG-second")

    with open_nvml() as nvml:
        parts = nvml.devices[1].mig_instances

    assert [part.index for part in parts] == [0, 1]
    assert parts[1].uuid == "MIG-second"


def test_everything_is_read_in_our_units(standin, nvml):
    """One reading has all values, converted."""
    standin.set_power_w(0, 250.5)
    standin.set_limit_w(0, 700)
    standin.set_utilization(0, 93, 41)
    standin.set_memory_mib(0, used=1024, total=81920, reserved=569)
    standin.set_temperature_c(0, 61)
    standin.set_clocks_mhz(0, sm=1980, memory=2619)
    standin.set_fan_percent(0, 30)
    standin.set_ecc_errors(0, 2, uncorrected=True)
    standin.set_throttle_mask(0, 0x44)
    standin.advance_s(10)

    reading = nvml.read(nvml.devices[0], 0)

    assert reading == Reading(
        utilization_percent=93,
        memory_utilization_percent=41,
        memory_used_mib=1024,
        memory_total_mib=81920,
        temperature_celsius=61,
        power_watts=250.5,
        power_limit_watts=700,
        sm_clock_mhz=1980,
        memory_clock_mhz=2619,
        fan_speed_percent=30,
        ecc_errors_uncorrected=2,
        energy_counter_joules=2505,
        throttle_reasons=0x44,
    )


def test_power_is_of_this_instant_and_not_a_mean(standin, nvml):
    """Field 186 is preferred to nvmlDeviceGetPowerUsage, which averages."""
    standin.set_power_mean_ms(0, 1000)
    standin.advance_s(10)
    standin.set_power_w(0, 400)

    assert nvml.read(nvml.devices[0], 0).power_watts == 400


@pytest.mark.parametrize("value_type", range(7))
def test_field_values_of_any_type_are_understood(standin, nvml, value_type):
    """Which C type a field has depends on the driver."""
    standin.set_power_w(0, 50)
    standin.set_field(0, 186, value_type=value_type)

    assert nvml.read(nvml.devices[0], 0).power_watts == 50


def test_pcie_throughput_is_never_asked(nvml):
    """That call blocks for 20 ms, so it is in no table of ours."""
    assert not any("Pcie" in call.function for call in nvml._calls)


SECOND_CHOICES = [
    ("nvmlDeviceGetMemoryInfo_v2", NOT_SUPPORTED, "memory_used_mib", 1593),
    ("nvmlDeviceGetMemoryInfo_v2", INVALID_ARGUMENT, "memory_used_mib", 1593),
    ("nvmlDeviceGetMemoryInfo_v2", FUNCTION_NOT_FOUND, "memory_used_mib", 1593),
    ("nvmlDeviceGetMemoryInfo_v2", 25, "memory_used_mib", 1593),
    ("nvmlDeviceGetTemperatureV", NOT_SUPPORTED, "temperature_celsius", 61),
    ("nvmlDeviceGetTotalEnergyConsumption", NOT_SUPPORTED, "energy_counter_joules", 1000),
    ("nvmlDeviceGetFieldValues", NOT_SUPPORTED, "power_watts", 100),
    ("nvmlDeviceGetCurrentClocksEventReasons", FUNCTION_NOT_FOUND, "throttle_reasons", 4),
]


@pytest.mark.parametrize(("function", "error", "field", "want"), SECOND_CHOICES)
def test_second_choice_where_the_first_is_not_offered(standin, nvml, function, error, field, want):
    """What has two calls is read by the other one, and the first is not asked again."""
    standin.fault(function, gpu=0, error=error)
    standin.set_memory_mib(0, used=1024, reserved=569)
    standin.set_temperature_c(0, 61)
    standin.set_throttle_mask(0, 4)
    standin.advance_s(10)

    readings = [nvml.read(nvml.devices[0], tick * SECOND) for tick in range(5)]

    assert [getattr(reading, field) for reading in readings] == [want] * 5
    once = 2 if function == "nvmlDeviceGetFieldValues" and field == "power_watts" else 1
    assert standin.calls(function, gpu=0) <= once


def test_field_error_counts_although_the_call_succeeds(standin, nvml):
    """The return code of each field is looked at, not only that of the call."""
    standin.set_field(0, 186, error=NOT_SUPPORTED)

    assert nvml.read(nvml.devices[0], 0).power_watts == 100
    assert standin.calls("nvmlDeviceGetPowerUsage", gpu=0) == 1


def test_old_driver(old_standin_library):
    """A driver without nvmlDeviceGetTemperatureV is asked for it once."""
    with loaded(old_standin_library) as standin, open_nvml() as nvml:
        standin.set_temperature_c(0, 44)
        readings = [nvml.read(nvml.devices[0], tick * SECOND) for tick in range(3)]

        assert [reading.temperature_celsius for reading in readings] == [44] * 3
        assert standin.calls("nvmlDeviceGetTemperature", gpu=0) == 3


def test_old_binding(standin, monkeypatch):
    """A binding without a function is like a driver without it."""
    monkeypatch.delattr(pynvml, "nvmlDeviceGetTemperatureV")
    monkeypatch.delattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons")
    standin.set_temperature_c(0, 44)

    with open_nvml() as nvml:
        reading = nvml.read(nvml.devices[0], 0)

    assert (reading.temperature_celsius, reading.throttle_reasons) == (44, 0)


@pytest.mark.parametrize("error", [NOT_SUPPORTED, FUNCTION_NOT_FOUND])
def test_what_is_not_offered_is_null_and_not_asked_again(standin, nvml, error):
    """Not offered is None, never 0, and of no consequence for the other GPU."""
    standin.fault("nvmlDeviceGetFanSpeed", gpu=0, error=error)
    standin.set_fan_percent(1, 55)

    for tick in range(5):
        first, second = (nvml.read(device, tick * SECOND) for device in nvml.devices)

        assert first.fan_speed_percent is None
        assert first.power_watts == 100
        assert second.fan_speed_percent == 55
    assert standin.calls("nvmlDeviceGetFanSpeed", gpu=0) == 1
    assert standin.calls("nvmlDeviceGetFanSpeed", gpu=1) == 5


def test_utilization_of_a_mig_gpu_is_null(standin, nvml):
    """NVML has no utilisation in MIG mode, but power."""
    standin.set_mig(0, 3)

    reading = nvml.read(nvml.devices[0], 0)

    assert (reading.utilization_percent, reading.power_watts) == (None, 100)


def test_what_is_forbidden_is_null_and_said_once(standin, nvml, caplog):
    """Missing rights are told once for each call and GPU."""
    standin.fault("nvmlDeviceGetFanSpeed", gpu=0, error=NO_PERMISSION)

    readings = [nvml.read(nvml.devices[0], tick * SECOND) for tick in range(5)]

    assert {reading.fan_speed_percent for reading in readings} == {None}
    assert standin.calls("nvmlDeviceGetFanSpeed", gpu=0) == 1
    [record] = caplog.records
    assert record.getMessage() == "GPU 0: no fan_speed_percent: Insufficient Permissions"


@pytest.mark.parametrize("error", [TIMEOUT, NO_DATA, NOT_READY, IN_USE])
def test_transient_errors_skip_one_tick(standin, nvml, error):
    """After a transient error the same call is asked again, and no other in its place."""
    standin.fault("nvmlDeviceGetTemperatureV", gpu=0, error=error, times=1)
    standin.set_temperature_c(0, 61)

    readings = [nvml.read(nvml.devices[0], tick * SECOND) for tick in range(2)]

    assert [reading.temperature_celsius for reading in readings] == [None, 61]
    assert readings[0].power_watts == 100
    assert standin.calls("nvmlDeviceGetTemperature", gpu=0) == 0


GONE = [
    GPU_IS_LOST,
    RESET_REQUIRED,
    OPERATING_SYSTEM,
    VERSION_MISMATCH,
    DRIVER_NOT_LOADED,
    UNKNOWN,
    INVALID_ARGUMENT,
]


@pytest.mark.parametrize("error", GONE)
def test_gone_gpu_is_asked_again_after_a_while(standin, nvml, caplog, error):
    """A GPU that is gone is None, the other one is not, and it comes back."""
    standin.fault("nvmlDeviceGetUtilizationRates", gpu=0, error=error, times=1)
    first, second = nvml.devices

    assert nvml.read(first, 0) is None
    assert nvml.read(second, 0).power_watts == 100
    assert nvml.read(first, FIRST_RETRY_S * SECOND - 1) is None
    assert nvml.read(first, FIRST_RETRY_S * SECOND).power_watts == 100
    [record] = caplog.records
    assert "GPU 0" in record.getMessage()
    assert "lost" in record.getMessage()


@pytest.mark.parametrize("error", [UNKNOWN, INVALID_ARGUMENT])
def test_ambiguous_error_of_one_call_does_not_lose_the_gpu(standin, nvml, error):
    """Unknown Error from a GPU that just answered is about that call."""
    standin.fault("nvmlDeviceGetFanSpeed", gpu=0, error=error)

    for tick in range(3):
        reading = nvml.read(nvml.devices[0], tick * SECOND)
        assert (reading.fan_speed_percent, reading.power_watts) == (None, 100)


def test_lost_gpu_is_asked_after_1_2_4_up_to_60_seconds(standin, nvml):
    """The pauses double, up to a minute."""
    standin.lose(0)
    device = nvml.devices[0]
    asked_at = []
    for tick in range(200):
        before = standin.calls("nvmlDeviceGetHandleByUUID")
        nvml.read(device, tick * SECOND)
        if standin.calls("nvmlDeviceGetHandleByUUID") > before:
            asked_at.append(tick)

    assert asked_at == [0, 1, 3, 7, 15, 31, 63, 123, 183]


def test_lost_gpu_never_blanks_the_others(standin, nvml):
    """While one GPU is lost the other one has every value at every tick."""
    standin.lose(0)

    for tick in range(70):
        first, second = (nvml.read(device, tick * SECOND) for device in nvml.devices)
        assert first is None
        assert second.power_watts == 100
    assert standin.calls("nvmlInitWithFlags") == 1
    assert standin.refcount == 1


def test_gpu_is_found_again_by_its_uuid(standin, nvml):
    """After trouble NVML may count anew; readings still belong to the right GPU."""
    first, second = nvml.devices
    standin.set_power_w(0, 10)
    standin.set_power_w(1, 20)
    standin.lose(1)
    assert nvml.read(second, 0) is None

    standin.restore(1)
    standin.set_order([1, 0])

    assert nvml.read(second, SECOND).power_watts == 20
    assert nvml.read(first, SECOND).power_watts == 10


def test_nvml_is_restarted_when_no_gpu_is_left(standin, nvml):
    """With every GPU gone there is nothing to lose: NVML starts anew, still counted once."""
    standin.lose(0)
    standin.lose(1)
    for device in nvml.devices:
        assert nvml.read(device, 0) is None

    standin.restore(0)
    standin.restore(1)

    assert [nvml.read(device, SECOND).power_watts for device in nvml.devices] == [100, 100]
    assert standin.calls("nvmlInitWithFlags") == 2
    assert standin.refcount == 1


def test_gpus_that_are_not_read_do_not_count_as_working(standin, nvml):
    """With one of two GPUs selected, its loss is the loss of all."""
    standin.lose(0)
    nvml.read(nvml.devices[0], 0)
    nvml.read(nvml.devices[0], SECOND)

    assert standin.calls("nvmlInitWithFlags") == 2
    assert standin.refcount == 1


def test_somebody_else_shut_nvml_down(standin, nvml):
    """One Shutdown too many by others costs a second, and is not repeated by us."""
    pynvml.nvmlShutdown()
    assert standin.refcount == 0
    first, second = nvml.devices
    assert nvml.read(first, 0) is None
    assert nvml.read(second, 0) is None

    assert nvml.read(first, SECOND).power_watts == 100
    assert nvml.read(second, SECOND).power_watts == 100
    assert standin.refcount == 1


def test_driver_that_stays_away_is_tolerated(standin, nvml):
    """NVML that cannot be restarted leaves all GPUs lost, until it can."""
    standin.lose(0)
    standin.lose(1)
    standin.fault("nvmlInitWithFlags", error=DRIVER_NOT_LOADED, times=4)
    for tick in range(2):
        assert [nvml.read(device, tick * SECOND) for device in nvml.devices] == [None, None]

    standin.restore(0)
    standin.restore(1)

    readings = [
        nvml.read(device, tick * SECOND) for tick in range(2, 30) for device in nvml.devices
    ]
    assert readings[-1].power_watts == 100
    assert standin.refcount == 1


def test_close_shuts_down_once(standin):
    """However often it is closed, the reference count falls by one."""
    pynvml.nvmlInit()
    nvml = open_nvml()
    assert standin.refcount == 2

    nvml.close()
    nvml.close()

    assert standin.refcount == 1
    assert standin.calls("nvmlShutdown") == 1


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (12, "NVIDIA_DRIVER_CAPABILITIES=compute,utility"),
        (DRIVER_NOT_LOADED, "not loaded"),
        (VERSION_MISMATCH, "reboot"),
        (NO_PERMISSION, "permissions"),
        (UNKNOWN, "container"),
        (TIMEOUT, "nvidia-smi"),
    ],
)
def test_unusable_driver_says_what_to_do(standin, error, advice):
    """Each reason not to start comes with advice, and leaves nothing open."""
    standin.fault("nvmlInitWithFlags", error=error)

    with pytest.raises(NvmlError, match=advice):
        open_nvml()
    assert standin.refcount == 0


def test_failure_after_init_is_undone(standin):
    """If the GPUs cannot be counted, NVML is shut down again."""
    standin.fault("nvmlDeviceGetCount_v2", error=UNKNOWN)

    with pytest.raises(NvmlError):
        open_nvml()
    assert standin.refcount == 0


def test_gpu_that_is_lost_from_the_start(standin):
    """A GPU that cannot be opened keeps its place, and does not hide the others."""
    standin.fault("nvmlDeviceGetHandleByIndex_v2", gpu=0, error=GPU_IS_LOST, times=1)

    with open_nvml() as nvml:
        first, second = nvml.devices

        assert (first.uuid, first.name) == ("GPU-0", "GPU-0")
        assert second.name == "Stand-in GPU"
        assert nvml.read(first, 0).power_watts == 100


def test_gpu_without_name_or_uuid(standin):
    """A GPU that does not say who it is goes by its index."""
    standin.fault("nvmlDeviceGetName", error=UNKNOWN)
    standin.fault("nvmlDeviceGetUUID", gpu=1, error=UNKNOWN)

    with open_nvml() as nvml:
        assert [device.name for device in nvml.devices] == ["GPU-0", "GPU-1"]
        assert nvml.devices[1].uuid == "GPU-1"
        assert nvml.read(nvml.devices[1], 0).power_watts == 100


def test_import_neither_loads_pynvml_nor_passes_its_warnings_on():
    """The binding is loaded at first use, with warnings off."""
    code = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "import hubmeter.nvml\n"
        "assert 'pynvml' not in sys.modules\n"
        "assert hubmeter.nvml.load_pynvml() is sys.modules['pynvml']\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
