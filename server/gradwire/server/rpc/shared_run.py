"""``gradwire.v1.SharedRun`` <-> the server's own type."""

from __future__ import annotations

from typing import Any

from gradwire.server.engine.shared import Clip, Combine, OnDeadline, SharedRun, Stale
from gradwire.server.rounds.leases import AttachShared
from gradwire.server.rpc.hyperparameters import choice
from gradwire.v1 import run_pb2, train_pb2

_WITH_DEFAULTS = ("start_with", "at_least", "max_workers")
_OPTIONAL = ("quorum_weight", "deadline_seconds", "lease_seconds")


def decode_shared(message: run_pb2.SharedRun) -> SharedRun:
    """Raises InvalidSpec."""
    said: dict[str, Any] = {name: value for name in _WITH_DEFAULTS if (value := getattr(message, name))}
    said |= {name: getattr(message, name) for name in _OPTIONAL if message.HasField(name)}  # type: ignore[arg-type]
    return SharedRun(
        quorum=message.quorum or None,
        grace_seconds=message.grace_seconds,
        max_staleness=message.max_staleness,
        on_deadline=choice(OnDeadline, message.on_deadline, "shared.on_deadline"),
        stale=choice(Stale, message.stale, "shared.stale"),
        combine=choice(Combine, message.combine, "shared.combine"),
        clip=choice(Clip, message.clip, "shared.clip"),
        **said,
    )


def decode_attach(message: train_pb2.Attach) -> AttachShared:
    return AttachShared(
        message.worker_id,
        message.takeover,
        message.resumes,
        message.leads,
        message.base_step if message.HasField("base_step") else None,
        message.session,
    )


def encode_shared_run(shared: SharedRun) -> run_pb2.SharedRun:
    """With every default filled in."""
    return run_pb2.SharedRun(
        quorum=shared.quorum or 0,
        quorum_weight=shared.quorum_weight,
        start_with=shared.start_with,
        grace_seconds=shared.grace_seconds,
        deadline_seconds=shared.deadline_seconds,
        on_deadline=int(shared.on_deadline),  # type: ignore[arg-type]
        at_least=shared.at_least,
        max_workers=shared.max_workers,
        lease_seconds=shared.lease_seconds,
        max_staleness=shared.max_staleness,
        stale=int(shared.stale),  # type: ignore[arg-type]
        combine=int(shared.combine),  # type: ignore[arg-type]
        clip=int(shared.clip),  # type: ignore[arg-type]
    )
