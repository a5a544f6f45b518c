"""A server that goes away: how long a client tries, and what it says then."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from gradwire.client import AMSGrad, ConnectionLost, RetryPolicy, RunNotFound, connect
from tests.faults.bare import fresh_name
from tests.faults.gated import GatedDevice, gradient
from tests.faults.hosted import HostedServer, InBackground
from tests.faults.proxy import Direction, Proxy
from tests.serving import ServerProcess

SIZE = 100_000
IMPATIENT = RetryPolicy(deadline_seconds=1.5)
SLACK_SECONDS = 15.0
"""What a busy machine may add to the deadline; less than gRPC's own patience, which is 20 s."""


def kill(server: ServerProcess, proxy: Proxy) -> None:
    """Nothing listens there any more."""
    server.kill()
    proxy.close()


def swallow(server: ServerProcess, proxy: Proxy) -> None:
    """Connections break, new ones are accepted, and nothing is ever heard on them."""
    proxy.stall()
    proxy.cut(and_resume=False)


def slam(server: ServerProcess, proxy: Proxy) -> None:
    """Connections break, and new ones at once."""
    proxy.refuse()


@pytest.mark.parametrize("vanish", [kill, swallow, slam])
def test_a_step_gives_up_within_the_deadline(vanish: Callable[[ServerProcess, Proxy], None]) -> None:
    with ServerProcess() as process, Proxy(process.target) as proxy, connect(proxy.target) as server:
        run = server.create_run(fresh_name("gone"), {"w": gradient(SIZE, 0)}, AMSGrad(), retry=IMPATIENT)
        run.step({"w": gradient(SIZE, 1)})
        vanish(process, proxy)
        started = time.monotonic()
        with pytest.raises(ConnectionLost) as caught:
            run.step({"w": gradient(SIZE, 2)})
        assert time.monotonic() - started < IMPATIENT.deadline_seconds + SLACK_SECONDS
        assert caught.value.applied is None, "the bytes were on their way, so nobody knows"
        assert run.stale
        if vanish is not swallow:  # where gRPC's own 20 s for a first connection count, before anything has failed
            started = time.monotonic()
            with pytest.raises(ConnectionLost):
                run.step({"w": gradient(SIZE, 2)})
            assert time.monotonic() - started < IMPATIENT.deadline_seconds + SLACK_SECONDS
        proxy.close()


def test_a_step_that_was_certainly_not_sent_says_so(process: ServerProcess) -> None:
    with Proxy(process.target) as proxy, connect(proxy.target) as server:
        run = server.create_run(fresh_name("unsent"), {"w": gradient(SIZE, 0)}, AMSGrad(), retry=IMPATIENT)
        run.close()
        proxy.refuse()
        with pytest.raises(ConnectionLost) as caught:
            run.step({"w": gradient(SIZE, 1)})
        assert caught.value.applied is False
        proxy.welcome()
        assert run.step({"w": gradient(SIZE, 1)}).step == 1


def test_a_restarted_server_that_has_lost_the_run() -> None:
    """The error names the last step that this client knows."""
    with ServerProcess() as first, connect(first.target) as server:
        run = server.create_run(fresh_name("lost"), {"w": gradient(SIZE, 0)}, AMSGrad())
        for seed in (1, 2, 3):
            run.step({"w": gradient(SIZE, seed)})
        kept = run.params["w"].copy()
        first.kill()
        with ServerProcess(listen=first.target) as second:
            assert second.target == first.target
            with pytest.raises(RunNotFound, match=r"last step this client knows is 3\b") as caught:
                run.step({"w": gradient(SIZE, 4)})
            assert caught.value.applied is None
            # What the client holds is still good to go on with.
            again = server.create_run(run.name, {"w": kept}, AMSGrad())
            assert again.step({"w": gradient(SIZE, 4)}).step == 1


def test_a_server_that_is_away_for_a_moment(process: ServerProcess) -> None:
    with Proxy(process.target) as proxy, connect(proxy.target) as server:
        run = server.create_run(fresh_name("away"), {"w": gradient(SIZE, 0)}, AMSGrad())
        run.step({"w": gradient(SIZE, 1)})
        proxy.refuse()
        with InBackground(lambda: run.step({"w": gradient(SIZE, 2)})) as stepping:
            refused = proxy.refused
            while proxy.refused < refused + 2:
                time.sleep(0.01)
            assert not stepping.done()
            proxy.welcome()
            assert stepping.result().step == 2
        assert np.array_equal(run.params["w"], run.read()["w"])


def test_a_refusal_is_told_at_once_and_not_tried_again(hosted: HostedServer, device: GatedDevice) -> None:
    """The step may have been applied before the run was deleted; the error does not say that it was not."""
    with Proxy(hosted.target) as proxy, connect(proxy.target) as server:
        run = server.create_run(fresh_name("deleted"), {"w": gradient(SIZE, 0)}, AMSGrad())
        with device.hold("committed") as gate:

            def delete() -> None:
                gate.wait_entered()
                proxy.stall(Direction.DOWN)
                gate.release()
                hosted.delete(f"runs/{run.name}")
                proxy.cut()

            with InBackground(delete), pytest.raises(RunNotFound, match="last step this client knows is 0") as caught:
                run.step({"w": gradient(SIZE, 1)})
        assert caught.value.applied is None
