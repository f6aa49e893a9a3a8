"""GPU instruments on real meter providers, from the stand-in driver to the data points."""

import logging
import math
import subprocess
import sys
import textwrap
import threading
import time

import pyarrow.parquet as pq
import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    InMemoryMetricReader,
    PeriodicExportingMetricReader,
)

from hubmeter.nvml import open_nvml
from hubmeter.settings import Settings
from hubmeter.sources import gpu_meter, sdk_exporter
from hubmeter.sources.gpu_meter import (
    gpu_meter_provider,
    instrument_gpus,
)
from hubmeter.sources.nvml_sampler import GpuSampler
from hubmeter.sources.simulated_gpus import SimulatedGpus
from standin import subprocess_env

UUID = "GPU-00000000-0000-0000-0000-00000000000{}"
THREAD = "hubmeter-gpu-sampler"

UNITS = {
    "gen_ai.gpu.energy": "J",
    "gen_ai.co2.emissions": "gCO2e",
    "gen_ai.power.cost": "USD",
    "gen_ai.gpu.utilization": "%",
    "gen_ai.gpu.utilization.max": "%",
    "gen_ai.gpu.memory.used": "MiB",
    "gen_ai.gpu.memory.total": "MiB",
    "gen_ai.gpu.temperature": "Cel",
    "gen_ai.gpu.temperature.max": "Cel",
    "gen_ai.gpu.power": "W",
    "gen_ai.gpu.power.max": "W",
    "gen_ai.gpu.memory.utilization": "%",
    "gen_ai.gpu.power.limit": "W",
    "gen_ai.gpu.clock.sm": "MHz",
    "gen_ai.gpu.clock.memory": "MHz",
    "gen_ai.gpu.fan.speed": "%",
    "gen_ai.gpu.ecc.errors.uncorrected": "1",
    "gen_ai.gpu.throttle.thermal": "1",
    "gen_ai.gpu.throttle.power": "1",
    "gen_ai.gpu.throttle.hw_slowdown": "1",
    "gen_ai.gpu.throttle.hw_thermal": "1",
    "gen_ai.gpu.throttle.hw_power_brake": "1",
}


DRIVER_FUNCTIONS = (
    "nvmlInitWithFlags",
    "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetHandleByUUID",
    "nvmlDeviceGetName",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetClockInfo",
)


def read_metrics(reader):
    """All metrics of one collection."""
    data = reader.get_metrics_data()
    return [
        metric
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
    ]


def read_points(reader):
    """(metric name, gpu_id) to value; energy by (name, gpu_id, energy_source)."""
    points = {}
    for metric in read_metrics(reader):
        for point in metric.data.data_points:
            labels = [point.attributes.get(key) for key in ("gpu_id", "energy_source")]
            points[(metric.name, *filter(None, labels))] = point.value
    return points


class Bench:
    """A sampler by hand, a provider with a reader, and the instruments between them."""

    def __init__(self, standin, *, settings=None, **sampling):
        self.standin = standin
        standin.set_limit_w(0, 700)
        self.sampler = GpuSampler(
            open_nvml, monotonic_ns=lambda: round(standin.now_s * 1e9), **sampling
        )
        self.sampler.open()
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)
        self.handle = instrument_gpus(
            self.provider, settings=settings or Settings(), sampler=self.sampler
        )

    def advance_s(self, duration_s):
        for _ in range(round(duration_s)):
            self.standin.advance_s(1)
            self.sampler.tick()

    def points(self):
        return read_points(self.reader)

    def close(self):
        self.handle.stop()
        self.sampler.stop()
        self.provider.shutdown()


@pytest.fixture(name="bench")
def _bench(standin):
    bench = Bench(standin)
    yield bench
    bench.close()


def test_hundred_watts_for_an_hour(bench):
    """100 W for one hour is 0.1 kWh, 47.5 g and 0.012 USD, through driver, sampler and SDK."""
    bench.advance_s(3600)
    points = bench.points()

    joules = points["gen_ai.gpu.energy", "0", "counter"]
    assert joules / 3.6e6 == pytest.approx(0.1)
    assert points["gen_ai.co2.emissions", "0"] == pytest.approx(47.5)
    assert points["gen_ai.power.cost", "0"] == pytest.approx(0.012)


