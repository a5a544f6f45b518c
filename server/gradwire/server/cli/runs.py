"""``gradwire runs``: what can be done with the runs of a server from a shell."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from google.protobuf.json_format import MessageToDict

from gradwire.server.cli.byte_progress import byte_progress
from gradwire.server.cli.calls import Stub, with_stub
from gradwire.server.cli.numbers import SNAPSHOT_ID
from gradwire.server.cli.presets import PRESETS, group_of
from gradwire.server.cli.run_rows import COLUMNS, SHRINKS, data_of, durability_name, row_of, summaries
from gradwire.server.cli.series import series_command
from gradwire.server.cli.table import lines_of, terminal_width
from gradwire.v1 import run_pb2, service_pb2
from gradwire.wire.layout import run_resource
from gradwire.wire.printable import printable
from gradwire.wire.whole_file import is_stream, whole_file

FILE_BYTES = 2**20
"""Pieces in which a file is sent."""

_DURABILITIES = click.Choice(["journal", "snapshot", "memory"])


@click.group("runs")
def runs_group() -> None:
    """List, save, fork, roll back, export, import and delete the runs of a server."""


runs_group.add_command(series_command)


def _command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose first argument is a stub for ``--target``; see `with_stub`."""
    return lambda function: runs_group.command(name)(with_stub(function))


@_command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array, with an object for each run.")
def list_command(stub: Stub, as_json: bool) -> None:
    """All runs, by name: how far, how fast, who works on them, and what they wait for.

    In columns, cut to the width of a terminal and whole elsewhere.
    """
    if as_json:
        click.echo(json.dumps([data_of(run) for run in summaries(stub)], indent=2))
        return
    rows = [row_of(run) for run in summaries(stub)]
    if rows:
        for line in lines_of(COLUMNS, rows, terminal_width(), shrinks=SHRINKS):
            click.echo(line)


@_command("show")
@click.argument("name")
def show_command(stub: Stub, name: str) -> None:
    """A run as JSON: spec, step, digest, snapshots, who works on it, and what it waits for."""
    run = stub.GetRun(service_pb2.GetRunRequest(name=run_resource(name))).run
    shown = MessageToDict(run, preserving_proto_field_name=True)
    shown["digest"] = stub.DigestRun(service_pb2.DigestRunRequest(name=run.spec.name, run_uid=run.uid)).sha256
    found = stub.ListSnapshots(service_pb2.ListSnapshotsRequest(name=run.spec.name, run_uid=run.uid)).snapshots
    shown["snapshots"] = [_snapshot(snapshot) for snapshot in found]
    workers = stub.ListWorkers(service_pb2.ListWorkersRequest(name=run.spec.name, run_uid=run.uid))
    shown |= MessageToDict(workers, preserving_proto_field_name=True)
    click.echo(json.dumps(shown, indent=2))


@_command("save")
@click.argument("name")
@click.option("--label", default="", help="A word or two to know the snapshot by.")
def save_command(stub: Stub, name: str, label: str) -> None:
    """Take a snapshot, which is kept for as long as the run."""
    answer = stub.SaveSnapshot(service_pb2.SaveSnapshotRequest(name=run_resource(name), label=label))
    click.echo(json.dumps(_snapshot(answer.snapshot)))
    if answer.snapshot.durability == run_pb2.DURABILITY_MEMORY:
        click.echo(
            printable(f"{name} lives in the server's memory, and so does its snapshot: both end with the server"),
            err=True,
        )


@_command("fork")
@click.argument("name")
@click.argument("new_name")
@click.option("--snapshot", type=SNAPSHOT_ID, default=0, help="Id of a snapshot; without it: the run as it is now.")
@click.option("--lr", type=float, help="A new learning rate, for all groups.")
@click.option("--durability", type=_DURABILITIES, help="Without it: as the other run.")
@click.option("--replace", is_flag=True, help="Take the place of a run of this name.")
def fork_command(
    stub: Stub, name: str, new_name: str, snapshot: int, lr: float | None, durability: str | None, replace: bool
) -> None:
    """Make NEW_NAME from a run, or from a snapshot of it."""
    groups = range(len(stub.GetRun(service_pb2.GetRunRequest(name=run_resource(name))).run.spec.groups))
    request = service_pb2.ForkRunRequest(
        name=run_resource(name),
        snapshot_id=snapshot,
        new_name=run_resource(new_name),
        request_id=uuid.uuid4().hex,
        replace=replace,
        overrides=[] if lr is None else [run_pb2.Override(group=group, lr=lr) for group in groups],
        durability=_durability(durability),
    )
    _say(stub.ForkRun(request).run)


