"""Which elements have arrived: no gap, no overlap, nothing where nothing may be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwire.server.engine import coverage
from gradwire.server.engine.coverage import Coverage
from gradwire.wire.errors import IncompleteValues, InvalidSlice
from gradwire.wire.layout import Layout, Range

LAYOUT = Layout([[("a", (4,)), ("empty", (0,)), ("b", (2, 3))], [("c", (5,))]])


ONE_TENSOR = Layout([[("w", (15,))]])


def covering(*absent: int, layout: Layout = LAYOUT, replace: bool = False) -> Coverage:
    return Coverage(layout, layout.present_ranges(absent), replace=replace)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Layout, tuple[Range, ...], list[Range]]:
    """A layout, its present ranges, and a random partition of them into slices in random order."""
    sizes = draw(st.lists(st.integers(0, 6), min_size=1, max_size=6))
    layout = Layout([[(f"t{i}", (size,)) for i, size in enumerate(sizes)]])
    absent = draw(st.sets(st.integers(0, len(sizes) - 1)))
    ranges = layout.present_ranges(absent)
    parts: list[Range] = []
    for part in ranges:
        cuts = draw(st.sets(st.integers(part.start, part.stop)))
        edges = sorted({part.start, part.stop} | cuts)
        parts += [Range(a, b) for a, b in pairwise(edges)]
    return layout, ranges, draw(st.permutations(parts))


@settings(max_examples=150)
@given(cases())
def test_any_partition_in_any_order_is_complete_at_the_last_slice(
    case: tuple[Layout, tuple[Range, ...], list[Range]],
) -> None:
    layout, ranges, parts = case
    found = Coverage(layout, ranges)
    for part in parts:
        with pytest.raises(IncompleteValues):
            found.require_complete("block 1")
        found.add(part)
    found.require_complete("block 1")


@settings(max_examples=150)
@given(cases(), st.data())
def test_what_may_come_is_what_a_set_of_elements_says(
    case: tuple[Layout, tuple[Range, ...], list[Range]], data: st.DataObject
) -> None:
    """Any range against a model: refused if and only if it repeats, leaves, or touches an absent element."""
    layout, ranges, parts = case
    found = Coverage(layout, ranges)
    arrived: set[int] = set()
    for part in parts[: data.draw(st.integers(0, len(parts)))]:
        found.add(part)
        arrived.update(range(*part))
    allowed = {element for part in ranges for element in range(*part)}
    start = data.draw(st.integers(0, layout.elements + 2))
    part = Range(start, data.draw(st.integers(start, layout.elements + 3)))
    elements = set(range(*part))
    if elements <= allowed - arrived and part.stop <= layout.elements:
        found.add(part)
        arrived |= elements
    else:
        with pytest.raises(InvalidSlice):
            found.add(part)
    missing = sorted(allowed - arrived)
    if missing:
        with pytest.raises(IncompleteValues) as caught:
            found.require_complete("block 1")
        assert caught.value.metadata == {"first_missing": str(missing[0])}
    else:
        found.require_complete("block 1")


@settings(max_examples=300)
@given(cases(), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=12))
def test_where_repeats_replace_what_has_come_is_what_a_set_of_elements_says(
    case: tuple[Layout, tuple[Range, ...], list[Range]], pairs: list[tuple[int, int]]
) -> None:
    """Anything that lies in the vector may come; what must have come is said at the end."""
    layout, required, _ = case
    found = covering(layout=layout, replace=True)
    arrived: set[int] = set()
    for pair in pairs:
        part = Range(min(pair), max(pair))
        if part.stop <= layout.elements:
            found.add(part)
            arrived.update(range(*part))
        else:
            with pytest.raises(InvalidSlice, match="do not lie in the flat vector"):
                found.add(part)
    missing = sorted({element for part in required for element in range(*part)} - arrived)
    if missing:
        with pytest.raises(IncompleteValues) as caught:
            found.require_complete("block 1", required)
        assert caught.value.metadata == {"first_missing": str(missing[0])}
    else:
        found.require_complete("block 1", required)


@pytest.mark.parametrize(
    ("before", "part"),
    [
        ([(3, 6)], (3, 6)),
        ([(3, 6)], (4, 5)),
        ([(3, 6)], (0, 4)),
        ([(3, 6)], (5, 9)),
        ([(3, 6)], (0, 15)),
        ([(0, 2), (4, 6)], (1, 5)),
        ([(0, 2), (2, 4)], (1, 2)),
    ],
)
def test_overlap_is_refused(before: Sequence[tuple[int, int]], part: tuple[int, int]) -> None:
    found = covering()
    for start, stop in before:
        found.add(Range(start, stop))
    with pytest.raises(InvalidSlice, match=f"elements {part[0]}..{part[1]} overlap"):
        found.add(Range(*part))


@pytest.mark.parametrize("part", [(0, 16), (15, 16), (2**63, 2**63 + 1), (16, 16)])
def test_outside_the_vector_is_refused(part: tuple[int, int]) -> None:
    with pytest.raises(InvalidSlice, match="do not lie in the flat vector, which has 15") as caught:
        covering().add(Range(*part))
    assert caught.value.metadata == {"elements": "15"}


@pytest.mark.parametrize("part", [(4, 5), (3, 5), (9, 11), (3, 11), (6, 8)])
def test_absent_tensor_is_refused(part: tuple[int, int]) -> None:
    with pytest.raises(InvalidSlice, match="absent"):
        covering(2).add(Range(*part))


def test_a_refused_slice_is_not_noted() -> None:
    found = covering(2)
    found.add(Range(0, 2))
    for part in ((1, 3), (2, 5), (9, 16)):
        with pytest.raises(InvalidSlice):
            found.add(Range(*part))
    found.add(Range(2, 4))
    found.add(Range(10, 15))
    found.require_complete("block 1")


@pytest.mark.parametrize(
    ("parts", "element", "tensor"),
    [
        ([], 0, "'a' of shape (4,)"),
        ([(0, 3), (4, 15)], 3, "'a' of shape (4,)"),
        ([(0, 4)], 4, "'b' of shape (2, 3)"),
        ([(0, 10), (11, 15)], 10, "'c' of shape (5,)"),
        ([(1, 15)], 0, "'a' of shape (4,)"),
        ([(0, 14)], 14, "'c' of shape (5,)"),
    ],
)
def test_incomplete_names_the_tensor_that_lacks_something(
    parts: Sequence[tuple[int, int]], element: int, tensor: str
) -> None:
    found = covering()
    for start, stop in parts:
        found.add(Range(start, stop))
    with pytest.raises(IncompleteValues, match=re.escape(f"element {element}, in tensor {tensor}")) as caught:
        found.require_complete("block 7")
    assert "block 7 ended before all elements had arrived" in caught.value.message


def test_nothing_is_missing_where_nothing_is_present() -> None:
    covering(0, 2, 3).require_complete("block 1")
    found = covering(0, 2, 3)
    found.add(Range(7, 7))
    with pytest.raises(InvalidSlice, match="absent"):
        found.add(Range(7, 8))


def test_fragments_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second element would make the bookkeeping as large as the vector; what joins still goes through."""
    monkeypatch.setattr(coverage, "MAX_FRAGMENTS", 3)
    found = covering(layout=ONE_TENSOR)
    for start in (0, 4, 8):
        found.add(Range(start, start + 1))
    with pytest.raises(InvalidSlice, match="more than 3 gaps"):
        found.add(Range(12, 13))
    found.add(Range(1, 4))
    found.add(Range(12, 13))
    found.add(Range(5, 8))
    found.add(Range(9, 12))
    found.add(Range(13, 15))
    found.require_complete("block 1")


def test_a_replacement_that_bridges_fragments_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "MAX_FRAGMENTS", 3)
    found = covering(layout=ONE_TENSOR, replace=True)
    for start in (1, 5, 9):
        found.add(Range(start, start + 2))
    with pytest.raises(InvalidSlice, match="more than 3 gaps"):
        found.add(Range(13, 14))
    found.add(Range(2, 10))
    for part in ((13, 14), (0, 1), (11, 13), (14, 15)):
        found.add(Range(*part))
    found.require_complete("block 1")


def test_by_default_all_that_is_allowed_must_come() -> None:
    found = covering(2)
    found.add(Range(0, 4))
    with pytest.raises(IncompleteValues, match="element 10"):
        found.require_complete("block 1")
    found.require_complete("block 1", [Range(0, 2), Range(3, 4)])
