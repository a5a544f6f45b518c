"""``gradwire doctor``: what a server and the way to it can do, and which encoding and block suit a model."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import math
import signal
import sys
from collections.abc import Sequence
from typing import Any

from gradwire.client.connection import connect
from gradwire.client.doctor.measurement import ENCODINGS, Cell, Link, measure_link, measure_steps
from gradwire.client.errors import EmbeddedServerError
from gradwire.wire.errors import GradwireError

_HOW = """
How it is measured. round trip: one step of a run of one element. up: steps of a long vector that are answered with a
receipt alone; down: reading it; round trip and update subtracted. update: all slices of a gradient but a small last one
are sent and given time to arrive; then the time from the last one to the receipt, without the round trip, is what the
server needs for the gradient's norm and the update of the whole vector. step times: medians of real blocks in both
directions with the encoding, after two that do not count; where a block would take longer than --seconds, a shorter
vector is measured and what it takes beyond the round trip is scaled up; those times are marked ~. Other work on either
machine makes all of it worse, and the order of close ones meaningless.

float32 is exact. The others round: bfloat16 and float16 each value, int8 in blocks of 256, with what was lost added to
the next. A block of K steps can only hold gradients that were made without the parameters that its earlier steps give.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parse(arguments)
    before = signal.signal(signal.SIGTERM, _interrupt)  # so that the temporary run is deleted then, too
    try:
        with connect(options.target) as server:
            link = measure_link(server, options.seconds)
            cells = [
                cell
                for parameters in options.parameters
                for cell in measure_steps(server, link, parameters, options.encodings, options.blocks, options.seconds)
            ]
            origin = server.origin
    except KeyboardInterrupt:
        print("gradwire doctor: interrupted; its temporary run has been deleted", file=sys.stderr)
        return 130
    except (GradwireError, EmbeddedServerError) as error:
        print(f"gradwire doctor: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    if options.json:
        print(json.dumps(_report(origin, link, cells), indent=2))
    else:
        _print(origin, link, cells, options)
    return 0


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def best(cells: Sequence[Cell]) -> Cell | None:
    """The quickest of those that were not refused."""
    return min((cell for cell in cells if not cell.error), key=lambda cell: cell.step_seconds, default=None)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gradwire doctor",
        description="Measures round trip, throughput each way and the update of a gradwire server, and says which "
        "encoding and block would give what step time.",
        epilog=_HOW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--target", help="host:port, unix:PATH or embedded (default: as gradwire.client.connect finds it)"
    )
    parser.add_argument(
        "--parameters", type=_counts, default=[10_000, 1_000_000, 25_000_000], metavar="N[,N...]",
        help="sizes of the model (default: 10000,1000000,25000000)",
    )  # fmt: skip
    parser.add_argument(
        "--blocks", type=_counts, default=[1, 8, 64], metavar="K[,K...]", help="steps of a block (default: 1,8,64)"
    )
    parser.add_argument(
        "--encodings", type=_encodings, default=list(ENCODINGS), metavar="NAME[,NAME...]",
        help=f"(default: {','.join(ENCODINGS)})",
    )  # fmt: skip
    parser.add_argument("--seconds", type=_seconds, default=0.3, help="for each measurement (default: 0.3)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    return parser.parse_args(arguments)


def _counts(text: str) -> list[int]:
    counts = [int(float(part)) for part in text.split(",")]
    if not all(count >= 1 for count in counts):
        raise argparse.ArgumentTypeError(f"{text!r} holds a number below 1")
    return counts


def _encodings(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in ENCODINGS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(ENCODINGS)}")
    return names


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number of seconds")
    return seconds


def _report(origin: str, link: Link, cells: Sequence[Cell]) -> dict[str, Any]:
    def plain(cell: Cell) -> dict[str, Any]:
        values = dataclasses.asdict(cell) | {"extrapolated": cell.extrapolated}
        if cell.error:
            values["step_seconds"] = None
        return values

    sizes = dict.fromkeys(cell.parameters for cell in cells)
    quickest = [best([cell for cell in cells if cell.parameters == size]) for size in sizes]
    return {
        "server": origin,
        **dataclasses.asdict(link),
        "updates_per_second": link.updates_per_second,
        "steps": [plain(cell) for cell in cells],
        "best": [plain(cell) for cell in quickest if cell is not None],
    }


def _print(origin: str, link: Link, cells: Sequence[Cell], options: argparse.Namespace) -> None:
    print(f"server: {origin}")
    print(f"round trip: {_time(link.round_trip_seconds)}")
    print(f"throughput: {_rate(link.upload_bytes_per_second)} up, {_rate(link.download_bytes_per_second)} down")
    print(f"update: {link.updates_per_second / 1e6:,.0f} million elements/s, float32\n")
    rows, notes = [], []
    for size in dict.fromkeys(cell.parameters for cell in cells):
        for block in options.blocks:
            row = [cell for cell in cells if (cell.parameters, cell.block) == (size, block)]
            quickest = best(row)
            texts = ["refused" if cell.error else _cell(cell, mark=cell is quickest) for cell in row]
            rows.append([f"{size:,}", f"{block:,}", *texts])
            notes += [
                f"{size:,} parameters, {cell.encoding}, block {block}: {cell.error}" for cell in row if cell.error
            ]
    _table("time of one step", ["parameters", "block", *options.encodings], rows)
    print("* the quickest of its line; ~ extrapolated from a shorter vector. float32 is exact, the others round.")
    for size in dict.fromkeys(cell.parameters for cell in cells):
        quickest = best([cell for cell in cells if cell.parameters == size])
        single = best([cell for cell in cells if cell.parameters == size and cell.block == 1])
        if quickest is not None:
            alone = "" if single is None else f"; step by step {single.encoding}, {_time(single.step_seconds)}"
            print(
                f"{size:,} parameters: {quickest.encoding} in blocks of {quickest.block}, "
                f"{_time(quickest.step_seconds)} a step{alone}"
            )
    for note in notes:
        print(f"refused: {note}")


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """With rich where it is installed, else as plain text."""
    try:
        rich_table: Any = importlib.import_module("rich.table")
        rich_console: Any = importlib.import_module("rich.console")
    except ModuleNotFoundError:
        lines = [header, *rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
        print(title)
        for line in lines:
            print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))
        return
    table = rich_table.Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    rich_console.Console().print(table)


def _cell(cell: Cell, *, mark: bool) -> str:
    return f"{'~' if cell.extrapolated else ''}{_time(cell.step_seconds)}{' *' if mark else '  '}"


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e6:,.3g} MB/s" if bytes_per_second < 1e9 else f"{bytes_per_second / 1e9:.3g} GB/s"
