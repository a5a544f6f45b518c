"""Runs as files, and the hash that tells whether two runs are the same."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

from gradwire.client.calls.remote_values import RemoteValues
from gradwire.client.calls.snapshots import SnapshotInfo, snapshot_id
from gradwire.client.optimizers.optimizer import Optimizer
from gradwire.client.options import durability_of
from gradwire.client.transport.link import Link
from gradwire.client.transport.progress_log import ProgressLog
from gradwire.client.transport.retry import RetryPolicy, retrying
from gradwire.v1 import run_pb2, service_pb2
from gradwire.wire.layout import run_resource
from gradwire.wire.whole_file import is_stream, whole_file

FILE_BYTES = 2**20
"""Pieces in which a file is sent."""


def export_run(values: RemoteValues, path: Path, snapshot: SnapshotInfo | int | None, weights_only: bool) -> int:
    """Writes the file whole or not at all; returns the step."""
    request = service_pb2.ExportRunRequest(
        name=values.name, run_uid=values.uid, snapshot_id=snapshot_id(snapshot), weights_only=weights_only
    )
    # What has been written to a stream stays written, so a second attempt would add to the first.
    stream = is_stream(path)
    retry = None if stream else values.retry
    with whole_file(path) as file:

        def call() -> int:
            if not stream:
                file.seek(0)
                file.truncate()
            responses = values.link.stub.ExportRun(request)
            header = next(responses).header
            written = ProgressLog(f"exporting {values.name}", header.size_bytes)
            for response in responses:
                file.write(response.data)
                written.add(len(response.data))
            return header.step

        return retrying(call, retry, values.link)


def import_run(
    link: Link,
    retry: RetryPolicy,
    name: str,
    file: Path,
    *,
    weights_only: Optimizer | None,
    durability: str | None,
    replace: bool,
) -> run_pb2.Run:
    """See `Server.import_run`."""
    header = service_pb2.ImportRunHeader(
        name=run_resource(name),
        request_id=uuid.uuid4().hex,
        replace=replace,
        weights_only=weights_only is not None,
        durability=durability_of(durability),
    )
    if weights_only is not None:
        header.groups.append(weights_only.to_group())
    if is_stream(file):  # opened once: whoever writes into it does so once, and what has been read is gone
        policy = None
    else:
        policy = retry
        file.open("rb").close()  # an error of the caller's, and not of a thread of gRPC's
    return retrying(lambda: link.stub.ImportRun(_import_requests(header, file)), policy, link).run


def _import_requests(header: service_pb2.ImportRunHeader, path: Path) -> Iterator[service_pb2.ImportRunRequest]:
    """The messages that carry a file."""
    sent = ProgressLog(f"importing {header.name}", path.stat().st_size)
    yield service_pb2.ImportRunRequest(header=header)
    with path.open("rb") as file:
        while data := file.read(FILE_BYTES):
            yield service_pb2.ImportRunRequest(data=data)
            sent.add(len(data))


def digest_run(values: RemoteValues) -> str:
    request = service_pb2.DigestRunRequest(name=values.name, run_uid=values.uid)
    return retrying(lambda: values.link.stub.DigestRun(request), values.retry, values.link).sha256