def test_hundred_watts_for_an_hour_without_a_counter(standin):
    """The same numbers from integrated power, and they say so."""
    standin.fault("nvmlDeviceGetTotalEnergyConsumption", error=3)
    for gpu in (0, 1):
        standin.set_field(gpu, 83, error=3)
    bench = Bench(standin)
    bench.advance_s(3600)
    points = bench.points()

    assert points["gen_ai.gpu.energy", "0", "integrated"] / 3.6e6 == pytest.approx(0.1)
    assert ("gen_ai.gpu.energy", "0", "counter") not in points
    assert points["gen_ai.co2.emissions", "0"] == pytest.approx(47.5)
    assert points["gen_ai.power.cost", "0"] == pytest.approx(0.012)
    bench.close()


def test_factors_are_those_of_the_settings(standin):
    """Price, carbon intensity and PUE come from the settings."""
    settings = Settings(price_usd_per_kwh=0.5, carbon_g_per_kwh=100.0, pue=2.0)
    bench = Bench(standin, settings=settings)
    bench.advance_s(3600)
    points = bench.points()

    assert points["gen_ai.power.cost", "0"] == pytest.approx(0.1)
    assert points["gen_ai.co2.emissions", "0"] == pytest.approx(20)
    bench.close()


def test_names_units_and_kinds(bench):
    """Every instrument has the agreed name and unit; counters are monotonic sums."""
    bench.advance_s(2)
    found = read_metrics(bench.reader)

    assert {metric.name: metric.unit for metric in found} == UNITS
    for metric in found:
        is_counter = metric.unit in {"J", "gCO2e", "USD"}
        assert getattr(metric.data, "is_monotonic", False) is is_counter


def test_attributes_tell_the_gpu_and_nothing_else(bench):
    """Each point has index, name and UUID; energy also how it was measured."""
    bench.advance_s(2)

    for metric in read_metrics(bench.reader):
        for point, index in zip(metric.data.data_points, "01", strict=True):
            attributes = dict(point.attributes)
            source = attributes.pop("energy_source", None)
            assert source == ("counter" if metric.name == "gen_ai.gpu.energy" else None)
            assert attributes == {
                "gpu_id": index,
                "gpu_name": "Stand-in GPU",
                "gpu_uuid": UUID.format(index),
            }


def test_scope_is_named(bench):
    """The instrumentation scope is ours, with a version."""
    data = bench.reader.get_metrics_data()

    [scope] = data.resource_metrics[0].scope_metrics
    assert scope.scope.name == "hubmeter.gpu"
    assert scope.scope.version


def test_values_are_those_of_the_driver(standin, bench):
    """Each gauge shows its own reading."""
    standin.set_power_w(0, 250)
    standin.set_utilization(0, 93, 41)
    standin.set_memory_mib(0, used=1024, total=81920)
    standin.set_temperature_c(0, 61)
    standin.set_clocks_mhz(0, sm=1980, memory=2619)
    standin.set_fan_percent(0, 30)
    standin.set_ecc_errors(0, 2, uncorrected=True)
    standin.set_throttle_mask(0, 0x44)
    bench.advance_s(3)
    points = {name[0]: value for name, value in bench.points().items() if name[1] == "0"}

    del points["gen_ai.gpu.energy"], points["gen_ai.co2.emissions"], points["gen_ai.power.cost"]
    assert points == {
        "gen_ai.gpu.utilization": 93,
        "gen_ai.gpu.utilization.max": 93,
        "gen_ai.gpu.memory.used": 1024,
        "gen_ai.gpu.memory.total": 81920,
        "gen_ai.gpu.temperature": 61,
        "gen_ai.gpu.temperature.max": 61,
        "gen_ai.gpu.power": 250,
        "gen_ai.gpu.power.max": 250,
        "gen_ai.gpu.memory.utilization": 41,
        "gen_ai.gpu.power.limit": 700,
        "gen_ai.gpu.clock.sm": 1980,
        "gen_ai.gpu.clock.memory": 2619,
        "gen_ai.gpu.fan.speed": 30,
        "gen_ai.gpu.ecc.errors.uncorrected": 2,
        "gen_ai.gpu.throttle.thermal": 0,
        "gen_ai.gpu.throttle.power": 1,
        "gen_ai.gpu.throttle.hw_slowdown": 0,
        "gen_ai.gpu.throttle.hw_thermal": 1,
        "gen_ai.gpu.throttle.hw_power_brake": 0,
    }


