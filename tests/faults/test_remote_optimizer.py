"""A torch training loop whose process, connection or server goes away."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gradwire.client import AMSGrad, ConnectionLost, RetryPolicy, RunNotFound, Server, TorchAdam, connect
from gradwire.client.torch import RemoteOptimizer
from tests.faults.bare import fresh_name
from tests.faults.proxy import Direction, Proxy
from tests.serving import ServerProcess

WIDTH = 400
ATOL = 20 * 2.0**-23
"""A rounding of a parameter of about 1 for each step."""


def model() -> torch.nn.Sequential:
    """Four layers, each a bucket of its own."""
    torch.manual_seed(3)
    return torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(4)))


def backward(network: torch.nn.Module, step: int) -> None:
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(step))
    network(x).square().mean().backward()


def remote(network: torch.nn.Module, target: str | Server, name: str, **options: object) -> RemoteOptimizer:
    return RemoteOptimizer(network.parameters(), TorchAdam(lr=1e-3), target=target, run=name, **options)  # type: ignore[arg-type]


def local(steps: int) -> torch.nn.Sequential:
    """The same training, without a server."""
    network = model()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for step in range(steps):
        optimizer.zero_grad()
        backward(network, step)
        optimizer.step()
    return network


def assert_equal(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=ATOL)


KILLED_MID_BACKWARD = """
import os, signal, sys, time
import torch
from tests.faults.test_remote_optimizer import backward, model, remote

torch.set_num_threads(1)
network = model()
optimizer = remote(network, sys.argv[1], sys.argv[2], overlap=True)
for step in range(2):
    optimizer.zero_grad()
    backward(network, step)
    optimizer.step()

def die(_):
    assert len(optimizer.run._attachment.early.tensors) >= 4, "two layers have left"
    time.sleep(0.3)  # and have arrived
    print("half of step 3 is there", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

optimizer.zero_grad()
network[0].weight.register_post_accumulate_grad_hook(die)
backward(network, 2)
"""


@pytest.fixture
def one_thread() -> Iterator[None]:
    """How many threads add up a gradient shows in its last digits, and two processes need not have as many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_process_killed_mid_backward_leaves_the_run_at_its_last_whole_step(process: ServerProcess) -> None:
    name = fresh_name("killed")
    done = subprocess.run(
        [sys.executable, "-c", KILLED_MID_BACKWARD, process.target, name],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "half of step 3 is there" in done.stdout
    network = model()
    with remote(network, process.target, name, on_existing="resume", takeover=True) as optimizer:
        assert optimizer.run.step_count == 2
        assert_equal(network, local(2))
        optimizer.zero_grad()
        backward(network, 2)
        optimizer.step()
        assert optimizer.run.describe().step == 3
        assert_equal(network, local(3))


@pytest.mark.parametrize(("overlap", "seconds"), [(False, 2.0), (True, 10.0)])
def test_a_server_that_is_away_for_a_while_costs_time_and_nothing_else(
    process: ServerProcess, overlap: bool, seconds: float
) -> None:
    """The connection breaks in the middle of a backward pass, and none can be made for some seconds."""
    network = model()
    with (
        Proxy(process.target) as proxy,
        remote(network, proxy.target, fresh_name("away"), overlap=overlap) as optimizer,
    ):
        for step in range(6):
            optimizer.zero_grad()
            if step == 3:
                timer = threading.Timer(seconds, proxy.welcome)
                middle: Any = network[1].weight
                handle = middle.register_post_accumulate_grad_hook(lambda _: proxy.refuse())
                started = time.monotonic()
                timer.start()
            backward(network, step)
            optimizer.step()
            if step == 3:
                assert time.monotonic() - started >= seconds
                handle.remove()
                timer.join()
        assert optimizer.last_receipt is not None
        assert optimizer.last_receipt.step == optimizer.run.describe().step == 6
    assert_equal(network, local(6))


def test_a_server_that_hangs_for_some_seconds_costs_time_and_nothing_else() -> None:
    """The process stands still with a step on its way, and goes on."""
    network = model()
    with ServerProcess() as own, remote(network, own.target, "hanging", overlap=True) as optimizer:
        for step in range(6):
            optimizer.zero_grad()
            backward(network, step)
            if step == 3:
                os.kill(own.pid, signal.SIGSTOP)
                timer = threading.Timer(3, os.kill, (own.pid, signal.SIGCONT))
                timer.start()
            optimizer.step()
            if step == 3:
                timer.join()
        assert optimizer.run.describe().step == 6
    assert_equal(network, local(6))


@pytest.mark.parametrize("direction", Direction)
def test_a_step_that_is_cut_anywhere_is_made_once(process: ServerProcess, direction: Direction) -> None:
    """2.6 MB travel each way in a step; the connection breaks earlier and earlier in it."""
    network = model()
    steps = 8
    with Proxy(process.target) as proxy, remote(network, proxy.target, fresh_name("cut"), overlap=True) as optimizer:
        for step in range(steps):
            optimizer.zero_grad()
            proxy.cut_after(direction, 2_560_000 * (steps - step) // steps - 10_000)
            backward(network, step)
            optimizer.step()
            assert proxy.was_cut.is_set()
            assert optimizer.last_receipt is not None
            assert optimizer.last_receipt.step == step + 1
    assert_equal(network, local(steps))


def test_the_parameters_stay_whole_when_a_step_fails(process: ServerProcess) -> None:
    """The values of the last step, not a mixture; the next step goes on from what the server has."""
    network = model()
    impatient = RetryPolicy(deadline_seconds=0.5)
    with (
        Proxy(process.target) as proxy,
        remote(network, proxy.target, fresh_name("whole"), retry=impatient) as optimizer,
    ):
        backward(network, 0)
        optimizer.step()
        before = copy.deepcopy(network)
        optimizer.zero_grad()
        backward(network, 1)
        proxy.refuse()
        with pytest.raises(ConnectionLost):
            optimizer.step()
        for ours, theirs in zip(network.parameters(), before.parameters(), strict=True):
            assert torch.equal(ours, theirs)
        proxy.welcome()
        time.sleep(0.5)
        optimizer.step()
        assert optimizer.run.describe().step in (2, 3), "nobody knows of the failed one whether it was made"
        read = optimizer.run.read()
        for name, ours in zip(read, network.parameters(), strict=True):
            assert (read[name] == ours.detach().numpy()).all()


def test_a_rolled_back_run_is_said_so(process: ServerProcess) -> None:
    """A server that has lost the run: an exception, and the parameters stay."""
    network = model()
    name = fresh_name("lost")
    with remote(network, process.target, name) as optimizer, connect(process.target) as other:
        backward(network, 0)
        optimizer.step()
        other.delete_run(name)
        other.create_run(name, {"w": torch.zeros(3).numpy()}, AMSGrad()).close()
        before = copy.deepcopy(network)
        with pytest.raises(RunNotFound, match=r"another run now|has been deleted"):
            optimizer.step()
        assert_equal(network, before)
