"""``gradwire runs series``: what a run has logged, as CSV, JSON or for TensorBoard."""

from __future__ import annotations

import csv
import io
import json
import math
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from gradwire.server.cli.calls import Stub, with_stub
from gradwire.v1 import service_pb2
from gradwire.wire.layout import run_resource
from gradwire.wire.printable import printable
from gradwire.wire.series import FIELDS
from gradwire.wire.whole_file import whole_file


@click.command("series")
@with_stub
@click.argument("name")
@click.option("--name", "series", multiple=True, help="A series, such as loss; may be given again. Without it: all.")
@click.option("--format", "form", type=click.Choice(["csv", "json", "tensorboard"]), default="csv", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="File to write; for tensorboard: directory. Else stdout.")
@click.option("--from-step", type=click.IntRange(0), default=0, help="Only what ends at this step or later.")
@click.option("--resolution", type=click.IntRange(1), help="At most so many buckets of each; else all, at most 2,048.")
def series_command(
    stub: Stub, name: str, series: tuple[str, ...], form: str, out: Path | None, from_step: int, resolution: int | None
) -> None:
    """Write the series of a run: its loss and whatever else was logged, gradient norm, learning rate, speed.

    A series is kept in buckets of neighbouring steps: of one step as long as there are no more than 2,048 values.
    """
    if form == "tensorboard" and out is None:
        raise click.UsageError("--format tensorboard needs --out DIRECTORY")
    request = service_pb2.GetSeriesRequest(
        name=run_resource(name), series=series, from_step=from_step, resolution=resolution or 0
    )
    found = stub.GetSeries(request)
    missing = sorted(set(series) - set(found.names))
    if missing:
        raise click.ClickException(
            printable(f"{name} has no series {', '.join(missing)}; it has {', '.join(found.names) or 'none'}")
        )
    if form == "tensorboard":
        assert out is not None
        _write_events(found, out)
        return
    text = _json(found) if form == "json" else _csv(found)
    if out is None:
        click.echo(text, nl=False)
    else:
        with whole_file(out) as file:
            file.write(text.encode())


def _csv(found: service_pb2.GetSeriesResponse) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["series", "bucket_steps", *FIELDS])
    for each in found.series:
        writer.writerows([each.name, each.bucket_steps, *row] for row in _rows(each))
    return text.getvalue()


def _json(found: service_pb2.GetSeriesResponse) -> str:
    series = []
    for each in found.series:
        columns = {column: [_number(value) for value in getattr(each, column)] for column in FIELDS}
        series.append({"name": each.name, "bucket_steps": each.bucket_steps, "last_step": each.last_step, **columns})
    return json.dumps({"step": found.step, "series": series}) + "\n"


def _rows(series: service_pb2.Series) -> Iterator[tuple[Any, ...]]:
    return zip(*(getattr(series, column) for column in FIELDS), strict=True)


def _number(value: float) -> float | str:
    """JSON has no word for what is not finite: it gets those that protobuf uses there."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _write_events(found: service_pb2.GetSeriesResponse, directory: Path) -> None:
    """The mean of each bucket, at its last step, under the name of its series, in a file of its own.

    Not by `SummaryWriter`, which puts ``_`` in the place of most characters, so that two series may become one, and
    whose thread ends on a full disk, for which its caller then waits for ever. A directory may have older files: the
    mark that comes first has TensorBoard drop all that they say, where it would else draw each point twice.
    """
    try:
        from tensorboardX import RecordWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary
    except ImportError as error:
        raise click.ClickException(
            f"--format tensorboard needs tensorboardX: pip install 'gradwire[tensorboard]' ({error})"
        ) from None
    now = time.time()
    directory.mkdir(parents=True, exist_ok=True)
    with (
        whole_file(directory / f"events.out.tfevents.{now:.0f}.{socket.gethostname()}") as file,
        closing(RecordWriter(str(file.name))) as writer,
    ):
        writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        writer.write(Event(wall_time=now, session_log=SessionLog(status=SessionLog.START)).SerializeToString())
        for each in found.series:
            for first_step, *_, total, count in _rows(each):
                step = min(first_step + each.bucket_steps - 1, each.last_step)
                summary = Summary(value=[Summary.Value(tag=each.name, simple_value=total / count)])
                writer.write(Event(wall_time=now, step=step, summary=summary).SerializeToString())
        writer.flush()
    click.echo(printable(f"wrote {len(found.series)} series to {directory}"))
