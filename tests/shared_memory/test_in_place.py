"""Promise: parameters that lie in shared memory, where the server writes them, are those that would be copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradwire.client import AMSGrad, Fenced, NonFiniteGradient, Run, Server, StorageFailed, TorchAdam, connect
from gradwire.client.transport.shared_memory import SharedMemory as ClientMemory
from gradwire.server import failpoints
from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.memory.shared_memory import SharedMemory
from gradwire.v1 import train_pb2
from gradwire.wire.errors import ProtocolViolation
from tests.faults.bare import fresh_name
from tests.faults.hosted import HostedServer
from tests.shared_memory.conftest import taken_slices
from tests.shared_memory.test_regions import offer_of
from tests.shared_memory.test_same_numbers import SHAPES, assert_same, check, tensors

SOME = ["a", "d", "e"]


def pair(server: Server, plain: Server, **options: Any) -> tuple[Run, Run]:
    """The same run twice: with parameters in shared memory, and without any such memory."""
    params = tensors(0, dtype=options.get("dtype", "float32"))
    ours, theirs = (
        connection.create_run(fresh_name("same"), params, AMSGrad(lr=0.01), shared_params=True, **options)
        for connection in (server, plain)
    )
    assert in_place(ours)
    assert not in_place(theirs)
    return ours, theirs


def in_place(run: Run) -> bool:
    """Whether the parameters lie in the memory of the present stream."""
    memory = None if run._attachment.stream is None else run._attachment.stream.memory
    if memory is None or not memory.in_place:
        return False
    return np.shares_memory(run.params["c"], memory._region.part(0, memory._region._bytes.size))


@pytest.mark.parametrize(
    ("dtype", "gradients"), [("float32", None), ("float32", "bfloat16"), ("float32", "int8"), ("float64", None)]
)
def test_steps(server: Server, plain: Server, dtype: str, gradients: str | None) -> None:
    ours, theirs = pair(server, plain, dtype=dtype, gradient_encoding=gradients)
    views = dict(ours.params)
    for seed in range(1, 4):
        grads = tensors(seed, dtype=dtype)
        for run in (ours, theirs):
            run.step(grads)
            run.step({name: grads[name] for name in SOME})
            run.step({"b": grads["b"]})
    assert taken_slices(ours) > 0
    assert in_place(ours)
    assert all(views[name] is ours.params[name] for name in SHAPES), "who has taken an array has the newest values"
    check(ours, theirs)


@pytest.mark.parametrize("returns", ["last", "none", "trajectory"])
def test_blocks(server: Server, plain: Server, returns: str) -> None:
    ours, theirs = pair(server, plain)
    for steps in (1, 2):
        blocks = tensors(5, steps)
        assert_same(*(run.step_many(blocks, returns=returns) for run in (ours, theirs)))
        for run in (ours, theirs):
            run.step({name: blocks[name][0] for name in SOME})
    if returns == "none":  # values of tensors that nobody asked for were read anew
        assert_same(ours.params, theirs.params)
    else:
        check(ours, theirs)


def test_values_that_are_written_and_read(server: Server, plain: Server) -> None:
    ours, theirs = pair(server, plain)
    for run in (ours, theirs):
        run.step(tensors(1))
        run.write({"a": tensors(7)["a"]}, partial=True)
        run.step(tensors(2))
        run.refresh()
        run.step(tensors(3))
    assert_same(ours.params, theirs.params)
    assert_same(ours.params, ours.read())


def test_a_refused_step_leaves_nothing_behind(server: Server, plain: Server) -> None:
    ours, theirs = pair(server, plain)
    broken = tensors(1)
    broken["c"] = broken["c"].copy()
    broken["c"][1_000_000] = np.nan
    for run in (ours, theirs):
        run.step(tensors(2))
        with pytest.raises(NonFiniteGradient):
            run.step(broken)
        run.step(tensors(3))
    assert_same(ours.params, theirs.params)
    assert_same(ours.params, ours.read())


def test_nothing_is_written_of_a_block_that_the_disk_refused(tmp_path: Path) -> None:
    with HostedServer(near=True, data_dir=str(tmp_path)) as hosted, connect(hosted.target) as server:
        ours, theirs = (
            server.create_run(name, tensors(0), TorchAdam(), durability=durability, shared_params=True)
            for name, durability in (("ours", "JOURNAL"), ("theirs", "MEMORY"))
        )
        for run in (ours, theirs):
            run.step(tensors(1))
        assert in_place(ours)
        failpoints.arm("journal.before-commit", "raise", at_hit=1)
        with pytest.raises(StorageFailed) as caught:
            ours.step(tensors(2))
        failpoints.disarm()
        assert caught.value.applied is False
        assert ours.stale
        for run in (ours, theirs):
            run.step(tensors(3))
        assert_same(ours.params, theirs.params)
        assert ours.digest() == theirs.digest()


def test_the_parameters_outlive_the_stream_and_the_server(hosted: HostedServer) -> None:
    with connect(hosted.target) as server:
        run = server.create_run(fresh_name("left"), tensors(0), AMSGrad(lr=0.01), shared_params=True)
        run.step(tensors(1))
        assert in_place(run)
        expected = run.read()
        server.delete_run(run.name)
    assert_same(run.params, expected)
    run.params["c"][:] = 0


def test_after_a_takeover_the_run_goes_on_with_copies(server: Server, plain: Server) -> None:
    ours, theirs = pair(server, plain)
    for run in (ours, theirs):
        run.step(tensors(1))
        views = dict(run.params)
        with plain.attach(run.name, takeover=True):
            pass
        with pytest.raises(Fenced):
            run.step(tensors(2))
        run.step(tensors(2))
        assert all(views[name] is run.params[name] for name in SHAPES)
    assert ours.shares_memory
    assert not in_place(ours)
    assert_same(ours.params, theirs.params)
    assert_same(ours.params, ours.read())


@pytest.mark.parametrize(
    "options", [{"parameter_encoding": "bfloat16"}, {"parameter_encoding": "int8"}, {"double_buffer": True}]
)
def test_where_they_cannot_lie_there_they_are_copied(server: Server, plain: Server, options: dict[str, Any]) -> None:
    runs = [
        connection.create_run(fresh_name("c"), tensors(0), AMSGrad(lr=0.01), shared_params=True, **options)
        for connection in (server, plain)
    ]
    for seed in (1, 2):
        for run in runs:
            run.step(tensors(seed))
    assert not in_place(runs[0])
    assert_same(runs[0].params, runs[1].params)


def test_a_vector_that_has_no_room_there_is_copied() -> None:
    budget = MemoryBudget(2**30)
    ours = SharedMemory(budget, 2**20, 2**20)
    theirs = ClientMemory(offer_of(ours), np.empty(2**18 + 1, np.float32))
    assert not theirs.in_place
    theirs.close()
    ours.close()


def test_a_place_is_where_the_elements_are_or_none() -> None:
    budget = MemoryBudget(2**30)
    ours = SharedMemory(budget, 2**20, 2**20)
    theirs = ClientMemory(offer_of(ours), np.empty(2**18, np.float32))
    assert theirs.in_place
    ours.confirm(theirs.proof, in_place=True)
    for _ in range(3):
        place = ours.place(2**16, 4 * 12_345, last=False)
        assert place is not None
        assert place == (4 * 12_345, False)
    assert ours.place(2**16, 2**20 - 2**16 + 4, last=False) is None
    said = train_pb2.SharedData(position=4 * 12_345, size_bytes=2**16)
    assert len(theirs.parameters(said, 12_345)) == 2**16
    with pytest.raises(ProtocolViolation, match="from element 12346 on at position 49380; expected 49384"):
        theirs.parameters(said, 12_346)
    theirs.close()
    ours.close()
