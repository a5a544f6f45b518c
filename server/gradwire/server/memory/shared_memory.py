"""The shared memory of one stream, as the server has it: made, offered, proved, read and written, freed."""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.server.memory.budget import NO_ROOM, MemoryBudget, Reservation
from gradwire.wire.encoding import SLICE_BYTES
from gradwire.wire.errors import ProtocolViolation, Stalled
from gradwire.wire.layout import Range
from gradwire.wire.shared import (
    FILE_NAME,
    HEADER_BYTES,
    MIN_SLICE_BYTES,
    NONCE_BYTES,
    SLICES_PER_PART,
    Bytes,
    Place,
    Region,
    Ring,
    check_place,
    slice_bytes,
)

log = logging.getLogger(__name__)

LARGEST_SHARE = 4
"""A stream takes at most one part in so many of the memory that is free: what is shared only makes steps faster, and
the gradients that are to come must find room."""


class SharedMemory:
    """A memory file that no one can shrink: a hostile peer may change its bytes at any time, but never take them away
    while the server reads them.

    Args:
        gradient_bytes: size of the part that the client writes; 0: no gradients come this way.
        parameter_bytes: size of the part that the server writes; 0: no parameters go this way.

    Raises OSError where the system has no such files or no room for another one, MemoryLimitExceeded.
    """

    def __init__(self, budget: MemoryBudget, gradient_bytes: int, parameter_bytes: int) -> None:
        self.gradient_bytes = gradient_bytes
        self.parameter_bytes = parameter_bytes
        size_bytes = HEADER_BYTES + gradient_bytes + parameter_bytes
        self._scratch: Bytes = np.empty(0, np.uint8)
        self._ring = Ring(parameter_bytes)
        self.mapped = False
        """Whether the client has said, and proved, that it has mapped the memory."""
        self.in_place = False
        """Whether parameters go where their elements have their place in a vector."""
        self._withdrawn = False
        self._held = 0
        self._closed = False
        self._unpin: Callable[[], None] | None = None
        self._reservation: Reservation | None = budget.reserve(
            memory_bytes(gradient_bytes, parameter_bytes), "memory that is shared with a client"
        )
        self.file_descriptor = -1
        try:
            self.file_descriptor = _sealed_file(size_bytes)
            self._region = Region(self.file_descriptor, size_bytes)
        except BaseException:
            self._close_file()
            self._reservation.release()
            raise
        header = secrets.token_bytes(2 * NONCE_BYTES)
        self._region.part(0, len(header))[:] = np.frombuffer(header, np.uint8)

    def pin(self, pin: Callable[[Bytes], Callable[[], None]]) -> None:
        """Makes it ready for a device, see `Device.pin`."""
        self._unpin = pin(self._region.part(0, HEADER_BYTES + self.gradient_bytes + self.parameter_bytes))

    @property
    def gradient_offset(self) -> int:
        """First byte of the part that the client writes."""
        return HEADER_BYTES

    @property
    def parameter_offset(self) -> int:
        """First byte of the part that the server writes."""
        return HEADER_BYTES + self.gradient_bytes

    @property
    def nonce(self) -> bytes:
        """What the offer names."""
        return self._region.nonce

    def withdraw(self) -> None:
        """Frees the memory if the client has not said by now whether it has mapped it."""
        if self.file_descriptor >= 0:
            self.close()
            self._withdrawn = True

    def confirm(self, proof: bytes, in_place: bool = False) -> None:
        """The client says whether it has mapped the memory. Raises ProtocolViolation when it has not, but says so, and
        Stalled when it says so after `withdraw`."""
        if self._withdrawn:
            raise Stalled("whether the region is mapped was said too late: the server has freed it. Attach again")
        if self.file_descriptor < 0:
            raise ProtocolViolation("a message says a second time whether the region is mapped")
        self._close_file()
        if not proof:
            self.close()
        elif hmac.compare_digest(proof, self._region.proof):
            self.mapped, self.in_place = True, in_place
        else:
            raise ProtocolViolation("the proof is not what the region holds; expected its bytes 32..64, or none")

    @property
    def reply_bytes(self) -> int:
        """Size of the slices of parameters that go fastest."""
        return (slice_bytes(self.parameter_bytes) if self.mapped else 0) or SLICE_BYTES

    def gradients(self, position: int, size_bytes: int, wanted: bool = False) -> SharedSlice:
        """What the client has written there. Raises InvalidSlice, ProtocolViolation.

        ``wanted``: it waits to be told that this has been taken.
        """
        if not self.mapped:
            raise ProtocolViolation("a slice lies in a region that this stream does not have, or not yet")
        check_place(position, size_bytes, self.gradient_bytes)
        return SharedSlice(self, position, size_bytes, wanted)

    def gradient_values(self, part: Range, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """``[1, n]``, those elements of a vector that lies in the gradient part from its beginning on."""
        view = self.view(part.start * dtype.itemsize, (part.stop - part.start) * dtype.itemsize)
        return view.view(dtype).reshape(1, -1)

    def view(self, position: int, size_bytes: int) -> Bytes:
        """Bytes of the gradient part."""
        return self._region.part(self.gradient_offset + position, size_bytes)

    def room(self, size_bytes: int) -> Bytes:
        """The same memory each time, of the server alone, to copy a slice to."""
        if self._scratch.size < size_bytes:
            self._scratch = np.empty(size_bytes, np.uint8)
        return self._scratch[:size_bytes]

    def carries(self, size_bytes: int) -> bool:
        """Whether slices of parameters of this size go through the memory, when there is room for them."""
        return self.mapped and MIN_SLICE_BYTES <= size_bytes <= slice_bytes(self.parameter_bytes)

    def carries_all(self, vector_bytes: int) -> bool:
        """Whether a whole vector of parameters has its place there, where the client has its own."""
        return self.mapped and self.in_place and vector_bytes <= self.parameter_bytes

    def place(self, size_bytes: int, at: int, *, last: bool) -> Place | None:
        """Room for ``size_bytes`` of parameters, see `Ring.place`; None: there is none now.

        Args:
            at: where they lie in the whole vector; with ``in_place`` nowhere else, and None means: never.
        """
        if self.in_place:
            if at + size_bytes > self.parameter_bytes:
                return None
            self._ring.placed += 1  # the client counts these too
            return Place(at, acknowledge=False)
        return self._ring.place(size_bytes, last=last)

    def parameters(self, position: int, size_bytes: int) -> Bytes:
        """The view in which to write what `place` has found room for."""
        return self._region.part(self.parameter_offset + position, size_bytes)

    def whole_parameters(self, elements: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """``[1, elements]``, all that `place` has room for with ``in_place``."""
        return self.parameters(0, elements * dtype.itemsize).view(dtype).reshape(1, elements)

    def taken(self, slices: int) -> None:
        """The client has taken so many slices of parameters. Raises ProtocolViolation."""
        self._ring.taken(slices)

    def all_taken(self) -> None:
        """The client has begun its next block, so it has taken what answered the one before."""
        self._ring.clear()

    def hold(self) -> None:
        """What the client has written is still to be read when its stream has ended: `close` leaves the memory there,
        and the last `let_go` frees it."""
        self._held += 1

    def let_go(self) -> None:
        """Once for each `hold`."""
        self._held -= 1
        if self._closed and not self._held:
            self._free()

    def close(self) -> None:
        """Frees the memory, unless somebody holds it: nothing else may read or write it any more. May be called more
        than once."""
        self.mapped = False
        self._closed = True
        self._close_file()
        if not self._held:
            self._free()

    def _free(self) -> None:
        unpin, self._unpin = self._unpin, None
        if unpin is not None:
            unpin()
        self._region.close()
        self._scratch = np.empty(0, np.uint8)
        if self._reservation is not None:
            self._reservation.release()
            self._reservation = None

    def _close_file(self) -> None:
        file_descriptor, self.file_descriptor = self.file_descriptor, -1
        if file_descriptor >= 0:
            os.close(file_descriptor)


class SharedSlice:
    """A slice of gradients where the client has written it, and may write again at any time.

    It is no view, so that who keeps it does not keep the memory: a view in a traceback would outlive its stream.
    """

    def __init__(self, memory: SharedMemory, position: int, size_bytes: int, wanted: bool) -> None:
        self._memory = memory
        self.position = position
        self._size_bytes = size_bytes
        self.wanted = wanted
        """Whether the client waits to be told that it has been taken."""

    def __len__(self) -> int:
        return self._size_bytes

    def view(self) -> Bytes:
        """For who reads each byte once, into memory of the server's, and looks at that."""
        return self._memory.view(self.position, self._size_bytes)

    def copy(self) -> Bytes:
        """In memory of the server's, until the next slice is copied."""
        copy = self._memory.room(self._size_bytes)
        copy[:] = self.view()
        return copy


def memory_bytes(gradient_bytes: int, parameter_bytes: int) -> int:
    """What `SharedMemory` takes: a client can fill the parts, and a slice of it is copied."""
    return HEADER_BYTES + gradient_bytes + parameter_bytes + gradient_bytes // SLICES_PER_PART


def share(budget: MemoryBudget, gradient_bytes: int, parameter_bytes: int) -> SharedMemory | None:
    """Shared memory for a stream; None, and a line in the log, where there is none to be had."""
    if not gradient_bytes and not parameter_bytes:
        return None
    try:
        size_bytes, free = memory_bytes(gradient_bytes, parameter_bytes), budget.free_bytes
        if size_bytes > free // LARGEST_SHARE:
            raise OSError(f"{size_bytes} bytes are more than 1/{LARGEST_SHARE} of the {free} that are free")
        return SharedMemory(budget, gradient_bytes, parameter_bytes)
    except (OSError, *NO_ROOM) as error:
        log.info("no shared memory for a stream, its values go through gRPC: %s", error)
        return None


def _sealed_file(size_bytes: int) -> int:
    if sys.platform != "linux":
        raise OSError("only Linux has memory files")
    import fcntl  # not on Windows

    file_descriptor = os.memfd_create(FILE_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(file_descriptor, size_bytes)
        fcntl.fcntl(file_descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(file_descriptor)
        raise
    return file_descriptor