def test_what_is_not_offered_yields_nothing(standin):
    """No value is no point, never 0, and only for the GPU that it is about."""
    for function in (
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetFanSpeed",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetPowerUsage",
    ):
        standin.fault(function, gpu=0, error=3)
    bench = Bench(standin)
    bench.advance_s(3)
    points = bench.points()

    assert {name[0] for name in points if name[1] == "1"} == UNITS.keys()
    assert {name[0] for name in points if name[1] == "0"} == {
        "gen_ai.gpu.memory.used",
        "gen_ai.gpu.memory.total",
        "gen_ai.gpu.temperature",
        "gen_ai.gpu.temperature.max",
        "gen_ai.gpu.power.limit",
        "gen_ai.gpu.clock.sm",
        "gen_ai.gpu.clock.memory",
        "gen_ai.gpu.ecc.errors.uncorrected",
    }
    bench.close()


def test_source_change_keeps_both_series_and_their_sum(standin, bench):
    """When a counter freezes, energy goes on in the other series; both are monotonic."""
    bench.advance_s(10)
    standin.freeze_energy_counter(0)
    before = bench.points()
    bench.advance_s(20)
    after = bench.points()

    counter, integrated = (("gen_ai.gpu.energy", "0", s) for s in ("counter", "integrated"))
    assert integrated not in before
    assert after[counter] == before[counter] == pytest.approx(1000, abs=0.01)
    assert after[integrated] == pytest.approx(2000)
    total = after[counter] + after[integrated]
    assert after["gen_ai.co2.emissions", "0"] == pytest.approx(total / 3.6e6 * 475)


class Restless:
    """A sampler that ticks whenever somebody looks at it."""

    is_stale = False

    def __init__(self, bench):
        self._bench = bench

    @property
    def snapshot(self):
        self._bench.advance_s(1)
        return self._bench.sampler.snapshot

    def sample_now(self, timeout_s):
        return timeout_s > 0


def test_energy_cost_and_co2_of_a_collection_are_of_one_moment(bench):
    """A tick in the middle of a collection does not tear its values apart."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    with instrument_gpus(provider, settings=Settings(), sampler=Restless(bench)):
        points = read_points(reader)

    joules = points["gen_ai.gpu.energy", "0", "counter"]
    assert joules > 0
    assert points["gen_ai.co2.emissions", "0"] == pytest.approx(joules / 3.6e6 * 475, rel=1e-12)
    assert points["gen_ai.power.cost", "0"] == pytest.approx(joules / 3.6e6 * 0.12, rel=1e-12)
    provider.shutdown()


def test_lost_gpu_has_no_gauges_but_keeps_its_energy(standin, bench):
    """A lost GPU is silent about now; what it used before stays counted."""
    bench.advance_s(10)
    standin.lose(1)
    bench.advance_s(10)
    points = bench.points()

    assert {name[0] for name in points if name[1] == "1"} == {
        "gen_ai.gpu.energy",
        "gen_ai.co2.emissions",
        "gen_ai.power.cost",
    }
    assert {name[0] for name in points if name[1] == "0"} == UNITS.keys()
    standin.restore(1)
    bench.advance_s(10)
    points = bench.points()
    assert {name[0] for name in points if name[1] == "1"} == UNITS.keys()
    assert points["gen_ai.gpu.energy", "1", "counter"] == pytest.approx(3000, abs=0.01)


def test_callbacks_do_not_call_the_driver(standin, bench):
    """However often is collected, the driver notices nothing."""
    bench.advance_s(2)
    counts = {name: standin.calls(name) for name in DRIVER_FUNCTIONS}
    for _ in range(50):
        bench.points()

    assert {name: standin.calls(name) for name in DRIVER_FUNCTIONS} == counts


def test_callbacks_take_microseconds(bench):
    """All callbacks of a collection together stay far below a millisecond per GPU."""
    bench.advance_s(2)
    bench.points()
    began_s = time.perf_counter()
    for _ in range(20):
        bench.points()

    assert (time.perf_counter() - began_s) / 20 < 0.02


def test_two_readers_see_the_same(standin):
    """Readers do not steal each other's windows: both have the spike and all energy."""
    standin.set_limit_w(0, 700)
    sampler = GpuSampler(open_nvml, span_s=10, monotonic_ns=lambda: round(standin.now_s * 1e9))
    sampler.open()
    readers = [InMemoryMetricReader(), InMemoryMetricReader()]
    provider = MeterProvider(readers, shutdown_on_exit=False)
    with instrument_gpus(provider, settings=Settings(), sampler=sampler):
        standin.set_power_w(0, 600, at_s=2.5)
        standin.set_power_w(0, 100, at_s=3.5)
        for _ in range(10):
            standin.advance_s(1)
            sampler.tick()
            read_points(readers[0])
        eager, patient = (read_points(reader) for reader in readers)

    assert eager == patient
    assert patient["gen_ai.gpu.power.max", "0"] == 600
    assert patient["gen_ai.gpu.energy", "0", "counter"] == pytest.approx(1500, abs=0.01)
    sampler.stop()
    provider.shutdown()


