"""The stand-in driver keeps its promises to the unmodified `pynvml`."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pynvml
import pytest

from standin import MIB, StandIn, compile_standin, loaded, subprocess_env
from standin.fixtures import *  # noqa: F403

UINT, ULONGLONG, DOUBLE, USHORT = 1, 3, 0, 6
MEMORY_TEMP, ENERGY, AVERAGE, INSTANT = 82, 83, 185, 186


@contextmanager
def nvml_error(code: int) -> Iterator[None]:
    with pytest.raises(pynvml.NVMLError) as caught:
        yield
    assert caught.value.value == code


@pytest.fixture
def gpu0(standin: StandIn) -> object:
    assert standin.refcount == 0
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByIndex(0)


@pytest.fixture
def gpu1(standin: StandIn, gpu0: object) -> object:
    assert gpu0
    assert standin.refcount == 1
    return pynvml.nvmlDeviceGetHandleByIndex(1)


def _run(program: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False
    )


# -- life cycle


def test_init_and_shutdown_count_references(standin: StandIn) -> None:
    """Only the last Shutdown closes the driver, and one more is refused."""
    pynvml.nvmlInit()
    pynvml.nvmlInit()
    assert standin.refcount == 2
    pynvml.nvmlShutdown()
    assert pynvml.nvmlDeviceGetCount() == 2
    pynvml.nvmlShutdown()
    assert standin.refcount == 0
    with nvml_error(pynvml.NVML_ERROR_UNINITIALIZED):
        pynvml.nvmlDeviceGetCount()
    with nvml_error(pynvml.NVML_ERROR_UNINITIALIZED):
        pynvml.nvmlShutdown()


FORKING_PROGRAM = """
import os, pynvml
pynvml.nvmlInit()
child = os.fork()
try:
    answer = str(pynvml.nvmlDeviceGetCount())
except pynvml.NVMLError as error:
    answer = type(error).__name__
os.write(1, (answer + "\\n").encode())
if child:
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize(("strict", "child"), [(1, "NVMLError_Unknown"), (0, "2")])
def test_forked_child_is_refused_in_strict_mode_only(
    standin_library: Path, tmp_path: Path, strict: int, child: str
) -> None:
    """A child of an initialised parent gets Unknown if the driver is strict."""
    env = subprocess_env(standin_library, f"strict_fork {strict}", tmp_path)
    assert sorted(_run(FORKING_PROGRAM, env).stdout.split()) == ["2", child]


