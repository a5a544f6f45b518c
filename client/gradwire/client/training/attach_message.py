"""How every stream of a worker begins."""

from __future__ import annotations

import uuid

from gradwire.client.options import RunOptions, encoding_of
from gradwire.client.transport.link import Link
from gradwire.client.workers.rank import default_worker_id, leads_by_default
from gradwire.v1 import run_pb2, train_pb2
from gradwire.wire.hosts import is_local
from gradwire.wire.lane import AVAILABLE


def attach_message(
    run: run_pb2.Run,
    options: RunOptions,
    link: Link,
    understands: tuple[train_pb2.Feature.ValueType, ...],
    *,
    created: bool,
) -> train_pb2.Attach:
    """``created``: the run, by this process."""
    near = bool(options.shared_memory) and is_local(link.target)
    shared = run.spec.HasField("shared")
    default = leads_by_default(created=created, goes_on=run.step > 0)
    leads = shared and (default if options.leads is None else options.leads)
    return train_pb2.Attach(
        run=run.spec.name,
        worker_id=options.worker_id or default_worker_id(shared=shared),
        takeover=options.takeover,
        gradient_encoding=encoding_of(options.gradient_encoding),
        parameter_encoding=encoding_of(options.parameter_encoding),
        run_uid=run.uid,
        shared_memory=near,
        lane=near and AVAILABLE,
        understands=understands,
        leads=leads,
        session=uuid.uuid4().hex if shared else "",
    )
