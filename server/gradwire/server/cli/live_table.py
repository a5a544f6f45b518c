"""The live table of ``gradwire top``, by rich. Nothing that others have named is markup, and none of it is obeyed."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from gradwire.server.cli.looks import Looks
from gradwire.server.cli.run_rows import COLUMNS, NOTHING, SHRINKS, duration, rate, row_of
from gradwire.server.cli.table import lines_of
from gradwire.v1 import service_pb2
from gradwire.wire.printable import printable

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
            live.update(screen_of(looks, console.width, console.height, datetime.now().astimezone()), refresh=True)
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


def screen_of(looks: Looks, width: int, height: int, now: datetime) -> Group:
    """What is shown of a look.

    Args:
        width: of the screen, in cells.
        height: of it, in lines.
    """
    runs = looks.runs
    most = max(1, height - _OTHER_LINES - len(looks.workers))
    total = sum(run.steps_per_second for run in runs)
    working = sum(bool(run.attached_workers or run.attached_worker_id) for run in runs)
    fast = "" if total <= 0 else f", {rate(total)} steps/s"
    title = Text(f"{len(runs)} runs, {working} with workers{fast}", style="bold")
    title.append(f"   {now:%H:%M:%S}   q ends", style="dim")
    rows = [row_of(run) for run in runs[:most]]
    styles = [_STYLES.get(row.state, "") for row in rows]
    parts = [title, _line(looks.error, "red"), *_table(COLUMNS, rows, styles, width, SHRINKS)]
    if len(runs) > most:
        parts.append(Text(f"and {len(runs) - most} more", style="dim"))
    if looks.workers:
        workers = [_worker_row(worker) for worker in looks.workers]
        parts += [Text(), *_table(_WORKER_COLUMNS, workers, [""] * len(workers), width, {"worker": 12})]
    return Group(*parts)


def _worker_row(worker: service_pb2.Worker) -> tuple[str, ...]:
    waits = f"{worker.wait.text}, for {duration(worker.wait.seconds)}" if worker.HasField("wait") else NOTHING
    heard = f"{duration(worker.last_heard_seconds)} ago" if worker.last_heard_seconds else NOTHING
    return printable(worker.worker_id), f"{worker.last_sequence}", heard, printable(waits)


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str], width: int, shrinks: Mapping[str, int]
) -> list[Text]:
    lines = lines_of(columns, rows, width, shrinks=shrinks)
    return [_line(line, style) for line, style in zip(lines, ("bold", *styles), strict=True)]


def _line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
