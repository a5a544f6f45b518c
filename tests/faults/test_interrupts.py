"""Ctrl-C during a step: the next step does the right thing, whether or not the interrupted one was applied."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradwire.client
from gradwire.client import AMSGrad, ParamGroup, Run, Server, connect
from gradwire.client.transport.call_threads import GRACE_SECONDS, in_own_thread
from tests.faults.bare import fresh_name
from tests.faults.gated import GatedDevice, gradient
from tests.faults.hosted import HostedServer, InBackground
from tests.serving import ServerProcess

SIZE = 400_000  # two slices


@pytest.fixture
def server(hosted: HostedServer) -> Iterator[Server]:
    with connect(hosted.target) as connection:
        yield connection


@pytest.mark.parametrize(
    ("operation", "policy", "applied"),
    [("write", "skip", False), ("commit", "skip", True), ("committed", "skip", True), ("early", "reject", False)],
)
def test_ctrl_c_during_a_step(
    server: Server, hosted: HostedServer, device: GatedDevice, operation: str, policy: str, applied: bool
) -> None:
    run = server.create_run(fresh_name("ctrl-c"), {"w": gradient(SIZE, 0)}, AMSGrad(lr=0.01), non_finite=policy)
    with device.hold(operation) as gate:

        def interrupt() -> None:
            gate.wait_entered()
            signal.raise_signal(signal.SIGINT)  # Python handles it in the main thread, which is in `step`

        with InBackground(interrupt), pytest.raises(KeyboardInterrupt):
            run.step({"w": gradient(SIZE, 1)})
        hosted.wait_cancelled()  # else the block might be whole before the server hears of it
    assert run.stale
    receipt = run.step({"w": gradient(SIZE, 2)})
    assert receipt.step == 1 + applied

    twin = server.create_run(fresh_name("twin"), {"w": gradient(SIZE, 0)}, AMSGrad(lr=0.01))
    for seed in (1, 2) if applied else (2,):
        twin.step({"w": gradient(SIZE, seed)})
    assert np.array_equal(run.params["w"], twin.params["w"])
    assert np.array_equal(run.params["w"], run.read()["w"])


class Interruption:
    """Raises KeyboardInterrupt at the n-th line that runs of the client's ``run.py``, ``training/`` and of its
    streams and lanes, but for those of a ``__del__``."""

    CLIENT = str(Path(gradwire.client.__file__).parent)
    TRANSPORT = f"{CLIENT}/transport"
    PLACES = (
        f"{CLIENT}/run.py",
        f"{CLIENT}/training/",
        f"{TRANSPORT}/stream.py",
        f"{TRANSPORT}/grpc_stream.py",
        f"{TRANSPORT}/lane.py",
        f"{TRANSPORT}/lane_sender.py",
    )

    def __init__(self, number: int) -> None:
        self.left = number
        self.place = ""

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(self.PLACES) or frame.f_code.co_name == "__del__":
            return None  # what is raised in a __del__ nobody sees but whoever reads stderr
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self.place = f"{frame.f_code.co_name}, line {frame.f_lineno}"
                raise KeyboardInterrupt
        return self

    @contextmanager
    def during(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)


def one_step(run: Run, seed: int) -> None:
    run.step({"a": gradient(3, seed), "b": gradient(2, seed)})


def two_steps(run: Run, seed: int) -> None:
    run.step_many({"a": gradient(3, seed, 2), "b": gradient(2, seed, 2)})


def two_steps_of_which_nothing_returns(run: Run, seed: int) -> None:
    run.step_many({"a": gradient(3, seed, 2), "b": gradient(2, seed, 2)}, returns="none")


def two_steps_with_their_trajectory(run: Run, seed: int) -> None:
    run.step_many({"a": gradient(3, seed, 2), "b": gradient(2, seed, 2)}, returns="trajectory")


Act = Callable[[Run, int], None]


ACTS = (one_step, two_steps, two_steps_of_which_nothing_returns, two_steps_with_their_trajectory)


@pytest.mark.parametrize(
    ("act", "double_buffer", "lane"),
    [(act, double_buffer, False) for act in ACTS for double_buffer in (False, True)]
    + [(one_step, False, True), (two_steps_with_their_trajectory, True, True)],
)
def test_ctrl_c_at_every_line(process: ServerProcess, act: Act, double_buffer: bool, lane: bool) -> None:
    """After it comes a step of another gradient, which leaves one tensor out."""

    def create(server: Server) -> Run:
        groups = [ParamGroup({"a": gradient(3, 8)}), ParamGroup({"b": gradient(2, 9)})]
        return server.create_run(fresh_name("lines"), groups, AMSGrad(lr=0.1), double_buffer=double_buffer)

    def values(run: Run) -> list[npt.NDArray[Any]]:
        return [run.params["a"], run.params["b"]]

    with connect(process.target, shared_memory=lane) as server:
        steps = 1 if act is one_step else 2
        expected = {}
        for applied in (False, True):
            with create(server) as twin:
                if applied:
                    act(twin, 1)
                twin.refresh()
                twin.step({"a": gradient(3, 2)})
                expected[1 + steps * applied] = [array.copy() for array in values(twin)]

        number, seen = 0, set()
        while True:
            number += 1
            interruption = Interruption(number)
            with create(server) as run:
                try:
                    with interruption.during():
                        act(run, 1)
                except KeyboardInterrupt:
                    pass
                if not interruption.place:
                    break
                receipt = run.step({"a": gradient(3, 2)})
                assert receipt.step in expected, interruption.place
                seen.add(receipt.step)
                for ours, theirs in zip(values(run), expected[receipt.step], strict=True):
                    assert np.array_equal(ours, theirs), interruption.place
                act(run, 3)
                run.refresh()
                assert run.step_count == receipt.step + steps, interruption.place
        assert number > 30
        assert seen == set(expected), "some interruptions came before the commit, some after it"


def test_the_caller_s_thread_never_enters_grpc(process: ServerProcess) -> None:
    """Once in about twenty times Ctrl-C leaves a lock of the channel held there, and the next call waits for ever."""
    entered: set[str] = set()

    def trace(frame: FrameType, event: str, argument: object) -> None:
        if f"{os.sep}grpc{os.sep}" in frame.f_code.co_filename:
            entered.add(frame.f_code.co_name)

    with connect(process.target) as server:
        run = server.create_run(fresh_name("apart"), {"a": gradient(3, 8), "b": gradient(2, 9)}, AMSGrad(lr=0.1))
        before = sys.gettrace()
        gc.collect()
        gc.disable()  # what other tests have left of channels may be collected by any thread
        sys.settrace(trace)
        try:
            one_step(run, 1)
            two_steps_with_their_trajectory(run, 2)
            run.write({"a": gradient(3, 3)}, partial=True)
            one_step(run, 3)  # over a new stream
            run.load_state_dict(run.state_dict())
            run.describe()
            run.read()
            run.close()
        finally:
            sys.settrace(before)
            gc.enable()
        assert not entered
        assert run.step_count == 4


def test_ctrl_c_while_a_call_is_under_way_and_right_after_it() -> None:
    """The answer that nobody takes is not waited for; a call that goes on has a little time to end."""
    for seconds in (0.0, 0.3):
        done: list[float] = []

        def call(seconds: float = seconds, done: list[float] = done) -> None:
            signal.raise_signal(signal.SIGINT)
            time.sleep(seconds)
            done.append(seconds)

        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            in_own_thread(call)
        assert time.monotonic() - started < GRACE_SECONDS
        if seconds:
            assert done, "it was given the time to end"
