"""A new run that begins as another one is, or was."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradwire.client.calls.remote_values import RemoteValues
from gradwire.client.calls.snapshots import SnapshotInfo, snapshot_id
from gradwire.client.optimizers.optimizer import Optimizer
from gradwire.client.options import durability_of
from gradwire.client.overrides import override_messages
from gradwire.client.transport.retry import retrying
from gradwire.v1 import run_pb2, service_pb2
from gradwire.wire.layout import run_resource


@dataclass(frozen=True)
class ForkChanges:
    """What is to be different in the new run; see `Run.fork`."""

    optimizer: Optimizer | None
    lr: float | Sequence[float] | None
    overrides: Mapping[int, Mapping[str, Any]] | None
    durability: str | None


def fork_run(
    values: RemoteValues, name: str, snapshot: SnapshotInfo | int | None, changes: ForkChanges, *, replace: bool
) -> run_pb2.Run:
    """See `Run.fork`."""
    groups = values.layout.groups
    request = service_pb2.ForkRunRequest(
        name=values.name,
        run_uid=values.uid,
        snapshot_id=snapshot_id(snapshot),
        new_name=run_resource(name),
        request_id=uuid.uuid4().hex,
        replace=replace,
        groups=[] if changes.optimizer is None else [changes.optimizer.to_group()] * groups,
        overrides=override_messages(groups, changes.lr, changes.overrides),
        durability=durability_of(changes.durability),
    )
    return retrying(lambda: values.link.stub.ForkRun(request), values.retry, values.link).run
