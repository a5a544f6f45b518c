"""The shared memory of one stream, as the client has it: opened, proved, written and read."""

from __future__ import annotations

import hmac
import os
import stat
import sys
import threading
from collections.abc import Iterable
from enum import Enum, auto
from typing import NamedTuple

from gradwire.v1 import train_pb2
from gradwire.wire.encoding import SLICE_BYTES, Array
from gradwire.wire.errors import InvalidSlice, ProtocolViolation
from gradwire.wire.shared import (
    ALIGNMENT,
    FILE_NAME,
    MIN_SLICE_BYTES,
    NONCE_BYTES,
    Bytes,
    Region,
    Ring,
    check_place,
    placed_bytes,
    slice_bytes,
)


class NoRoom(Enum):
    """Why a slice has no place in shared memory."""

    NOW = auto()
    """The server has not taken enough of what is there: `SharedMemory.wait`, and ask again."""
    EVER = auto()
    """It must go in its message."""


class Found(NamedTuple):
    """What to say of a slice, and where to write it."""

    shared: train_pb2.SharedData
    view: Bytes


class SharedMemory:
    """The server's region, mapped. Gradients are written in one thread and parameters read in another.

    Args:
        vector: all parameters are to come to their places in a vector like this one, if there is room for it.
        file_descriptor: of the memory file, where it has come by a lane; below 0: it is to be looked for. It is closed.

    Raises OSError where the file cannot be opened or is not the server's.
    """

    def __init__(self, offer: train_pb2.SharedRegion, vector: Array | None = None, file_descriptor: int = -1) -> None:
        self._offer = offer
        self._itemsize = 0
        if vector is not None and vector.nbytes <= offer.parameter_bytes:
            self._itemsize = vector.itemsize
        self._region = _mapped(offer, file_descriptor if file_descriptor >= 0 else _open(offer))
        self._ring = Ring(offer.gradient_bytes)
        self._changed = threading.Condition()
        self._news = False  # something has changed since the sender has found no room
        self._reading = False
        self._over = False
        self._received = 0  # slices of parameters
        self._owed = False  # the server waits to be told how many of them have been taken

    @property
    def in_place(self) -> bool:
        """Whether parameters come to where their elements lie in a vector."""
        return self._itemsize > 0

    @property
    def proof(self) -> bytes:
        """What the server expects to be told."""
        return self._region.proof

    @property
    def slice_bytes(self) -> int:
        """Size of slices of gradients that go fastest."""
        return slice_bytes(self._offer.gradient_bytes) or SLICE_BYTES

    # --- in the sending thread -----------------------------------------------------------------------------------

    def holds(self, slices: Iterable[int]) -> bool:
        """Whether slices of these sizes, a whole block, find room one beside the other, whatever the server takes."""
        with self._changed:
            return self._ring.empty and sum(map(placed_bytes, slices)) <= self._offer.gradient_bytes

    def place(self, size_bytes: int, *, last: bool) -> Found | NoRoom:
        """A place for the next slice. ``last``: the last of its block, or of one for all of which there is room."""
        if not MIN_SLICE_BYTES <= size_bytes <= slice_bytes(self._offer.gradient_bytes):
            return NoRoom.EVER
        with self._changed:
            self._news = False
            if self._over:
                return NoRoom.EVER
            place = self._ring.place(size_bytes, last=last)
            if place is None:
                # While nobody reads what the server says, nobody can learn that there is room.
                return NoRoom.NOW if self._reading else NoRoom.EVER
            self._owed = False
            shared = train_pb2.SharedData(
                position=place.position, size_bytes=size_bytes, acknowledge=place.acknowledge, taken=self._received
            )
            return Found(shared, self._region.part(self._offer.gradient_offset + place.position, size_bytes))

    def wait(self) -> None:
        """Returns when it is worth while to ask again, or there is something to say to the server."""
        with self._changed:
            self._changed.wait_for(lambda: self._news or self._owed)

    def owed(self) -> train_pb2.Taken | None:
        """What the server waits for, once."""
        with self._changed:
            if not self._owed:
                return None
            self._owed = False
            return train_pb2.Taken(slices=self._received)

    # --- in the caller's thread ----------------------------------------------------------------------------------

    def read_answers(self, reading: bool) -> None:
        """Whether somebody reads what the server says, from now on."""
        with self._changed:
            self._reading = reading
            self._tell()

    def taken(self, slices: int) -> None:
        """The server has taken so many slices. Raises ProtocolViolation."""
        with self._changed:
            self._ring.taken(slices)
            self._tell()

    def all_taken(self) -> None:
        """A receipt: the server has taken all slices."""
        with self._changed:
            self._ring.clear()
            self._tell()

    def move(self, vector: Array) -> Array:
        """A copy of ``vector`` in the memory, at the places where the server will write; see ``in_place``.

        It may outlive the stream. Nobody writes there then, once the server has ended a step that was under way.
        """
        moved = self._region.part(self._offer.parameter_offset, vector.nbytes).view(vector.dtype)
        moved[:] = vector
        return moved

    def parameters(self, shared: train_pb2.SharedData, offset: int) -> Bytes:
        """A view of what the server has written, from element ``offset`` on. Raises ProtocolViolation for a place
        outside the region, and for any but its own with ``in_place``."""
        if self.in_place and shared.position != offset * self._itemsize:
            raise ProtocolViolation(
                f"the server has written parameters from element {offset} on at position {shared.position}; "
                f"expected {offset * self._itemsize}",
                applied=None,
            )
        try:
            alignment = 1 if self.in_place else ALIGNMENT
            check_place(shared.position, shared.size_bytes, self._offer.parameter_bytes, alignment)
        except InvalidSlice as error:
            raise ProtocolViolation(error.message, applied=None) from None
        return self._region.part(self._offer.parameter_offset + shared.position, shared.size_bytes)

    def received(self, shared: train_pb2.SharedData) -> bool:
        """A slice of parameters has been taken. Returns whether the server waits to be told so."""
        with self._changed:
            self._received += 1
            self._owed = self._owed or shared.acknowledge
            self._ring.taken(shared.taken)
            self._tell()
            return self._owed

    def close(self) -> None:
        """Lets go of the memory, and of a sender that waits for room."""
        with self._changed:
            self._over = True
            self._region.close()
            self._tell()

    def _tell(self) -> None:
        self._news = True
        self._changed.notify_all()


