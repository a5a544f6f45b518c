"""Deferred blocks that the contract does not allow leave everything as it was, and no memory reserved."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gradwire.server.devices.cpu import CpuDevice
from gradwire.v1 import run_pb2, service_pb2, train_pb2
from tests.contract.bare import BareClient, Refusal, group, refused
from tests.contract.deferred import ANY, FULL, INF, NAN, answered, headed, piece, whole_state
from tests.faults.hosted import HostedServer, eventually

STAGED = headed(0, FULL)
LAST_WITHOUT_DEFERRED = headed(0, [], deferred=False, last=True)
BAD: dict[str, tuple[str, list[train_pb2.Gradients], str]] = {
    "last without a header": ("PROTOCOL_VIOLATION", [STAGED, piece(0, FULL, last=True)], "expected one with deferred"),
    "other steps": ("PROTOCOL_VIOLATION", [STAGED, headed(0, FULL * 2, steps=2, last=True)], "expected 1"),
    "last header not deferred": ("INCOMPLETE_VALUES", [STAGED, LAST_WITHOUT_DEFERRED], "element 0"),
    "a header after the plain one that began anew": (
        "PROTOCOL_VIOLATION",
        [STAGED, headed(0, FULL[:2], deferred=False), headed(2, FULL[2:], last=True)],
        "second header",
    ),
    "plain block made deferred": ("PROTOCOL_VIOLATION", [headed(0, FULL[:2], deferred=False), STAGED], "second header"),
    "plain block made deferred at its end": (
        "PROTOCOL_VIOLATION",
        [headed(0, FULL[:2], deferred=False), headed(2, FULL[2:], last=True)],
        "second header",
    ),
    "another sequence in between": ("PROTOCOL_VIOLATION", [STAGED, headed(0, FULL, sequence=2)], "one block at a time"),
    "no header at all": ("PROTOCOL_VIOLATION", [piece(0, FULL)], "has no header"),
    "sequence 2": ("SEQUENCE_MISMATCH", [headed(0, FULL, sequence=2)], "neither the next one, 1"),
    "sequence 0": ("SEQUENCE_MISMATCH", [headed(0, FULL, sequence=0)], "neither the next one, 1"),
    "too few steps in new header": ("PROTOCOL_VIOLATION", [STAGED, headed(0, [], steps=2**32 - 1)], "expected 1 to"),
    "unknown returns": ("PROTOCOL_VIOLATION", [STAGED, headed(0, [], last=True, returns=ANY)], "returns is 99"),
    "absent tensor that is not there": (
        "PROTOCOL_VIOLATION",
        [STAGED, headed(0, [], last=True, absent_tensors=[3])],
        "tensors 0 to 2",
    ),
    "override of a missing group": (
        "PROTOCOL_VIOLATION",
        [STAGED, headed(0, [], last=True, overrides=[run_pb2.Override(group=2, lr=1)])],
        "groups 0 to 1",
    ),
    "two overrides of a group": (
        "PROTOCOL_VIOLATION",
        [STAGED, headed(0, [], last=True, overrides=[run_pb2.Override(lr=1), run_pb2.Override(lr=1)])],
        "two overrides",
    ),
    "bad override": (
        "INVALID_HYPERPARAMETER",
        [STAGED, headed(0, [], last=True, overrides=[run_pb2.Override(group=1, lr=-1)])],
        "override of group 1",
    ),
    "past the end": ("INVALID_SLICE", [STAGED, piece(1, FULL)], "which has 7"),
    "past the end at the end": ("INVALID_SLICE", [STAGED, headed(7, [1.0], last=True)], "which has 7"),
    "half a row": ("INVALID_SLICE", [headed(0, FULL, steps=2)], "no multiple of 2 steps"),
    "a gap": ("INCOMPLETE_VALUES", [headed(0, FULL[:3]), headed(4, FULL[4:], last=True)], "element 3, in tensor 'b'"),
    "a gap that repeats do not fill": (
        "INCOMPLETE_VALUES",
        [headed(0, FULL[:4]), piece(0, FULL[:4]), headed(1, FULL[1:6], last=True)],
        "element 6, in tensor 'c'",
    ),
    "a gap where only the first header calls it absent": (
        "INCOMPLETE_VALUES",
        [headed(0, FULL[:6], absent_tensors=[2]), headed(0, [], last=True)],
        "element 6",
    ),
    "a gap beside an absent tensor": (
        "INCOMPLETE_VALUES",
        [headed(1, FULL[1:5]), headed(6, FULL[6:], last=True, absent_tensors=[1])],
        "element 0",
    ),
    "nothing": ("INCOMPLETE_VALUES", [headed(0, []), headed(0, [], last=True)], "element 0"),
    "NaN": ("NON_FINITE_GRADIENT", [STAGED, headed(6, [NAN], last=True)], "tensor 'c'"),
    "infinity where the first header calls it absent": (
        "NON_FINITE_GRADIENT",
        [headed(0, [INF, *FULL[1:]], absent_tensors=[0]), headed(0, [], last=True)],
        "tensor 'a'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_block_is_refused_and_leaves_the_run(bare: BareClient, name: str, case: str) -> None:
    """It says what was expected; everything is as before, and the number goes with the right block."""
    reason, messages, says = BAD[case]
    before, state = bare.get(name), whole_state(bare, name)
    with bare.attach(name) as stream:
        stream.send(*messages)
        assert says in str(refused(reason, lambda: list(stream.answer())))
    after = bare.get(name)
    assert (after.spec, after.step, after.attached_worker_id) == (before.spec, 0, "")
    assert whole_state(bare, name) == state
    with bare.attach(name) as stream:
        assert stream.attached.last_sequence == 0
        assert answered(stream, headed(0, FULL), headed(0, [], last=True))[1].step == 1


VECTOR_BYTES = 4 * 1000


@pytest.fixture
def hosted() -> Iterator[HostedServer]:
    """A server with a run ``x`` of a thousand elements; remembers a trajectory of two of them."""
    with HostedServer(max_result=2 * VECTOR_BYTES) as server, BareClient(server.target) as bare:
        bare.create("x", [group(w=[1000])], [0.0] * 1000)
        yield server
        bare.call("DeleteRun", service_pb2.DeleteRunRequest(name="runs/x"))
        eventually(lambda: server.used_bytes == 0, "everything is given back")


def test_the_memory_of_a_block_is_counted_and_freed(hosted: HostedServer) -> None:
    """Gradients with the first header, again with each that changes the steps, and all of it back at the end.

    Of one step the new state is computed ahead; room for a second one, four vectors, stays with the stream.
    """
    run_bytes = hosted.used_bytes
    with BareClient(hosted.target) as bare:
        with bare.attach("x") as stream:
            for steps, vectors in ((3, 3), (1, 1 + 4), (5, 5 + 4), (2, 2 + 4)):
                stream.send(headed(0, [1.0] * steps, steps=steps))
                eventually(lambda v=vectors: hosted.used_bytes == run_bytes + v * VECTOR_BYTES, f"{steps} steps")  # type: ignore[misc]
            rest = headed(0, [1.0] * 2000, steps=2, last=True, returns=train_pb2.RETURNS_TRAJECTORY)
            assert answered(stream, rest)[1].step == 2
            assert hosted.used_bytes == run_bytes + (4 + 4) * VECTOR_BYTES, "the array, and the result for a repeat"
            answered(stream, headed(0, [1.0] * 1000, sequence=2), headed(0, [], sequence=2, last=True))
            assert hosted.used_bytes == run_bytes + (1 + 4) * VECTOR_BYTES
        eventually(lambda: hosted.used_bytes == run_bytes, "the stream has ended")


@pytest.mark.parametrize(
    ("reason", "steps", "header"),
    [
        ("RESULT_TOO_LARGE", 3, {"returns": train_pb2.RETURNS_TRAJECTORY}),
        ("PROTOCOL_VIOLATION", 2, {"absent_tensors": [1]}),
        ("INVALID_HYPERPARAMETER", 2, {"overrides": [run_pb2.Override(lr=-1)]}),
        ("INCOMPLETE_VALUES", 2, {"returns": train_pb2.RETURNS_TRAJECTORY}),
    ],
)
def test_a_refused_last_header_leaves_nothing_reserved(
    hosted: HostedServer, reason: str, steps: int, header: dict[str, Any]
) -> None:
    run_bytes = hosted.used_bytes
    with BareClient(hosted.target) as bare:
        stream = bare.attach("x")
        stream.send(headed(0, [1.0] * steps, steps=steps), headed(0, [], steps=steps, last=True, **header))
        refused(reason, stream.receive)
        eventually(lambda: hosted.used_bytes == run_bytes, "nothing stays reserved")


@pytest.mark.parametrize(
    ("max_mib", "returns", "says"),
    [(2, train_pb2.RETURNS_LAST, "the scalars of"), (6, train_pb2.RETURNS_TRAJECTORY, "a trajectory of")],
)
def test_what_the_last_header_finds_no_room_for_leaves_nothing_reserved(max_mib: int, returns: Any, says: str) -> None:
    """The gradients take 1 MiB, their scalars 4 or so, a trajectory another one."""
    steps = 2**18
    with HostedServer(max_memory=max_mib * 2**20) as hosted, BareClient(hosted.target) as bare:
        bare.create("x", [group(w=[1])], [0.0])
        run_bytes = hosted.used_bytes
        with bare.attach("x") as stream:
            last = headed(0, [], steps=steps, last=True, returns=returns)
            stream.send(headed(0, [1.0] * steps, steps=steps), last)
            assert says in str(refused("MEMORY_LIMIT_EXCEEDED", stream.receive))
        eventually(lambda: hosted.used_bytes == run_bytes, "nothing stays reserved")
        with bare.attach("x") as stream:
            assert answered(stream, headed(0, [1.0] * 1000, steps=1000, last=True))[1].step == 1000
        bare.call("DeleteRun", service_pb2.DeleteRunRequest(name="runs/x"))
        eventually(lambda: hosted.used_bytes == 0, "everything is given back")


def test_no_more_than_so_many_gaps(bare: BareClient) -> None:
    """As in any block: the bookkeeping must not grow as large as the vector."""
    bare.create("deferred-gaps", [group(w=[10_000])], [0.0] * 10_000)
    with bare.attach("deferred-gaps") as stream:
        stream.send(headed(0, [1.0]), *(piece(start, [1.0]) for start in range(2, 10_000, 2)))
        with pytest.raises(Refusal, match="more than 4096 gaps"):
            stream.receive()


class OneBlockDevice(CpuDevice):
    """Has room for one array of several rows at a time."""

    block: weakref.ref[Any] | None = None

    def allocate(self, rows: int, length: int, dtype: np.dtype[Any]) -> Any:
        if rows > 1 and self.block is not None and self.block() is not None:
            raise MemoryError
        array = super().allocate(rows, length, dtype)
        if rows > 1:
            self.block = weakref.ref(array)
        return array


def test_a_block_that_begins_anew_with_other_steps_has_let_go_of_the_old_array() -> None:
    """What the memory limit does not count any more must not be there any more."""
    with HostedServer(OneBlockDevice(threads=1)) as hosted, BareClient(hosted.target) as bare:
        bare.create("x", [group(w=[7])], [0.0] * 7)
        with bare.attach("x") as stream:
            restarts = [headed(0, [1.0] * 7 * steps, steps=steps) for steps in (2, 3, 5, 2)]
            assert answered(stream, *restarts, headed(0, [], steps=2, last=True))[1].step == 2
