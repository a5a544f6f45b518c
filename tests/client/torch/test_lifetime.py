"""Beginning and end of a `RemoteOptimizer`: closing, collection, the end of the process; no copies."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from gradwire.client import ConnectionClosed, Server, TorchAdam
from gradwire.client.torch import RemoteOptimizer, closing
from gradwire.v1 import service_pb2
from tests.client.torch.side_by_side import LR, Tensors, gradients, new_name, set_gradients, values

PRESET = TorchAdam(lr=LR)


def start(server: Server, params: Tensors | None = None, **options: Any) -> RemoteOptimizer:
    options = {"target": server, "run": new_name(), **options}
    return RemoteOptimizer(values() if params is None else params, PRESET, **options)


def worker_of(server: Server, name: str) -> str:
    """Who holds the run."""
    return next(run.attached_worker_id for run in server.list_runs() if run.name == name)


def test_it_is_an_optimizer(server: Server) -> None:
    """For ``isinstance``, in sets, as text."""
    with start(server) as optimizer:
        assert isinstance(optimizer, torch.optim.Optimizer)
        assert optimizer in {optimizer}
        text = repr(optimizer)
        assert text.startswith("RemoteOptimizer (\nParameter Group 0\n    amsgrad: False\n    betas: (0.9, 0.999)\n")
        assert "    lr: 0.01\n" in text


@pytest.mark.parametrize("overlap", [False, True])
def test_copies_and_pickles_are_refused(server: Server, overlap: bool) -> None:
    """And nothing else is: a model, its deep copy and a state can be saved."""
    model = torch.nn.Linear(3, 2)
    with start(server, list(model.parameters()), overlap=overlap) as optimizer:
        model(torch.ones(3)).sum().backward()
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps, lambda it: torch.save({"it": it}, io.BytesIO())):
            with pytest.raises(TypeError, match=r"cannot be pickled or copied: .* Save state_dict\(\)"):
                attempt(optimizer)
        for it in (model, optimizer.state_dict()):
            torch.save(it, io.BytesIO())
            copy.deepcopy(it)
        optimizer.step()


@pytest.mark.parametrize("overlap", [False, True])
def test_on_a_connection_that_somebody_has_closed(server: Server, overlap: bool) -> None:
    """A step says so and changes nothing, a backward pass says nothing, and the optimizer can be closed."""
    params = values()
    optimizer = start(server, params, overlap=overlap)
    server.close()
    before = [param.detach().clone() for param in params]
    torch.stack([(param**2).sum() for param in params]).sum().backward()
    uses: list[Any] = [optimizer.step, optimizer.state_dict, lambda: optimizer.log(loss=1.0), optimizer.run.read]
    for use in uses:
        with pytest.raises(ConnectionClosed):
            use()
    assert all(torch.equal(param, value) for param, value in zip(params, before, strict=True))
    optimizer.close()


@pytest.mark.parametrize("overlap", [False, True])
def test_closing(server: Server, overlap: bool) -> None:
    """Gives the run back, as often as one likes; what needs it says so from then on, and changes nothing."""
    params = values()
    optimizer = start(server, params, overlap=overlap)
    name = optimizer.run.name
    set_gradients(params, gradients(0, params))
    with optimizer as entered:
        assert entered is optimizer
        optimizer.step()
        state = optimizer.state_dict()
        assert worker_of(server, name)
    assert not worker_of(server, name)
    optimizer.close()
    before = [param.detach().clone() for param in params]
    uses: list[Any] = [
        optimizer.step,
        optimizer.state_dict,
        lambda: optimizer.load_state_dict(state),
        lambda: optimizer.add_param_group({"params": [torch.zeros(2)]}),
        lambda: optimizer.run,
        lambda: optimizer.last_receipt,
        lambda: optimizer.__enter__(),
    ]
    for use in uses:
        with pytest.raises(RuntimeError, match="this optimizer is closed"):
            use()
    assert len(optimizer.param_groups) == 1
    assert all(torch.equal(param, value) for param, value in zip(params, before, strict=True))
    with optimizer.no_sync():
        optimizer.zero_grad()
    assert params[0].grad is None
    assert repr(optimizer).startswith("RemoteOptimizer")
    resumed = start(server, params, run=name, on_existing="resume")
    assert resumed.run.step_count == 1
    resumed.close()


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("scheduled", [False, True])
def test_collection_gives_the_run_back(server: Server, overlap: bool, scheduled: bool) -> None:
    """In the middle of a step's gradients, and with a scheduler around it."""
    model = torch.nn.Linear(3, 2)
    optimizer = start(server, list(model.parameters()), overlap=overlap)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1) if scheduled else None
    name, alive = optimizer.run.name, weakref.ref(optimizer)
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    model(torch.ones(3)).sum().backward()
    assert worker_of(server, name)
    del optimizer, scheduler
    gc.collect()
    assert alive() is None
    assert not worker_of(server, name)
    model(torch.ones(3)).sum().backward()  # whatever it has left in the parameters does no harm


def test_collection_in_a_thread_that_grpc_needs(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector may run anywhere: also in the thread that brings the answers of this very connection."""
    monkeypatch.setattr(closing, "WAIT_SECONDS", 0.3)
    holder = [start(server)]
    name = holder[0].run.name
    dropped = threading.Event()

    def drop(_: object) -> None:
        holder.clear()
        dropped.set()

    call = server._link.stub.GetRun.future(service_pb2.GetRunRequest(name=f"runs/{name}"))
    call.add_done_callback(drop)
    assert dropped.wait(20), "the thread waits for itself"
    with start(server, run=name, on_existing="resume") as resumed:
        assert resumed.run.step_count == 0


AT_EXIT = """
import sys, torch
from gradwire.client.torch import RemoteOptimizer
kept = []
for target in sys.argv[1], "embedded":
    model = torch.nn.Linear(3, 2)
    optimizer = RemoteOptimizer(model.parameters(), target=target, run=sys.argv[2], overlap=True)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    model(torch.ones(3)).sum().backward()
    kept.append((optimizer, scheduler))
print(optimizer._bound.server.embedded._directory)
raise KeyError("mine")
"""


def test_the_end_of_the_process_gives_the_run_back(server: Server) -> None:
    """In the middle of a step, after an exception, without a further word; of an embedded server nothing is left."""
    name = new_name()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", AT_EXIT, server.target, name],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "KeyError: 'mine'"
    assert not worker_of(server, name)
    with server.attach(name) as run:
        assert run.step_count == 1
    assert "gradwire-" in done.stdout
    assert not Path(done.stdout.strip()).exists()
