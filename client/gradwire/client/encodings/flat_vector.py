"""The client's side of the flat vector: named arrays <-> slices of messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gradwire.v1 import run_pb2, service_pb2
from gradwire.wire.encoding import SLICE_BYTES, Array, decode, encode, narrow_into
from gradwire.wire.layout import Layout, Range

_FLOATS = frozenset(map(np.dtype, (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)))


def as_array(name: str, value: Any) -> Array:
    """``value`` as a floating numpy array; a plain one (see `is_plain`) becomes float64, so that it keeps its digits.

    Raises TypeError for other types, complex and integer arrays included.
    """
    if type(value) is np.ndarray and value.dtype in _FLOATS:
        return value
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name!r} is a {type(value).__name__}; expected a floating numpy array ({error})") from None
    if is_plain(value) and array.dtype.kind in "biuf":  # numpy would make numbers of text, and NaN of None
        array = array.astype(np.float64)
    if array.dtype.newbyteorder("=") not in _FLOATS:
        raise TypeError(f"{name!r} has dtype {array.dtype}; expected float32, float64, float16 or bfloat16")
    return array


def is_plain(value: Any) -> bool:
    """Whether ``value`` is a Python number or a list, which say nothing of precision (numpy's float64 is a float)."""
    return isinstance(value, (bool, int, float, list, tuple)) and not isinstance(value, np.generic)


def views(layout: Layout, flat: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """Each tensor's part of ``flat`` under its name, in its shape; they share memory."""
    return {t.name: flat[t.start : t.stop].reshape(t.shape) for t in layout.tensors}


def gather(layout: Layout, rows: Sequence[Array | None], part: Range) -> Array:
    """Columns ``part`` of the tensors' ``[K, size]`` arrays. The tensors in ``part`` must all have one."""
    only = rows[0] if len(rows) == 1 else None
    if only is not None:
        return only[:, part.start : part.stop]
    pieces = _pieces(layout, rows, part)
    if len({piece.dtype for piece in pieces}) > 1:  # float16 and bfloat16 have no common type but this one
        pieces = [piece.astype(np.float64) for piece in pieces]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)


def gather_into(out: Array, layout: Layout, rows: Sequence[Array | None], part: Range) -> None:
    """As `gather`, but into ``out`` ``[K, part]``, in its dtype."""
    start = 0
    for piece in _pieces(layout, rows, part):
        stop = start + piece.shape[1]
        narrow_into(out[:, start:stop], piece)
        start = stop


def _pieces(layout: Layout, rows: Sequence[Array | None], part: Range) -> list[Array]:
    pieces = []
    for index in layout.tensors_in(part):
        tensor, array = layout.tensors[index], rows[index]
        if array is not None:
            pieces.append(array[:, max(part.start - tensor.start, 0) : part.stop - tensor.start])
    return pieces


def tiles(ranges: Sequence[Range], row_bytes: int, slice_bytes: int = SLICE_BYTES) -> Iterator[Range]:
    """Cuts ``ranges`` into pieces of about ``slice_bytes``, ``row_bytes`` an element."""
    length = max(1, slice_bytes // row_bytes)
    for part in ranges:
        for start in range(part.start, part.stop, length):
            yield Range(start, min(start + length, part.stop))


def flatten(
    layout: Layout, values: Mapping[str, Any], dtype: np.dtype[Any], what: str, *, partial: bool = False
) -> npt.NDArray[Any]:
    """A new flat vector from one array for each tensor; ``partial``: for some, the others' places hold anything.

    Raises ValueError for a missing or unknown name or a wrong shape, TypeError for a wrong dtype.
    """
    check_names(layout, values, what)
    missing = [tensor.name for tensor in layout.tensors if tensor.name not in values]
    if missing and not partial:
        raise ValueError(f"{what} lack {missing[:5]}; expected one array for each of {len(layout.tensors)} tensors")
    flat = np.empty(layout.elements, dtype)
    for tensor in layout.tensors:
        if tensor.name not in values:
            continue
        array = as_array(tensor.name, values[tensor.name])
        check_shape(tensor.name, array.shape, tensor.shape)
        flat[tensor.start : tensor.stop] = array.reshape(-1)
    return flat


def check_names(layout: Layout, values: Mapping[str, Any], what: str) -> None:
    """Raises ValueError for a name that the run does not have."""
    unknown = [name for name in values if name not in layout.index]
    if unknown:
        raise ValueError(f"{what} name {unknown[:5]}, which this run does not have; it has {list(layout.index)[:20]}")


def check_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raises ValueError."""
    if shape != expected:
        raise ValueError(f"{name!r} has shape {shape}; expected {expected}")


def gradient_rows(layout: Layout, grads: Mapping[str, Any], steps: int | None) -> list[Array | None]:
    """For each tensor its gradients as ``[K, size]``, or None; ``steps`` None: one gradient without the leading axis.

    Raises ValueError for an unknown name or a wrong shape, TypeError for a wrong dtype.
    """
    check_names(layout, grads, "the gradients")
    rows: list[Array | None] = []
    for tensor in layout.tensors:
        value = grads.get(tensor.name)
        if value is None:
            rows.append(None)
            continue
        array = as_array(tensor.name, value)
        check_shape(tensor.name, array.shape, tensor.shape if steps is None else (steps, *tensor.shape))
        rows.append(array.reshape(steps or 1, tensor.size))
    return rows


def value_slices(
    flat: npt.NDArray[Any], wire: np.dtype[Any], ranges: Sequence[Range] | None = None
) -> Iterator[run_pb2.Slice]:
    """A vector, or ``ranges`` of it, as messages."""
    for part in tiles((Range(0, flat.size),) if ranges is None else ranges, wire.itemsize):
        yield run_pb2.Slice(offset=part.start, data=encode(flat[part.start : part.stop], wire))


def slot_slices(slot: int, flat: npt.NDArray[Any]) -> Iterator[service_pb2.SlotSlice]:
    """A whole slot as messages, in its own dtype."""
    for part in value_slices(flat, flat.dtype):
        yield service_pb2.SlotSlice(slot=slot, offset=part.offset, data=part.data)


def place(flat: npt.NDArray[Any], offset: int, data: bytes, wire: np.dtype[Any]) -> None:
    """Writes one slice's values into ``flat``."""
    values = decode(data, wire)[0]
    flat[offset : offset + values.size] = values
