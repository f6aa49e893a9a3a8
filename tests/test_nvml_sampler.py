"""Steady sampling of the stand-in driver: windows, energy, trouble, threads and forks."""

import logging
import math
import subprocess
import sys
import textwrap
import threading
import time

import pynvml
import pytest

from hubmeter.nvml import open_nvml
from hubmeter.sources.nvml_sampler import (
    NOTHING,
    GpuSampler,
    acquire_shared,
    release_shared,
)
from hubmeter.sources.simulated_gpus import NAME, SimulatedGpus
from standin import subprocess_env

THREAD = "hubmeter-gpu-sampler"


def sampler_by_hand(standin, **settings):
    return GpuSampler(open_nvml, monotonic_ns=lambda: round(standin.now_s * 1e9), **settings)


class Run:
    """A sampler without a thread, on the stand-in's clock."""

    def __init__(self, standin, **settings):
        self.standin = standin
        standin.set_limit_w(0, 700)
        self.sampler = sampler_by_hand(standin, **settings)
        self.sampler.open()

    def advance_s(self, duration_s, step_s=1.0):
        for _ in range(round(duration_s / step_s)):
            self.standin.advance_s(step_s)
            self.sampler.tick()

    def gpu(self, index=0):
        return self.sampler.snapshot.gpus[index]

    def joules(self, index=0):
        return self.gpu(index).energy.total_joules


@pytest.fixture(name="run")
def _run(standin):
    run = Run(standin)
    yield run
    run.sampler.stop()


def test_first_sample_is_there_at_once(run):
    """What the first sample shows is published, with no energy yet."""
    gpu = run.gpu()

    assert gpu.latest.power_watts == 100
    assert gpu.mean.power_watts == 100
    assert gpu.highest.power_watts == 100
    assert gpu.energy.total_joules == 0


def test_energy_is_that_of_the_counter(standin, run):
    """Energy grows as the driver's counter does, whatever power did between samples."""
    standin.set_power_w(0, 400, at_s=10.2)
    standin.set_power_w(0, 60, at_s=10.9)
    run.advance_s(60)

    assert run.joules() == pytest.approx(standin.true_energy_j(0, 0, 60), abs=1e-3)
    assert run.gpu().energy.source == "counter"


@pytest.mark.parametrize("step_mj", [1, 15_000])
def test_energy_equals_the_truth_within_one_counter_step(standin, step_mj):
    """Over irregular power and samples out of turn the error is one step of the counter."""
    standin.set_energy_step_mj(0, step_mj)
    standin.set_power_w(0, 70)
    run = Run(standin)
    for i in range(100):
        standin.set_power_w(0, 70 + 580 * (i % 3 == 0), at_s=0.37 * i)
    for i in range(80):
        run.advance_s(0.1 + 0.9 * (i % 2), step_s=0.1 + 0.9 * (i % 2))

        truth = standin.true_energy_j(0, 0, standin.now_s)
        assert run.joules() == pytest.approx(truth, abs=step_mj / 1e3 + 1e-3)
    run.sampler.stop()


def test_without_a_counter_power_is_integrated(standin):
    """No GPU without a counter is left without energy, and it says how it was measured."""
    standin.fault("nvmlDeviceGetTotalEnergyConsumption", gpu=0, error=3)
    standin.set_field(0, 83, error=3)
    run = Run(standin)
    standin.set_power_w(0, 300, at_s=5.5)
    run.advance_s(10)

    first, second = run.gpu(0).energy, run.gpu(1).energy
    assert (first.source, second.source) == ("integrated", "counter")
    assert first.counter_joules == 0
    # The trapezoid sees the step at 5.5 s in the middle of its interval: exact.
    assert first.integrated_joules == pytest.approx(standin.true_energy_j(0, 0, 10))
    run.sampler.stop()


def test_counter_reset_is_bridged_by_power(standin, run):
    """A driver that starts counting anew costs nothing."""
    run.advance_s(10)
    standin.reset_energy_counter(0)
    run.advance_s(10)

    assert run.joules() == pytest.approx(2000, abs=0.01)
    assert run.gpu().energy.integrated_joules == pytest.approx(100)


def test_frozen_counter_is_replaced(standin, run):
    """A counter that stops counting is noticed after 5 s, and nothing is lost."""
    run.advance_s(10)
    standin.freeze_energy_counter(0)
    run.advance_s(20)

    assert run.joules() == pytest.approx(3000, abs=0.01)
    assert run.gpu().energy.source == "integrated"


