"""Named arrays <-> slices: what users hand in, and how it is packed."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwire.client.encodings import flat_vector
from gradwire.wire.encoding import SLICE_BYTES, decode
from gradwire.wire.layout import Layout, Range

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)
LAYOUT = Layout([[("w", (2, 3)), ("empty", (0, 4)), ("scalar", ())], [("b", (2,))]])


class Tensorlike:
    """Something of another library that numpy can read."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        return np.ones((2,), np.float16)


class Unreadable:
    """Something of another library that refuses, as a torch tensor that requires grad does."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        raise RuntimeError("detach me first")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, BFLOAT16, ">f4", ">f8"], ids=str)
def test_floating_arrays_pass_as_they_are(dtype: Any) -> None:
    value = np.array([1.5, -2.0]).astype(dtype)
    assert flat_vector.as_array("w", value) is value


@pytest.mark.parametrize("value", [3, 2.5, True, [1, 2.5], (1.0, 2.0), [[1], [2]], [], [np.float32(1)]], ids=str)
def test_plain_numbers_keep_their_digits(value: Any) -> None:
    array = flat_vector.as_array("w", value)
    assert array.dtype == np.float64
    assert np.array_equal(array, np.array(value, np.float64))


def test_numpy_scalars_and_foreign_arrays_keep_their_type() -> None:
    assert flat_vector.as_array("w", np.float32(2)).dtype == np.float32
    assert flat_vector.as_array("w", np.float64(2)).shape == ()
    assert flat_vector.as_array("w", Tensorlike()).dtype == np.float16


@pytest.mark.parametrize(
    "value",
    [
        np.array([1 + 2j]),
        1j,
        [1j],
        np.arange(3),
        np.int64(3),
        np.array([True]),
        np.array([1.0, None], object),
        [1.0, None],
        None,
        {"a": 1.0},
        "1.5",
        ["1.5"],
        np.array(["1.5"]),
        b"12",
        [[1.0], [1.0, 2.0]],
        np.array(["2024-01-01"], "datetime64[D]"),
        np.array([1.0], np.longdouble),
        Unreadable(),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', value)!s:.15}",
)
def test_what_is_no_floating_array_is_a_type_error_that_names_the_tensor(value: Any) -> None:
    with pytest.raises(TypeError, match=r"'layer\.w' (has dtype|is a) .*expected"):
        flat_vector.as_array("layer.w", value)


def test_flatten_packs_in_layout_order_whatever_the_order_and_strides() -> None:
    base = np.arange(6, dtype=np.float64).reshape(3, 2)
    values = {"b": np.arange(4.0)[::-2], "scalar": np.array(9.0), "w": base.T, "empty": np.empty((0, 4), np.float32)}
    found = flat_vector.flatten(LAYOUT, values, FLOAT32, "the parameters")
    assert found.dtype == np.float32
    assert found.tolist() == [0, 2, 4, 1, 3, 5, 9, 3, 1]
    base[:] = -1
    assert found[0] == 0, "a copy"


def test_flatten_takes_bfloat16_exactly() -> None:
    value = np.array([1.0, -3.140625], BFLOAT16)
    found = flat_vector.flatten(Layout([[("b", (2,))]]), {"b": value}, FLOAT32, "the parameters")
    assert found.tolist() == [1.0, -3.140625]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"w": np.ones((3, 2))}, r"'w' has shape \(3, 2\); expected \(2, 3\)"),
        ({"scalar": np.ones(1)}, r"'scalar' has shape \(1,\); expected \(\)"),
        ({"empty": np.ones((0, 3))}, r"'empty' has shape \(0, 3\); expected \(0, 4\)"),
        ({"other": np.ones(1)}, r"the parameters name \['other'\], which this run does not have"),
    ],
    ids=["transposed", "scalar", "empty", "unknown"],
)
def test_flatten_refuses_wrong_names_and_shapes(change: dict[str, Any], what: str) -> None:
    values = {t.name: np.zeros(t.shape) for t in LAYOUT.tensors} | change
    with pytest.raises(ValueError, match=what):
        flat_vector.flatten(LAYOUT, values, FLOAT32, "the parameters")


def test_flatten_names_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"the parameters lack \['w', 'empty', 'scalar'\]"):
        flat_vector.flatten(LAYOUT, {"b": np.ones(2)}, FLOAT32, "the parameters")


def test_views_share_memory_and_have_the_tensors_shapes() -> None:
    vector = np.zeros(LAYOUT.elements, np.float32)
    views = flat_vector.views(LAYOUT, vector)
    assert {name: view.shape for name, view in views.items()} == {t.name: t.shape for t in LAYOUT.tensors}
    views["w"][1, 0] = 5
    views["scalar"][()] = 7
    assert vector.tolist() == [0, 0, 0, 5, 0, 0, 7, 0, 0]


@settings(max_examples=100)
@given(st.data(), st.integers(1, 3))
def test_gather_takes_any_part_of_any_tensors(data: st.DataObject, steps: int) -> None:
    """Zero-length tensors, absent ones outside the part, and strided rows included."""
    sizes = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
    layout = Layout([[(f"t{i}", (size,)) for i, size in enumerate(sizes)]])
    whole = np.arange(steps * layout.elements, dtype=np.float32).reshape(steps, layout.elements)
    if not layout.elements:
        return
    start = data.draw(st.integers(0, layout.elements - 1))
    stop = data.draw(st.integers(start + 1, layout.elements))
    rows = [
        None
        if t.stop <= start or t.start >= stop or (t.size == 0 and data.draw(st.booleans()))
        else np.asfortranarray(whole[:, t.start : t.stop])
        for t in layout.tensors
    ]
    assert np.array_equal(flat_vector.gather(layout, rows, Range(start, stop)), whole[:, start:stop])


@pytest.mark.parametrize("row_bytes", [4, 8, 4 * 1000, SLICE_BYTES, 4 * SLICE_BYTES])
def test_tiles_cut_ranges_to_the_slice_size(row_bytes: int) -> None:
    ranges = [Range(0, 70), Range(75, 75), Range(100, 100 + 2 * SLICE_BYTES // row_bytes + 3)]
    tiles = list(flat_vector.tiles(ranges, row_bytes))
    covered = [element for tile in tiles for element in (tile.start, tile.stop)]
    assert sum(tile.stop - tile.start for tile in tiles) == sum(part.stop - part.start for part in ranges)
    assert covered == sorted(covered)
    assert all((tile.stop - tile.start) * row_bytes <= max(SLICE_BYTES, row_bytes) for tile in tiles)
    assert all(any(part.start <= tile.start and tile.stop <= part.stop for part in ranges) for tile in tiles)


def test_slices_put_together_are_the_vector() -> None:
    values = np.random.default_rng(0).standard_normal(SLICE_BYTES // 4 * 2 + 5).astype(np.float32)
    found = np.full_like(values, np.nan)
    slices = list(flat_vector.value_slices(values, FLOAT32))
    assert [len(part.data) for part in slices] == [SLICE_BYTES, SLICE_BYTES, 20]
    for part in reversed(slices):
        flat_vector.place(found, part.offset, part.data, FLOAT32)
    assert np.array_equal(found, values)


def test_slot_slices_carry_the_slot_and_its_own_dtype() -> None:
    (part,) = flat_vector.slot_slices(2, np.array([1.0, 2.0]))
    assert (part.slot, part.offset) == (2, 0)
    assert decode(part.data, np.dtype(np.float64)).tolist() == [[1.0, 2.0]]


def test_a_vector_of_no_elements_has_no_slices() -> None:
    assert list(flat_vector.value_slices(np.empty(0, np.float32), FLOAT32)) == []
