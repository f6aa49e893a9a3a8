"""Every row of the conventions table, with its units and traps."""

from __future__ import annotations

import pytest

from hubmeter.conventions import gpu_of, target_of
from makers import T0, UTIL, cells, gauge, point, point_rows, request, resource_metrics, rows, total

UTILIZATION, MEMORY_USED, MEMORY_TOTAL = (
    "gpu_utilization_percent", "gpu_memory_used_mib", "gpu_memory_total_mib",
)  # fmt: skip
TEMPERATURE, POWER, ENERGY = "gpu_temperature_celsius", "gpu_power_watts", "energy_joules"
GIB = 2.0**30
HW = {"hw.id": "GPU-a", "hw.type": "gpu"}

CONVENTIONS = [
    # genai_otel
    ("gen_ai.gpu.utilization", "%", {}, 50, UTILIZATION, 50),
    ("gen_ai.gpu.memory.used", "MiB", {}, 1024, MEMORY_USED, 1024),
    ("gen_ai.gpu.memory.total", "MiB", {}, 1024, MEMORY_TOTAL, 1024),
    ("gen_ai.gpu.temperature", "Cel", {}, 61, TEMPERATURE, 61),
    ("gen_ai.gpu.power", "W", {}, 18.741, POWER, 18.741),
    ("gen_ai.energy.consumed", "kWh", {"component": "gpu"}, 1, ENERGY, 3.6e6),
    ("gen_ai.co2.emissions", "gCO2e", {}, 1.5, "co2_emissions_gco2e", 1.5),
    ("gen_ai.power.cost", "USD", {}, 1.5, "power_cost_usd", 1.5),
    ("gen_ai.gpu.memory.utilization", "%", {}, 5, "gpu_memory_utilization_percent", 5),
    ("gen_ai.gpu.power.limit", "W", {}, 300, "gpu_power_limit_watts", 300),
    ("gen_ai.gpu.clock.sm", "MHz", {}, 1410, "gpu_sm_clock_mhz", 1410),
    ("gen_ai.gpu.clock.memory", "MHz", {}, 1215, "gpu_memory_clock_mhz", 1215),
    ("gen_ai.gpu.fan.speed", "%", {}, 30, "gpu_fan_speed_percent", 30),
    ("gen_ai.gpu.ecc.errors.uncorrected", "1", {}, 2, "gpu_ecc_errors_uncorrected", 2),
    # OpenTelemetry semantic conventions
    ("hw.gpu.utilization", "1", HW, 0.5, UTILIZATION, 50),
    ("hw.gpu.utilization", "1", {**HW, "hw.gpu.task": "general"}, 0.5, UTILIZATION, 50),
    ("hw.gpu.memory.usage", "By", HW, GIB, MEMORY_USED, 1024),
    ("hw.gpu.memory.limit", "By", HW, GIB, MEMORY_TOTAL, 1024),
    ("hw.temperature", "Cel", HW, 61, TEMPERATURE, 61),
    ("hw.power", "W", HW, 300, POWER, 300),
    ("hw.energy", "J", HW, 5, ENERGY, 5),
    (
        "hw.errors",
        "{error}",
        {**HW, "error.type": "uncorrected"},
        3,
        "gpu_ecc_errors_uncorrected",
        3,
    ),
    # openlit, Python and Go
    ("gpu.utilization", "%", {}, 50, UTILIZATION, 50),
    ("gpu.memory.used", "MiB", {}, 1024, MEMORY_USED, 1024),
    ("gpu.memory.total", "MiB", {}, 1024, MEMORY_TOTAL, 1024),
    ("gpu.temperature", "Cel", {}, 61, TEMPERATURE, 61),
    ("gpu.power.draw", "W", {}, 18.0, POWER, 18),
    ("hw.gpu.temperature", "Cel", {"sensor": "die"}, 61, TEMPERATURE, 61),
    ("hw.gpu.power.draw", "W", {}, 300, POWER, 300),
    ("hw.gpu.energy.consumed", "J", {}, 5, ENERGY, 5),
    # dcgm-exporter: no units
    ("DCGM_FI_DEV_GPU_UTIL", "", {}, 1, UTILIZATION, 1),
    ("DCGM_FI_DEV_FB_USED", "", {}, 1024, MEMORY_USED, 1024),
    ("DCGM_FI_DEV_GPU_TEMP", "", {}, 61, TEMPERATURE, 61),
    ("DCGM_FI_DEV_POWER_USAGE", "", {}, 300.5, POWER, 300.5),
    ("DCGM_FI_DEV_POWER_USAGE_INSTANT", "", {}, 300.5, POWER, 300.5),
    ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "", {}, 5000, ENERGY, 5),
    ("DCGM_FI_DEV_SM_CLOCK", "", {}, 1410, "gpu_sm_clock_mhz", 1410),
    # GCP
    ("dcgm.gpu.utilization", "1", {}, 0.5, UTILIZATION, 50),
    ("dcgm.gpu.memory.bytes_used", "By", {"memory_state": "used"}, GIB, MEMORY_USED, 1024),
    # nvidia_gpu_exporter
    ("nvidia_smi_utilization_gpu_ratio", "", {}, 0.5, UTILIZATION, 50),
    ("nvidia_smi_memory_used_bytes", "", {}, GIB, MEMORY_USED, 1024),
    ("nvidia_smi_memory_total_bytes", "", {}, GIB, MEMORY_TOTAL, 1024),
    ("nvidia_smi_temperature_gpu", "", {}, 61, TEMPERATURE, 61),
    ("nvidia_smi_power_draw_watts", "", {}, 300, POWER, 300),
    ("nvidia_smi_power_draw_instant_watts", "", {}, 300, POWER, 300),
    ("nvidia_smi_power_draw_average_watts", "", {}, 300, POWER, 300),
    ("nvidia_smi_energy_joules_total", "", {}, 5, ENERGY, 5),
    # AMD device-metrics-exporter
    ("gpu_gfx_activity", "", {}, 50, UTILIZATION, 50),
    ("gpu_used_vram", "", {}, 1024, MEMORY_USED, 1024),
    ("gpu_total_vram", "", {}, 1024, MEMORY_TOTAL, 1024),
    ("gpu_junction_temperature", "", {}, 61, TEMPERATURE, 61),
    ("gpu_edge_temperature", "", {}, 61, TEMPERATURE, 61),
    ("gpu_package_power", "", {"gpu_partition_id": "0"}, 300, POWER, 300),
    ("gpu_average_package_power", "", {}, 300, POWER, 300),
    ("gpu_power_usage", "", {}, 300, POWER, 300),
    ("gpu_energy_consumed", "", {}, 5e6, ENERGY, 5),
    # Triton
    ("nv_gpu_utilization", "", {}, 0.5, UTILIZATION, 50),
    ("nv_gpu_memory_used_bytes", "", {}, GIB, MEMORY_USED, 1024),
    ("nv_gpu_memory_total_bytes", "", {}, GIB, MEMORY_TOTAL, 1024),
    ("nv_gpu_power_usage", "", {}, 300, POWER, 300),
    ("nv_energy_consumption", "", {}, 5, ENERGY, 5),
    # NVIDIA NIM
    ("gpu_utilization", "1", {}, 0.5, UTILIZATION, 50),
    ("gpu_utilization", "ratio", {}, 0.5, UTILIZATION, 50),
    ("gpu_memory_used_bytes", "", {}, GIB, MEMORY_USED, 1024),
    ("gpu_memory_total_bytes", "", {}, GIB, MEMORY_TOTAL, 1024),
    ("gpu_power_usage_watts", "", {}, 3000, POWER, 3000),
    ("gpu_total_energy_consumption_joules", "", {}, 5, ENERGY, 5),
    # all-smi
    ("all_smi_gpu_utilization", "", {}, 50, UTILIZATION, 50),
    ("all_smi_gpu_memory_used_bytes", "", {}, GIB, MEMORY_USED, 1024),
    ("all_smi_gpu_temperature_celsius", "", {}, 61, TEMPERATURE, 61),
    ("all_smi_gpu_power_consumption_watts", "", {}, 300, POWER, 300),
    ("all_smi_energy_consumed_joules_total", "", {"scope": "gpu"}, 5, ENERGY, 5),
    # through Prometheus: dots become underscores, units join the name and leave the unit
    ("gen_ai_gpu_utilization_percent", "", {}, 50, UTILIZATION, 50),
    ("gen_ai_gpu_utilization", "", {}, 50, UTILIZATION, 50),
    ("gen_ai_gpu_memory_used_MiB", "", {}, 1024, MEMORY_USED, 1024),
    ("gen_ai_gpu_memory_total_MiB", "", {}, 1024, MEMORY_TOTAL, 1024),
    ("gen_ai_gpu_temperature_celsius", "celsius", {}, 61, TEMPERATURE, 61),
    ("gen_ai_gpu_power_watts", "watts", {}, 300, POWER, 300),
    ("gen_ai_gpu_power_max_watts", "", {}, 300, "gpu_power_max_watts", 300),
    ("gen_ai_gpu_clock_sm_MHz", "", {}, 1410, "gpu_sm_clock_mhz", 1410),
    ("gen_ai_gpu_ecc_errors_uncorrected_ratio", "", {}, 2, "gpu_ecc_errors_uncorrected", 2),
    ("gen_ai_co2_emissions_gCO2e_total", "", {}, 1.5, "co2_emissions_gco2e", 1.5),
    ("gen_ai_co2_emissions_total", "", {}, 1.5, "co2_emissions_gco2e", 1.5),
    ("gen_ai_power_cost_USD_total", "", {}, 1.5, "power_cost_usd", 1.5),
    ("gen_ai_energy_consumed_kWh_total", "", {"component": "gpu"}, 1, ENERGY, 3.6e6),
    ("gen_ai_gpu_energy_joules_total", "", {}, 5, ENERGY, 5),
    ("hw_gpu_utilization_ratio", "", {"hw_id": "GPU-a"}, 0.5, UTILIZATION, 50),
    ("hw_gpu_memory_usage_bytes", "", {"hw_id": "GPU-a"}, GIB, MEMORY_USED, 1024),
    ("hw_gpu_memory_limit_bytes", "bytes", {"hw_id": "GPU-a"}, GIB, MEMORY_TOTAL, 1024),
    ("hw_power_watts", "", {"hw_type": "gpu"}, 300, POWER, 300),
    ("hw_energy_joules_total", "", {"hw_type": "gpu"}, 5, ENERGY, 5),
    ("gpu_utilization_percent", "", {}, 50, UTILIZATION, 50),
    ("gpu_power_draw_watts", "", {}, 300, POWER, 300),
    ("gpu_energy_consumed_total", "", {}, 5e6, ENERGY, 5),
    # units decide
    ("gen_ai.gpu.utilization", "1", {}, 0.5, UTILIZATION, 50),
    ("gen_ai.gpu.utilization", "1", {}, 1, UTILIZATION, 100),
    ("gen_ai.gpu.utilization", "%", {}, 1, UTILIZATION, 1),
    ("gen_ai.gpu.power", "mW", {}, 300_000, POWER, 300),
    ("hw.energy", "mJ", HW, 5000, ENERGY, 5),
    ("hw.energy", "uJ", HW, 5e6, ENERGY, 5),
    ("hw.energy", "Wh", HW, 1, ENERGY, 3600),
    ("gen_ai.gpu.memory.used", "By", {}, GIB, MEMORY_USED, 1024),
    ("gen_ai.gpu.memory.used", "GiB", {}, 1, MEMORY_USED, 1024),
    ("gpu.memory.used", "MBy", {}, 2**20, MEMORY_USED, 1e6),
]


