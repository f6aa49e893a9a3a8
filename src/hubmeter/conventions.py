"""
What metric names, units and attributes mean, for every convention that we know.

Tables and two questions: which column does a series feed, and which GPU is it
about. Names and units decide, values never do. Pure, standard library only.

Sources: OpenTelemetry semantic conventions ``hw.*`` (Development), genai_otel,
openlit, dcgm-exporter, nvidia_gpu_exporter, AMD device-metrics-exporter, Triton,
NVIDIA NIM, all-smi.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MIB = 2.0**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """
    The column that a series feeds.

    Attributes:
        column: Name in the ``default`` config; or a part of one that flattening puts
            together: ``throttle:<reason>``, ``memory:free``, ``memory:reserved``.
        scale: Factor from the sender's unit to the column's.
        since_boot: A device counter that began before the run; count from its first value.
    """

    column: str
    scale: float = 1.0
    since_boot: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuIdentity:
    """
    Which GPU a series is about, as far as its attributes tell.

    Attributes:
        is_sensor: *gpu_uuid* is what the sensor calls its parent; that may be no GPU.
    """

    gpu_id: str | None
    gpu_uuid: str | None
    gpu_name: str | None
    host_name: str | None
    is_sensor: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """
    Attributes:
        scales: Unit to factor. The unit ``*`` is for senders that send no unit or a wrong one.
        require: Attributes and the values that they must have; None among them: may be
            absent; no values at all: must only be there.
        refuse: Attribute values that make the series something else.
    """

    column: str
    scales: Mapping[str, float]
    require: Mapping[str, tuple[str | None, ...]]
    refuse: Mapping[str, tuple[str, ...]]
    since_boot: bool


PERCENT = {"%": 1.0, "percent": 1.0, "1": 100.0, "ratio": 100.0}
BYTES = {"By": 1 / MIB, "bytes": 1 / MIB, "KiBy": 1 / 1024, "KiB": 1 / 1024, "MBy": 1e6 / MIB,
         "MiBy": 1.0, "MiB": 1.0, "mebibytes": 1.0, "GiBy": 1024.0, "GiB": 1024.0}  # fmt: skip
CELSIUS = {"Cel": 1.0, "C": 1.0, "°C": 1.0, "celsius": 1.0}
WATTS = {"W": 1.0, "watts": 1.0, "mW": 1e-3, "kW": 1e3}
JOULES = {"J": 1.0, "joules": 1.0, "mJ": 1e-3, "uJ": 1e-6, "kJ": 1e3,
          "Wh": 3600.0, "W.h": 3600.0, "kWh": 3.6e6, "kW.h": 3.6e6}  # fmt: skip
MEGAHERTZ = {"MHz": 1.0, "Hz": 1e-6, "kHz": 1e-3, "GHz": 1e3}
GRAMS = {"gCO2e": 1.0, "g": 1.0, "kg": 1e3, "kgCO2e": 1e3}
DOLLARS = {"USD": 1.0, "{USD}": 1.0, "usd": 1.0}
COUNT = {"1": 1.0, "{error}": 1.0, "{errors}": 1.0, "ratio": 1.0}

_SUFFIXES = {"percent": "%", "ratio": "1", "bytes": "By", "mib": "MiB", "mebibytes": "MiB",
             "celsius": "Cel", "watts": "W", "joules": "J", "kwh": "kWh", "mhz": "MHz",
             "megahertz": "MHz", "hertz": "Hz", "usd": "USD", "gco2e": "gCO2e"}  # fmt: skip
"""Prometheus moves the unit into the name; an instrument name ending in one is in the table."""


def _unitless(scales: Mapping[str, float], factor: float) -> Mapping[str, float]:
    """For senders whose unit gets lost on the way: without one, the name says it."""
    return {**scales, "": factor}


def _only(factor: float) -> Mapping[str, float]:
    """For senders whose name fixes the unit, whatever the unit field says."""
    return {"*": factor}


_RULES: dict[str, list[_Rule]] = {}


def _normal(name: str) -> str:
    """Prometheus turns dots into underscores; instrument names ignore case."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _rule(
    names: str,
    column: str,
    scales: Mapping[str, float],
    *,
    require: Mapping[str, tuple[str | None, ...]] | None = None,
    refuse: Mapping[str, tuple[str, ...]] | None = None,
    since_boot: bool = False,
) -> None:
    rule = _Rule(
        column=column,
        scales=scales,
        require={_normal(key): values for key, values in (require or {}).items()},
        refuse={_normal(key): values for key, values in (refuse or {}).items()},
        since_boot=since_boot,
    )
    for name in names.split():
        _RULES.setdefault(_normal(name), []).append(rule)


