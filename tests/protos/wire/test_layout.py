"""Names <-> ranges of the flat vector."""

from __future__ import annotations

import math
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwire.wire.errors import InvalidSpec
from gradwire.wire.layout import (
    MAX_DIMENSIONS,
    MAX_TENSOR_NAME_BYTES,
    Layout,
    Range,
    merge,
    parse_run_name,
    run_resource,
    shape_text,
)

SHAPES = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=5)


def layout_of(groups: list[list[tuple[int, ...]]]) -> Layout:
    return Layout([[(f"t{g}.{i}", shape) for i, shape in enumerate(shapes)] for g, shapes in enumerate(groups)])


def test_tensors_are_packed_group_after_group() -> None:
    layout = Layout([[("w", (2, 3)), ("empty", (0, 5))], [("scalar", ()), ("b", (4,))]])
    found = [(t.name, t.group, t.start, t.stop) for t in layout.tensors]
    assert found == [("w", 0, 0, 6), ("empty", 0, 6, 6), ("scalar", 1, 6, 7), ("b", 1, 7, 11)]
    assert (layout.elements, layout.groups) == (11, 2)
    assert layout.index == {"w": 0, "empty": 1, "scalar": 2, "b": 3}


@settings(max_examples=60)
@given(st.lists(SHAPES, min_size=1, max_size=3))
def test_ranges_cover_the_vector_without_gap_or_overlap(groups: list[list[tuple[int, ...]]]) -> None:
    layout = layout_of(groups)
    position = 0
    for tensor in layout.tensors:
        assert tensor.start == position
        assert tensor.size == math.prod(tensor.shape)
        position = tensor.stop
    assert layout.elements == position


@settings(max_examples=60)
@given(st.lists(SHAPES, min_size=1, max_size=3))
def test_tensor_at_names_the_tensor_that_holds_the_element(groups: list[list[tuple[int, ...]]]) -> None:
    layout = layout_of(groups)
    for element in range(layout.elements):
        tensor = layout.tensor_at(element)
        assert tensor.start <= element < tensor.stop


@settings(max_examples=100)
@given(SHAPES, st.data())
def test_present_ranges_hold_exactly_the_elements_of_present_tensors(
    shapes: list[tuple[int, ...]], data: st.DataObject
) -> None:
    layout = layout_of([shapes])
    absent = data.draw(st.sets(st.integers(0, len(shapes) - 1)))
    ranges = layout.present_ranges(absent)
    elements = [element for part in ranges for element in range(part.start, part.stop)]
    assert elements == [e for i, t in enumerate(layout.tensors) if i not in absent for e in range(t.start, t.stop)]
    assert all(part.start < part.stop for part in ranges)
    assert all(a.stop < b.start for a, b in pairwise(ranges)), "neighbours must be joined"


def test_a_layout_of_nothing_but_empty_tensors_has_no_ranges() -> None:
    layout = Layout([[("a", (0,)), ("b", (3, 0))]])
    assert layout.elements == 0
    assert layout.present_ranges(()) == layout.present_ranges({0}) == ()


def test_merge_joins_neighbours_and_drops_empty_ranges() -> None:
    parts = [Range(0, 2), Range(2, 2), Range(2, 5), Range(6, 7), Range(7, 9), Range(9, 9)]
    assert merge(parts) == (Range(0, 5), Range(6, 9))
    assert merge([]) == ()


@pytest.mark.parametrize(
    ("groups", "what"),
    [
        ([], "at least one group"),
        ([[("a", (1,))], []], "group 1 has no tensors"),
        ([[("", (1,))]], "expected 1 to 512"),
        ([[("a", (1,))], [("a", (2,))]], "'a' appears twice"),
        ([[("é" * (MAX_TENSOR_NAME_BYTES // 2) + "x", (1,))]], "513 bytes"),
        ([[("a", (2, -1))]], "each >= 0"),
        ([[("a", (1,) * (MAX_DIMENSIONS + 1))]], "at most 64 dimensions"),
    ],
    ids=["no group", "empty group", "no name", "twice", "513 bytes", "negative", "65 dimensions"],
)
def test_malformed_layout_is_refused(groups: list[list[tuple[str, tuple[int, ...]]]], what: str) -> None:
    with pytest.raises(InvalidSpec, match=what):
        Layout(groups)


def test_limits_themselves_are_allowed() -> None:
    layout = Layout([[("é" * (MAX_TENSOR_NAME_BYTES // 2), (1,) * MAX_DIMENSIONS)]])
    assert layout.elements == 1


def test_sizes_are_exact_beyond_64_bits() -> None:
    """2^32 x 2^32 is 0 in 64-bit arithmetic, and a layout of no elements would be accepted."""
    layout = Layout([[("a", (2**32, 2**32)), ("b", (sys.maxsize,) * MAX_DIMENSIONS)]])
    assert layout.tensors[0].size == 2**64
    assert layout.elements == 2**64 + sys.maxsize**MAX_DIMENSIONS


@pytest.mark.parametrize("name", ["a", "A-1_b.c", "0", "x" * 128])
def test_run_names(name: str) -> None:
    assert parse_run_name(f"runs/{name}") == name


@pytest.mark.parametrize(
    "name",
    ["", "a", "runs/", "runs", "runs/.a", "runs/-a", "runs/a/b", "runs/a b", "runs/ä", "runs/٣", "runs/a\n", "Runs/a"],
)
def test_malformed_run_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidSpec, match="no run name; expected runs/NAME"):
        parse_run_name(name)


def test_overlong_run_name_is_refused_and_not_repeated_whole() -> None:
    with pytest.raises(InvalidSpec, match=r"x\.\.\.' is no run name"):
        parse_run_name("runs/" + "x" * 129)


def test_error_text_cuts_long_names() -> None:
    layout = Layout([[("n" * 400, (2,))]])
    text = shape_text(layout.tensors[0])
    assert text.endswith("of shape (2,)")
    assert len(text) < 150


def test_names_of_users_and_of_administrators_become_resource_names() -> None:
    assert run_resource("x") == "runs/x"
    assert run_resource("tenants") == "runs/tenants"
    assert run_resource("tenants/lab/runs/x") == "tenants/lab/runs/x"


@pytest.mark.parametrize(
    "name", ["", "runs/x", "tenants/lab/x", "tenants/Lab/runs/x", "tenants/lab/runs/", "tenants/a/runs/b/c"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidSpec, match="is no run name"):
        run_resource(name)