@pytest.mark.parametrize(("name", "unit", "attributes", "value", "column", "expected"), CONVENTIONS)
def test_convention(name, unit, attributes, value, column, expected) -> None:
    """A metric of a known convention feeds its column, in the column's unit."""
    target = target_of(name, unit, attributes)

    assert target is not None
    assert target.column == column
    assert value * target.scale == pytest.approx(expected, rel=1e-12)


NOTHING = [
    ("hw.gpu.utilization", "1", {"hw.gpu.task": "encoder"}, "another engine"),
    ("hw.gpu.utilization", "1", {"hw.gpu.task": "decoder"}, "another engine"),
    ("hw.gpu.utilization", "1", {"hw.gpu.task": "jpeg"}, "another engine"),
    ("hw.gpu.memory.utilization", "1", HW, "how full, not how busy"),
    ("hw.power", "W", {"hw.type": "cpu"}, "not a GPU"),
    ("hw.power", "W", {}, "of what?"),
    ("hw.energy", "J", {"hw.type": "memory"}, "not a GPU"),
    ("hw.errors", "{error}", {"hw.type": "gpu", "error.type": "corrected"}, "corrected"),
    ("hw.temperature", "Cel", {"hw.type": "temperature"}, "of what?"),
    (
        "hw.temperature",
        "Cel",
        {"hw.type": "temperature", "hw.parent": "GPU-a", "hw.sensor_location": "memory"},
        "of the memory",
    ),
    ("hw.gpu.temperature", "Cel", {"sensor": "memory"}, "of the memory"),
    ("gen_ai.energy.consumed", "kWh", {"component": "cpu"}, "not a GPU"),
    ("gen_ai.energy.consumed", "kWh", {}, "of what?"),
    ("gen_ai.energy.total", "kWh", {}, "with CPU and memory"),
    ("gen_ai.gpu.aggregate.mean_utilization", "%", {}, "of all GPUs"),
    ("gen_ai.gpu.aggregate.total_power", "W", {}, "of all GPUs"),
    ("gen_ai.power.consumption", "W", {}, "with CPU and memory"),
    ("vllm:gpu_cache_usage_perc", "", {}, "fill of a cache"),
    ("vllm:kv_cache_usage_perc", "", {}, "fill of a cache"),
    ("gen_ai.server.kv_cache.usage", "%", {}, "fill of a cache"),
    ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "", {}, "another meaning"),
    ("dcgm.gpu.memory.bytes_used", "By", {"memory_state": "free"}, "free"),
    ("gpu_package_power", "", {"gpu_partition_id": "3"}, "0 W for the whole board"),
    ("gpu_energy_consumed", "", {"gpu_partition_id": "1"}, "0 J for the whole board"),
    ("all_smi_energy_consumed_joules_total", "", {"scope": "node"}, "of the node"),
    ("gpu_utilization", "", {}, "NIM's ratio or openlit's percent"),
    ("nv_gpu_utilization_percent", "", {}, "a name that fixes its unit, with another"),
    ("gpu_used_vram_bytes", "", {}, "a name that fixes its unit, with another"),
    ("hw.gpu.utilization", "", HW, "no unit"),
    ("gen_ai.gpu.power", "horsepower", {}, "a unit that we do not know"),
    ("gpu_memory", "MiB", {}, "used or total?"),
    ("percent", "%", {}, "only a unit"),
    ("", "", {}, "nothing"),
]


