"""Promise: a step by a lane is applied exactly once, whatever breaks, and nobody waits for what does not come."""

from __future__ import annotations

import gc
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from gradwire.client import SGD, AMSGrad, Run, RunOptions, Server, connect
from gradwire.client.transport import lane as client_lane
from gradwire.client.transport import stream
from gradwire.client.transport.shared_memory import SharedMemory
from gradwire.server.rpc import lanes
from gradwire.server.rpc.lane import Lane
from gradwire.v1 import service_pb2_grpc
from tests.faults.bare import attach_when_free, channel_to, create, fresh_name, spec_of
from tests.faults.client_process import ClientProcess
from tests.faults.cutting import cut_during
from tests.faults.gated import BULK, GatedDevice, gradient
from tests.faults.hosted import HostedServer, InBackground, eventually
from tests.faults.proxy import Direction, Proxy
from tests.lanes.conftest import has_lane
from tests.lanes.proxy import LaneProxy
from tests.serving import ServerProcess

SMALL, SEVERAL, LARGE = (3, 1), (9_000, 5), (BULK, 1)
"""(elements, steps) of blocks: of one packet; of several; with its data in the region."""


@pytest.fixture
def server(proxy: Proxy, between: LaneProxy) -> Iterator[Server]:
    """Both its ways lead through proxies."""
    with connect(proxy.target, shared_memory=True) as connection:
        yield connection


def blocks(size: int, steps: int) -> list[dict[str, np.ndarray]]:
    return [{"w": gradient(size, seed, steps)} for seed in (1, 2, 3)]


def expected_after(plain: Server, size: int, steps: int) -> list[bytes]:
    """The parameters after each of `blocks`, where nothing happens."""
    with plain.create_run(fresh_name("twin"), {"w": gradient(size, 0)}, AMSGrad(lr=0.01)) as twin:
        return [twin.step_many(block)["w"].tobytes() for block in blocks(size, steps)]


def packets_of_a_block(run: Run, block: dict[str, np.ndarray], between: LaneProxy) -> dict[Direction, int]:
    run.step_many(block)
    before = dict(between.passed)
    run.step_many(block)
    return {direction: between.passed[direction] - before[direction] for direction in Direction}


@pytest.mark.parametrize("both", [False, True], ids=["the lane", "the lane and gRPC"])
@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("block", [SMALL, SEVERAL, LARGE], ids=["small", "several packets", "in the region"])
def test_a_block_whose_lane_is_cut_anywhere_is_applied_once(
    server: Server,
    plain: Server,
    proxy: Proxy,
    between: LaneProxy,
    block: tuple[int, int],
    direction: Direction,
    both: bool,
) -> None:
    size, steps = block
    expected = expected_after(plain, size, steps)
    with server.create_run(fresh_name("measured"), {"w": gradient(size, 0)}, AMSGrad(lr=0.01)) as measured:
        packets = packets_of_a_block(measured, blocks(size, steps)[0], between)[direction]
    assert packets == (3 if block == SEVERAL and direction is Direction.UP else 1)
    for cut in range(packets + 1):
        run = server.create_run(fresh_name("cut"), {"w": gradient(size, 0)}, AMSGrad(lr=0.01))
        one, two, three = blocks(size, steps)
        run.step_many(one)
        assert has_lane(run)
        between.cut_after(direction, cut)
        if both:

            def cut_grpc_too() -> None:
                assert between.was_cut.wait(10)
                proxy.cut()

            with InBackground(cut_grpc_too):
                values = run.step_many(two)
        else:
            values = run.step_many(two)
        assert values["w"].tobytes() == expected[1]
        assert run.step_count == 2 * steps
        assert run.step_many(three)["w"].tobytes() == expected[2]
        assert run.step_count == 3 * steps
        if not both:
            assert between.was_cut.is_set()
            assert not has_lane(run)  # one that broke by itself is not tried again
        run.close()


def test_only_grpc_breaks(
    server: Server, plain: Server, hosted: HostedServer, device: GatedDevice, proxy: Proxy
) -> None:
    """While the block is committed: the client waits on its lane, on which nothing comes, and is woken."""
    expected = expected_after(plain, BULK, 1)
    run = server.create_run(fresh_name("cut"), {"w": gradient(BULK, 0)}, AMSGrad(lr=0.01))
    one, two, three = blocks(BULK, 1)
    run.step_many(one)
    with cut_during("commit", hosted, device, proxy):
        values = run.step_many(two)
    assert values["w"].tobytes() == expected[1]
    assert run.step_count == 2
    assert run.step_many(three)["w"].tobytes() == expected[2]
    assert has_lane(run)  # it has done nothing wrong


