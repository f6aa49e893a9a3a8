"""
Which GPU each stream is about: one :class:`Gpu` per run, resource and device. Pure.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from .batch import AttributesJson, Series
from .conventions import GpuIdentity, gpu_of, text_of

Reporter: TypeAlias = tuple[str, AttributesJson]
"""Run id and resource."""

_Key: TypeAlias = tuple[str | None, str | None]
"""Host name and GPU id."""


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


def owner_of(series: Series, default_run_id: str) -> tuple[str, str | None]:
    """Run id and service name: the resource's word counts most, then the envelope's."""
    resource = json.loads(series.resource)
    run_id = text_of(resource.get("run.id")) or series.run_id or default_run_id
    return run_id, text_of(resource.get("service.name"))


def gpus_of(
    fed: Iterable[Series], others: Iterable[Series], default_run_id: str
) -> dict[Series, Gpu]:
    """
    Find the GPU of each series in *fed*: the series that feed a column.

    Series that tell only a UUID join the GPU whose index another series of the same
    resource tells together with that UUID; without one, the UUID is the id. *others*
    (nvidia_smi_gpu_info is one) say something about a GPU only where they name its UUID.

    Returns:
        No GPU for sensors whose parent is not known to be one: a CPU has a temperature too.
    """
    told: dict[Reporter, dict[Series, GpuIdentity]] = defaultdict(dict)
    hints: dict[Reporter, list[GpuIdentity]] = defaultdict(list)
    for one in sorted(fed, key=_name):
        told[_reporter(one, default_run_id)][one] = gpu_of(json.loads(one.attributes))
    for one in sorted(others, key=_name):
        hints[_reporter(one, default_run_id)].append(gpu_of(json.loads(one.attributes)))
    result: dict[Series, Gpu] = {}
    for reporter, identities in told.items():
        result.update(_gpus_of_reporter(reporter, identities, hints[reporter]))
    return result


def _name(series: Series) -> tuple[str, ...]:
    """Order of the series that does not depend on their arrival."""
    return series.metric_name, series.scope_name, series.attributes


def _reporter(series: Series, default_run_id: str) -> Reporter:
    return owner_of(series, default_run_id)[0], series.resource


def _gpus_of_reporter(
    reporter: Reporter, told: Mapping[Series, GpuIdentity], hints: Iterable[GpuIdentity]
) -> dict[Series, Gpu]:
    uuids = {i.gpu_uuid for i in told.values() if i.gpu_uuid and not i.is_sensor}
    known = [i for i in told.values() if not i.is_sensor or _is_gpu(i.gpu_uuid, uuids)]
    known += [i for i in hints if i.gpu_uuid in uuids]
    ids = {i.gpu_uuid: i.gpu_id for i in reversed(known) if i.gpu_uuid and i.gpu_id}
    host = _host(reporter, known)
    by_key: dict[_Key, list[GpuIdentity]] = defaultdict(list)
    for identity in known:
        by_key[_key(identity, ids, host)].append(identity)
    gpus = {key: _merge(reporter, key, same) for key, same in by_key.items()}
    return {
        series: gpus[_key(identity, ids, host)]
        for series, identity in told.items()
        if not identity.is_sensor or _is_gpu(identity.gpu_uuid, uuids)
    }


def _is_gpu(uuid: str | None, uuids: set[str]) -> bool:
    return uuid in uuids or (uuid or "").startswith("GPU-")


def _host(reporter: Reporter, identities: Iterable[GpuIdentity]) -> str | None:
    """The host of series that do not name one: the resource's, or the only one named."""
    named = {i.host_name for i in identities if i.host_name}
    only = named.pop() if len(named) == 1 else None
    return text_of(json.loads(reporter[1]).get("host.name")) or only


def _key(identity: GpuIdentity, ids: Mapping[str, str], host: str | None) -> _Key:
    uuid = identity.gpu_uuid
    return identity.host_name or host, identity.gpu_id or ids.get(uuid or "") or uuid


def _merge(reporter: Reporter, key: _Key, identities: Iterable[GpuIdentity]) -> Gpu:
    host_name, gpu_id = key
    told = [] if gpu_id is None else list(identities)
    return Gpu(
        reporter=reporter,
        run_id=reporter[0],
        service_name=text_of(json.loads(reporter[1]).get("service.name")),
        host_name=host_name,
        gpu_id=gpu_id,
        gpu_uuid=next((i.gpu_uuid for i in told if i.gpu_uuid), None),
        gpu_name=next((i.gpu_name for i in told if i.gpu_name), None),
    )