@pytest.mark.parametrize(("name", "unit", "attributes", "why"), NOTHING)
def test_no_column(name, unit, attributes, why) -> None:
    """Better no number than a wrong one."""
    assert target_of(name, unit, attributes) is None, why


@pytest.mark.parametrize(
    "name",
    [
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "nvidia_smi_energy_joules_total",
        "gpu_energy_consumed", "nv_energy_consumption", "gpu_total_energy_consumption_joules",
    ],
)  # fmt: skip
def test_device_counters_began_before_the_run(name: str) -> None:
    """What the device counted before is not this run's energy."""
    target = target_of(name, "", {})
    assert target is not None
    assert target.since_boot


# ------------------------------------------------------------------ which GPU


@pytest.mark.parametrize(
    ("attributes", "gpu_id"),
    [
        ({"gpu_id": "0"}, "0"),
        ({"gpu_id": 0}, "0"),
        ({"gpu.index": 3}, "3"),
        ({"gpu": "1"}, "1"),
        ({"index": "2"}, "2"),
        ({"gpu_index": "2"}, "2"),
        ({"minor_number": "4"}, "4"),
        ({"gpu_number": "5"}, "5"),
        ({"gpu_id": "7", "gpu": "1", "index": "2"}, "7"),
        ({"gpu_id": None, "gpu": "1"}, "1"),
        ({"gpu_id": "", "gpu": "1"}, "1"),
        ({"gpu_id": "0", "gpu_vendor": "amd"}, "amd:0"),
        ({"gpu_id": "0", "gpu_vendor": "NVIDIA"}, "0"),
        ({"gpu_id": "0", "gpu_vendor": None}, "0"),
        ({"gpu": "0", "GPU_I_ID": "1"}, "0:1"),
        ({"gpu": "0", "GPU_I_ID": ""}, "0"),
        ({}, None),
        ({"gpu_count": "8"}, None),
    ],
)
def test_gpu_id(attributes, gpu_id) -> None:
    """The index is found under all its names; vendors and MIG instances stay apart."""
    assert gpu_of(attributes).gpu_id == gpu_id