@pytest.mark.parametrize("end", ["client", "server"])
def test_a_packet_that_the_system_does_not_take_ends_it(
    hosted: HostedServer, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """There may be less room than for one, where the system's default is small: the block goes through gRPC."""

    def with_little_room(connection: socket.socket) -> Lane:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        return Lane(connection)

    if end == "server":
        monkeypatch.setattr(lanes, "Lane", with_little_room)
    values = {"w": np.zeros(9_000, np.float32)}
    with connect(hosted.target) as server, server.create_run(fresh_name("room"), values, SGD(lr=1.0)) as run:
        attached = run._attachment.stream
        assert attached is not None
        assert attached.lane is not None
        if end == "client":
            attached.lane._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        for step in (1, 2):
            assert run.step({"w": np.ones(9_000, np.float32)}).step == step
            assert (run.params["w"] == -step).all()
        assert not has_lane(run)


def test_one_that_cannot_be_opened_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there are no file descriptors left: its finalizer, too, has nothing to add."""
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    with pytest.raises(OSError, match="not supported"):
        client_lane._Connection(socket.AF_UNIX, socket.SOCK_SEQPACKET, 99)
    gc.collect()
    assert not unraisable


def test_its_finalizer_is_no_place_for_ctrl_c() -> None:
    """No line of Python runs there, before or after which one would be swallowed and the file stay open."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection = client_lane._Connection(fileno=ours.detach())
    calls: list[str] = []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            calls.append(frame.f_code.co_qualname)

    sys.setprofile(profile)
    try:
        del connection
    finally:
        sys.setprofile(None)
    assert not calls
    with theirs:
        assert theirs.recv(1) == b""


def test_the_caller_s_thread_never_has_its_files(hosted: HostedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket and the region's file are numbers before they are objects: Ctrl-C in between would leave them open."""
    seen: list[tuple[type, bool]] = []

    def noting(kind: type) -> Callable[..., Any]:
        def make(*arguments: Any) -> Any:
            seen.append((kind, threading.get_ident() == here))
            return kind(*arguments)

        return make

    here = threading.get_ident()
    for kind in (client_lane.Lane, SharedMemory):
        monkeypatch.setattr(stream, kind.__name__, noting(kind))
    with connect(hosted.target) as server:
        run = server.create_run(fresh_name("files"), {"w": gradient(BULK, 0)}, AMSGrad(lr=0.01))
        assert run.step({"w": gradient(BULK, 1)}).step == 1
        assert has_lane(run)
    assert seen == [(client_lane.Lane, False), (SharedMemory, False)]


def test_a_client_that_is_gone_leaves_nothing(
    hosted: HostedServer, server: Server, proxy: Proxy, between: LaneProxy
) -> None:
    """A machine that is switched off: nothing of it is heard any more, on either way."""
    run = server.create_run(fresh_name("gone"), {"w": gradient(BULK, 0)}, AMSGrad(lr=0.01))
    run.step({"w": gradient(BULK, 1)})
    proxy.refuse()
    eventually(lambda: hosted.handlers() == 0, "the stream has ended")
    proxy.welcome()
    assert run.step({"w": gradient(BULK, 2)}).step == 2


def test_a_client_that_was_stopped_loses_its_place() -> None:
    """SIGSTOP: its lane stays open, and gRPC's keepalive ends its stream."""
    name = fresh_name("stopped")
    with ServerProcess("--keepalive", "1") as process, channel_to(process.target) as channel:
        stub = service_pb2_grpc.OptimizerServiceStub(channel)
        create(stub, spec_of(name, 3), gradient(3, 0))
        with ClientProcess("step-by-lane", process.target, name, 3) as client:
            client.wait_for("step 1 went by a lane")
            client.stop()
            other = attach_when_free(stub, name, "other")
            assert other.attached.step == 1
            other.finish()


def test_hundreds_of_attachments_leave_nothing(hosted: HostedServer, plain: Server) -> None:
    """Client and server are this process."""
    with connect(hosted.target, shared_memory=True) as server:
        run = server.create_run(fresh_name("often"), {"w": gradient(BULK, 0)}, AMSGrad(lr=0.01))
        run.step({"w": gradient(BULK, 1)})
        run.close()
        eventually(lambda: hosted.handlers() == 0, "the stream has ended")
        before = open_files()
        for number in range(100):
            run.step({"w": gradient(BULK, 1)})
            if number % 2:
                run._attachment.drop()
            else:
                run.close()
        run.close()
        eventually(lambda: hosted.handlers() == 0, "the streams have ended")
        eventually(lambda: gc.collect() >= 0 and open_files() <= before, f"no more than {before} files are open")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_the_options_that_turn_it_off(hosted: HostedServer, plain: Server) -> None:
    with connect(hosted.target) as server:
        run = server.create_run(fresh_name("off"), {"w": gradient(3, 0)}, AMSGrad(), shared_memory=False)
        run.step({"w": gradient(3, 1)})
        assert not has_lane(run)
    assert RunOptions().shared_memory is None
    with HostedServer(shared_memory=False) as closed, connect(closed.target) as server:
        run = server.create_run("off", {"w": gradient(3, 0)}, AMSGrad())
        run.step({"w": gradient(3, 1)})
        assert not has_lane(run)
        assert not closed.server.servicer.lanes._listeners