def test_loaded_gives_pynvml_back(standin_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards pynvml looks for the machine's own driver, as before."""
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlLib_refcount", 0)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    with loaded(standin_library):
        pynvml.nvmlInit()
        assert "standin" in pynvml.nvmlSystemGetDriverVersion()
    assert pynvml.nvmlLib is None
    assert pynvml._nvmlLib_refcount == 0
    assert pynvml._nvmlGetFunctionPointer_cache == {}
    assert "standin" not in _own_driver_version()


def _own_driver_version() -> str:
    try:
        pynvml.nvmlInit()
        version = str(pynvml.nvmlSystemGetDriverVersion())
        pynvml.nvmlShutdown()
    except pynvml.NVMLError_LibraryNotFound:
        return "no driver"
    return version


@pytest.mark.usefixtures("gpu0")
def test_reset_brings_back_the_default_machine(standin: StandIn) -> None:
    """Neither settings nor faults nor counts survive a reset."""
    standin.set_gpu_count(16)
    standin.advance_s(5)
    standin.set_power_w(0, 300)
    standin.lose(1)
    standin.fault("*", error=999)
    standin.reset()
    assert (standin.refcount, standin.now_s, standin.calls("nvmlDeviceGetCount_v2")) == (0, 0, 0)
    pynvml.nvmlInit()
    assert pynvml.nvmlDeviceGetCount() == 2
    assert [
        pynvml.nvmlDeviceGetPowerUsage(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in (0, 1)
    ] == [100_000, 100_000]


@pytest.mark.usefixtures("standin")
def test_error_strings_and_versions() -> None:
    """Error strings need no initialisation, versions do."""
    assert pynvml.nvmlErrorString(pynvml.NVML_ERROR_GPU_IS_LOST) == "GPU is lost"
    assert pynvml.nvmlErrorString(12345) == "Unknown Error"
    with nvml_error(pynvml.NVML_ERROR_UNINITIALIZED):
        pynvml.nvmlSystemGetNVMLVersion()
    pynvml.nvmlInit()
    assert pynvml.nvmlSystemGetNVMLVersion() == "13.999.00.standin"


# -- identity


def test_default_identity(gpu1: object) -> None:
    """The default GPUs are told apart by index, UUID and PCI address."""
    assert pynvml.nvmlDeviceGetName(gpu1) == "Stand-in GPU"
    assert pynvml.nvmlDeviceGetUUID(gpu1) == "GPU-00000000-0000-0000-0000-000000000001"
    assert pynvml.nvmlDeviceGetIndex(gpu1) == 1
    assert pynvml.nvmlDeviceGetArchitecture(gpu1) == pynvml.NVML_DEVICE_ARCH_ADA
    assert pynvml.nvmlDeviceGetMigMode(gpu1) == [0, 0]
    pci = pynvml.nvmlDeviceGetPciInfo(gpu1)
    assert (pci.busId, pci.busIdLegacy, pci.bus) == ("00000000:02:00.0", "0000:02:00.0", 2)


def test_identity_can_be_changed(standin: StandIn, gpu0: object) -> None:
    """Names with spaces and UUIDs are the test's choice."""
    standin.set_name(0, "NVIDIA H100 80GB HBM3")
    standin.set_uuid(0, "GPU-abc")
    standin.set_architecture(0, pynvml.NVML_DEVICE_ARCH_HOPPER)
    assert pynvml.nvmlDeviceGetName(gpu0) == "NVIDIA H100 80GB HBM3"
    assert pynvml.nvmlDeviceGetArchitecture(gpu0) == pynvml.NVML_DEVICE_ARCH_HOPPER
    assert pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByUUID("GPU-abc")) == 0
    with nvml_error(pynvml.NVML_ERROR_NOT_FOUND):
        pynvml.nvmlDeviceGetHandleByUUID("GPU-00000000-0000-0000-0000-000000000000")


@pytest.mark.usefixtures("gpu0")
def test_up_to_sixteen_gpus(standin: StandIn) -> None:
    """The count bounds the valid indices."""
    for count in (0, 1, 16):
        standin.set_gpu_count(count)
        assert pynvml.nvmlDeviceGetCount() == count
        with nvml_error(pynvml.NVML_ERROR_INVALID_ARGUMENT):
            pynvml.nvmlDeviceGetHandleByIndex(count)
    with pytest.raises(ValueError, match="refused: gpus 17"):
        standin.set_gpu_count(17)


@pytest.mark.usefixtures("gpu0")
def test_order_moves_indices_but_not_gpus(standin: StandIn) -> None:
    """A GPU keeps UUID and handle when another one falls off the bus."""
    standin.set_order([1])
    only = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert pynvml.nvmlDeviceGetUUID(only).endswith("1")
    assert pynvml.nvmlDeviceGetIndex(only) == 0
    with nvml_error(pynvml.NVML_ERROR_NOT_FOUND):
        pynvml.nvmlDeviceGetHandleByUUID("GPU-00000000-0000-0000-0000-000000000000")


# -- readings


def test_default_readings(gpu0: object) -> None:
    """A default GPU reports what its description says."""
    rates = pynvml.nvmlDeviceGetUtilizationRates(gpu0)
    assert (rates.gpu, rates.memory) == (50, 10)
    assert pynvml.nvmlDeviceGetTemperature(gpu0, 0) == 60
    assert pynvml.nvmlDeviceGetTemperatureV(gpu0, 0) == 60
    assert pynvml.nvmlDeviceGetPowerUsage(gpu0) == 100_000
    assert pynvml.nvmlDeviceGetPowerManagementLimit(gpu0) == 250_000
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu0) == 250_000