def test_gap_is_bridged_by_the_counter(run):
    """A program that was stopped for a minute has the energy of that minute."""
    run.advance_s(10)
    run.advance_s(60, step_s=60)

    assert run.joules() == pytest.approx(7000, abs=0.01)
    assert run.gpu().energy.gap_s == 0


def test_gap_without_a_counter_is_told(standin):
    """Power is integrated over three intervals at most; the rest is a gap, not a guess."""
    standin.fault("nvmlDeviceGetTotalEnergyConsumption", error=3)
    standin.set_field(0, 83, error=3)
    run = Run(standin)
    run.advance_s(60, step_s=60)

    assert run.joules() == pytest.approx(300)
    assert run.gpu().energy.gap_s == pytest.approx(57)
    run.sampler.stop()


def test_lost_gpu_does_not_blank_the_others_and_comes_back(standin, run):
    """One GPU falls off the bus for half a minute, and its neighbour never notices."""
    run.advance_s(10)
    standin.lose(1)
    for _ in range(30):
        run.advance_s(1)
        assert run.gpu(0).latest.power_watts == 100
        assert run.gpu(1).latest is None
        assert run.gpu(1).mean.power_watts is None
        assert run.gpu(1).highest.power_watts is None
    standin.restore(1)
    run.advance_s(20)

    assert run.gpu(1).latest.power_watts == 100
    # The counter went on meanwhile, so not a joule is missing.
    assert run.joules(1) == pytest.approx(6000, abs=0.01)
    assert run.joules(0) == pytest.approx(6000, abs=0.01)


def test_gpu_keeps_its_identity_when_nvml_counts_anew(standin, run):
    """A GPU that comes back under another index is the same GPU with the same id."""
    standin.set_power_w(1, 40)
    run.advance_s(2)
    standin.lose(1)
    run.advance_s(1)
    standin.restore(1)
    standin.set_order([1, 0])
    run.advance_s(5)

    assert run.gpu(1).device.index == 1
    assert run.gpu(1).latest.power_watts == 40
    assert run.gpu(0).latest.power_watts == 100


def test_mean_is_weighted_by_time_and_spike_is_in_the_maximum(standin):
    """A short spike moves the mean of its window a little, and is its maximum."""
    run = Run(standin, interval_s=0.1)
    standin.set_power_w(0, 600, at_s=0.45)
    standin.set_power_w(0, 100, at_s=0.55)
    run.advance_s(1.0, step_s=0.1)

    assert run.gpu().highest.power_watts == 600
    assert run.gpu().mean.power_watts == pytest.approx(150)
    assert run.gpu().latest.power_watts == 100
    run.sampler.stop()


def test_windows_are_fixed(standin):
    """What is published is the latest closed window until the next one closes."""
    run = Run(standin, interval_s=0.25)
    run.advance_s(1, step_s=0.25)
    standin.set_power_w(0, 300)
    for _ in range(3):
        run.advance_s(0.25, step_s=0.25)
        assert run.gpu().highest.power_watts == 100
    run.advance_s(0.25, step_s=0.25)

    assert run.gpu().highest.power_watts == 300
    run.sampler.stop()


def test_span_covers_several_windows(standin):
    """Who reads every 10 s sees a spike that was 8 s ago, and the mean over all 10 s."""
    run = Run(standin, span_s=10)
    run.advance_s(10)
    standin.set_power_w(0, 600, at_s=11.5)
    standin.set_power_w(0, 100, at_s=12.5)
    run.advance_s(10)

    assert run.gpu().highest.power_watts == 600
    assert run.gpu().mean.power_watts == pytest.approx(150)
    run.advance_s(3)
    assert run.gpu().highest.power_watts == 100
    run.sampler.stop()


def test_long_span_has_longer_windows(standin):
    """Ten minutes are thirty windows of 20 seconds, not six hundred."""
    run = Run(standin, span_s=600)
    run.advance_s(9)
    standin.set_power_w(0, 600, at_s=9.5)
    standin.set_power_w(0, 100, at_s=10.5)
    run.advance_s(600)

    assert run.gpu().highest.power_watts == 600
    run.advance_s(20)
    assert run.gpu().highest.power_watts == 100
    run.sampler.stop()


def test_constant_values_have_exact_means(standin):
    """A mean never leaves the range of its samples: 100 % stays 100 %."""
    standin.set_utilization(0, 100)
    run = Run(standin, interval_s=0.1, span_s=7)
    for _ in range(200):
        run.advance_s(0.1037, step_s=0.1037)
        assert run.gpu().mean.utilization_percent == 100
    run.sampler.stop()


