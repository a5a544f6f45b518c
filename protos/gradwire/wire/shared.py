"""Memory that a server shares with a client of the same user on the same host; see ``gradwire.v1.SharedRegion``."""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref
from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gradwire.wire.errors import InvalidSlice, ProtocolViolation

Bytes = npt.NDArray[np.uint8]

FILE_NAME = "gradwire"
"""Under ``/proc/PID/fd`` the memory file shows as ``/memfd:gradwire (deleted)``."""

NONCE_BYTES = 32
HEADER_BYTES = 4096
"""The first bytes of a region: what the client compares, then what it proves to have read; the rest is not used."""

MAX_PART_BYTES = 128 * 2**20
"""Of each part of a region. A part has room for a vector up to this size: what is written need not wait for what
is read. Much smaller parts would stay in the processor's cache, which is best where both processes share one, and worst
where they do not: sending 100 MB through 4 MiB took 7 ms so, or 27 ms, and through 128 MiB 9 to 12 ms."""

MIN_SPLIT_BYTES, MAX_SLICE_BYTES = 4 * 2**20, 16 * 2**20
"""Vectors up to the first size are one slice; larger slices than the second are of no use. The messages of a slice and
of its answer take 0.7 ms of both processors together, as long as copying 8 MiB."""

SLICES = 8
"""In these bounds a part is cut into so many: one is written while another is taken."""

SLICES_PER_PART = 4
"""A slice is at most this share of its part."""

MIN_VECTOR_BYTES = 64 * 2**10
"""Streams whose vectors are smaller have no region: a message of this size takes as long either way."""

MIN_SLICE_BYTES = 16 * 2**10
"""Smaller slices go in their messages."""

_ALIGNMENT = 64
ALIGNMENT = 8
"""Of the position of what a message names."""


class Region:
    """A mapped memory file of ``size_bytes``. The caller closes ``file_descriptor``, now or later.

    Views stay valid after `close`: the memory goes when the last of them does. In a forked child regions are closed, so
    that it neither keeps the memory nor writes into it.
    """

    def __init__(self, file_descriptor: int, size_bytes: int) -> None:
        self._map: mmap.mmap | None = mmap.mmap(file_descriptor, size_bytes)
        self._bytes: Bytes = np.frombuffer(self._map, np.uint8)
        _regions.add(self)

    def part(self, offset: int, size_bytes: int) -> Bytes:
        """A writable view of some bytes. Raises ValueError beyond the end, and after `close`."""
        if offset + size_bytes > self._bytes.size:
            raise ValueError(
                f"bytes {offset}..{offset + size_bytes} do not lie in the region, which has {self._bytes.size}"
            )
        return self._bytes[offset : offset + size_bytes]

    @property
    def nonce(self) -> bytes:
        """What the server names in its offer."""
        return self.part(0, NONCE_BYTES).tobytes()

    @property
    def proof(self) -> bytes:
        """What only who has mapped the region can name."""
        return self.part(NONCE_BYTES, NONCE_BYTES).tobytes()

    def close(self) -> None:
        """Lets go of the memory. May be called more than once."""
        _regions.discard(self)
        self._bytes = np.empty(0, np.uint8)
        mapped, self._map = self._map, None
        if mapped is not None:
            with contextlib.suppress(BufferError):  # somebody still holds a view, and the map with it
                mapped.close()


_regions: weakref.WeakSet[Region] = weakref.WeakSet()


def _let_go() -> None:
    for region in list(_regions):
        region.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def part_bytes(vector_bytes: int) -> int:
    """Size of the part through which vectors of ``vector_bytes`` travel; 0: they are too small for one."""
    if vector_bytes < MIN_VECTOR_BYTES:
        return 0
    wanted = max(vector_bytes, SLICES_PER_PART * min(vector_bytes, MIN_SPLIT_BYTES))
    return -(-min(wanted, MAX_PART_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE


def slice_bytes(part: int) -> int:
    """Size of the slices that go fastest through a part of this size; larger ones do not go through it."""
    return min(max(part // SLICES, MIN_SPLIT_BYTES), part // SLICES_PER_PART, MAX_SLICE_BYTES)


def check_place(position: int, size_bytes: int, part: int, alignment: int = ALIGNMENT) -> None:
    """Raises InvalidSlice unless the bytes lie in a part of ``part`` bytes, and begin where elements may."""
    most = part // SLICES_PER_PART
    if position + size_bytes > part or position % alignment or size_bytes > most:
        raise InvalidSlice(
            f"the shared data has {size_bytes} bytes at position {position} of a part of {part} bytes; "
            f"expected at most {most} bytes, at a multiple of {alignment}, inside the part",
            part_bytes=part,
            most_bytes=most,
        )


class Place(NamedTuple):
    """Where a slice goes, and whether the peer is to say when it has taken it."""

    position: int
    acknowledge: bool


def placed_bytes(size_bytes: int) -> int:
    """What a slice takes of its part."""
    return max(-(-size_bytes // _ALIGNMENT), 1) * _ALIGNMENT


class Ring:
    """Who writes into a part keeps here what the peer has not taken yet. Not safe against concurrent calls.

    A slice of up to `slice_bytes` always finds room once the peer has taken what it was asked to acknowledge: what
    comes after that is less than half of the part.
    """

    def __init__(self, part: int) -> None:
        self._part = part
        self._places: deque[tuple[int, int]] = deque()  # first byte and length of what is not taken
        self._head = 0  # where the next one goes
        self._unasked = 0
        self.placed = 0
        """Slices since the stream began."""

    def place(self, size_bytes: int, *, last: bool = False) -> Place | None:
        """Room for the next slice; None: there is none now.

        ``last``: `clear` comes before any of what is there is needed again, so there is nothing to acknowledge.
        """
        size = placed_bytes(size_bytes)
        if not self._places:
            self._head = 0  # again and again the same few bytes, which the cache knows
            self._unasked = 0
            tail = self._part
        else:
            tail = self._places[0][0]
            if self._head > tail:
                if self._head + size <= self._part:
                    tail = self._part
                else:
                    self._head = 0 if size <= tail else self._head
        if self._head + size > tail:
            return None
        position, self._head = self._head, self._head + size
        self._places.append((position, size))
        self.placed += 1
        self._unasked += size
        acknowledge = not last and self._unasked >= self._part - 2 * slice_bytes(self._part)
        if acknowledge:
            self._unasked = 0
        return Place(position, acknowledge)

    @property
    def empty(self) -> bool:
        """Whether the peer has taken all."""
        return not self._places

    def taken(self, slices: int) -> None:
        """The peer has taken this many since the stream began. Raises ProtocolViolation when there were not as many."""
        if slices > self.placed:
            raise ProtocolViolation(f"{slices} shared slices are said to be taken; {self.placed} have been sent")
        while self._places and self.placed - len(self._places) < slices:
            self._places.popleft()

    def clear(self) -> None:
        """The peer has taken all."""
        self._places.clear()