def test_readings_follow_their_settings(standin: StandIn, gpu0: object, gpu1: object) -> None:
    """Each setting reaches its reading, of its GPU only."""
    standin.set_utilization(0, 97, 33)
    standin.set_temperature_c(0, 81)
    standin.set_limit_w(0, 300.5)
    standin.set_fan_percent(0, 72)
    standin.set_performance_state(0, 8)
    standin.set_throttle_mask(0, 0x100_0000_0024)
    standin.set_clocks_mhz(0, sm=1980, memory=10501)
    assert _readings(gpu0) == (97, 33, 81, 81, 300_500, 72, 8, 0x100_0000_0024, 1980, 10501)
    assert _readings(gpu1) == (50, 10, 60, 60, 250_000, 40, 2, 0, 1500, 7000)


def _readings(handle: object) -> tuple[int, ...]:
    rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
    throttle = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    assert throttle == pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    return (
        rates.gpu,
        rates.memory,
        pynvml.nvmlDeviceGetTemperature(handle, 0),
        pynvml.nvmlDeviceGetTemperatureV(handle, 0),
        pynvml.nvmlDeviceGetPowerManagementLimit(handle),
        pynvml.nvmlDeviceGetFanSpeed(handle),
        pynvml.nvmlDeviceGetPerformanceState(handle),
        throttle,
        pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
    )


def test_four_totals_of_ecc_errors(standin: StandIn, gpu0: object) -> None:
    """Corrected and uncorrected, volatile and aggregate totals are separate."""
    kinds = [(uncorrected, aggregate) for uncorrected in (0, 1) for aggregate in (0, 1)]
    for count, (uncorrected, aggregate) in enumerate(kinds, start=1):
        standin.set_ecc_errors(0, count, uncorrected=bool(uncorrected), aggregate=bool(aggregate))
    assert [pynvml.nvmlDeviceGetTotalEccErrors(gpu0, *kind) for kind in kinds] == [1, 2, 3, 4]


def test_memory_v1_counts_reserved_memory_as_used(gpu0: object) -> None:
    """Version 1 says 1593 MiB used where version 2 says 1024 and 569 reserved."""
    v1 = pynvml.nvmlDeviceGetMemoryInfo(gpu0)
    v2 = pynvml.nvmlDeviceGetMemoryInfo(gpu0, pynvml.nvmlMemory_v2)
    assert (v1.total / MIB, v1.used / MIB) == (8192, 1593)
    assert (v2.total / MIB, v2.used / MIB, v2.reserved / MIB) == (8192, 1024, 569)
    assert v1.free == v2.free == v2.total - v2.used - v2.reserved


def test_memory_v2_checks_the_version_word(standin: StandIn, gpu0: object) -> None:
    """A structure of another version is refused; the setting reaches the right one."""
    standin.set_memory_mib(0, used=2048, total=81920, reserved=1)
    assert pynvml.nvmlDeviceGetMemoryInfo(gpu0, pynvml.nvmlMemory_v2).used == 2048 * MIB
    with nvml_error(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH):
        pynvml.nvmlDeviceGetMemoryInfo(gpu0, pynvml.nvmlMemory_v2 + 1)


def test_old_driver_has_no_temperature_v(old_standin_library: Path) -> None:
    """The missing symbol becomes FunctionNotFound, and the old call still works."""
    with loaded(old_standin_library) as old:
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        with pytest.raises(pynvml.NVMLError_FunctionNotFound):
            pynvml.nvmlDeviceGetTemperatureV(gpu, 0)
        assert pynvml.nvmlDeviceGetTemperature(gpu, 0) == 60
        with pytest.raises(ValueError, match="no function nvmlDeviceGetTemperatureV"):
            old.fault("nvmlDeviceGetTemperatureV", error=3)


# -- power and energy


def test_energy_is_the_exact_integral_of_power(standin: StandIn, gpu0: object) -> None:
    """Over an uneven schedule, counter and oracle agree to the millijoule."""
    for second, watts in enumerate((70, 650, 123.457, 0, 331)):
        standin.set_power_w(0, watts, at_s=second * 0.7)
    for _ in range(50):
        standin.advance_s(0.0937)
        counter = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu0)
        assert counter == standin.true_energy_mj(0, 0, standin.now_s)
    by_hand_j = 0.7 * (70 + 650 + 123.457) + (4.685 - 2.8) * 331
    assert standin.true_energy_j(0, 0, 4.685) == pytest.approx(by_hand_j, abs=1e-6)


