"""The shared memory of one stream, as the client has it: opened, proved, written and read."""

from __future__ import annotations

import hmac
import os
import stat
import sys
import threading

from gradwire.v1 import train_pb2
from gradwire.wire.errors import InvalidSlice, ProtocolViolation
from gradwire.wire.shared import (
    FILE_NAME,
    MIN_SHARED_BYTES,
    NONCE_BYTES,
    Bytes,
    Place,
    Region,
    Ring,
    check_place,
    slice_bytes,
)


class SharedMemory:
    """The server's region, mapped. Gradients are written in one thread and parameters read in another.

    Raises OSError where the file cannot be opened or is not the server's.
    """

    def __init__(self, offer: train_pb2.SharedRegion) -> None:
        self._offer = offer
        self._region = _open(offer)
        self._ring = Ring(offer.gradient_bytes)
        self._changed = threading.Condition()
        self._reading = False
        self._over = False

    @property
    def proof(self) -> bytes:
        """What the server expects to be told."""
        return self._region.proof

    @property
    def slice_bytes(self) -> int:
        """The largest slice of gradients that finds room; 0: none does."""
        return slice_bytes(self._offer.gradient_bytes)

    # --- gradients, in the sending thread ------------------------------------------------------------------------

    def place(self, size_bytes: int, *, last: bool) -> tuple[Place, Bytes] | None:
        """Room for the next slice, and a view to write it in; None: it must go in its message.

        ``last``: the last of its block. While somebody reads what the server says, it waits until the server has taken
        enough of what is there.
        """
        if not MIN_SHARED_BYTES <= size_bytes <= self.slice_bytes:
            return None
        with self._changed:
            while not self._over:
                place = self._ring.place(size_bytes, last=last)
                if place is not None:
                    return place, self._region.part(self._offer.gradient_offset + place.position, size_bytes)
                if not self._reading:
                    break
                self._changed.wait()
        return None

    # --- answers, in the caller's thread -------------------------------------------------------------------------

    def read_answers(self, reading: bool) -> None:
        """Whether somebody reads what the server says, from now on."""
        with self._changed:
            self._reading = reading
            self._changed.notify_all()

    def taken(self, slices: int) -> None:
        """The server has taken so many slices. Raises ProtocolViolation."""
        with self._changed:
            self._ring.taken(slices)
            self._changed.notify_all()

    def all_taken(self) -> None:
        """A receipt: the server has taken all slices."""
        with self._changed:
            self._ring.clear()
            self._changed.notify_all()

    def parameters(self, shared: train_pb2.SharedData) -> Bytes:
        """A view of what the server has written. Raises ProtocolViolation for a place outside the region."""
        try:
            check_place(shared.position, shared.size_bytes, self._offer.parameter_bytes)
        except InvalidSlice as error:
            raise ProtocolViolation(error.message, applied=None) from None
        return self._region.part(self._offer.parameter_offset + shared.position, shared.size_bytes)

    def close(self) -> None:
        """Lets go of the memory, and of a sender that waits for room."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
            self._region.close()


def _open(offer: train_pb2.SharedRegion) -> Region:
    """Maps the file that the server has named. Raises OSError when it is another one, or none."""
    if sys.platform != "linux":
        raise OSError("only Linux has memory files")
    import fcntl  # not on Windows

    path = f"/proc/{offer.pid}/fd/{offer.file_descriptor}"
    found = os.readlink(path)
    if found != f"/memfd:{FILE_NAME} (deleted)":  # opening a device or a pipe of a stranger is not harmless
        raise OSError(f"{path} is {found!r}; expected the server's memory file")
    file_descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        about = os.fstat(file_descriptor)
        end = max(
            2 * NONCE_BYTES,
            offer.gradient_offset + offer.gradient_bytes,
            offer.parameter_offset + offer.parameter_bytes,
        )
        if not stat.S_ISREG(about.st_mode) or about.st_size < end:
            raise OSError(f"{path} has {about.st_size} bytes; expected {end} at least")
        # A file that could shrink would kill this process where it reads what is no more.
        if not fcntl.fcntl(file_descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise OSError(f"{path} is not sealed against shrinking")
        region = Region(file_descriptor, end)
    finally:
        os.close(file_descriptor)
    if not hmac.compare_digest(region.nonce, offer.nonce):
        region.close()
        raise OSError(f"{path} is the memory of somebody else; is the server in another container?")
    return region
