"""Snapshots of a run: taken, listed, gone back to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from gradwire.client.calls.remote_values import RemoteValues
from gradwire.client.options import durability_name
from gradwire.client.transport.retry import retrying
from gradwire.v1 import service_pb2


@dataclass(frozen=True)
class SnapshotInfo:
    """A run as it was at one step."""

    id: int
    step: int
    created: datetime
    size_bytes: int
    label: str
    """Empty: the server took it by itself, and drops it for newer ones."""
    durability: str = "UNSPECIFIED"
    """``"SNAPSHOT"``: it is on the server's disk; ``"MEMORY"``: it ends with the server, as its run does;
    ``"UNSPECIFIED"``: an older server did not say."""


def save_snapshot(values: RemoteValues, label: str) -> SnapshotInfo:
    request = service_pb2.SaveSnapshotRequest(name=values.name, run_uid=values.uid, label=label)
    return _info(retrying(lambda: values.link.stub.SaveSnapshot(request), values.retry, values.link).snapshot)


def list_snapshots(values: RemoteValues) -> list[SnapshotInfo]:
    request = service_pb2.ListSnapshotsRequest(name=values.name, run_uid=values.uid)
    found = retrying(lambda: values.link.stub.ListSnapshots(request), values.retry, values.link).snapshots
    return [_info(message) for message in found]


def roll_back(values: RemoteValues, snapshot: SnapshotInfo | int) -> int:
    """Returns the run's step."""
    request = service_pb2.RollBackRequest(
        name=values.name, run_uid=values.uid, snapshot_id=snapshot_id(snapshot), worker_id=values.worker_id
    )
    return retrying(lambda: values.link.stub.RollBack(request), values.retry, values.link).step


def snapshot_id(snapshot: SnapshotInfo | int | None) -> int:
    """0: the run as it is now."""
    if snapshot is None:
        return 0
    return snapshot.id if isinstance(snapshot, SnapshotInfo) else snapshot


def _info(message: service_pb2.Snapshot) -> SnapshotInfo:
    created = datetime.fromtimestamp(message.created_seconds, UTC)
    durability = durability_name(message.durability)
    return SnapshotInfo(message.id, message.step, created, message.size_bytes, message.label, durability)