def test_oracle_adds_up_over_a_day(standin: StandIn) -> None:
    """A day at 700 W is 60.48 MJ to the microjoule, however it is cut."""
    standin.set_power_w(1, 700, at_s=0)
    assert standin.true_energy_uj(1, 0, 86_400) == 60_480_000_000_000
    assert standin.true_energy_uj(1, 0, 1000.5) + standin.true_energy_uj(1, 1000.5, 86_400) == (
        60_480_000_000_000
    )


def test_one_hour_at_100_w_is_a_tenth_of_a_kwh(standin: StandIn, gpu0: object) -> None:
    """The default GPU uses 360 kJ per hour."""
    standin.advance_s(3600)
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu0) == 360_000_000


def test_power_steps_may_come_in_any_order(standin: StandIn, gpu0: object) -> None:
    """A later command may fill in an earlier time, and replaces one of the same time."""
    standin.set_power_w(0, 300, at_s=2)
    standin.set_power_w(0, 200, at_s=1)
    standin.set_power_w(0, 400, at_s=2)
    seen = []
    for now in (0, 1, 1.999, 2, 100):
        standin.set_clock_s(now)
        seen.append(pynvml.nvmlDeviceGetPowerUsage(gpu0))
    assert seen == [100_000, 200_000, 200_000, 400_000, 400_000]


def test_power_can_be_a_mean(standin: StandIn, gpu0: object) -> None:
    """PowerUsage and field 185 lag behind a step, field 186 does not."""
    standin.set_power_mean_ms(0, 1000)
    standin.set_power_w(0, 200, at_s=10)
    standin.set_clock_s(10.25)
    average, instant = pynvml.nvmlDeviceGetFieldValues(gpu0, [AVERAGE, INSTANT])
    assert pynvml.nvmlDeviceGetPowerUsage(gpu0) == average.value.uiVal == 125_000
    assert instant.value.uiVal == 200_000


def test_power_sensor_may_refresh_in_periods(standin: StandIn, gpu0: object) -> None:
    """Between two refreshes the sensor repeats itself."""
    standin.set_power_period_ms(0, 100)
    standin.set_power_w(0, 200, at_s=0.05)
    standin.set_clock_s(0.099)
    assert pynvml.nvmlDeviceGetPowerUsage(gpu0) == 100_000
    standin.set_clock_s(0.1)
    assert pynvml.nvmlDeviceGetPowerUsage(gpu0) == 200_000


def test_energy_counter_is_quantised_downwards(standin: StandIn, gpu0: object) -> None:
    """In steps of 15 J the counter shows the last step reached, the oracle everything."""
    standin.set_energy_step_mj(0, 15_000)
    standin.advance_s(0.449)
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu0) == 30_000
    standin.advance_s(0.001)
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu0) == 45_000
    assert standin.true_energy_mj(0, 0, 0.449) == 44_900


def test_energy_counter_may_refresh_in_periods(standin: StandIn, gpu0: object) -> None:
    """With a 100 ms period the counter grows ten times per second."""
    standin.set_energy_period_ms(0, 100)
    standin.set_clock_s(0.399)
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu0) == 30_000


def test_energy_counter_starts_anywhere_and_resets(standin: StandIn, gpu0: object) -> None:
    """A reset drops offset and energy, now or at a given time; the oracle goes on."""
    standin.set_energy_offset_mj(0, 7_000_000)
    standin.advance_s(10)
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu0) == 8_000_000
    standin.reset_energy_counter(0)
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu0) == 0
    standin.advance_s(1)
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu0) == 100_000
    standin.reset_energy_counter(0, at_s=12)
    standin.set_clock_s(13.5)
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu0) == 150_000
    assert standin.true_energy_mj(0, 0, 13.5) == 1_350_000


def test_energy_counter_can_freeze(standin: StandIn, gpu0: object, gpu1: object) -> None:
    """A frozen counter stands still while its GPU draws power."""
    standin.advance_s(1)
    standin.freeze_energy_counter(0)
    standin.advance_s(1)
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu0) == 100_000
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu1) == 200_000