_UTIL = "gpu_utilization_percent"
_USED = "gpu_memory_used_mib"
_TOTAL = "gpu_memory_total_mib"
_TEMP = "gpu_temperature_celsius"
_POWER = "gpu_power_watts"
_ENERGY = "energy_joules"
_GPU = {"hw.type": ("gpu",)}

# fmt: off
# genai_otel and hubmeter's own GPU meter.
_rule("gen_ai.gpu.utilization", _UTIL, _unitless(PERCENT, 1))
_rule("gen_ai.gpu.memory.used", _USED, _unitless(BYTES, 1))
_rule("gen_ai.gpu.memory.total", _TOTAL, _unitless(BYTES, 1))
_rule("gen_ai.gpu.temperature", _TEMP, _unitless(CELSIUS, 1))
_rule("gen_ai.gpu.power", _POWER, _unitless(WATTS, 1))
_rule("gen_ai.co2.emissions", "co2_emissions_gco2e", _unitless(GRAMS, 1))
_rule("gen_ai.power.cost", "power_cost_usd", _unitless(DOLLARS, 1))
_rule("gen_ai.energy.consumed", _ENERGY, _unitless(JOULES, 3.6e6), require={"component": ("gpu",)})
_rule("gen_ai.gpu.energy", _ENERGY, _unitless(JOULES, 1))
_rule("gen_ai.gpu.utilization.max", "gpu_utilization_max_percent", _unitless(PERCENT, 1))
_rule("gen_ai.gpu.temperature.max", "gpu_temperature_max_celsius", _unitless(CELSIUS, 1))
_rule("gen_ai.gpu.power.max", "gpu_power_max_watts", _unitless(WATTS, 1))
_rule("gen_ai.gpu.memory.utilization", "gpu_memory_utilization_percent", _unitless(PERCENT, 1))
_rule("gen_ai.gpu.power.limit", "gpu_power_limit_watts", _unitless(WATTS, 1))
_rule("gen_ai.gpu.clock.sm", "gpu_sm_clock_mhz", _unitless(MEGAHERTZ, 1))
_rule("gen_ai.gpu.clock.memory", "gpu_memory_clock_mhz", _unitless(MEGAHERTZ, 1))
_rule("gen_ai.gpu.fan.speed", "gpu_fan_speed_percent", _unitless(PERCENT, 1))
_rule("gen_ai.gpu.ecc.errors.uncorrected", "gpu_ecc_errors_uncorrected", _unitless(COUNT, 1))

# OpenTelemetry semantic conventions. hw.power, hw.energy and hw.errors are about any hardware;
# hw.gpu.memory.utilization is how full the memory is, not how busy: no column.
_rule("hw.gpu.utilization", _UTIL, PERCENT, require={"hw.gpu.task": (None, "general")})
_rule("hw.gpu.memory.usage", _USED, _unitless(BYTES, 1 / MIB))
_rule("hw.gpu.memory.limit", _TOTAL, _unitless(BYTES, 1 / MIB))
_rule("hw.temperature", _TEMP, CELSIUS, require={"hw.type": ("gpu",)})
_rule("hw.temperature", _TEMP, CELSIUS, require={"hw.type": ("temperature",), "hw.parent": ()},
      refuse={"hw.sensor_location": ("memory", "hbm")})
_rule("hw.power", _POWER, WATTS, require=_GPU)
_rule("hw.energy", _ENERGY, JOULES, require=_GPU, since_boot=True)
_rule("hw.errors", "gpu_ecc_errors_uncorrected", COUNT,
      require={"hw.type": ("gpu",), "error.type": ("uncorrected",)})

# openlit: the Python SDK, then the Go collector (whose names overlap with hw.*).
# NIM's gpu_utilization is the same name as a ratio: without a unit it has no column.
_rule("gpu.utilization", _UTIL, PERCENT)
_rule("gpu.memory.used", _USED, BYTES)
_rule("gpu.memory.total", _TOTAL, BYTES)
_rule("gpu.temperature", _TEMP, CELSIUS)
_rule("gpu.power.draw", _POWER, WATTS)
_rule("gpu.power.limit", "gpu_power_limit_watts", WATTS)
_rule("hw.gpu.temperature", _TEMP, CELSIUS, refuse={"sensor": ("memory",)})
_rule("hw.gpu.power.draw hw.gpu.power", _POWER, WATTS)
_rule("hw.gpu.energy.consumed", _ENERGY, JOULES, since_boot=True)

