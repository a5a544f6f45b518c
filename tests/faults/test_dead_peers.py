"""A peer that is dead or cut off loses its place within seconds, although its connection never ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from gradwire.client import connect
from tests.faults.bare import Stub, attach_when_free, create, fresh_name, read_parameters, spec_of
from tests.faults.client_process import ClientProcess
from tests.faults.gated import BULK, gradient
from tests.faults.proxy import Proxy
from tests.serving import ServerProcess


@pytest.fixture(scope="module")
def alert_process() -> Iterator[ServerProcess]:
    """A server that probes its peers every second."""
    with ServerProcess("--keepalive", "1", module="tests.far_server") as server:
        yield server


def test_a_stopped_client_loses_its_place(alert_process: ServerProcess, connect_bare: Callable[[str], Stub]) -> None:
    """SIGSTOP: the connection stays open, and nobody answers."""
    name, stub = fresh_name("stopped"), connect_bare(alert_process.target)
    create(stub, spec_of(name, BULK), gradient(BULK, 0))
    with ClientProcess("half-step", alert_process.target, name, BULK) as client:
        client.wait_for("half of step 2 is there")
        client.stop()
        other = attach_when_free(stub, name, "other")
        assert other.attached.step == 1
        other.finish()


def test_a_client_whose_network_is_gone_loses_its_place(
    alert_process: ServerProcess, connect_bare: Callable[[str], Stub]
) -> None:
    """No packet arrives any more, no end of the connection either."""
    name, stub = fresh_name("unplugged"), connect_bare(alert_process.target)
    create(stub, spec_of(name, BULK), gradient(BULK, 0))
    with Proxy(alert_process.target) as proxy, connect(proxy.target) as server:
        run = server.attach(name)
        run.step({"w": gradient(BULK, 1)})
        proxy.stall()
        other = attach_when_free(stub, name, "other")
        assert other.attached.step == 1
        other.finish()
        # When its network is back, the first client goes on.
        proxy.cut()
        assert run.step({"w": gradient(BULK, 2)}).step == 2
        assert np.array_equal(run.params["w"], read_parameters(stub, name))
