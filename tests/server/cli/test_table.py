"""Columns are aligned, cut where there is no room, and whole elsewhere."""

from __future__ import annotations

import pytest

from gradwire.server.cli.table import cells, lines_of, padded

SHRINKS = {"waits for": 12, "name": 12}
ROWS = [("a", "1", "block 3"), ("a-long-name-of-a-run", "20000", "gradients of block 12, 3 of 25 MiB here")]


def test_columns_are_aligned() -> None:
    lines = lines_of(("name", "step", "waits for"), ROWS, None, shrinks=SHRINKS)
    assert lines == [
        "NAME                  STEP   WAITS FOR",
        "a                     1      block 3",
        "a-long-name-of-a-run  20000  gradients of block 12, 3 of 25 MiB here",
    ]


@pytest.mark.parametrize("width", [60, 45, 33, 12])
def test_columns_are_cut_in_their_order(width: int) -> None:
    lines = lines_of(("name", "step", "waits for"), ROWS, width, shrinks=SHRINKS)
    assert max(map(cells, lines)) <= max(width, 12 + 2 + 5 + 2 + 12)
    name, step, *waits = lines[2].split(maxsplit=2)
    assert step == "20000"
    assert waits[0].endswith("…")
    assert name.endswith("…") == (width < 45)


def test_wide_letters_take_two_cells() -> None:
    assert cells("日本") == 4
    assert cells("e\u0301") == 1
    assert padded("日本語", 4) == "日… "
    assert padded("日本", 5) == "日本 "
