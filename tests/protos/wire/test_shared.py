"""Regions: what is mapped, and where slices go in them."""

from __future__ import annotations

import contextlib
import gc
import os
import random

import numpy as np
import pytest

from gradwire.wire.errors import InvalidSlice, ProtocolViolation
from gradwire.wire.shared import (
    MAX_PART_BYTES,
    MIN_VECTOR_BYTES,
    SLICES_PER_PART,
    Region,
    Ring,
    check_place,
    part_bytes,
    slice_bytes,
)

PART = 4096

linux = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there are no memory files here")


def memory_files() -> int:
    """How many this process has open."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the directory's own
            count += "memfd:test" in os.readlink(f"/proc/self/fd/{name}")
    return count


def memory_file(size_bytes: int) -> int:
    file_descriptor = os.memfd_create("test")
    os.ftruncate(file_descriptor, size_bytes)
    return file_descriptor


@linux
def test_two_maps_of_a_file_share_its_bytes() -> None:
    file_descriptor = memory_file(PART)
    ours, theirs = Region(file_descriptor, PART), Region(file_descriptor, PART)
    os.close(file_descriptor)
    ours.part(100, 4).view("<f4")[:] = 1.5
    assert theirs.part(100, 4).view("<f4")[0] == 1.5
    with pytest.raises(ValueError, match="do not lie in the region"):
        ours.part(PART - 4, 8)


@linux
def test_a_view_outlives_its_region_and_nothing_else_is_left() -> None:
    file_descriptor = memory_file(PART)
    region = Region(file_descriptor, PART)
    os.close(file_descriptor)
    view = region.part(0, 8)
    view[:] = 7
    region.close()
    region.close()
    assert view.tolist() == [7] * 8
    with pytest.raises(ValueError, match="do not lie in the region"):
        region.part(0, 1)
    del view
    gc.collect()
    assert memory_files() == 0


@linux
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # other tests' threads have nothing to do with it
def test_a_forked_child_has_let_go_of_the_region() -> None:
    file_descriptor = memory_file(PART)
    region = Region(file_descriptor, PART)
    os.close(file_descriptor)
    pid = os.fork()
    if pid == 0:
        closed = False
        with open("/proc/self/maps") as maps:
            mapped = "memfd:test" in maps.read()
        try:
            region.part(0, 1)
        except ValueError:
            closed = True
        os._exit(0 if closed and not mapped else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    region.part(0, 1)[0] = 3  # the parent still has it
    region.close()


def test_size_of_a_part() -> None:
    assert part_bytes(0) == part_bytes(MIN_VECTOR_BYTES - 1) == 0
    assert part_bytes(MIN_VECTOR_BYTES) == SLICES_PER_PART * MIN_VECTOR_BYTES
    assert part_bytes(100_001) == 401_408  # whole pages
    assert part_bytes(2**40) == MAX_PART_BYTES
    assert slice_bytes(part_bytes(MIN_VECTOR_BYTES)) == MIN_VECTOR_BYTES


@pytest.mark.parametrize(("position", "size"), [(0, PART // 4), (PART, 0), (PART - 8, 8)])
def test_places_in_a_part(position: int, size: int) -> None:
    check_place(position, size, PART)


@pytest.mark.parametrize(("position", "size"), [(0, PART // 4 + 1), (PART, 1), (PART + 8, 0), (2**63, 2**63), (4, 4)])
def test_places_outside_a_part(position: int, size: int) -> None:
    with pytest.raises(InvalidSlice, match="at a multiple of 8, inside the part"):
        check_place(position, size, PART)


def test_what_is_not_taken_is_not_written_over() -> None:
    """Slices of any sizes, taken late: no two that are there share a byte, and the writer never waits for good."""
    draw = random.Random(5)
    for _ in range(100):
        ring = Ring(PART)
        there: dict[int, slice] = {}  # number of the slice -> its bytes
        occupied = np.zeros(PART, np.bool_)
        taken = asked = 0
        for _ in range(200):
            size = draw.randint(0, slice_bytes(PART))
            while (place := ring.place(size)) is None:
                assert asked > taken, "the writer waits for what nobody was asked to say"
                upto = draw.randint(taken + 1, asked)
                for number in range(taken, upto):
                    occupied[there.pop(number)] = False
                taken = upto
                ring.taken(taken)
            assert place.position + size <= PART
            place_of = slice(place.position, place.position + size)
            assert not occupied[place_of].any()
            occupied[place_of] = True
            there[ring.placed - 1] = place_of
            if place.acknowledge:
                asked = ring.placed


def test_the_last_slice_asks_for_nothing() -> None:
    ring = Ring(PART)
    quarter = slice_bytes(PART)
    asked = [ring.place(quarter, last=index == 3) for index in range(4)]
    assert [place and place.acknowledge for place in asked] == [False, True, False, False]
    assert ring.place(1) is None
    ring.clear()
    assert ring.place(1) == (0, False)


def test_a_slice_that_is_larger_than_its_part_has_no_place() -> None:
    assert Ring(PART).place(PART + 1) is None


def test_nobody_takes_what_was_not_sent() -> None:
    ring = Ring(PART)
    ring.place(8)
    ring.taken(1)
    ring.taken(0)  # said late
    with pytest.raises(ProtocolViolation, match="2 shared slices are said to be taken; 1 have been sent"):
        ring.taken(2)