# dcgm-exporter: the field identifier fixes the unit.
_rule("DCGM_FI_DEV_GPU_UTIL", _UTIL, _only(1))
_rule("DCGM_FI_DEV_FB_USED", _USED, _only(1))
_rule("DCGM_FI_DEV_FB_TOTAL", _TOTAL, _only(1))
_rule("DCGM_FI_DEV_FB_FREE", "memory:free", _only(1))
_rule("DCGM_FI_DEV_FB_RESERVED", "memory:reserved", _only(1))
_rule("DCGM_FI_DEV_GPU_TEMP", _TEMP, _only(1))
_rule("DCGM_FI_DEV_POWER_USAGE DCGM_FI_DEV_POWER_USAGE_INSTANT", _POWER, _only(1))
_rule("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", _ENERGY, _only(1e-3), since_boot=True)
_rule("DCGM_FI_DEV_MEM_COPY_UTIL", "gpu_memory_utilization_percent", _only(1))
_rule("DCGM_FI_DEV_SM_CLOCK", "gpu_sm_clock_mhz", _only(1))
_rule("DCGM_FI_DEV_MEM_CLOCK", "gpu_memory_clock_mhz", _only(1))
_rule("DCGM_FI_DEV_FAN_SPEED", "gpu_fan_speed_percent", _only(1))
_rule("DCGM_FI_DEV_POWER_MGMT_LIMIT DCGM_FI_DEV_ENFORCED_POWER_LIMIT", "gpu_power_limit_watts",
      _only(1))