def test_stale_gauges_fall_silent(standin, bench):
    """Behind a driver that hangs, gauges stop; counters keep what was counted."""
    bench.advance_s(10)
    standin.advance_s(6)
    names = {name[0] for name in bench.points()}

    assert names == {"gen_ai.gpu.energy", "gen_ai.co2.emissions", "gen_ai.power.cost"}


def test_later_provider_counts_from_its_own_start(bench):
    """Cumulative values begin with the run, not with the sampler."""
    bench.advance_s(100)
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    with instrument_gpus(provider, settings=Settings(), sampler=bench.sampler):
        assert read_points(reader)["gen_ai.gpu.energy", "0", "counter"] == 0
        bench.advance_s(10)
        points = read_points(reader)

    assert points["gen_ai.gpu.energy", "0", "counter"] == pytest.approx(1000, abs=0.01)
    assert points["gen_ai.co2.emissions", "0"] == pytest.approx(1000 / 3.6e6 * 475, rel=1e-4)
    provider.shutdown()


# -- with the sampler of the process


def threads():
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def test_provider_is_instrumented_once(standin):
    """Asking again gives the same handle; stopping it leaves no thread and no reference."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    first = instrument_gpus(provider, settings=Settings())
    second = instrument_gpus(provider, settings=Settings())

    assert first is second
    assert len(threads()) == 1
    assert read_points(reader)["gen_ai.gpu.power", "1"] == 100
    first.stop()
    first.stop()
    assert threads() == []
    assert standin.refcount == 0
    provider.shutdown()


def test_providers_share_the_sampler(standin):
    """Two providers, one thread; the second goes on when the first is done."""
    providers = [MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False) for _ in range(2)]
    handles = [instrument_gpus(provider, settings=Settings()) for provider in providers]

    assert len(threads()) == 1
    assert standin.calls("nvmlInitWithFlags") == 1
    handles[0].stop()
    assert len(threads()) == 1
    handles[1].stop()
    assert threads() == []
    assert standin.refcount == 0
    for provider in providers:
        provider.shutdown()


@pytest.mark.parametrize(
    ("gpus", "want"),
    [("1", ["1"]), ("visible", ["0"]), ("all", ["0", "1"]), (UUID.format(1), ["1"])],
)
def test_gpus_are_chosen(standin, gpus, want):
    """Only the chosen GPUs are read, and keep their NVML index."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    with instrument_gpus(provider, settings=Settings(gpus=gpus, cuda_visible_devices="0")):
        points = read_points(reader)

    assert sorted(name[1] for name in points if name[0] == "gen_ai.gpu.power") == want
    for index in {"0", "1"} - set(want):
        assert standin.calls("nvmlDeviceGetUtilizationRates", gpu=int(index)) == 0
    provider.shutdown()