@pytest.mark.parametrize("key", ["gpu.uuid", "hw.id", "UUID", "uuid", "gpu_uuid"])
def test_gpu_uuid(key: str) -> None:
    """The UUID is found under all its names."""
    assert gpu_of({key: "GPU-a"}).gpu_uuid == "GPU-a"


@pytest.mark.parametrize(
    "key",
    [
        "gpu_name",
        "gpu.name",
        "hw.name",
        "hw.model",
        "modelName",
        "model_name",
        "name",
        "card_model",
    ],
)
def test_gpu_name(key: str) -> None:
    """The product name is found under all its names."""
    assert gpu_of({key: "H100"}).gpu_name == "H100"


def test_uuid_only_sources_join_the_index() -> None:
    """nvidia_gpu_exporter tells index and name in an info metric, by UUID."""
    found = rows(
        request(
            gauge(
                "nvidia_smi_power_draw_watts", "", point(300.0, uuid="a"), point(200.0, uuid="b")
            ),
            gauge(
                "nvidia_smi_gpu_info",
                "",
                point(1, uuid="a", index="1", name="H100"),
                point(1, uuid="b", index="0", name="A100"),
            ),
        )
    )

    assert cells(found, "gpu_id", "gpu_uuid", "gpu_name", "gpu_power_watts") == [
        ("0", "b", "A100", 200), ("1", "a", "H100", 300),
    ]  # fmt: skip


