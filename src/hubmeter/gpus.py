"""
Which GPU each stream is about: one :class:`Gpu` per run, resource and device. Pure.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from .batch import AttributesJson, Series
from .conventions import GpuIdentity, gpu_of

Reporter: TypeAlias = tuple[str, AttributesJson]
"""Run id and resource."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """
    What identifies a row beside its time. No GPU id: a row about the whole run.

    Attributes:
        reporter: Run id and resource that reported.
    """

    reporter: Reporter
    run_id: str
    service_name: str | None
    host_name: str | None
    gpu_id: str | None
    gpu_uuid: str | None = None
    gpu_name: str | None = None


def gpus_of(series: Iterable[Series], default_run_id: str) -> dict[Series, Gpu]:
    """
    Find the GPU of each of *series*.

    Series that tell only a UUID join the GPU whose index another series of the same
    resource tells together with that UUID; without one, the UUID is the id.
    """
    by_reporter: dict[Reporter, list[tuple[Series, GpuIdentity]]] = defaultdict(list)
    for one in series:
        resource = json.loads(one.resource)
        run_id = str(resource.get("run.id") or one.run_id or default_run_id)
        identity = gpu_of(json.loads(one.attributes))
        by_reporter[(run_id, one.resource)].append((one, identity))
    result: dict[Series, Gpu] = {}
    for reporter, members in by_reporter.items():
        result.update(_gpus_of_reporter(reporter, members))
    return result


def _gpus_of_reporter(
    reporter: Reporter, members: list[tuple[Series, GpuIdentity]]
) -> dict[Series, Gpu]:
    resource = json.loads(reporter[1])
    ids = {i.gpu_uuid: i.gpu_id for _, i in members if i.gpu_uuid and i.gpu_id}
    keys = {series: _key(identity, ids) for series, identity in members}
    merged: dict[tuple[str | None, str | None], Gpu] = {}
    for key in keys.values():
        if key not in merged:
            same = [identity for series, identity in members if keys[series] == key]
            merged[key] = _merge(reporter, resource, key, same)
    return {series: merged[key] for series, key in keys.items()}


def _key(
    identity: GpuIdentity, ids: Mapping[str | None, str | None]
) -> tuple[str | None, str | None]:
    gpu_id = identity.gpu_id or ids.get(identity.gpu_uuid) or identity.gpu_uuid
    return identity.host_name, gpu_id


def _merge(
    reporter: Reporter,
    resource: Mapping[str, Any],
    key: tuple[str | None, str | None],
    identities: list[GpuIdentity],
) -> Gpu:
    host_name, gpu_id = key
    resource_host = resource.get("host.name")
    service_name = resource.get("service.name")
    is_gpu = gpu_id is not None
    return Gpu(
        reporter=reporter,
        run_id=reporter[0],
        service_name=None if service_name is None else str(service_name),
        host_name=host_name or (None if resource_host is None else str(resource_host)),
        gpu_id=gpu_id,
        gpu_uuid=next((i.gpu_uuid for i in identities if i.gpu_uuid), None) if is_gpu else None,
        gpu_name=next((i.gpu_name for i in identities if i.gpu_name), None) if is_gpu else None,
    )