@pytest.mark.usefixtures("standin")
def test_wrong_choice_is_a_warning_and_the_default(caplog):
    """A selection that names nothing meters the visible GPUs and says what there is."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    with instrument_gpus(provider, settings=Settings(gpus="7")):
        points = read_points(reader)

    assert ("gen_ai.gpu.power", "1") in points
    [record] = caplog.records
    assert "'7' names no GPU" in record.getMessage()
    assert UUID.format(1) in record.getMessage()
    provider.shutdown()


@pytest.mark.parametrize("created", [False, True])
def test_wrong_environment_is_said_once(standin, caplog, monkeypatch, created):
    """A wrong setting is one warning, by the exporter if there is one, and has its default."""
    monkeypatch.setattr(sdk_exporter, "_created", created)
    monkeypatch.setenv("HUBMETER_PRICE_KWH", "cheap")
    standin.use_real_clock()
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    with instrument_gpus(provider) as handle:
        handle.refresh()
        points = read_points(reader)

    joules = points["gen_ai.gpu.energy", "0", "counter"]
    assert points["gen_ai.power.cost", "0"] == pytest.approx(joules / 3.6e6 * 0.12)
    assert ["HUBMETER_PRICE_KWH" in r.getMessage() for r in caplog.records] == [True] * (
        not created
    )
    provider.shutdown()


def test_no_driver_is_one_line_and_no_data(standin, caplog):
    """Without a driver the program goes on, with one line in the log and no points."""
    standin.fault("nvmlInitWithFlags", error=12)
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    with instrument_gpus(provider, settings=Settings()):
        assert read_points(reader) == {}

    [record] = caplog.records
    assert record.levelno == logging.WARNING
    provider.shutdown()


def test_no_binding_is_one_line_and_no_data(caplog, monkeypatch):
    """Without nvidia-ml-py the log says what to install, and the program goes on."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    with instrument_gpus(provider, settings=Settings()):
        assert read_points(reader) == {}

    [record] = caplog.records
    assert "pip install nvidia-ml-py" in record.getMessage()
    provider.shutdown()


@pytest.mark.parametrize("settings", [Settings(gpus="none"), Settings(disabled=True)])
def test_switched_off(standin, caplog, settings):
    """``none`` and HUBMETER_DISABLED do not touch the driver, and say nothing."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    with instrument_gpus(provider, settings=settings):
        assert read_points(reader) == {}

    assert standin.calls("nvmlInitWithFlags") == 0
    assert caplog.records == []
    assert threads() == []
    provider.shutdown()


def test_means_cover_the_export_interval():
    """The longest finite interval of the provider's readers is found, else none."""
    exporter = ConsoleMetricExporter
    readers = [
        PeriodicExportingMetricReader(exporter(), export_interval_millis=millis)
        for millis in (3_600_000, 1_800_000, math.inf)
    ]
    provider = MeterProvider([InMemoryMetricReader(), *readers], shutdown_on_exit=False)

    assert gpu_meter._export_interval_s(provider) == 3600
    assert gpu_meter._export_interval_s(metrics.NoOpMeterProvider()) == 0
    for reader in readers:
        reader._shutdown_event.set()


def test_provider_of_the_api_is_tolerated(standin):
    """Without an SDK there is nobody to collect, and nothing goes wrong."""
    instrument_gpus(metrics.NoOpMeterProvider(), settings=Settings()).stop()

    assert standin.refcount == 0


# -- all in one call


