"""Aligned columns, cut to the width of a terminal where there is one."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Mapping, Sequence

GAP = "  "

_CUT = "…"


def lines_of(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, *, shrinks: Mapping[str, int]
) -> list[str]:
    """The header and the rows, each a line.

    Args:
        width: of the terminal; None: nothing is cut.
        shrinks: columns that may be cut, the first one first, and what they keep.
    """
    table = [[column.upper() for column in header], *rows]
    widths = [max(map(cells, column)) for column in zip(*table, strict=True)]
    if width is not None:
        for name, least in shrinks.items():
            column, over = header.index(name), sum(widths) + len(GAP) * (len(widths) - 1) - width
            if over > 0:
                widths[column] = max(min(least, widths[column]), widths[column] - over)
    lines = []
    for row in table:
        parts = [padded(text, size) for text, size in zip(row, widths, strict=True)]
        lines.append(GAP.join(parts).rstrip())
    return lines


def terminal_width() -> int | None:
    """Of standard output; None: it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def padded(text: str, width: int) -> str:
    """``text`` in exactly so many cells of a terminal."""
    if cells(text) > width:
        while text and cells(text) > width - 1:
            text = text[:-1]
        text += _CUT
    return text + " " * (width - cells(text))


def cells(text: str) -> int:
    """Of a terminal that ``text`` takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)