def _open(offer: train_pb2.SharedRegion) -> int:
    """Opens the file that the server has named. Raises OSError when it is another one, or none."""
    if sys.platform != "linux":
        raise OSError("only Linux has memory files")
    path = f"/proc/{offer.pid}/fd/{offer.file_descriptor}"
    found = os.readlink(path)
    if found != f"/memfd:{FILE_NAME} (deleted)":  # opening a device or a pipe of a stranger is not harmless
        raise OSError(f"{path} is {found!r}; expected the server's memory file")
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)


def _mapped(offer: train_pb2.SharedRegion, file_descriptor: int) -> Region:
    """Maps the file, and closes it. Raises OSError when it is not the one that the server has offered."""
    import fcntl  # not on Windows

    try:
        about = os.fstat(file_descriptor)
        end = max(
            2 * NONCE_BYTES,
            offer.gradient_offset + offer.gradient_bytes,
            offer.parameter_offset + offer.parameter_bytes,
        )
        if not stat.S_ISREG(about.st_mode) or about.st_size < end:
            raise OSError(f"the memory file has {about.st_size} bytes; expected {end} at least")
        # A file that could shrink would kill this process where it reads what is no more.
        if not fcntl.fcntl(file_descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise OSError("the memory file is not sealed against shrinking")
        region = Region(file_descriptor, end)
    finally:
        os.close(file_descriptor)
    if not hmac.compare_digest(region.nonce, offer.nonce):
        region.close()
        raise OSError("the memory file is somebody else's; is the server in another container?")
    return region