def test_throttle_reasons_of_a_window_are_kept(standin):
    """A reason that was there at one sample belongs to the window."""
    run = Run(standin, interval_s=0.25)
    for mask in (0, 4, 0x40, 0):
        standin.set_throttle_mask(0, mask)
        run.advance_s(0.25, step_s=0.25)

    assert run.gpu().highest.throttle_reasons == 0x44
    run.sampler.stop()


def test_value_that_fails_now_and_then_is_averaged_over_the_rest(standin):
    """A transient error leaves a hole in one value, not in the window."""
    standin.set_temperature_c(0, 50)
    standin.fault("nvmlDeviceGetTemperatureV", gpu=0, error=10, after=2, times=1)
    run = Run(standin, interval_s=0.25)
    run.advance_s(1, step_s=0.25)

    assert run.gpu().mean.temperature_celsius == 50
    assert run.gpu().mean.power_watts == 100
    run.sampler.stop()


def test_readers_do_not_take_from_each_other(run):
    """A snapshot is a value: reading it, or keeping it, changes nothing."""
    before = run.sampler.snapshot
    run.advance_s(5)

    assert run.sampler.snapshot is run.sampler.snapshot
    assert before.gpus[0].energy.total_joules == 0
    assert run.joules() == pytest.approx(500)


def test_each_value_is_asked_once_per_tick(standin, run):
    """A tick is one call per value and GPU; nothing is opened or looked up again."""
    per_tick = (
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetEnforcedPowerLimit",
        "nvmlDeviceGetFanSpeed",
        "nvmlDeviceGetTotalEccErrors",
        "nvmlDeviceGetCurrentClocksEventReasons",
    )
    once = (
        "nvmlInitWithFlags",
        "nvmlDeviceGetCount_v2",
        "nvmlDeviceGetHandleByIndex_v2",
        "nvmlDeviceGetHandleByUUID",
        "nvmlDeviceGetName",
        "nvmlDeviceGetUUID",
    )
    run.advance_s(1)
    before = {name: standin.calls(name) for name in (*per_tick, *once)}
    run.advance_s(10)
    asked = {name: standin.calls(name) - count for name, count in before.items()}

    assert asked == {**dict.fromkeys(per_tick, 20), **dict.fromkeys(once, 0)}
    assert standin.calls("nvmlDeviceGetPowerUsage") == 0


def test_stop_takes_a_last_sample_and_closes_the_partial_window(standin):
    """The energy and the spike since the last tick are not lost."""
    run = Run(standin)
    run.advance_s(10)
    standin.set_power_w(0, 500)
    standin.advance_s(0.5)
    assert run.sampler.stop()

    assert run.joules() == pytest.approx(1250, abs=0.01)
    assert run.gpu().highest.power_watts == 500
    standin.advance_s(5)
    run.sampler.tick()
    assert run.joules() == pytest.approx(1250, abs=0.01)


def test_reference_count_is_what_it_was(standin):
    """NVML stays open for others, and is closed once by us, however often we stop."""
    pynvml.nvmlInit()
    run = Run(standin)
    assert standin.refcount == 2

    run.sampler.stop()
    run.sampler.stop()

    assert standin.refcount == 1
    assert standin.calls("nvmlInitWithFlags") == 2


def test_snapshot_gets_stale(standin, run):
    """Five seconds without a sample, and the snapshot says nothing about now."""
    run.advance_s(2)
    assert not run.sampler.is_stale
    standin.advance_s(5.1)
    assert run.sampler.is_stale


# -- with the thread


