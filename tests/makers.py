"""Builders of nested requests and SDK objects, and the short way to their tables."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict
from hypothesis import HealthCheck, settings
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from hubmeter.decode.otlp_json import JsonDecoder
from hubmeter.decode.sdk_objects import SdkDecoder
from hubmeter.flattening import Options, flatten_points
from hubmeter.ledger import Points, gather
from hubmeter.tables import default_table, points_table

# A loaded machine is slow, not wrong.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

T0 = 1_761_544_695_460_017_300
"""An instant of the seed's run: 2025-10-27T05:58:15.460017300Z."""

SECOND = 1_000_000_000

UTIL, POWER, TEMP = "gen_ai.gpu.utilization", "gen_ai.gpu.power", "gen_ai.gpu.temperature"
USED, ENERGY, CO2 = "gen_ai.gpu.memory.used", "gen_ai.gpu.energy", "gen_ai.co2.emissions"
COST = "gen_ai.power.cost"
DELTA, CUMULATIVE = 1, 2


def any_value(value: Any) -> dict[str, Any]:
    """An OTLP/JSON AnyValue."""
    match value:
        case None:
            return {}
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case bytes():
            return {"bytesValue": base64.b64encode(value).decode()}
        case list():
            return {"arrayValue": {"values": [any_value(item) for item in value]}}
        case Mapping():
            return {"kvlistValue": {"values": key_values(value)}}
        case _:
            return {"stringValue": str(value)}


def key_values(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """OTLP/JSON attributes."""
    return [{"key": key, "value": any_value(value)} for key, value in attributes.items()]


def point(
    value: Any, time: int = T0, gpu: Any = None, *, start: int | None = None, **attributes: Any
) -> dict[str, Any]:
    """A number data point; ``hw__id`` is the attribute ``hw.id``, *gpu* is ``gpu_id``."""
    named = {key.replace("__", "."): value for key, value in attributes.items()}
    if gpu is not None:
        named = {"gpu_id": str(gpu), **named}
    made: dict[str, Any] = {"timeUnixNano": str(time), "attributes": key_values(named)}
    if start is not None:
        made["startTimeUnixNano"] = str(start)
    if value is not None:
        made |= {"asInt": str(value)} if isinstance(value, int) else {"asDouble": value}
    return made


def gauge(name: str, unit: str, *points: Mapping[str, Any]) -> dict[str, Any]:
    """A gauge metric."""
    return {"name": name, "unit": unit, "gauge": {"dataPoints": list(points)}}


def total(
    name: str,
    unit: str,
    *points: Mapping[str, Any],
    temporality: int = CUMULATIVE,
    monotonic: bool = True,
) -> dict[str, Any]:
    """A sum metric."""
    data = {
        "dataPoints": list(points),
        "aggregationTemporality": temporality,
        "isMonotonic": monotonic,
    }
    return {"name": name, "unit": unit, "sum": data}


def resource_metrics(
    *metrics: Any, resource: Mapping[str, Any] | None = None, scope: str = "test"
) -> dict[str, Any]:
    """One resource with one scope."""
    return {
        "resource": {"attributes": key_values(resource or {})},
        "scopeMetrics": [{"scope": {"name": scope}, "metrics": list(metrics)}],
    }


def request(*metrics: Any, run_id: Any = None, **resource: Any) -> dict[str, Any]:
    """A request about one resource; keywords as in :func:`resource_metrics`."""
    made: dict[str, Any] = {"resourceMetrics": [resource_metrics(*metrics, **resource)]}
    return made if run_id is None else {"run_id": run_id, **made}


def decoded(*requests: Any) -> Points:
    """Points of *requests*, which one source sent in this order."""
    decoder = JsonDecoder()
    return gather(decoder.decode(one) for one in requests)


def tables(points: Points, /, **options: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of both configs; *options* are those of flattening."""
    chosen = Options(**{"run_id": "run", **options})
    rows = flatten_points(points, chosen)
    return (
        default_table(rows).to_pylist(),
        points_table(points, rows, chosen.run_id).to_pylist(),
    )


def rows(*requests: Any, **options: Any) -> list[dict[str, Any]]:
    """Rows of the default config."""
    return tables(decoded(*requests), **options)[0]


def point_rows(*requests: Any, **options: Any) -> list[dict[str, Any]]:
    """Rows of the points config."""
    return tables(decoded(*requests), **options)[1]


def skipped(*requests: Any) -> Mapping[str, int]:
    """What was not used, and why."""
    return flatten_points(decoded(*requests), Options(run_id="run")).skipped


def cells(found: Iterable[Mapping[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    """Only the columns *names* of rows."""
    return [tuple(row[name] for name in names) for row in found]


def sdk_data(*metrics: Metric, resource: Mapping[str, Any] | None = None) -> MetricsData:
    """What an SDK hands to an exporter."""
    scope = ScopeMetrics(InstrumentationScope("test"), list(metrics), "")
    return MetricsData([ResourceMetrics(Resource(resource or {}), [scope], "")])


def sdk_number(
    value: Any, time: int = T0, start: int | None = None, exemplars: Any = (), **attributes: Any
) -> NumberDataPoint:
    """A number data point of the SDK."""
    named = {key.replace("__", "."): value for key, value in attributes.items()}
    return NumberDataPoint(named, start, time, value, list(exemplars))


def sdk_gauge(name: str, unit: str, *points: NumberDataPoint) -> Metric:
    """A gauge of the SDK."""
    return Metric(name, "", unit, Gauge(list(points)))


def sdk_sum(name: str, unit: str, *points: NumberDataPoint, delta: bool = False) -> Metric:
    """A monotonic sum of the SDK."""
    word = AggregationTemporality.DELTA if delta else AggregationTemporality.CUMULATIVE
    return Metric(name, "", unit, Sum(list(points), word, True))


def sdk_points(*collections: MetricsData) -> Points:
    """Points of what one provider collected."""
    decoder = SdkDecoder()
    return gather(decoder.decode(one) for one in collections)


def otlp_json(data: MetricsData) -> dict[str, Any]:
    """*data* as the SDK's OTLP encoder has it, in OTLP/JSON (identifiers in hexadecimal)."""
    return _with_hex_ids(MessageToDict(encode_metrics(data)))


def _with_hex_ids(node: Any) -> Any:
    if isinstance(node, list):
        return [_with_hex_ids(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: binascii.hexlify(base64.b64decode(value)).decode()
        if key in ("spanId", "traceId")
        else _with_hex_ids(value)
        for key, value in node.items()
    }
