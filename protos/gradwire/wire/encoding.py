"""Bytes on the wire <-> numpy arrays, for each ``Encoding`` of the contract."""

from __future__ import annotations

import sys
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gradwire.v1 import run_pb2
from gradwire.wire.errors import InvalidSlice, InvalidSpec, ProtocolViolation

Array = npt.NDArray[Any]

MAX_ANSWER_BYTES = 4 * 2**20
"""What gRPC takes of an answer where nobody has told it otherwise: no message that can be cut is larger."""

SLICE_BYTES = 2**20
"""Size of ``data`` that our own messages aim at: measured fastest on loopback; see ``docs/performance.md``."""

MAX_ROW_BYTES = 8 * 2**20
"""Largest ``steps * itemsize``, so that a slice of one element always fits a message."""

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

_WIRE_DTYPES: dict[int, np.dtype[Any]] = {
    run_pb2.ENCODING_FLOAT32: np.dtype("<f4"),
    run_pb2.ENCODING_FLOAT64: np.dtype("<f8"),
    run_pb2.ENCODING_BFLOAT16: _BFLOAT16,
    run_pb2.ENCODING_FLOAT16: np.dtype("<f2"),
}
# ml_dtypes has no byte-swapped bfloat16, and no big-endian machine runs numba.
assert sys.byteorder == "little", "gradwire supports little-endian machines only"

_STATE_DTYPES: dict[int, np.dtype[Any]] = {
    run_pb2.DTYPE_FLOAT32: np.dtype("<f4"),
    run_pb2.DTYPE_FLOAT64: np.dtype("<f8"),
}


def state_dtype(dtype: run_pb2.Dtype.ValueType) -> np.dtype[Any]:
    """numpy dtype in which a run of ``dtype`` keeps its values; UNSPECIFIED is FLOAT32. Raises InvalidSpec."""
    found = _STATE_DTYPES.get(dtype or run_pb2.DTYPE_FLOAT32)
    if found is None:
        raise InvalidSpec(f"dtype {dtype} is not known; expected one of {sorted(_STATE_DTYPES)}")
    return found


def dtype_of(state: np.dtype[Any]) -> run_pb2.Dtype.ValueType:
    """The contract's name for a run's numpy dtype."""
    return run_pb2.DTYPE_FLOAT64 if state.itemsize == 8 else run_pb2.DTYPE_FLOAT32


def wire_dtype(encoding: run_pb2.Encoding.ValueType, state: np.dtype[Any]) -> np.dtype[Any]:
    """numpy dtype of ``encoding``; UNSPECIFIED is the exact encoding of ``state``. Raises ProtocolViolation.

    INT8 has none: see `gradwire.wire.int8`.
    """
    if not encoding:
        return state
    if encoding == run_pb2.ENCODING_INT8:
        raise ProtocolViolation(
            "INT8 is an encoding of gradients, and of the parameters that answer them; "
            f"expected one of {sorted(_WIRE_DTYPES)} here"
        )
    found = _WIRE_DTYPES.get(encoding)
    if found is None:
        raise ProtocolViolation(f"encoding {encoding} is not known; expected one of {sorted(_WIRE_DTYPES)}")
    return found


def encode(values: Array, wire: np.dtype[Any]) -> bytes:
    """``values`` (any shape, any strides) as dense little-endian bytes, rounded to nearest even where they narrow."""
    return narrowed(values, wire).tobytes()


def narrowed(values: Array, wire: np.dtype[Any]) -> Array:
    """``values`` in the dtype of the wire, rounded to nearest even; themselves where they have it."""
    if values.dtype == wire:
        return values
    with np.errstate(all="ignore"):  # overflow goes to infinity, as the contract says; NaN stays NaN
        if values.dtype.itemsize == 8 and wire == _BFLOAT16:
            values = _round_to_odd(values)
        return values.astype(wire)


def narrow_into(out: Array, values: Array) -> None:
    """Writes ``values`` to ``out``, of the same shape and the dtype of the wire, as `narrowed` would."""
    if values.dtype.itemsize == 8 and out.dtype == _BFLOAT16:
        values = narrowed(values, out.dtype)
    with np.errstate(all="ignore"):
        np.copyto(out, values, casting="unsafe")


def encoded(values: Array) -> memoryview:
    """The dense bytes of ``values``, which have the dtype of the wire; without a copy where they lie so."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def decode(data: bytes | memoryview | Array, wire: np.dtype[Any], steps: int = 1) -> Array:
    """``data`` as an array ``[steps, length]`` of dtype ``wire`` that shares its memory (read-only).

    Raises InvalidSlice when ``data`` is not a whole number of rows of whole elements.
    """
    columns = columns_of(len(data), wire, steps)
    return np.frombuffer(data, wire).reshape(steps, columns)


def columns_of(size_bytes: int, wire: np.dtype[Any], steps: int = 1) -> int:
    """The length of the rows that `decode` finds in so many bytes. Raises InvalidSlice as that does."""
    row_bytes = steps * wire.itemsize
    if size_bytes % row_bytes:
        raise InvalidSlice(
            f"data has {size_bytes} bytes, which is no multiple of {steps} steps x {wire.itemsize} bytes ({wire.name})",
            expected_multiple=row_bytes,
        )
    return size_bytes // row_bytes


def _round_to_odd(values: Array) -> Array:
    """float64 as float32 so that a second rounding, to bfloat16, gives what one rounding would.

    ml_dtypes goes from float64 to bfloat16 by way of float32: a value just above the middle between two bfloat16
    numbers becomes the middle, and then goes to the even one. Here an inexact float32 never has an even last bit.
    """
    nearest = np.array(values, np.float32, order="C")
    bits = nearest.view(np.uint32)
    inexact = nearest != values
    bits -= (np.abs(nearest) > np.abs(values)).astype(np.uint32)  # towards zero
    bits |= inexact.astype(np.uint32)
    return nearest
