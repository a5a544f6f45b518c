"""``gradwire top``: the runs of a server while they go on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import click
import grpc

from gradwire.server.cli.calls import Stub, with_stub
from gradwire.server.cli.numbers import seconds
from gradwire.server.cli.run_rows import NOTHING, data_of, summaries
from gradwire.v1 import service_pb2
from gradwire.wire.errors import RunNotFound
from gradwire.wire.layout import run_resource
from gradwire.wire.printable import printable

LEAST_SECONDS = 0.1
"""Between two looks: to list ten thousand runs takes a server longer."""

FIELDS = (
    *("name", "state", "step", "steps_per_second", "workers", "elements", "dtype", "durability"),
    *("idle_seconds", "waits_for", "waits_seconds"),
)
"""Of a plain line, after the time: as in ``gradwire runs list --json``."""


def _interval(ctx: click.Context, parameter: click.Parameter, value: float) -> float:
    if (found := seconds(value)) < LEAST_SECONDS:
        raise click.BadParameter(f"{value} seconds; expected at least {LEAST_SECONDS}")
    return found


@click.command("top")
@with_stub
@click.argument("name", required=False)
@click.option("--interval", default=2.0, show_default=True, type=float, callback=_interval, help="Seconds.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many looks; without it: never.")
def top_command(stub: Stub, name: str | None, interval: float, count: int | None) -> None:
    """Runs while they go on, the fastest first: steps a second, workers, and what they wait for.

    With NAME that run alone, and each of its workers. On a terminal until q or Ctrl-C; elsewhere one line for each run
    and look, its fields separated by tabs, after a line that names them.
    """
    looks = Looks(stub, "" if name is None else run_resource(name), count)
    try:
        if sys.stdout.isatty():
            _show(looks, interval)
        else:
            _print(looks, interval)
    except KeyboardInterrupt:
        pass  # that is how it ends


class Looks:
    """One look after another at the runs of a server.

    Args:
        name: resource name of the only run that is looked at; empty: all are.
        count: of looks; None: without end.
    """

    def __init__(self, stub: Stub, name: str, count: int | None) -> None:
        self.name = name
        self._stub = stub
        self._left = count
        self._answered = False
        self.runs: list[service_pb2.RunSummary] = []
        """The fastest first."""
        self.workers: list[service_pb2.Worker] = []
        """Of the only run."""
        self.error = ""
        """Why the last look was none: then ``runs`` are those of the one before."""

    def look(self) -> bool:
        """Looks, and returns whether there is more to come. A server that is away for a while is waited for, once it
        has answered. Raises grpc.RpcError, RunNotFound."""
        if self._left is not None:
            self._left -= 1
        try:
            found = list(summaries(self._stub, self.name))
            if self.name and not found:
                raise RunNotFound(f"there is no run {self.name!r} on this server", run=self.name)
            if self.name:
                self.workers = list(self._stub.ListWorkers(service_pb2.ListWorkersRequest(name=self.name)).workers)
        except grpc.RpcError as error:
            failed: grpc.Call = error  # type: ignore[assignment]
            if not self._answered or failed.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            self.error = printable(f"no answer: {failed.details()}")
        else:
            self.runs = sorted(found, key=lambda run: -run.steps_per_second)  # the others stay in the order of names
            self.error, self._answered = "", True
        return self._left != 0


def _print(looks: Looks, interval: float) -> None:
    click.echo("\t".join(("time", *FIELDS)))
    while True:
        more = looks.look()
        if looks.error:
            click.echo(looks.error, err=True)
        else:
            for line in plain_lines(looks.runs, datetime.now(UTC)):
                click.echo(line)
        sys.stdout.flush()
        if not more:
            return
        time.sleep(interval)


def plain_lines(runs: list[service_pb2.RunSummary], now: datetime) -> Iterator[str]:
    """For programs: no field has a tab or a newline in it."""
    for run in runs:
        data = data_of(run)
        yield "\t".join((now.isoformat(timespec="milliseconds"), *(_plain(data[field]) for field in FIELDS)))


def _plain(value: object) -> str:
    if value is None:
        return NOTHING
    return f"{value:.6g}" if isinstance(value, float) else printable(str(value))


def _show(looks: Looks, interval: float) -> None:
    try:
        from gradwire.server.cli.live_table import showing
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"a live table needs {error.name}; pip install 'gradwire[plot]', or pipe it: gradwire top | cat"
        ) from None
    more = looks.look()  # what is refused is said on the terminal as it was
    show: Callable[[Looks, float], bool]
    with showing() as show:
        while not show(looks, interval if more else 0.0) and more:
            more = looks.look()
