"""Each element is combined from those who have it, in the order of their ids, and from nobody else."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwire.server.devices.combining import Piece
from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.rounds.pieces import Contribution, absent_from_all, pieces_of
from gradwire.wire.layout import MAX_TENSORS, Layout, Range

NONE: frozenset[int] = frozenset()


def layout_of(*sizes: int) -> Layout:
    return Layout([[(f"t{index}", (size,)) for index, size in enumerate(sizes)]])


def absent(*tensors: int) -> frozenset[int]:
    return frozenset(tensors)


def test_all_present_is_one_piece() -> None:
    assert pieces_of(layout_of(3, 4), [(2.0, NONE), (1.0, NONE), (5.0, NONE)], mean=False) == [
        Piece(Range(0, 7), ((0, 2.0), (1, 1.0), (2, 5.0)), 1.0)
    ]


@pytest.mark.parametrize("weight", [1.0, 32.0, 0.1, 1e300, 5e-324])
def test_equal_weights_of_a_mean_count(weight: float) -> None:
    """Multiplied by them, and divided by their sum, equal gradients would not be what they were."""
    layout = layout_of(3, 4)
    terms = ((0, 1.0), (1, 1.0), (2, 1.0))
    assert pieces_of(layout, [(weight, NONE)] * 3, mean=True) == [Piece(Range(0, 7), terms, 3.0)]
    kept = tuple((index, weight) for index in range(3))
    assert pieces_of(layout, [(weight, NONE)] * 3, mean=False) == [Piece(Range(0, 7), kept, 1.0)]


def test_weights_are_equal_or_not_piece_by_piece() -> None:
    found = pieces_of(layout_of(3, 4), [(4.0, NONE), (4.0, absent(0)), (8.0, absent(1))], mean=True)
    assert found == [
        Piece(Range(0, 3), ((0, 0.5), (2, 1.0)), 1.5),
        Piece(Range(3, 7), ((0, 1.0), (1, 1.0)), 2.0),
    ]


def test_neighbours_with_the_same_contributors_are_one_piece_and_what_nobody_has_is_in_none() -> None:
    layout = layout_of(1, 2, 0, 3, 4, 0, 5, 6, 0)
    contributions = [(1.0, absent(3, 4, 6)), (1.0, absent(2, 4, 6)), (1.0, absent(4, 5, 7))]
    assert pieces_of(layout, contributions, mean=True) == [
        Piece(Range(0, 3), ((0, 1.0), (1, 1.0), (2, 1.0)), 3.0),
        Piece(Range(3, 6), ((1, 1.0), (2, 1.0)), 2.0),
        Piece(Range(10, 15), ((2, 1.0),), 1.0),
        Piece(Range(15, 21), ((0, 1.0), (1, 1.0)), 2.0),
    ]
    assert absent_from_all(layout, contributions) == {4}


def test_what_is_empty_parts_no_neighbours() -> None:
    found = pieces_of(layout_of(2, 0, 3), [(1.0, NONE), (1.0, absent(1))], mean=True)
    assert found == [Piece(Range(0, 5), ((0, 1.0), (1, 1.0)), 2.0)]


def test_nothing_makes_no_piece() -> None:
    everything = absent(0, 1)
    assert pieces_of(layout_of(3, 4), [], mean=True) == []
    assert pieces_of(layout_of(3, 4), [(1.0, everything), (2.0, everything)], mean=True) == []
    assert pieces_of(layout_of(0, 0), [(1.0, NONE)], mean=True) == []
    assert pieces_of(layout_of(0, 0), [(1.0, absent(1))], mean=True) == []
    assert absent_from_all(layout_of(3, 4), []) == everything
    assert absent_from_all(layout_of(3, 4), [(1.0, everything)] * 2) == everything
    assert absent_from_all(layout_of(3, 4), [(1.0, everything), (1.0, NONE)]) == NONE


def test_a_pass_is_in_no_piece() -> None:
    """A contribution with all tensors absent changes neither sum nor mean."""
    found = pieces_of(layout_of(3, 4), [(3.0, NONE), (9.0, absent(0, 1)), (3.0, NONE)], mean=True)
    assert found == [Piece(Range(0, 7), ((0, 1.0), (2, 1.0)), 2.0)]


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    message = re.escape(f"a contribution has the weight {weight}; expected a number above 0")
    with pytest.raises(ValueError, match=message):
        pieces_of(layout_of(3), [(1.0, NONE), (weight, NONE)], mean=False)


@given(st.lists(st.floats(min_value=0, exclude_min=True, allow_infinity=False), min_size=2, max_size=70))
def test_weights_of_a_mean_keep_their_proportions_and_overflow_nowhere(weights: list[float]) -> None:
    (piece,) = pieces_of(layout_of(1), [(weight, NONE) for weight in weights], mean=True)
    found = [weight for _, weight in piece.terms]
    assert [index for index, _ in piece.terms] == list(range(len(weights)))
    assert 1 <= max(found) < 2
    assert min(found) > 0
    assert piece.divisor == math.fsum(found) <= 2 * len(weights)
    largest = Fraction(max(weights))
    for given_weight, weight in zip(weights, found, strict=True):
        proportion = Fraction(given_weight) / largest
        if proportion > 2.0**-900:  # what is smaller is next to nothing
            assert Fraction(weight) / Fraction(max(found)) == proportion


@st.composite
def rounds(draw: st.DrawFn) -> tuple[Layout, list[Contribution]]:
    sizes = draw(st.lists(st.integers(0, 4), min_size=1, max_size=12))
    tensors = st.frozensets(st.integers(0, len(sizes) - 1))
    weights = st.sampled_from([1.0, 2.0, 3.0])
    return layout_of(*sizes), draw(st.lists(st.tuples(weights, tensors), max_size=6))


@given(rounds(), st.booleans())
def test_each_tensor_has_those_who_have_it(case: tuple[Layout, list[Contribution]], mean: bool) -> None:
    """Tensor by tensor, as one would say it; and no piece could have been joined with the one before it."""
    layout, contributions = case
    pieces = pieces_of(layout, contributions, mean)
    for index, tensor in enumerate(layout.tensors):
        own = [(k, weight) for k, (weight, missing) in enumerate(contributions) if index not in missing]
        covering = [piece for piece in pieces if piece.place.start < tensor.stop and tensor.start < piece.place.stop]
        assert (index in absent_from_all(layout, contributions)) == (not own)
        if not tensor.size:
            continue
        if not own:
            assert covering == []
            continue
        ((place, terms, divisor),) = covering
        assert place.start <= tensor.start < tensor.stop <= place.stop
        total = sum(weight for _, weight in own) if mean else 1.0
        assert [k for k, _ in terms] == [k for k, _ in own]
        assert [weight / divisor for _, weight in terms] == pytest.approx([weight / total for _, weight in own])
    for one, other in pairwise(pieces):
        assert one.place.stop < other.place.start or one.terms != other.terms
        assert one.place.stop <= other.place.start


def test_many_tensors_are_looked_at_together() -> None:
    """Of 65,536 tensors and 64 workers, some without a few of them."""
    layout = layout_of(*[2] * MAX_TENSORS)
    whole = [(1.0, NONE)] * 60
    few = [(1.0, absent(17)), (1.0, absent(5, 40_000)), (1.0, absent(MAX_TENSORS - 1)), (2.0, absent(0))]
    pieces = pieces_of(layout, whole + few, mean=True)
    assert [piece.place.start // 2 for piece in pieces] == [0, 1, 5, 6, 17, 18, 40_000, 40_001, MAX_TENSORS - 1]
    assert pieces[-1].place.stop == layout.elements
    assert "tensors" not in vars(layout), "tensors were looked at one by one"


def test_a_device_combines_what_was_planned() -> None:
    layout = layout_of(2, 3, 1)
    grads = [np.arange(6, dtype=np.float32)[None] + k for k in range(3)]
    contributions = [(1.0, absent(2)), (3.0, absent(0, 2)), (1.0, absent(2))]
    cpu = CpuDevice(1)
    out = np.full((1, 6), -1, np.float32)
    cpu.combine(out, grads, pieces_of(layout, contributions, mean=True))
    assert out.tolist() == [[1, 2, 3, 4, 5, -1]]
    cpu.combine(out, grads, pieces_of(layout, contributions, mean=False))
    assert out.tolist() == [[2, 4, 15, 20, 25, -1]]
