"""The interface of a device. ``tests/server/devices`` holds the one conformance suite for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradwire.server.devices.chunks import in_order
from gradwire.server.devices.combining import Piece
from gradwire.server.devices.host_combining import combine_on_host
from gradwire.server.optimizers.base import Floats, Kernel
from gradwire.wire.layout import Range

DeviceArray = Any
"""A two-dimensional array ``[rows, length]`` that belongs to one device; only that device looks inside."""

Bools = npt.NDArray[np.bool_]


class Write(IntEnum):
    """What `Device.update` writes to ``out``."""

    NOTHING = 0
    LAST = 1
    TRAJECTORY = 2


class Segment(NamedTuple):
    """A part of the flat vector whose elements have the same kernel and scalars."""

    start: int
    stop: int
    kernel: Kernel
    constants: Floats
    """``[kernel.constants]``, in the run's dtype."""
    varying: Floats
    """``[applied steps, kernel.varying]``, in the run's dtype."""


@dataclass
class State:
    """The vectors of a run, each ``[1, elements]``."""

    params: DeviceArray
    slots: dict[str, DeviceArray]


class Device(ABC):
    """Owns arrays and runs kernels. Methods block; they may be called from any thread, for different arrays at once."""

    name: str
    kernel_modules: tuple[ModuleType, ...] = ()
    """On whose text the bits depend too, besides those that all devices share and the device's own."""

    @abstractmethod
    def allocate(self, rows: int, length: int, dtype: np.dtype[Any]) -> DeviceArray:
        """A new array of zeros."""

    @abstractmethod
    def write(self, target: DeviceArray, offset: int, values: npt.NDArray[Any]) -> None:
        """Copies ``values`` ``[rows, n]``, of any float dtype, to columns ``offset .. offset+n`` of ``target``."""

    def stage(self, values: npt.NDArray[Any], dtype: np.dtype[Any]) -> DeviceArray:
        """``values`` ``[rows, n]`` as an array to read from, which may share their memory."""
        array = self.allocate(values.shape[0], values.shape[1], dtype)
        self.write(array, 0, values)
        return array

    @abstractmethod
    def read(self, source: DeviceArray, rows: Range, columns: Range) -> Floats:
        """A copy on the host, ``[rows, columns]``, that later updates do not touch."""

    def peek(self, source: DeviceArray, rows: Range, columns: Range) -> Floats:
        """As `read`, but what it returns may change with ``source``: use it before anything else is done to that."""
        return self.read(source, rows, columns)

    def pin(self, memory: npt.NDArray[np.uint8]) -> Callable[[], None]:
        """Makes ready memory of the host that values will be written from, and read to, again and again. Takes a while
        for much of it. The function returned is to be called once, when it has seen its last use and before it goes."""
        return lambda: None

    def as_output(self, values: Floats) -> DeviceArray | None:
        """``values`` ``[1, n]`` on the host, pinned by `pin`, as an array that `update` can write the last parameters
        to; None: this device cannot."""
        return None

    @abstractmethod
    def copy(self, source: DeviceArray, into: DeviceArray | None = None) -> DeviceArray:
        """A copy on the device: a new array, or ``into``, which has the same shape and dtype."""

    @abstractmethod
    def chunk_sums(
        self, gradients: DeviceArray, first_row: int, ranges: Sequence[Range], start: int = 0
    ) -> npt.NDArray[np.float64]:
        """Sums of squares in float64, ``[chunks, rows]``: for each row from ``first_row`` on, one sum for each chunk of
        NORM_CHUNK elements of the flat vector that ``ranges`` touch, range after range, in order.

        Args:
            start: the element to which the first column of ``gradients`` belongs.

        A sum is finite only if all its elements are; for float32 the converse holds too.
        """

    def square_sums(
        self, gradients: DeviceArray, first_row: int, ranges: Sequence[Range], start: int = 0
    ) -> npt.NDArray[np.float64]:
        """Sum of squares over ``ranges`` for each row from ``first_row`` on: `chunk_sums`, added in order, so that the
        result depends on the layout and the present tensors alone."""
        return in_order(self.chunk_sums(gradients, first_row, ranges, start))

    @abstractmethod
    def clip(
        self,
        gradients: DeviceArray,
        ranges: Sequence[Range],
        *,
        max_value: float | None = None,
        factors: Floats | None = None,
    ) -> None:
        """Makes the elements of ``gradients`` ``[K, elements]`` that lie in ``ranges`` smaller, in place.

        Args:
            max_value: >= 0, a number of the array's dtype: elements are clamped to ``[-max_value, max_value]``.
            factors: ``[K]``, in the array's dtype: each row is multiplied by its own, after the clamp.

        NaN stays NaN in both (``clamp`` and ``mul`` of torch); a factor of 1 changes no bit.
        """

    @abstractmethod
    def update(
        self,
        state: State,
        gradients: DeviceArray,
        segments: Sequence[Segment],
        *,
        target: State | None = None,
        start: int = 0,
        applied: Bools | None = None,
        out: DeviceArray | None = None,
        out_start: int = 0,
        write: Write = Write.NOTHING,
    ) -> None:
        """Applies the rows of ``gradients`` ``[K, n]`` one after another to the elements of ``segments``.

        Args:
            target: receives the result, and ``state`` stays as it is. None: ``state`` itself is updated.
            start: the element to which the first column of ``gradients`` belongs.
            applied: ``[K]``; rows where it is False are left out and use up no row of ``Segment.varying``.
                None: all rows apply.
            out: ``[1 or K, n]``, receives the new parameters of elements ``out_start .. out_start+n``, see ``write``.

        A block of K rows equals K blocks of one row, bit for bit.
        """

    def combine(
        self, out: DeviceArray, sources: Sequence[DeviceArray], pieces: Sequence[Piece]
    ) -> npt.NDArray[np.float64] | None:
        """``out[0, place] = sum(weight * source[0, place]) / divisor``, each element computed in float64, its terms
        added in their order, and then rounded once to the dtype. Elements outside of the pieces stay as they are.

        Args:
            out: ``[1, elements]``; it may be one of the sources, but share memory with none of them in another way.
            sources: of the same shape and dtype.
            pieces: apart from each other.

        A sum of float64 is compensated: weights whose total is exact, of 1 or of counts, let equal sources combine to
        themselves within one ulp, and float32 combine to the bits. Infinities and NaN go through as in the plain sum,
        which overflows as that of float64 does, and -0.0 stays where all terms are. Devices agree to the bit.

        Returns the `chunk_sums` of what the pieces are now, where these cost next to nothing; None: ask for them.

        Raises ValueError for arrays that are not alike, and for pieces that no vector of that length has.
        """
        return combine_on_host(self._split, out, sources, pieces)

    def _split(self, function: Callable[[int, int], object], start: int, stop: int, work: int, grain: int) -> None:
        """Calls ``function(a, b)`` over parts of ``start .. stop``; a device that has threads of its own shares them.

        Args:
            work: of all parts together, in elements.
            grain: of which parts are multiples, but for the last.
        """
        function(start, stop)

    def allocate_state(self, slots: Sequence[str], length: int, dtype: np.dtype[Any]) -> State:
        """Zeroed parameters and slots."""
        vectors: Mapping[str, DeviceArray] = {name: self.allocate(1, length, dtype) for name in slots}
        return State(self.allocate(1, length, dtype), dict(vectors))

    def warm_up(self, kernels: Sequence[tuple[Kernel, np.dtype[Any]]]) -> None:
        """Compiles or loads these kernels now rather than at the first step."""
        for kernel, dtype in kernels:
            state = self.allocate_state(kernel.used_slots, 1, dtype)
            segment = Segment(0, 1, kernel, np.zeros(kernel.constants, dtype), np.ones((1, kernel.varying), dtype))
            gradients = self.stage(np.zeros((1, 1), dtype), dtype)
            self.update(state, gradients, [segment])
            self.update(state, gradients, [segment], target=self.allocate_state(kernel.used_slots, 1, dtype))
            self.square_sums(state.params, 0, (Range(0, 1),))
            self.clip(state.params, (Range(0, 1),), max_value=1.0, factors=np.zeros(1, dtype))

    def warm_up_combining(self, dtype: np.dtype[Any]) -> None:
        """As `warm_up`, for `combine`, which runs with one worker never ask for."""
        source = self.stage(np.zeros((1, 1), dtype), dtype)
        self.combine(self.allocate(1, 1, dtype), [source], [Piece(Range(0, 1), ((0, 1.0),), 1.0)])

    def close(self) -> None:
        """Frees what the device holds beyond arrays."""
        return None