def test_power_samples_come_from_a_ring(standin: StandIn, gpu0: object) -> None:
    """The last 120 samples of 20 ms, or those younger than the last one seen."""
    standin.set_power_w(0, 200, at_s=9.9)
    standin.set_clock_s(10)
    kind, samples = pynvml.nvmlDeviceGetSamples(gpu0, pynvml.NVML_TOTAL_POWER_SAMPLES, 0)
    assert (kind, len(samples), samples[-1].timeStamp) == (UINT, 120, 10_000_000)
    assert [s.sampleValue.uiVal for s in samples[-7:]] == [100_000] + [200_000] * 6
    _, newer = pynvml.nvmlDeviceGetSamples(gpu0, pynvml.NVML_TOTAL_POWER_SAMPLES, 9_960_000)
    assert [s.timeStamp for s in newer] == [9_980_000, 10_000_000]


# -- field values


def test_field_values(standin: StandIn, gpu0: object) -> None:
    """Fields have value, type and time of their own."""
    standin.advance_s(2)
    standin.set_memory_temperature_c(0, 77)
    values = pynvml.nvmlDeviceGetFieldValues(gpu0, [MEMORY_TEMP, ENERGY, AVERAGE, INSTANT])
    assert [v.nvmlReturn for v in values] == [0, 0, 0, 0]
    assert [v.valueType for v in values] == [UINT, ULONGLONG, UINT, UINT]
    assert [v.timestamp for v in values] == [2_000_000] * 4
    assert values[1].value.ullVal == 200_000
    assert [values[i].value.uiVal for i in (0, 2, 3)] == [77, 100_000, 100_000]


def test_fields_fail_one_by_one(standin: StandIn, gpu0: object) -> None:
    """The call succeeds although a field, an unknown id and a foreign scope do not."""
    standin.set_field(0, INSTANT, error=pynvml.NVML_ERROR_NO_PERMISSION)
    values = pynvml.nvmlDeviceGetFieldValues(gpu0, [ENERGY, INSTANT, 9999, (AVERAGE, 1)])
    assert [v.nvmlReturn for v in values] == [0, 4, 3, 3]
    standin.set_field(0, INSTANT)
    assert pynvml.nvmlDeviceGetFieldValues(gpu0, [INSTANT])[0].nvmlReturn == 0


def test_field_types_vary(standin: StandIn, gpu0: object) -> None:
    """The same number comes as another type if the driver likes it so."""
    standin.set_field(0, INSTANT, value_type=DOUBLE)
    standin.set_field(0, MEMORY_TEMP, value_type=USHORT)
    power, temperature = pynvml.nvmlDeviceGetFieldValues(gpu0, [INSTANT, MEMORY_TEMP])
    assert (power.valueType, power.value.dVal) == (DOUBLE, 100_000.0)
    assert (temperature.valueType, temperature.value.usVal) == (USHORT, 65)


# -- MIG


def test_mig_instances_have_identity_and_memory(standin: StandIn, gpu0: object) -> None:
    """An instance has its own UUID, ids and memory, and leads back to its GPU."""
    standin.set_mig(0, 2)
    standin.set_mig_uuid(0, 1, "MIG-second")
    assert pynvml.nvmlDeviceGetMigMode(gpu0) == [1, 1]
    assert pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu0) == 7
    first, second = (pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu0, i) for i in (0, 1))
    assert pynvml.nvmlDeviceGetUUID(first) == "MIG-00000000-0000-0000-0000-000000000000"
    assert pynvml.nvmlDeviceGetUUID(second) == "MIG-second"
    assert pynvml.nvmlDeviceIsMigDeviceHandle(second).value == 1
    assert pynvml.nvmlDeviceGetGpuInstanceId(second) == 2
    assert pynvml.nvmlDeviceGetComputeInstanceId(second) == 0
    assert pynvml.nvmlDeviceGetMemoryInfo(second, pynvml.nvmlMemory_v2).total == 4096 * MIB
    parent = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(second)
    assert pynvml.nvmlDeviceGetUUID(parent) == pynvml.nvmlDeviceGetUUID(gpu0)
    assert pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByUUID("MIG-second")) == 1
    with nvml_error(pynvml.NVML_ERROR_NOT_FOUND):
        pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu0, 2)


