"""``gradwire top``: the runs of a server while they go on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import click

from gradwire.server.cli.calls import Stub, with_stub
from gradwire.server.cli.looks import Looks
from gradwire.server.cli.numbers import seconds
from gradwire.server.cli.run_rows import NOTHING, data_of
from gradwire.v1 import service_pb2
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
