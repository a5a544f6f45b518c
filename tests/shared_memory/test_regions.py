"""The two ends of a region in one process: what the server makes, and when the client believes that it is that."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import threading
from collections.abc import Iterator

import pytest

from gradwire.client.transport.shared_memory import Found, NoRoom
from gradwire.client.transport.shared_memory import SharedMemory as ClientMemory
from gradwire.server.memory.budget import MemoryBudget, Reservation
from gradwire.server.memory.shared_memory import LARGEST_SHARE, SharedMemory, memory_bytes, share
from gradwire.v1 import train_pb2
from gradwire.wire.errors import InvalidSlice, MemoryLimitExceeded, ProtocolViolation
from gradwire.wire.shared import FILE_NAME, HEADER_BYTES, MIN_SLICE_BYTES
from tests.children import child

PART = 4 * MIN_SLICE_BYTES
SIZE = HEADER_BYTES + 2 * PART
"""Of the file. What the server counts has room for a copy of the largest slice too."""
COUNTED = memory_bytes(PART, PART)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has memory files")


@pytest.fixture
def budget() -> MemoryBudget:
    return MemoryBudget(100 * SIZE)


@pytest.fixture
def ours(budget: MemoryBudget) -> Iterator[SharedMemory]:
    """The server's end."""
    memory = SharedMemory(budget, PART, PART)
    yield memory
    memory.close()


def offer_of(memory: SharedMemory, **changes: int | bytes) -> train_pb2.SharedRegion:
    offer = train_pb2.SharedRegion(
        pid=os.getpid(),
        file_descriptor=memory.file_descriptor,
        nonce=memory.nonce,
        gradient_offset=memory.gradient_offset,
        gradient_bytes=memory.gradient_bytes,
        parameter_offset=memory.parameter_offset,
        parameter_bytes=memory.parameter_bytes,
    )
    for name, value in changes.items():
        setattr(offer, name, value)
    return offer


def open_files() -> int:
    """Regions that this process has open, once for each end."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the directory's own
            count += "memfd:gradwire" in os.readlink(f"/proc/self/fd/{name}")
    return count


def test_what_one_end_writes_the_other_reads(ours: SharedMemory) -> None:
    theirs = ClientMemory(offer_of(ours))
    ours.confirm(theirs.proof)
    found = theirs.place(MIN_SLICE_BYTES, last=False)
    assert isinstance(found, Found)
    found.view[:] = 7
    assert (ours.gradients(found.shared.position, MIN_SLICE_BYTES).view() == 7).all()
    answer = ours.place(100, 0, last=True)
    assert answer is not None
    ours.parameters(answer.position, 100)[:] = 9
    assert theirs.parameters(train_pb2.SharedData(position=answer.position, size_bytes=100), 0).tolist() == [9] * 100
    assert (ours.gradients(found.shared.position, MIN_SLICE_BYTES).view() == 7).all()
    theirs.close()


def test_memory_is_counted_and_files_are_closed(budget: MemoryBudget) -> None:
    files = open_files()
    for _ in range(300):
        memory = SharedMemory(budget, PART, PART)
        assert budget.used_bytes == COUNTED
        theirs = ClientMemory(offer_of(memory))
        memory.confirm(theirs.proof)
        theirs.close()
        theirs.close()
        memory.close()
        memory.close()
    assert budget.used_bytes == 0
    assert open_files() == files


def test_memory_that_is_held_stays_until_the_last_has_let_go(budget: MemoryBudget, ours: SharedMemory) -> None:
    theirs = ClientMemory(offer_of(ours))
    ours.confirm(theirs.proof)
    theirs.close()
    ours.view(0, 8)[:] = 7
    ours.hold()
    ours.hold()
    ours.close()
    with pytest.raises(ProtocolViolation):  # nothing comes or goes by it any more
        ours.gradients(0, 8)
    ours.let_go()
    assert (ours.view(0, 8) == 7).all()
    assert budget.used_bytes == COUNTED
    ours.let_go()
    assert budget.used_bytes == 0
    ours.close()


def test_memory_that_nobody_holds_any_more_goes_with_its_stream(budget: MemoryBudget, ours: SharedMemory) -> None:
    ours.hold()
    ours.let_go()
    assert budget.used_bytes == COUNTED
    ours.close()
    assert budget.used_bytes == 0


def test_a_client_that_has_not_mapped_the_memory_frees_it(budget: MemoryBudget, ours: SharedMemory) -> None:
    ours.confirm(b"")
    assert budget.used_bytes == 0
    assert not ours.carries(MIN_SLICE_BYTES)
    with pytest.raises(ProtocolViolation, match="does not have"):
        ours.gradients(0, 8)


def test_nothing_is_read_before_the_client_has_proved_itself(ours: SharedMemory) -> None:
    assert not ours.carries(MIN_SLICE_BYTES)
    with pytest.raises(ProtocolViolation, match="or not yet"):
        ours.gradients(0, 8)


def test_a_wrong_proof_is_refused(ours: SharedMemory) -> None:
    with pytest.raises(ProtocolViolation, match="the proof is not what the region holds"):
        ours.confirm(ours.nonce)


def test_the_memory_is_confirmed_once(ours: SharedMemory) -> None:
    ours.confirm(b"")
    with pytest.raises(ProtocolViolation, match="a second time"):
        ours.confirm(b"")


def test_places_outside_are_refused(ours: SharedMemory) -> None:
    theirs = ClientMemory(offer_of(ours))
    ours.confirm(theirs.proof)
    ours.gradients(PART, 0)
    with pytest.raises(InvalidSlice, match=f"of a part of {PART} bytes"):
        ours.gradients(PART - 8, 16)
    with pytest.raises(ProtocolViolation, match=f"of a part of {PART} bytes") as caught:
        theirs.parameters(train_pb2.SharedData(position=PART, size_bytes=8), 0)
    assert caught.value.applied is None
    theirs.close()


def test_a_hostile_client_cannot_shrink_grow_or_unseal(ours: SharedMemory) -> None:
    """So the server can be made to read anything, but never to die of a bus error."""
    path = f"/proc/self/fd/{ours.file_descriptor}"
    with open(path, "r+b", buffering=0) as file:
        for size_bytes in (0, SIZE - 1, SIZE + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(file.fileno(), size_bytes)
        with pytest.raises(PermissionError):
            fcntl.fcntl(file.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    with pytest.raises(PermissionError):
        os.truncate(path, 0)


def test_the_memory_that_is_shared_is_a_small_part_of_what_is_free(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert share(MemoryBudget(LARGEST_SHARE * COUNTED - 1), PART, PART) is None
    assert len(caplog.records) == 1
    assert f"{COUNTED} bytes are more than 1/{LARGEST_SHARE}" in caplog.text
    budget = MemoryBudget(LARGEST_SHARE * COUNTED)
    memory = share(budget, PART, PART)
    assert memory is not None
    memory.close()
    assert budget.used_bytes == 0


def test_vectors_that_are_too_small_need_none(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert share(MemoryBudget(10**9), 0, 0) is None
    assert not caplog.records


def test_a_limit_that_has_been_reached_is_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at what is free and the reservation somebody else may be faster."""
    caplog.set_level("INFO")

    def refuse(budget: MemoryBudget, size_bytes: int, purpose: str) -> Reservation:
        raise MemoryLimitExceeded("somebody else was faster")

    monkeypatch.setattr(MemoryBudget, "reserve", refuse)
    assert share(MemoryBudget(LARGEST_SHARE * COUNTED), PART, PART) is None
    assert len(caplog.records) == 1


