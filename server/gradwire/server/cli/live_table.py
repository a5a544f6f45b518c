"""The live table of ``gradwire top``, by rich. Nothing that others have named is markup, and none of it is obeyed."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gradwire.server.cli.looks import Looks
from gradwire.server.cli.run_rows import COLUMNS, NOTHING, SHRINKS, Row, duration, rate, row_of
from gradwire.v1 import service_pb2
from gradwire.wire.printable import printable

_RIGHT = {"step", "steps/s"}
_STYLES = {"running": "green", "waiting": "yellow", "damaged": "red", "idle": "dim"}
_WORKER_COLUMNS = ("worker", "last block", "heard", "waits for")

GONE = "gone"
"""What is pressed when nobody can press anything any more."""

_OTHER_LINES = 6
"""Of the screen, beside those of the runs."""


@contextmanager
def showing() -> Iterator[Callable[[Looks, float], bool]]:
    """Takes the whole screen, and gives it back as it was.

    What it returns shows a look for so many seconds, and says whether somebody wants no more.
    """
    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live, _keys() as pressed:

        def show(looks: Looks, seconds: float) -> bool:
            live.update(screen_of(looks, console.height, datetime.now().astimezone()), refresh=True)
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                if pressed(left) in ("q", "Q", GONE):
                    return True
            return False

        yield show


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Waits so many seconds for a key, and returns it; empty: none, or there is no keyboard."""

    def wait(seconds: float) -> str:
        time.sleep(seconds)
        return ""

    if not sys.stdin.isatty() or os.name != "posix":
        yield wait
        return
    import termios
    import tty

    keyboard = sys.stdin.fileno()

    def key(seconds: float) -> str:
        ready, _, _ = select.select([keyboard], [], [], seconds)
        return (os.read(keyboard, 1).decode(errors="replace") or GONE) if ready else ""

    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)
        yield key
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def screen_of(looks: Looks, height: int, now: datetime) -> Group:
    """What is shown of a look.

    Args:
        height: of the screen, in lines.
    """
    runs = looks.runs
    most = max(1, height - _OTHER_LINES - len(looks.workers))
    table = _table(COLUMNS, [row_of(run) for run in runs[:most]])
    total = sum(run.steps_per_second for run in runs)
    working = sum(bool(run.attached_workers or run.attached_worker_id) for run in runs)
    fast = "" if total <= 0 else f", {rate(total)} steps/s"
    title = Text(f"{len(runs)} runs, {working} with workers{fast}", style="bold")
    title.append(f"   {now:%H:%M:%S}   q ends", style="dim")
    parts: list[Text | Table] = [title, Text(looks.error, style="red"), table]
    if len(runs) > most:
        parts.append(Text(f"and {len(runs) - most} more", style="dim"))
    if looks.workers:
        parts += [Text(), _table(_WORKER_COLUMNS, [_worker_row(worker) for worker in looks.workers])]
    return Group(*parts)


def _worker_row(worker: service_pb2.Worker) -> tuple[str, ...]:
    waits = f"{worker.wait.text}, for {duration(worker.wait.seconds)}" if worker.HasField("wait") else NOTHING
    heard = f"{duration(worker.last_heard_seconds)} ago" if worker.last_heard_seconds else NOTHING
    return printable(worker.worker_id), f"{worker.last_sequence}", heard, printable(waits)


def _table(columns: Sequence[str], rows: Sequence[Row | tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    cut = {columns[place] for place in SHRINKS} if columns is COLUMNS else {"worker", "waits for"}
    for column in columns:
        table.add_column(
            column.upper(),
            justify="right" if column in _RIGHT else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=None if column in cut else max((len(row[columns.index(column)]) for row in rows), default=0),
        )
    for row in rows:
        style = _STYLES.get(row.state, "") if isinstance(row, Row) else ""
        table.add_row(*(Text(cell) for cell in row), style=style)
    return table