def rows_of(folder):
    files = sorted(folder.glob("data/default/**/*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_provider_in_one_call_publishes_the_last_sample(standin, tmp_path):
    """shutdown() takes a last sample first, so the last row has the energy up to then."""
    standin.use_real_clock()
    provider = gpu_meter_provider(str(tmp_path), export_interval_s=3600, gpus="1")
    began_s = standin.now_s
    time.sleep(0.3)
    provider.shutdown()
    elapsed_s = standin.now_s - began_s

    [row] = rows_of(tmp_path)
    assert (row["gpu_id"], row["gpu_name"], row["gpu_uuid"]) == (
        "1",
        "Stand-in GPU",
        UUID.format(1),
    )
    assert row["gpu_power_watts"] == 100
    assert row["energy_source"] == "counter"
    assert 29 < row["energy_joules"] <= 100 * (elapsed_s + 2)
    assert row["co2_emissions_gco2e"] == pytest.approx(row["energy_joules"] / 3.6e6 * 475)
    assert row["power_cost_usd"] == pytest.approx(row["energy_joules"] / 3.6e6 * 0.12)
    assert standin.refcount == 0


def test_hung_driver_does_not_break_deadlines(standin, tmp_path):
    """Flush and shutdown keep to the time they were granted, and publish what is there."""
    provider = gpu_meter_provider(str(tmp_path), export_interval_s=3600)
    standin.fault("nvmlDeviceGetFanSpeed", times=1, sleep_us=3_000_000)
    began_s = time.monotonic()
    provider.force_flush(timeout_millis=400)
    provider.shutdown(timeout_millis=600)
    elapsed_s = time.monotonic() - began_s
    for thread in threads():
        thread.join(10)

    assert elapsed_s < 2.5
    assert standin.refcount == 0
    assert {row["gpu_id"] for row in rows_of(tmp_path)} == {"0", "1"}


def test_simulated_rows_say_so(tmp_path):
    """Rows of the simulation carry it in their GPU name."""
    with GpuSampler(SimulatedGpus) as sampler:
        sampler.start()
        provider = gpu_meter_provider(str(tmp_path), export_interval_s=3600, sampler=sampler)
        provider.force_flush()
        provider.shutdown()

    assert {row["gpu_name"] for row in rows_of(tmp_path)} == {"Simulated GPU (no NVML)"}


# -- opentelemetry-instrument


HOOK = """
    import threading
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from hubmeter import HubMetricExporter
    from hubmeter.sources.gpu_meter import instrument_when_exporting

    {setup}
    instrument_when_exporting()
    print([t.name for t in threading.enumerate() if t.name == "hubmeter-gpu-sampler"])
"""
READER = "PeriodicExportingMetricReader(HubMetricExporter())"
OURS = f"metrics.set_meter_provider(MeterProvider([{READER}]))"
BROKEN = f"""
    class Broken(MeterProvider):
        def get_meter(self, *args, **kwargs):
            raise RuntimeError("broken")
    metrics.set_meter_provider(Broken([{READER}]))
"""


@pytest.mark.parametrize(
    ("setup", "threads", "complaint"),
    [
        (OURS, "['hubmeter-gpu-sampler']", ""),
        ("metrics.set_meter_provider(MeterProvider())", "[]", ""),
        ("exporter = HubMetricExporter()", "[]", ""),
        (BROKEN.strip(), "[]", "GPUs are not metered"),
    ],
    ids=["ours", "theirs", "no provider", "broken provider"],
)
def test_hook_meters_gpus_where_metrics_come_to_us(
    standin_library, tmp_path, setup, threads, complaint
):
    """The hook acts if our exporter is in use, and only then; it never raises."""
    code = textwrap.dedent(HOOK.format(setup=setup))

    done = subprocess.run(
        [sys.executable, "-c", code],
        env=subprocess_env(standin_library, "clock real\n", tmp_path),
        cwd=tmp_path,
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )

    assert done.stdout.strip() == threads
    assert complaint in done.stderr
    if setup == OURS:
        assert {row["gpu_id"] for row in rows_of(tmp_path / "hubmeter-data")} == {"0", "1"}


EXIT = """
    import time
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import (
        MetricExporter, MetricExportResult, PeriodicExportingMetricReader,
    )
    from hubmeter.settings import Settings
    from hubmeter.sources.gpu_meter import instrument_gpus

    class Print(MetricExporter):
        def export(self, data, **kwargs):
            for scope in data.resource_metrics[0].scope_metrics:
                for metric in scope.metrics:
                    if metric.name == "gen_ai.gpu.energy":
                        print(metric.data.data_points[0].value)
            return MetricExportResult.SUCCESS
        def force_flush(self, timeout_millis=0):
            return True
        def shutdown(self, timeout_millis=0, **kwargs):
            pass

    reader = PeriodicExportingMetricReader(Print(), export_interval_millis=3_600_000)
    instrument_gpus(MeterProvider([reader]), settings=Settings(sample_interval_s=3600))
    time.sleep(0.5)
"""


def test_exit_collects_a_last_sample(standin_library, tmp_path):
    """A program that just ends has its energy up to the end, without a word on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EXIT)],
        env=subprocess_env(standin_library, "clock real\n", tmp_path),
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )

    [joules] = done.stdout.split()
    assert float(joules) > 49
    assert done.stderr == ""