def test_uuid_is_the_id_where_nobody_tells_an_index() -> None:
    """Triton knows UUIDs only."""
    found = rows(request(gauge("nv_gpu_power_usage", "", point(300.0, gpu_uuid="GPU-a"))))

    assert cells(found, "gpu_id", "gpu_uuid") == [("GPU-a", "GPU-a")]


def test_temperature_sensor_belongs_to_its_parent() -> None:
    """hw.parent of a sensor is the GPU's hw.id; the sensor's name is not the GPU's."""
    found = rows(
        request(
            gauge("hw.gpu.utilization", "1", point(0.5, hw__id="card-7", hw__name="H100")),
            gauge("hw.temperature", "Cel",
                  point(61, hw__id="sensor-1", hw__type="temperature", hw__parent="card-7",
                        hw__name="die sensor")),
        )
    )  # fmt: skip

    assert cells(
        found, "gpu_id", "gpu_name", "gpu_utilization_percent", "gpu_temperature_celsius"
    ) == [("card-7", "H100", 50, 61)]


def test_temperature_sensor_of_a_cpu_is_not_a_gpu() -> None:
    """A parent that no GPU metric names is no GPU; it folds into none either."""
    sent = request(
        gauge("hw.gpu.utilization", "1", point(0.5, hw__id="GPU-a")),
        gauge("hw.temperature", "Cel",
              point(90, hw__id="s", hw__type="temperature", hw__parent="cpu-0")),
    )  # fmt: skip

    assert cells(rows(sent), "gpu_id", "gpu_temperature_celsius") == [("GPU-a", None)]
    assert cells(point_rows(sent), "value") == [(90,)]


def test_a_gpus_own_parent_is_not_its_identity() -> None:
    """hw.parent of a GPU is its enclosure: two GPUs of one chassis are two."""
    found = rows(
        request(gauge("hw.gpu.utilization", "1",
                      point(0.1, hw__id="GPU-a", hw__parent="chassis"),
                      point(0.2, hw__id="GPU-b", hw__parent="chassis")))
    )  # fmt: skip

    assert cells(found, "gpu_id", "gpu_utilization_percent") == [("GPU-a", 10), ("GPU-b", 20)]


def test_other_metrics_do_not_name_gpus() -> None:
    """A disk with index 0 is not what GPU 0 is called."""
    found = rows(
        request(gauge("disk.io", "", point(1, index="0", name="sda", uuid="disk")),
                gauge(UTIL, "%", point(1, gpu=0)))
    )  # fmt: skip

    assert cells(found, "gpu_id", "gpu_name", "gpu_uuid") == [("0", None, None)]


def test_attributes_of_one_gpu_may_be_spread_over_its_metrics() -> None:
    """genai_otel's CO2 knows the id only, its gauges the name too."""
    found = rows(
        request(total("gen_ai.co2.emissions", "gCO2e", point(1.0, gpu=0)),
                gauge(UTIL, "%", point(1, gpu=0, gpu_name="H100")))
    )  # fmt: skip

    assert cells(found, "gpu_id", "gpu_name", "co2_emissions_gco2e") == [("0", "H100", 1)]