def threads():
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def wait_until(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_thread_samples_from_start_to_stop(standin):
    """A named daemon thread samples at its pace, and is gone after stop()."""
    standin.use_real_clock()
    sampler = GpuSampler(open_nvml, interval_s=0.05)
    began_s = standin.now_s
    sampler.start()
    assert sampler.snapshot.gpus[0].latest.power_watts == 100
    [thread] = threads()
    assert thread.daemon
    wait_until(lambda: standin.calls("nvmlDeviceGetFanSpeed", gpu=0) > 16)
    assert sampler.stop()
    elapsed_s = standin.now_s - began_s

    assert threads() == []
    assert standin.refcount == 0
    joules = sampler.snapshot.gpus[0].energy.total_joules
    assert 100 * (elapsed_s - 0.5) < joules <= 100 * elapsed_s
    assert standin.calls("nvmlDeviceGetFanSpeed", gpu=0) <= elapsed_s / 0.05 + 3


def test_sample_can_be_asked_for(standin):
    """A sample out of turn is there when the call returns."""
    with sampler_by_hand(standin, interval_s=3600) as sampler:
        sampler.start()
        standin.advance_s(10)
        assert sampler.sample_now(timeout_s=5)

        assert sampler.snapshot.gpus[0].energy.total_joules == pytest.approx(1000)
    assert threads() == []


def test_missed_ticks_are_skipped(standin):
    """After a slow call the schedule goes on at its multiples, without a burst."""
    standin.use_real_clock()
    standin.fault("nvmlDeviceGetFanSpeed", gpu=0, after=1, times=1, sleep_us=350_000)
    began_s = time.monotonic()
    with GpuSampler(open_nvml, interval_s=0.1) as sampler:
        sampler.start()
        wait_until(lambda: standin.calls("nvmlDeviceGetFanSpeed", gpu=0) > 4)
        elapsed_s = time.monotonic() - began_s
    # First sample, a tick of 0.35 s from 0.1 s on, then ticks at 0.5, 0.6 and 0.7 s.
    assert elapsed_s > 0.65


def test_hung_driver_does_not_hang_stop(standin, caplog):
    """stop() gives up in time; the thread cleans up when the driver returns."""
    standin.fault("nvmlDeviceGetFanSpeed", gpu=0, after=1, times=1, sleep_us=2_000_000)
    sampler = GpuSampler(open_nvml, interval_s=0.05)
    sampler.start()
    wait_until(lambda: standin.calls("nvmlDeviceGetFanSpeed", gpu=0) > 1)
    began_s = time.monotonic()

    assert not sampler.stop(timeout_s=0.1)
    assert time.monotonic() - began_s < 1.5
    assert not sampler.sample_now(timeout_s=0.01)

    assert "hangs" in caplog.text
    wait_until(lambda: not threads())
    assert standin.refcount == 0


def test_slow_driver_does_not_hang_start(standin, monkeypatch):
    """start() goes on without the driver, which is sampled as soon as it answers."""
    monkeypatch.setattr("hubmeter.sources.nvml_sampler.START_WAIT_S", 0.05)
    standin.fault("nvmlInitWithFlags", times=1, sleep_us=1_000_000)
    sampler = GpuSampler(open_nvml, interval_s=0.05)
    began_s = time.monotonic()
    sampler.start()

    assert time.monotonic() - began_s < 0.8
    assert sampler.snapshot is NOTHING
    wait_until(lambda: sampler.snapshot.gpus)
    assert sampler.stop()


def test_no_thread_is_one_log_line(caplog, monkeypatch):
    """Where no thread can be started there are no GPU metrics, and no exception either."""

    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    sampler = GpuSampler(SimulatedGpus)
    sampler.start()

    assert sampler.stop()
    assert [r.getMessage() for r in caplog.records] == ["no GPU metrics: can't start new thread"]


def test_no_driver_is_one_log_line(standin, caplog):
    """Without a driver there is nothing to see, one line says why, and no thread is left."""
    standin.fault("nvmlInitWithFlags", error=12)
    sampler = GpuSampler(open_nvml)
    sampler.start()
    wait_until(lambda: not threads())

    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "NVIDIA_DRIVER_CAPABILITIES" in record.getMessage()
    assert sampler.snapshot is NOTHING
    assert not sampler.sample_now()
    assert sampler.stop()


def test_nothing_selected_is_one_log_line(standin, caplog):
    """With no GPU selected NVML is closed again at once."""
    sampler = GpuSampler(open_nvml, select=lambda _: ())
    sampler.start()
    wait_until(lambda: not threads())

    assert [record.getMessage() for record in caplog.records] == [
        "no GPU metrics: none of 2 GPUs is selected"
    ]
    assert standin.refcount == 0


class BrokenSource:
    """Raises what no source should."""

    devices = SimulatedGpus(1).devices

    def __init__(self):
        self.reads = 0
        self.is_closed = False

    def read(self, device, now_ns):
        self.reads += 1
        raise RuntimeError("broken")

    def close(self):
        self.is_closed = True


def test_unexpected_failure_is_logged_once_and_sampling_goes_on(caplog):
    """A bug does not kill the thread, nor fill the log."""
    source = BrokenSource()
    sampler = GpuSampler(lambda: source, interval_s=0.01)
    caplog.set_level(logging.INFO)
    sampler.start()
    wait_until(lambda: source.reads > 5)
    assert sampler.stop()

    assert source.is_closed
    assert [r.getMessage() for r in caplog.records] == [
        "GPU 0 cannot be read",
    ]


def test_shared_sampler_is_one_and_closes_with_its_last_user(standin):
    """Two users, one thread, one nvmlInit; the last one to leave shuts down."""
    made = []

    def make():
        made.append(sampler_by_hand(standin, interval_s=3600))
        return made[-1]

    first, second = acquire_shared(make), acquire_shared(make)
    assert first is second
    assert len(made) == len(threads()) == 1
    standin.advance_s(1)
    release_shared(first)
    assert standin.refcount == 1
    assert first.snapshot.gpus[0].energy.total_joules == pytest.approx(100)
    release_shared(second)
    assert standin.refcount == 0
    release_shared(second)

    third = acquire_shared(make)
    assert third is not first
    release_shared(third)
    assert standin.calls("nvmlInitWithFlags") == standin.calls("nvmlShutdown") == 2


FORK = """
    import os, sys, threading
    from hubmeter.nvml import open_nvml
    from hubmeter.sources import nvml_sampler as s

    shared = s.acquire_shared(lambda: s.GpuSampler(open_nvml, interval_s=0.05))
    assert shared.snapshot.gpus
    pid = os.fork()
    if pid == 0:
        assert shared.snapshot is s.NOTHING
        assert not [t for t in threading.enumerate() if t.name == "hubmeter-gpu-sampler"]
        shared.start()
        shared.tick()
        assert shared.snapshot is s.NOTHING
        s.release_shared(shared)
        assert shared.stop()
        own = s.acquire_shared(lambda: s.GpuSampler(open_nvml, interval_s=0.05))
        assert own is not shared
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert shared.sample_now()
    before = shared.snapshot.time_ns
    assert shared.sample_now()
    assert shared.snapshot.time_ns > before
    s.release_shared(shared)
"""


def test_forked_child_has_no_sampler(standin_library, tmp_path):
    """The child has neither thread nor values, and leaves the parent's NVML alone."""
    code = textwrap.dedent(FORK)
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=subprocess_env(standin_library, "strict_fork 1\n", tmp_path),
        check=True,
        timeout=60,
    )