def test_mig_gpu_has_no_utilization(standin: StandIn, gpu0: object, gpu1: object) -> None:
    """Neither the split GPU nor its instance reports utilisation; the whole one does."""
    standin.set_mig(0, 1)
    instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu0, 0)
    for handle in (gpu0, instance):
        with nvml_error(pynvml.NVML_ERROR_NOT_SUPPORTED):
            pynvml.nvmlDeviceGetUtilizationRates(handle)
    assert pynvml.nvmlDeviceGetUtilizationRates(gpu1).gpu == 50
    assert pynvml.nvmlDeviceGetPowerUsage(gpu0) == 100_000


def test_gpu_without_mig(standin: StandIn, gpu0: object) -> None:
    """A consumer GPU says NotSupported when asked for its MIG mode."""
    standin.set_mig(0, None)
    with nvml_error(pynvml.NVML_ERROR_NOT_SUPPORTED):
        pynvml.nvmlDeviceGetMigMode(gpu0)
    assert pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu0) == 0


# -- trouble


def test_fault_hits_one_function_of_one_gpu(standin: StandIn, gpu0: object, gpu1: object) -> None:
    """After two good calls three fail; others are untouched."""
    standin.fault("nvmlDeviceGetPowerUsage", gpu=1, error=10, after=2, times=3)
    outcomes = [_power_or_error(gpu1) for _ in range(7)]
    assert outcomes == [100_000, 100_000, 10, 10, 10, 100_000, 100_000]
    assert _power_or_error(gpu0) == 100_000
    assert pynvml.nvmlDeviceGetTemperature(gpu1, 0) == 60


def _power_or_error(handle: object) -> int:
    try:
        return int(pynvml.nvmlDeviceGetPowerUsage(handle))
    except pynvml.NVMLError as error:
        return int(error.value)


def test_fault_on_the_parent_spares_its_instances(standin: StandIn, gpu0: object) -> None:
    """As in a container, memory may be readable on a MIG instance only."""
    standin.set_mig(0, 1)
    standin.fault("nvmlDeviceGetMemoryInfo", gpu=0, error=pynvml.NVML_ERROR_NO_PERMISSION)
    instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu0, 0)
    assert pynvml.nvmlDeviceGetMemoryInfo(instance).total == 8192 * MIB
    with nvml_error(pynvml.NVML_ERROR_NO_PERMISSION):
        pynvml.nvmlDeviceGetMemoryInfo(gpu0)


def test_faults_for_all_gpus_and_all_functions(standin: StandIn, gpu0: object) -> None:
    """A fault without GPU or function hits everything until it is cleared."""
    standin.fault("*", error=pynvml.NVML_ERROR_UNKNOWN)
    for call in (pynvml.nvmlInit, pynvml.nvmlDeviceGetCount, pynvml.nvmlShutdown):
        with nvml_error(pynvml.NVML_ERROR_UNKNOWN):
            call()
    assert _power_or_error(gpu0) == pynvml.NVML_ERROR_UNKNOWN
    standin.clear_faults()
    assert _power_or_error(gpu0) == 100_000
    assert standin.refcount == 1


def test_fault_on_a_misspelt_function_is_an_error(standin: StandIn) -> None:
    """A fault that could never strike is refused."""
    with pytest.raises(ValueError, match="no function nvmlDeviceGetPower"):
        standin.fault("nvmlDeviceGetPower", error=3)


def test_slow_call_holds_up_nobody_else(standin: StandIn, gpu0: object, gpu1: object) -> None:
    """While one thread waits in the driver, another one is served."""
    standin.fault("nvmlDeviceGetPowerUsage", gpu=0, sleep_us=300_000)
    slow = threading.Thread(target=pynvml.nvmlDeviceGetPowerUsage, args=(gpu0,))
    slow.start()
    assert pynvml.nvmlDeviceGetPowerUsage(gpu1) == 100_000
    assert slow.is_alive()
    slow.join()
    assert standin.calls("nvmlDeviceGetPowerUsage") == 2