_rule("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "gpu_ecc_errors_uncorrected", _only(1))

# GCP's dcgmreceiver.
_rule("dcgm.gpu.utilization", _UTIL, PERCENT)
_rule("dcgm.gpu.memory.bytes_used", _USED, BYTES, require={"memory_state": ("used",)})

# nvidia_gpu_exporter.
_rule("nvidia_smi_utilization_gpu_ratio", _UTIL, _only(100))
_rule("nvidia_smi_memory_used_bytes", _USED, _only(1 / MIB))
_rule("nvidia_smi_memory_total_bytes", _TOTAL, _only(1 / MIB))
_rule("nvidia_smi_temperature_gpu", _TEMP, _only(1))
_rule("nvidia_smi_power_draw_watts nvidia_smi_power_draw_instant_watts "
      "nvidia_smi_power_draw_average_watts", _POWER, _only(1))
_rule("nvidia_smi_energy_joules", _ENERGY, _only(1), since_boot=True)
_rule("nvidia_smi_fan_speed_ratio", "gpu_fan_speed_percent", _only(100))
_rule("nvidia_smi_clocks_current_sm_clock_hz", "gpu_sm_clock_mhz", _only(1e-6))
_rule("nvidia_smi_clocks_current_memory_clock_hz", "gpu_memory_clock_mhz", _only(1e-6))

# AMD device-metrics-exporter. Partitions other than 0 report 0 W for the whole board.
_BOARD = {"gpu_partition_id": (None, "0")}
_rule("gpu_gfx_activity", _UTIL, _only(1))
_rule("gpu_used_vram", _USED, _only(1))
_rule("gpu_total_vram", _TOTAL, _only(1))
_rule("gpu_junction_temperature gpu_edge_temperature", _TEMP, _only(1))
_rule("gpu_package_power gpu_average_package_power gpu_power_usage", _POWER, _unitless(WATTS, 1),
      require=_BOARD)
_rule("gpu_energy_consumed", _ENERGY, _only(1e-6), require=_BOARD, since_boot=True)

# Triton and NVIDIA NIM. Of NIM's power the documents disagree (W or mW): by name it is W.
_rule("nv_gpu_utilization", _UTIL, _only(100))
_rule("nv_gpu_memory_used_bytes", _USED, _only(1 / MIB))
_rule("nv_gpu_memory_total_bytes", _TOTAL, _only(1 / MIB))
_rule("nv_gpu_power_usage", _POWER, _only(1))
_rule("nv_energy_consumption", _ENERGY, _only(1), since_boot=True)
_rule("gpu_memory_used_bytes", _USED, _only(1 / MIB))
_rule("gpu_memory_total_bytes", _TOTAL, _only(1 / MIB))
_rule("gpu_power_usage_watts", _POWER, _only(1))
_rule("gpu_total_energy_consumption_joules", _ENERGY, _only(1), since_boot=True)

# all-smi.
_rule("all_smi_gpu_utilization", _UTIL, _only(1))
_rule("all_smi_gpu_memory_used_bytes", _USED, _only(1 / MIB))
_rule("all_smi_gpu_memory_total_bytes", _TOTAL, _only(1 / MIB))
_rule("all_smi_gpu_temperature_celsius", _TEMP, _only(1))
_rule("all_smi_gpu_power_consumption_watts", _POWER, _only(1))
_rule("all_smi_energy_consumed_joules", _ENERGY, _only(1),
      require={"scope": ("gpu",)}, since_boot=True)

# fmt: on

_THROTTLE = "gen_ai_gpu_throttle_"

_ID_KEYS = ("gpu_id", "gpu_index", "gpu", "index", "minor_number", "gpu_number")
_UUID_KEYS = ("gpu_uuid", "hw_id", "uuid")
_NAME_KEYS = ("gpu_name", "hw_name", "hw_model", "modelname", "model_name", "name", "card_model",
              "model")  # fmt: skip
_HOST_KEYS = ("hostname", "host_name")


def target_of(metric_name: str, unit: str, attributes: Mapping[str, Any]) -> Target | None:
    """
    The column that a series feeds, or None if it has none.

    A name that we know with a unit that we do not know has no column: better no
    number than a wrong one.
    """
    name = _normal(metric_name)
    if name not in _RULES:
        name = name.removesuffix("_total")
    if name.startswith(_THROTTLE):
        reason = name.removeprefix(_THROTTLE).removesuffix("_ratio")
        return Target(column=f"throttle:{reason}")
    plain = _by_normal_name(attributes)
    for rule, scale in _candidates(name, unit):
        if scale is not None and _applies(rule, plain):
            return Target(column=rule.column, scale=scale, since_boot=rule.since_boot)
    return None


def _candidates(name: str, unit: str) -> Iterator[tuple[_Rule, float | None]]:
    """Rules for the name as it is, else for the name without the unit that ends it."""
    if name in _RULES:
        for rule in _RULES[name]:
            yield rule, rule.scales.get("*", rule.scales.get(unit))
        return
    stem, _, suffix = name.rpartition("_")
    if suffix in _SUFFIXES:
        for rule in _RULES.get(stem, ()):
            yield rule, rule.scales.get(unit or _SUFFIXES[suffix])


def gpu_of(attributes: Mapping[str, Any]) -> GpuIdentity:
    """
    Which GPU a series is about.

    A temperature sensor of the semantic conventions names its GPU in ``hw.parent``
    (a GPU's own parent is the enclosure). AMD numbers its GPUs from 0 beside NVIDIA's: theirs are
    ``amd:0``, so that both keep their rows. DCGM's MIG instances are ``0:1``.
    """
    plain = _by_normal_name(attributes)
    gpu_id = _first(plain, _ID_KEYS)
    vendor = (_first(plain, ("gpu_vendor",)) or "nvidia").lower()
    if gpu_id is not None and vendor != "nvidia":
        gpu_id = f"{vendor}:{gpu_id}"
    instance = _first(plain, ("gpu_i_id",))
    if gpu_id is not None and instance is not None:
        gpu_id = f"{gpu_id}:{instance}"
    is_sensor = plain.get("hw_type") == "temperature"
    return GpuIdentity(
        gpu_id=gpu_id,
        gpu_uuid=_first(plain, ("hw_parent",) if is_sensor else _UUID_KEYS),
        gpu_name=None if is_sensor else _first(plain, _NAME_KEYS),
        host_name=_first(plain, _HOST_KEYS),
        is_sensor=is_sensor,
    )


def _by_normal_name(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {_normal(key): value for key, value in attributes.items()}


def _applies(rule: _Rule, attributes: Mapping[str, Any]) -> bool:
    for key, allowed in rule.require.items():
        value = text_of(attributes.get(key))
        if value not in allowed if allowed else value is None:
            return False
    return not any(text_of(attributes.get(key)) in refused for key, refused in rule.refuse.items())


def _first(attributes: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((text for key in keys if (text := text_of(attributes.get(key)))), None)


def text_of(value: Any) -> str | None:
    """A name or number as text; None for what names nothing."""
    return None if value is None or value == "" or isinstance(value, dict | list) else str(value)