def test_a_system_without_memory_files(
    budget: MemoryBudget, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")

    def refuse(*arguments: object) -> int:
        raise PermissionError("memory files are not allowed here")

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert share(budget, PART, PART) is None
    assert len(caplog.records) == 1
    assert budget.used_bytes == 0
    monkeypatch.setattr(sys, "platform", "darwin")
    assert share(budget, PART, PART) is None
    assert "only Linux has memory files" in caplog.text
    with pytest.raises(OSError, match="only Linux has memory files"):
        ClientMemory(train_pb2.SharedRegion())


def test_the_largest_part_is_refused_before_it_is_made() -> None:
    with pytest.raises(MemoryLimitExceeded):
        SharedMemory(MemoryBudget(COUNTED - 1), PART, PART)


# --- what a client finds where the server has pointed ---------------------------------------------------------------


def test_another_file_with_the_right_name_is_not_the_servers(budget: MemoryBudget, ours: SharedMemory) -> None:
    """The process and the number are there, but in another namespace they are somebody else's."""
    other = SharedMemory(budget, PART, PART)
    files = open_files()
    with pytest.raises(OSError, match="the memory file is somebody else's"):
        ClientMemory(offer_of(ours, file_descriptor=other.file_descriptor))
    assert open_files() == files
    other.close()


def test_a_stranger_that_is_no_memory_file_is_not_even_opened(ours: SharedMemory) -> None:
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="expected the server's memory file"):
        ClientMemory(offer_of(ours, file_descriptor=writer))
    os.close(writer)
    os.close(reader)


def test_a_file_that_could_shrink_is_not_mapped(ours: SharedMemory) -> None:
    loose = os.memfd_create(FILE_NAME, os.MFD_ALLOW_SEALING)
    os.ftruncate(loose, SIZE)
    os.pwrite(loose, ours.nonce, 0)
    with pytest.raises(OSError, match="not sealed against shrinking"):
        ClientMemory(offer_of(ours, file_descriptor=loose))
    os.close(loose)


def test_a_file_that_is_smaller_than_it_was_said_to_be(ours: SharedMemory) -> None:
    with pytest.raises(OSError, match=f"has {SIZE} bytes; expected {SIZE + 8} at least"):
        ClientMemory(offer_of(ours, parameter_offset=ours.parameter_offset + 8))