def test_lost_gpu_does_not_touch_the_other(standin: StandIn, gpu0: object, gpu1: object) -> None:
    """Every call for the lost GPU fails, none for the other, until it is back."""
    standin.lose(0)
    for call in (
        lambda: pynvml.nvmlDeviceGetPowerUsage(gpu0),
        lambda: pynvml.nvmlDeviceGetName(gpu0),
        lambda: pynvml.nvmlDeviceGetFieldValues(gpu0, [ENERGY]),
        lambda: pynvml.nvmlDeviceGetHandleByIndex(0),
    ):
        with nvml_error(pynvml.NVML_ERROR_GPU_IS_LOST):
            call()
    assert pynvml.nvmlDeviceGetCount() == 2
    assert _readings(gpu1)[:2] == (50, 10)
    standin.restore(0)
    assert _power_or_error(gpu0) == 100_000


def test_calls_are_counted_per_function_and_gpu(
    standin: StandIn, gpu0: object, gpu1: object
) -> None:
    """Failed calls count too; uncalled functions have been called 0 times."""
    standin.fault("nvmlDeviceGetPowerUsage", gpu=0, error=3)
    for handle in (gpu0, gpu1, gpu1):
        _power_or_error(handle)
    assert standin.calls("nvmlDeviceGetPowerUsage") == 3
    assert standin.calls("nvmlDeviceGetPowerUsage", gpu=1) == 2
    assert standin.calls("nvmlDeviceGetHandleByIndex_v2") == 2
    assert standin.calls("nvmlDeviceGetFanSpeed") == 0


# -- clock and script


def test_real_clock_passes_by_itself(standin: StandIn, gpu0: object) -> None:
    """With the real clock energy grows at 100 W; advancing it is refused."""
    standin.use_real_clock()
    began_s, before_mj = standin.now_s, pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu0)
    time.sleep(0.05)
    grown_mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu0) - before_mj
    assert 4_999 <= grown_mj <= standin.true_energy_mj(0, began_s, standin.now_s) + 1
    with pytest.raises(ValueError, match="refused: advance"):
        standin.advance_s(1)


ANOTHER_PROGRAM = """
import pynvml
pynvml.nvmlInit()
for index in range(pynvml.nvmlDeviceGetCount()):
    gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
    try:
        power = pynvml.nvmlDeviceGetPowerUsage(gpu)
    except pynvml.NVMLError as error:
        power = type(error).__name__
    print(pynvml.nvmlDeviceGetName(gpu), power)
"""


def test_another_program_obeys_the_script(standin_library: Path, tmp_path: Path) -> None:
    """A program that only imports pynvml finds the machine that the script describes."""
    script = """
# three GPUs, two of them odd
gpus 3
clock real
power 0 0 42000
name 0 My GPU 4090
fault nvmlDeviceGetPowerUsage 1 3 0 -1 0
"""
    finished = _run(ANOTHER_PROGRAM, subprocess_env(standin_library, script, tmp_path))
    assert finished.stderr == ""
    assert finished.stdout.splitlines() == [
        "My GPU 4090 42000",
        "Stand-in GPU NVMLError_NotSupported",
        "Stand-in GPU 100000",
    ]


def test_wrong_script_ends_the_program(standin_library: Path, tmp_path: Path) -> None:
    """A line that means nothing is named and fatal."""
    finished = _run(ANOTHER_PROGRAM, subprocess_env(standin_library, "gpus two\n", tmp_path))
    assert finished.returncode != 0
    assert "STANDIN_SCRIPT: refused: gpus two" in finished.stderr


@pytest.mark.usefixtures("standin_library")
def test_library_with_soname_is_found_by_name(tmp_path: Path) -> None:
    """Loaded beforehand by path, it answers to the driver's name from then on."""
    library = compile_standin(tmp_path)
    env = {k: v for k, v in os.environ.items() if k != "STANDIN_SCRIPT"}
    finished = _run(f"import ctypes; ctypes.CDLL({str(library)!r})\n{ANOTHER_PROGRAM}", env)
    assert finished.stdout.splitlines() == ["Stand-in GPU 100000"] * 2
