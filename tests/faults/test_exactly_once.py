"""Promise: a step is applied exactly once, wherever the connection breaks, and the client has what the server has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest

from gradwire.client import AMSGrad, RunBusy, Server
from tests.faults.bare import BareStream, Stub, fresh_name
from tests.faults.cutting import cut_during
from tests.faults.gated import GatedDevice, gradient
from tests.faults.hosted import HostedServer, InBackground, eventually
from tests.faults.proxy import Direction, Proxy

SIZE = 300_000
"""Two slices at K=1, and enough elements for commits to leave the event loop."""

Fault = Callable[[HostedServer, GatedDevice, Proxy, int], AbstractContextManager[None]]


@contextmanager
def cut_in_the_upload(hosted: HostedServer, device: GatedDevice, proxy: Proxy, steps: int) -> Iterator[None]:
    """In the middle of a slice."""
    proxy.cut_after(Direction.UP, SIZE * 4 * steps * 2 // 3)
    yield


@contextmanager
def cut_in_the_update(hosted: HostedServer, device: GatedDevice, proxy: Proxy, steps: int) -> Iterator[None]:
    """While a slice is computed whose successors arrive."""
    with cut_during("early", hosted, device, proxy):
        yield


@contextmanager
def cut_in_the_commit(hosted: HostedServer, device: GatedDevice, proxy: Proxy, steps: int) -> Iterator[None]:
    """After the last slice has arrived and before the commit ends."""
    with cut_during("commit", hosted, device, proxy):
        yield


@contextmanager
def cut_before_the_receipt(hosted: HostedServer, device: GatedDevice, proxy: Proxy, steps: int) -> Iterator[None]:
    """After the commit, while the receipt is under way."""
    with device.hold("committed") as gate:

        def cut() -> None:
            gate.wait_entered()
            proxy.stall(Direction.DOWN)
            before = device.commits
            gate.release()
            eventually(lambda: hosted.call(lambda: not any_lock(hosted)), "the commit ends")
            assert device.commits == before
            proxy.cut()

        with InBackground(cut):
            yield


def any_lock(hosted: HostedServer) -> bool:
    return any(run.lock._lock.locked() for run in hosted.registry.runs())


@contextmanager
def cut_in_the_reply(hosted: HostedServer, device: GatedDevice, proxy: Proxy, steps: int) -> Iterator[None]:
    """After more than half of the replies' bytes."""
    proxy.cut_after(Direction.DOWN, SIZE * 4 * 2 // 3)
    yield


@pytest.mark.parametrize("steps", [1, 3], ids=["one step", "three steps"])
@pytest.mark.parametrize(
    ("returns", "policy", "fault"),
    [
        (returns, policy, fault)
        for returns in ("last", "trajectory", "none")
        for policy, faults in {
            # Computed when it is whole, and computed while it arrives.
            "skip": (cut_in_the_upload, cut_in_the_commit, cut_before_the_receipt, cut_in_the_reply),
            "reject": (cut_in_the_upload, cut_in_the_update, cut_in_the_reply),
        }.items()
        for fault in faults
        if not (returns == "none" and fault is cut_in_the_reply)  # whose reply is a receipt and nothing else
    ],
)
def test_exactly_once(
    hosted: HostedServer,
    device: GatedDevice,
    proxy: Proxy,
    server: Server,
    direct: Server,
    steps: int,
    returns: str,
    policy: str,
    fault: Fault,
) -> None:
    params = {"w": gradient(SIZE, 0)}
    run = server.create_run(fresh_name("once"), params, AMSGrad(lr=0.01), non_finite=policy)
    twin = direct.create_run(fresh_name("twin"), params, AMSGrad(lr=0.01))
    blocks = [{"w": gradient(SIZE, seed, steps)} for seed in (1, 2, 3)]
    run.step_many(blocks[0])
    device.commits = 0
    proxy.was_cut.clear()
    with fault(hosted, device, proxy, steps):
        values = run.step_many(blocks[1], returns=returns)
    assert proxy.was_cut.is_set()
    assert device.commits == (policy == "skip")
    assert hosted.run_of(run.name).version == 2  # of the blocks, each counted once
    assert run.last_receipt is not None
    assert run.last_receipt.step == 2 * steps

    device.hold("committed").release()
    twin.step_many(blocks[0])
    expected = twin.step_many(blocks[1], returns=returns)
    assert values.keys() == expected.keys()
    for name in expected:
        assert np.array_equal(values[name], expected[name])
    if returns != "none":
        assert np.array_equal(run.params["w"], run.read()["w"])
    # And on it goes.
    run.step_many(blocks[2])
    twin.step_many(blocks[2])
    assert run.step_count == 3 * steps
    assert np.array_equal(run.params["w"], twin.params["w"])
    assert np.array_equal(run.params["w"], run.read()["w"])


def test_the_connection_breaks_at_every_step(
    hosted: HostedServer, device: GatedDevice, proxy: Proxy, server: Server, direct: Server
) -> None:
    """Cuts at ever later bytes, so that each part of an exchange is hit sooner or later."""
    size = 2_000
    params = {"w": gradient(size, 0)}
    run = server.create_run(fresh_name("often"), params, AMSGrad(lr=0.01))
    twin = direct.create_run(fresh_name("twin"), params, AMSGrad(lr=0.01))
    for number in range(20):
        direction = (Direction.UP, Direction.DOWN)[number % 2]
        proxy.cut_after(direction, 1 + number * size * 4 // 19)
        receipt = run.step({"w": gradient(size, number)})
        twin.step({"w": gradient(size, number)})
        assert receipt.step == number + 1
        assert np.array_equal(run.params["w"], twin.params["w"])
    assert proxy.connections > 10


def test_creation_whose_answer_is_lost_makes_one_run(proxy: Proxy, server: Server) -> None:
    name = fresh_name("created")
    proxy.cut_after(Direction.DOWN, 60)  # the run's description is longer
    run = server.create_run(name, {"w": gradient(10, 0)}, AMSGrad())
    assert proxy.was_cut.is_set()
    assert run.step({"w": gradient(10, 1)}).step == 1


def test_another_worker_that_takes_over_meanwhile_is_not_pushed_aside(
    hosted: HostedServer, device: GatedDevice, proxy: Proxy, server: Server, hosted_stub: Stub
) -> None:
    """The step may have been applied, and the exception does not claim anything else."""
    name = fresh_name("taken")
    run = server.create_run(name, {"w": gradient(SIZE, 0)}, AMSGrad(), non_finite="skip")
    with device.hold("commit") as gate:

        def take() -> BareStream:
            gate.wait_entered()
            proxy.refuse()
            hosted.wait_cancelled()
            gate.release()
            other = BareStream(hosted_stub, name, "other", takeover=True)
            proxy.welcome()
            return other

        with InBackground(take) as taking:
            with pytest.raises(RunBusy) as caught:
                run.step({"w": gradient(SIZE, 1)})
            other = taking.result()
    assert caught.value.applied is None
    assert run.stale
    assert other.attached.step == 1
    other.finish()
    assert run.step({"w": gradient(SIZE, 2)}).step == 2
    assert np.array_equal(run.params["w"], run.read()["w"])
