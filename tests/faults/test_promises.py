"""Promises 3 and 5 in the smallest form that would show them broken; the others are beside what they promise."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gradwire.client import AMSGrad, GradwireError, InternalError, RetryPolicy, RunNotFound, connect
from gradwire.server.devices.cpu import CpuDevice
from tests.faults.bare import BareStream, Stub, create, fresh_name, spec_of
from tests.faults.gated import gradient
from tests.faults.hosted import HostedServer

SIZE = 1000


class FailingDevice(CpuDevice):
    """Fails, when told to, after it has updated the first half of a commit."""

    fails = False

    def update(self, state: Any, gradients: Any, segments: Any, **options: Any) -> None:
        if self.fails:
            halves = [
                segment._replace(stop=segment.start + (segment.stop - segment.start) // 2) for segment in segments
            ]
            super().update(state, gradients, halves, **options)
            raise RuntimeError("the device is gone")
        super().update(state, gradients, segments, **options)


@pytest.fixture
def failing() -> Iterator[tuple[FailingDevice, HostedServer]]:
    device = FailingDevice(threads=1)
    with HostedServer(device) as hosted:
        yield device, hosted


def test_promise_3_a_run_is_never_torn(
    failing: tuple[FailingDevice, HostedServer], caplog: pytest.LogCaptureFixture
) -> None:
    """Half of a step is on the device when it fails: the run ends, and nobody is served the mixture."""
    device, hosted = failing
    caplog.set_level(logging.CRITICAL)
    with connect(hosted.target) as server:
        other = server.create_run("other", {"w": gradient(SIZE, 0)}, AMSGrad())
        run = server.create_run("torn", {"w": gradient(SIZE, 0)}, AMSGrad(), retry=RetryPolicy(deadline_seconds=2))
        run.step({"w": gradient(SIZE, 1)})
        device.fails = True
        with pytest.raises(GradwireError) as caught:
            run.step({"w": gradient(SIZE, 2)})
        assert isinstance(caught.value, InternalError | RunNotFound)
        device.fails = False
        with pytest.raises(RunNotFound):
            run.read()
        with pytest.raises(RunNotFound):
            server.attach("torn")
        assert [summary.name for summary in server.list_runs()] == ["other"]
        assert other.step({"w": gradient(SIZE, 1)}).step == 1
        server.create_run("torn", {"w": gradient(SIZE, 0)}, AMSGrad()).step({"w": gradient(SIZE, 1)})


def test_promise_5_answers_leave_while_gradients_still_arrive(stub: Stub) -> None:
    """The work on a slice, and the way back, hide behind the slices that follow."""
    name = fresh_name("promise-5")
    create(stub, spec_of(name, SIZE), gradient(SIZE, 0))
    stream = BareStream(stub, name)
    answered = 0
    for start in range(0, SIZE - 100, 100):
        stream.send(
            1, np.atleast_2d(gradient(100, start)), start=start, last=False, **({"steps": 1} if not start else {})
        )
        reply = stream.receive()  # before anything else is sent
        assert reply.offset == start
        assert not reply.HasField("receipt")
        answered += len(reply.data) // 4
    stream.send(1, np.atleast_2d(gradient(100, 1)), start=SIZE - 100)
    last = stream.receive()
    assert last.HasField("receipt")
    assert answered + len(last.data) // 4 == SIZE
    stream.finish()
