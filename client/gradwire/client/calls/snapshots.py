"""What can be done with a whole run besides training it: snapshots, forks, files, hashes."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gradwire.client.calls.remote_values import RemoteValues
from gradwire.client.encodings.block import override_messages
from gradwire.client.optimizers import Adam
from gradwire.client.transport.retry import retrying
from gradwire.v1 import run_pb2, service_pb2
from gradwire.wire.layout import parse_run_name

FILE_BYTES = 2**20
"""Pieces in which a file is sent."""

DURABILITIES = {
    "JOURNAL": run_pb2.DURABILITY_JOURNAL,
    "SNAPSHOT": run_pb2.DURABILITY_SNAPSHOT,
    "MEMORY": run_pb2.DURABILITY_MEMORY,
}


@dataclass(frozen=True)
class SnapshotInfo:
    """A run as it was at one step."""

    id: int
    step: int
    created: datetime
    size_bytes: int
    label: str
    """Empty: the server took it by itself, and drops it for newer ones."""


def save_snapshot(values: RemoteValues, label: str) -> SnapshotInfo:
    request = service_pb2.SaveSnapshotRequest(name=values.name, run_uid=values.uid, label=label)
    return _info(retrying(lambda: values.stub.SaveSnapshot(request), values.retry, values.target).snapshot)


def list_snapshots(values: RemoteValues) -> list[SnapshotInfo]:
    request = service_pb2.ListSnapshotsRequest(name=values.name, run_uid=values.uid)
    found = retrying(lambda: values.stub.ListSnapshots(request), values.retry, values.target).snapshots
    return [_info(message) for message in found]


def roll_back(values: RemoteValues, snapshot: SnapshotInfo | int) -> int:
    """Returns the run's step."""
    request = service_pb2.RollBackRequest(name=values.name, run_uid=values.uid, snapshot_id=snapshot_id(snapshot))
    return retrying(lambda: values.stub.RollBack(request), values.retry, values.target).step


def fork_run(
    values: RemoteValues,
    name: str,
    optimizer: Adam | None,
    lr: float | Sequence[float] | None,
    overrides: Mapping[int, Mapping[str, Any]] | None,
    snapshot: SnapshotInfo | int | None,
    durability: str | None,
    replace: bool,
) -> run_pb2.Run:
    """See `Run.fork`."""
    groups = values.layout.groups
    request = service_pb2.ForkRunRequest(
        name=values.name,
        run_uid=values.uid,
        snapshot_id=snapshot_id(snapshot),
        new_name=resource(name),
        request_id=uuid.uuid4().hex,
        replace=replace,
        groups=[] if optimizer is None else [run_pb2.Group(adam=optimizer.to_message())] * groups,
        overrides=override_messages(groups, lr, overrides),
        durability=durability_of(durability),
    )
    return retrying(lambda: values.stub.ForkRun(request), values.retry, values.target).run


def export_run(values: RemoteValues, path: Path, snapshot: SnapshotInfo | int | None, weights_only: bool) -> int:
    """Writes the file whole or not at all; returns the step."""
    request = service_pb2.ExportRunRequest(
        name=values.name, run_uid=values.uid, snapshot_id=snapshot_id(snapshot), weights_only=weights_only
    )
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")

    def call() -> int:
        step = 0
        with unfinished.open("wb") as file:
            for response in values.stub.ExportRun(request):
                if response.WhichOneof("message") == "header":
                    step = response.header.step
                else:
                    file.write(response.data)
        return step

    try:
        step = retrying(call, values.retry, values.target)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return step


def import_requests(header: service_pb2.ImportRunHeader, path: Path) -> Iterator[service_pb2.ImportRunRequest]:
    """The messages that carry a file."""
    yield service_pb2.ImportRunRequest(header=header)
    with path.open("rb") as file:
        while data := file.read(FILE_BYTES):
            yield service_pb2.ImportRunRequest(data=data)


def digest_run(values: RemoteValues) -> str:
    request = service_pb2.DigestRunRequest(name=values.name, run_uid=values.uid)
    return retrying(lambda: values.stub.DigestRun(request), values.retry, values.target).sha256


def snapshot_id(snapshot: SnapshotInfo | int | None) -> int:
    """0: the run as it is now."""
    if snapshot is None:
        return 0
    return snapshot.id if isinstance(snapshot, SnapshotInfo) else snapshot


def resource(name: str) -> str:
    """The resource name of a run. Raises InvalidSpec."""
    whole = f"runs/{name}"
    parse_run_name(whole)
    return whole


def durability_of(name: str | None) -> run_pb2.Durability.ValueType:
    """The contract's word; None: the server decides. Raises ValueError."""
    if name is None:
        return run_pb2.DURABILITY_UNSPECIFIED
    if name not in DURABILITIES:
        raise ValueError(f"durability is {name!r}; expected one of {', '.join(map(repr, DURABILITIES))}")
    return DURABILITIES[name]


def _info(message: service_pb2.Snapshot) -> SnapshotInfo:
    created = datetime.fromtimestamp(message.created_seconds, timezone.utc)
    return SnapshotInfo(message.id, message.step, created, message.size_bytes, message.label)