@_command("rollback")
@click.argument("name")
@click.argument("snapshot", type=SNAPSHOT_ID)
def rollback_command(stub: Stub, name: str, snapshot: int) -> None:
    """Put a run back to the snapshot with this id (see `show`). Whoever trains it is told."""
    answer = stub.RollBack(service_pb2.RollBackRequest(name=run_resource(name), snapshot_id=snapshot))
    click.echo(f"{name} is at step {answer.step}")


@_command("export")
@click.argument("name")
@click.argument("path", type=click.Path(dir_okay=False, readable=False, path_type=Path))
@click.option("--snapshot", type=SNAPSHOT_ID, default=0, help="Id of a snapshot; without it: the run as it is now.")
@click.option("--weights-only", is_flag=True, help="Leave out the optimizer state.")
def export_command(stub: Stub, name: str, path: Path, snapshot: int, weights_only: bool) -> None:
    """Write a run to a safetensors file."""
    request = service_pb2.ExportRunRequest(name=run_resource(name), snapshot_id=snapshot, weights_only=weights_only)
    stream = is_stream(path)
    with whole_file(path) as file:
        responses = stub.ExportRun(request)
        header = next(responses).header
        with byte_progress(header.size_bytes) as add:
            for response in responses:
                file.write(response.data)
                add(len(response.data))
    # Beside a stream, which may be stdout itself.
    click.echo(printable(f"wrote step {header.step} to {path}, {header.size_bytes} bytes"), err=stream)


@_command("import")
@click.argument("name")
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--weights-only", is_flag=True, help="Take the tensors alone, at step 0; needed for other files.")
@click.option(
    "--optimizer",
    type=click.Choice(list(PRESETS)),
    help="With --weights-only: the optimizer, as the client calls it; Adam without it.",
)
@click.option("--amsgrad", is_flag=True, help="The same as --optimizer AMSGrad.")
@click.option("--lr", type=float, help="With --weights-only: the learning rate; without it that of the optimizer.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="With --weights-only: another number of the optimizer: momentum=0.9, betas=0.9,0.99; as often as one likes.",
)
@click.option("--durability", type=_DURABILITIES, help="Without it the server decides.")
@click.option("--replace", is_flag=True, help="Take the place of a run of this name.")
def import_command(
    stub: Stub,
    name: str,
    path: Path,
    weights_only: bool,
    optimizer: str | None,
    amsgrad: bool,
    lr: float | None,
    settings: tuple[str, ...],
    durability: str | None,
    replace: bool,
) -> None:
    """Make a run from a safetensors file."""
    if not weights_only and (optimizer is not None or amsgrad or lr is not None or settings):
        raise click.UsageError(
            "--optimizer, --amsgrad, --lr and --set need --weights-only: the file has its own optimizer"
        )
    if amsgrad and optimizer not in (None, "AMSGrad"):
        raise click.UsageError(
            f"--amsgrad is --optimizer AMSGrad, and --optimizer is {optimizer}; expected one of them"
        )
    header = service_pb2.ImportRunHeader(
        name=run_resource(name),
        request_id=uuid.uuid4().hex,
        replace=replace,
        weights_only=weights_only,
        durability=_durability(durability),
    )
    if weights_only:
        preset = optimizer or ("AMSGrad" if amsgrad else "Adam")
        header.groups.append(group_of(preset, [*settings, *([] if lr is None else [f"lr={lr!r}"])]))

    def requests(add: Callable[[int], None]) -> Iterator[service_pb2.ImportRunRequest]:
        yield service_pb2.ImportRunRequest(header=header)
        with path.open("rb") as file:
            while data := file.read(FILE_BYTES):
                yield service_pb2.ImportRunRequest(data=data)
                add(len(data))

    with byte_progress(path.stat().st_size) as add:
        made = stub.ImportRun(requests(add)).run
    _say(made)


@_command("delete")
@click.argument("name")
def delete_command(stub: Stub, name: str) -> None:
    """Delete a run and all its snapshots."""
    answer = stub.DeleteRun(service_pb2.DeleteRunRequest(name=run_resource(name)))
    click.echo(f"deleted {name}, which was at step {answer.step}")


def _durability(word: str | None) -> run_pb2.Durability.ValueType:
    if word is None:
        return run_pb2.DURABILITY_UNSPECIFIED
    return run_pb2.Durability.Value(f"DURABILITY_{word.upper()}")


def _say(run: run_pb2.Run) -> None:
    durability = durability_name(run.durability)
    click.echo(printable(f"{run.spec.name.removeprefix('runs/')} is at step {run.step}, {durability}"))


def _snapshot(snapshot: service_pb2.Snapshot) -> dict[str, Any]:
    created = datetime.fromtimestamp(snapshot.created_seconds, UTC)
    return {
        "id": snapshot.id,
        "step": snapshot.step,
        "created": created.isoformat(timespec="seconds"),
        "size_bytes": snapshot.size_bytes,
        "label": snapshot.label,
        "durability": durability_name(snapshot.durability),
    }