def test_a_host_named_by_resource_or_attribute_is_one_host() -> None:
    """Metrics with and without Hostname of one GPU share its row."""
    sent = request(
        gauge("DCGM_FI_DEV_GPU_UTIL", "", point(1, gpu="0", Hostname="a")),
        gauge("gen_ai.gpu.power", "W", point(2.0, gpu=0)),
    )

    assert cells(rows(sent), "host_name", "gpu_utilization_percent", "gpu_power_watts") == [
        ("a", 1, 2)
    ]


def test_nvidia_and_amd_on_one_host_keep_their_rows() -> None:
    """Both count from 0."""
    found = rows(request(gauge(UTIL, "%", point(1, gpu=0), point(2, gpu=0, gpu_vendor="amd"))))

    assert cells(found, "gpu_id", "gpu_utilization_percent") == [("0", 1), ("amd:0", 2)]


def test_amd_partitions_other_than_the_first_do_not_zero_the_board() -> None:
    """They report 0 W; that stays in points."""
    sent = request(gauge("gpu_package_power", "", point(300, gpu=0, gpu_partition_id="0"),
                         point(0, gpu=0, gpu_partition_id="1")))  # fmt: skip

    assert cells(rows(sent), "gpu_power_watts") == [(300,)]
    assert cells(point_rows(sent), "value") == [(0,)]


# ------------------------------------------------------------------ put together


def dcgm(**parts: int):
    return request(*(gauge(f"DCGM_FI_DEV_FB_{part.upper()}", "", point(value, gpu="0"))
                     for part, value in parts.items()))  # fmt: skip


def test_dcgm_total_memory_is_used_free_and_reserved() -> None:
    """dcgm-exporter sends the parts only; those without a column are kept in points."""
    sent = dcgm(used=1000, free=500, reserved=24)

    assert cells(rows(sent), "gpu_memory_used_mib", "gpu_memory_total_mib") == [(1000, 1524)]
    assert sorted(row["value"] for row in point_rows(sent)) == [24, 500]


def test_dcgm_without_reserved_memory() -> None:
    """Older exporters do not send it."""
    assert cells(rows(dcgm(used=1000, free=500)), "gpu_memory_total_mib") == [(1500,)]


def test_dcgm_total_that_was_sent_wins() -> None:
    """The sum of the parts is only a stand-in."""
    assert cells(rows(dcgm(used=1, free=2, total=9)), "gpu_memory_total_mib") == [(9,)]


def test_dcgm_free_memory_alone_is_kept_in_points() -> None:
    """No total follows from it, and it is not lost."""
    sent = dcgm(free=500)

    assert cells(rows(sent), "gpu_memory_total_mib") == [(None,)]
    assert cells(point_rows(sent), "metric_name", "value") == [("DCGM_FI_DEV_FB_FREE", 500)]


def throttle(values, time=T0):
    return request(*(gauge(f"gen_ai.gpu.throttle.{reason}", "1", point(value, time, gpu=0))
                     for reason, value in values.items()))  # fmt: skip


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"thermal": 1, "power": 0, "hw_slowdown": 1}, "hw_slowdown,thermal"),
        ({"thermal": 0, "power": 0}, ""),
        ({"thermal": None}, None),
        ({f"reason_{n:02}": 1 for n in range(70)}, ",".join(f"reason_{n:02}" for n in range(70))),
    ],
)
def test_throttle_reasons(values, text) -> None:
    """Active reasons in order; empty where none is active, null where none was read."""
    assert cells(rows(throttle(values)), "gpu_throttle_reasons") == [(text,)]


def test_throttle_reasons_are_read_at_each_instant() -> None:
    """A reason that was not read is not active."""
    found = rows(throttle({"a": 1, "b": 1}), throttle({"b": 1}, T0 + 1))

    assert cells(found, "gpu_throttle_reasons") == [("a,b",), ("b",)]


def test_two_resources_do_not_share_their_uuids() -> None:
    """An index told by one resource says nothing about another's GPUs."""
    parts = [
        resource_metrics(
            gauge(UTIL, "%", point(1, gpu=5, uuid="u")), resource={"service.name": "a"}
        ),
        resource_metrics(
            gauge("nv_gpu_power_usage", "", point(2.0, gpu_uuid="u")),
            resource={"service.name": "b"},
        ),
    ]

    assert cells(rows({"resourceMetrics": parts}), "service_name", "gpu_id") == [
        ("a", "5"),
        ("b", "u"),
    ]