def test_a_process_that_has_gone_or_has_become_another_program(ours: SharedMemory) -> None:
    """Its files are closed when it ends, and when it executes something else."""
    code = (
        "import os, sys\n"
        "from gradwire.server.memory.budget import MemoryBudget\n"
        "from gradwire.server.memory.shared_memory import SharedMemory\n"
        f"memory = SharedMemory(MemoryBudget(10**9), {PART}, {PART})\n"
        "print(memory.file_descriptor, memory.nonce.hex(), flush=True)\n"
        "sys.stdin.readline()\n"
        "os.execv(sys.executable, [sys.executable, '-c', 'print(0, flush=True); input()'])\n"
    )
    with child([sys.executable, "-c", code], stderr=None) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        file_descriptor, nonce = process.stdout.readline().split()
        offer = offer_of(ours, pid=process.pid, file_descriptor=int(file_descriptor), nonce=bytes.fromhex(nonce))
        ClientMemory(offer).close()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "0\n"
        with pytest.raises(FileNotFoundError):
            ClientMemory(offer)
    with pytest.raises(FileNotFoundError):
        ClientMemory(offer)


# --- the client's sender waits for room, but never for good ----------------------------------------------------------


def filled(memory: ClientMemory) -> None:
    for _ in range(4):
        assert isinstance(memory.place(MIN_SLICE_BYTES, last=False), Found)


def test_while_nobody_reads_answers_a_full_part_does_not_hold_the_sender(ours: SharedMemory) -> None:
    theirs = ClientMemory(offer_of(ours))
    filled(theirs)
    assert theirs.place(MIN_SLICE_BYTES, last=False) is NoRoom.EVER
    theirs.all_taken()
    assert isinstance(theirs.place(MIN_SLICE_BYTES, last=False), Found)
    theirs.close()


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("event", ["taken", "received", "not reading", "closed", "owed"])
def test_a_sender_that_waits_is_let_go(ours: SharedMemory, event: str, early: bool) -> None:
    """By everything that may be a reason to go on, also when it comes just before the wait."""
    theirs = ClientMemory(offer_of(ours))
    filled(theirs)
    theirs.read_answers(True)
    assert theirs.place(MIN_SLICE_BYTES, last=False) is NoRoom.NOW
    sender = threading.Thread(target=theirs.wait, daemon=True)
    if not early:
        sender.start()
        sender.join(0.05)
        assert sender.is_alive()
    if event == "taken":
        theirs.taken(2)
    elif event == "received":
        theirs.received(train_pb2.SharedData(taken=2))
    elif event == "not reading":
        theirs.read_answers(False)
    elif event == "closed":
        theirs.close()
    else:
        theirs.received(train_pb2.SharedData(acknowledge=True))
    if early:
        sender.start()
    sender.join(10)
    assert not sender.is_alive()
    found = theirs.place(MIN_SLICE_BYTES, last=False)
    if event in ("taken", "received"):
        assert isinstance(found, Found)
    else:
        assert found is (NoRoom.NOW if event == "owed" else NoRoom.EVER)
    theirs.close()


def test_what_the_server_waits_for_is_said_once(ours: SharedMemory) -> None:
    theirs = ClientMemory(offer_of(ours))
    assert theirs.owed() is None
    assert not theirs.received(train_pb2.SharedData())
    assert theirs.received(train_pb2.SharedData(acknowledge=True))
    assert theirs.received(train_pb2.SharedData())
    assert theirs.owed() == train_pb2.Taken(slices=3)
    assert theirs.owed() is None
    theirs.received(train_pb2.SharedData(acknowledge=True))
    found = theirs.place(MIN_SLICE_BYTES, last=False)
    assert isinstance(found, Found)
    assert found.shared.taken == 4
    assert theirs.owed() is None
    theirs.close()


def test_slices_that_are_too_small_or_too_large_go_in_messages(ours: SharedMemory) -> None:
    theirs = ClientMemory(offer_of(ours))
    assert theirs.place(MIN_SLICE_BYTES - 1, last=False) is NoRoom.EVER
    assert theirs.place(theirs.slice_bytes + 1, last=False) is NoRoom.EVER
    theirs.close()
    assert theirs.place(MIN_SLICE_BYTES, last=False) is NoRoom.EVER


def test_slices_are_copied_before_they_are_looked_at(ours: SharedMemory) -> None:
    theirs = ClientMemory(offer_of(ours))
    ours.confirm(theirs.proof)
    found = theirs.place(MIN_SLICE_BYTES, last=False)
    assert isinstance(found, Found)
    found.view[:] = 7
    copy = ours.gradients(found.shared.position, MIN_SLICE_BYTES).copy()
    found.view[:] = 9
    assert (copy == 7).all()
    assert len(copy) == MIN_SLICE_BYTES
    theirs.close()
