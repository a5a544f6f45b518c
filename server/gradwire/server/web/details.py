"""All that the page of one run shows besides its curves."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from math import inf
from typing import Any

import numpy as np

from gradwire.server.durability.run_storage import storage_of
from gradwire.server.engine.activity import Wait
from gradwire.server.engine.run import Run
from gradwire.server.engine.workers import Holder
from gradwire.server.metrics.traffic import RECEIVED, SENT
from gradwire.server.optimizers.base import Hyperparameters, field_types
from gradwire.server.optimizers.known import name_of
from gradwire.server.rounds.report import overview
from gradwire.server.rounds.rounds import rounds_of
from gradwire.server.runs import operations
from gradwire.server.runs.registry import Registry
from gradwire.server.store.base import SnapshotInfo

MAX_TENSORS = 256
MAX_GROUPS = 32
MAX_WORKERS = 64
MAX_SNAPSHOTS = 64
"""What is shown of each; how many there are is told."""


def about(run: Run) -> dict[str, Any]:
    """What a run is from its creation on: never another thing as long as its uid is the same."""
    spec = run.spec
    shapes = spec.layout.shapes[:MAX_TENSORS]
    return {
        "uid": run.uid,
        "dtype": spec.dtype.name,
        "tensor_count": len(spec.layout.names),
        "tensors": [
            {"name": name, "shape": list(shape)} for name, shape in zip(spec.layout.names, shapes, strict=False)
        ],
        "slots": list(spec.slots),
        "non_finite": spec.non_finite_policy.name.lower(),
        "clip_value": spec.clip_value,
        "clip_norm": spec.clip_norm,
        "ttl_seconds": spec.ttl_seconds,
        "shared": None if spec.shared is None else _fields(spec.shared, vars(spec.shared)),
    }


def settings(registry: Registry, run: Run) -> dict[str, Any]:
    """What is changed now and then, and what of it is stored. On the event loop."""
    storage = storage_of(run)
    snapshots = operations.listed(registry, run)
    return {
        "epoch": run.epoch,
        "loss": storage.loss if storage is not None else "",
        "group_count": len(run.groups),
        "groups": [_group(group) for group in run.groups[:MAX_GROUPS]],
        "snapshot_count": len(snapshots),
        "snapshots": [_snapshot(info) for info in snapshots[:MAX_SNAPSHOTS]],
    }


def _snapshot(info: SnapshotInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "step": info.step,
        "created": info.created,
        "size_bytes": info.size_bytes,
        "label": info.label,
    }


def events(run: Run) -> dict[str, Any]:
    """What has happened lately, the oldest first."""
    return {"events": [asdict(event) for event in run.events.since()]}


def workers(run: Run) -> dict[str, Any]:
    """Who works on it, what each waits for, and what their streams have brought and taken. On the event loop."""
    return {**(_sole(run) if run.spec.shared is None else _shared(run)), "bytes": _bytes(run)}


def _bytes(run: Run) -> dict[str, dict[str, int]]:
    """By direction and path, since the server began; paths that nothing has taken are left out."""
    found: dict[str, dict[str, int]] = {RECEIVED: {}, SENT: {}}
    for (direction, _, path), count in sorted(run.traffic.counts().items()):
        if count:
            found[direction][path] = found[direction].get(path, 0) + count
    return found


def _group(group: Hyperparameters) -> dict[str, Any]:
    return {"optimizer": name_of(group), **_fields(group, field_types(type(group)))}


def _fields(of: Any, names: Any) -> dict[str, Any]:
    """Numbers, words and truths; what is infinite is no bound, and left out."""
    values = {name: getattr(of, name) for name in names}
    return {
        name: value.name.lower() if isinstance(value, Enum) else value
        for name, value in values.items()
        if value not in (inf, -inf)
    }


def _sole(run: Run) -> dict[str, Any]:
    holder = run.holder
    workers = []
    if holder is not None:
        workers = [
            {
                "id": holder.worker_id,
                "attached": True,
                "sequence": holder.record.last_sequence,
                "step": run.step,
                "blocks": _blocks(holder),
                **_wait(holder.wait()),
            }
        ]
    return {"worker_count": len(workers), "workers": workers, "round": None}


def _blocks(holder: Holder | None) -> dict[str, Any] | None:
    """How long the last blocks of a stream took, and how large the last one was; None: it has sent none, or is no more.
    Those of a shared run waited for their rounds."""
    if holder is None:
        return None
    taken, receipt = holder.block_seconds(), holder.record.receipt
    if not taken or receipt is None:
        return None
    p50, p90, p99 = np.percentile(list(taken), (50, 90, 99)).tolist()
    return {"count": len(taken), "p50": p50, "p90": p90, "p99": p99, "received_bytes": receipt.received_bytes}


def _wait(wait: Wait | None) -> dict[str, Any]:
    return {} if wait is None else {"waits_for": wait.text, "waits_seconds": wait.seconds}


def _shared(run: Run) -> dict[str, Any]:
    found = overview(run, MAX_WORKERS)
    holders = {holder.worker_id: holder for holder in rounds_of(run).holders}
    workers = [
        {
            "id": worker.worker_id,
            "attached": worker.attached,
            "leased": worker.leased,
            "leads": worker.leads,
            "aside": worker.aside,
            "sequence": worker.last_sequence,
            "step": worker.step,
            "contributed": worker.waiting,
            "share": worker.share,
            "heard_seconds": worker.last_heard_seconds,
            "outcomes": {kind.name.lower(): count for kind, count in worker.outcomes.items()},
            "blocks": _blocks(holders.get(worker.worker_id)),
            **_wait(worker.wait),
        }
        for worker in found.report.workers
    ]
    return {
        "worker_count": found.worker_count,
        "workers": workers,
        "round": {
            "number": found.report.round,
            "waiting_for": found.report.waiting_for,
            "open_seconds": found.report.open_seconds,
            "outcomes": {kind.name.lower(): count for kind, count in found.outcomes.items()},
        },
    }
