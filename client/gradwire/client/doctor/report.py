"""What has been measured, as text and as JSON."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any

from gradwire.client.doctor.measurement import Cell, Link
from gradwire.wire.printable import printable


def best(cells: Sequence[Cell]) -> Cell | None:
    """The quickest of those that were not refused."""
    return min((cell for cell in cells if not cell.error), key=lambda cell: cell.step_seconds, default=None)


def report(origin: str, link: Link, cells: Sequence[Cell]) -> dict[str, Any]:
    """Everything, for JSON."""

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


def show(origin: str, link: Link, cells: Sequence[Cell], encodings: Sequence[str], blocks: Sequence[int]) -> None:
    """Prints everything, with a column for each encoding and a line for each block."""
    print(f"server: {printable(origin)}")
    print(f"round trip: {_time(link.round_trip_seconds)}")
    print(f"throughput: {_rate(link.upload_bytes_per_second)} up, {_rate(link.download_bytes_per_second)} down")
    print(f"update: {link.updates_per_second / 1e6:,.0f} million elements/s, float32\n")
    rows, notes = [], []
    for size in dict.fromkeys(cell.parameters for cell in cells):
        for block in blocks:
            row = [cell for cell in cells if (cell.parameters, cell.block) == (size, block)]
            quickest = best(row)
            texts = ["refused" if cell.error else _cell(cell, mark=cell is quickest) for cell in row]
            rows.append([f"{size:,}", f"{block:,}", *texts])
            notes += [
                f"{size:,} parameters, {cell.encoding}, block {block}: {cell.error}" for cell in row if cell.error
            ]
    _table("time of one step", ["parameters", "block", *encodings], rows)
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
        print(f"refused: {printable(note)}")


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