# -- the simulation


def test_simulated_gpus_add_up():
    """Made-up GPUs say so, and their counter is the integral of their power."""
    now_ns = [0]
    sampler = GpuSampler(SimulatedGpus, interval_s=0.1, monotonic_ns=lambda: now_ns[0])
    sampler.open()
    joules = [0.0, 0.0]
    watts = [gpu.latest.power_watts for gpu in sampler.snapshot.gpus]
    for _ in range(1000):
        now_ns[0] += 100_000_000
        sampler.tick()
        for i, gpu in enumerate(sampler.snapshot.gpus):
            joules[i] += (watts[i] + gpu.latest.power_watts) / 2 * 0.1
            watts[i] = gpu.latest.power_watts

    for i, gpu in enumerate(sampler.snapshot.gpus):
        assert gpu.device.name == NAME == "Simulated GPU (no NVML)"
        assert gpu.energy.source == "counter"
        assert gpu.energy.integrated_joules == 0
        assert gpu.energy.total_joules == pytest.approx(joules[i], rel=0.01)
        assert 34 <= gpu.latest.temperature_celsius <= 78


def test_simulated_load_can_be_set():
    """Without load the simulated GPUs idle."""
    source = SimulatedGpus(1, load=0.0)
    [device] = source.devices

    readings = [source.read(device, t * 1_000_000_000) for t in range(20)]

    assert {reading.power_watts for reading in readings} == {60}
    assert readings[-1].energy_counter_joules == pytest.approx(60 * 19)
    assert not math.isnan(readings[-1].temperature_celsius)


class HalfBrokenSource(SimulatedGpus):
    """One GPU of two raises what no source should."""

    def read(self, device, now_ns):
        if device.index == 1:
            raise RuntimeError("broken")
        return super().read(device, now_ns)


def test_a_gpu_that_raises_does_not_blank_the_others(caplog):
    """The other one has its values, and the log says once which could not be read."""
    now = [0]
    with GpuSampler(lambda: HalfBrokenSource(2), monotonic_ns=lambda: now[0]) as sampler:
        sampler.open()
        for second in range(1, 4):
            now[0] = second * 10**9
            sampler.tick()

        [good, broken] = sampler.snapshot.gpus
    assert good.mean.power_watts is not None
    assert broken.mean.power_watts is None
    messages = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert messages == ["GPU 1 cannot be read"]


def test_another_wish_for_the_shared_sampler_is_a_warning(caplog):
    """The first user's settings hold, and the second is told."""
    shared = acquire_shared(lambda: GpuSampler(lambda: SimulatedGpus(1)), "GPUs 0")
    assert acquire_shared(lambda: GpuSampler(lambda: SimulatedGpus(1)), "GPUs 1") is shared
    release_shared(shared)
    release_shared(shared)

    [record] = caplog.records
    assert "GPUs 0" in record.getMessage()
    assert "GPUs 1" in record.getMessage()
