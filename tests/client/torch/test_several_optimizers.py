"""Several optimizers: on one connection, each with its own, and another one on the same run."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from gradwire.client import (
    ConnectionClosed,
    Fenced,
    RunAlreadyExists,
    RunBusy,
    RunNotFound,
    Server,
    TorchAdam,
    TorchAdamW,
)
from gradwire.client.torch import RemoteOptimizer
from tests.client.torch.side_by_side import LR, SideBySide, Tensors, gradients, new_name, set_gradients, values
from tests.serving import ServerProcess

PRESET = TorchAdam(lr=LR)


def adam(params: Any) -> torch.optim.Adam:
    return torch.optim.Adam(params, lr=LR)


def start(server: Server, params: Tensors | None = None, **options: Any) -> RemoteOptimizer:
    options = {"target": server, "run": new_name(), **options}
    return RemoteOptimizer(values() if params is None else params, PRESET, **options)


def worker_of(server: Server, name: str) -> str:
    """Who holds the run."""
    return next(run.attached_worker_id for run in server.list_runs() if run.name == name)


@pytest.mark.parametrize("overlap", [False, True])
def test_two_optimizers_on_one_connection(server: Server, overlap: bool) -> None:
    """As for a generator and a critic; closing one leaves the other and the connection alone."""
    pairs = [
        SideBySide(server, PRESET, adam, overlap=overlap),
        SideBySide(server, TorchAdamW(lr=LR), lambda p: torch.optim.AdamW(p, lr=LR), values(3), overlap=overlap),
    ]
    for step in range(10):
        for number, pair in enumerate(pairs):
            pair.step(gradients(100 * number + step, pair.here))
    pairs[0].remote.close()
    pairs[1].train(10)
    for pair in pairs:
        pair.assert_close()
    pairs[1].remote.close()
    assert server.list_runs()


def test_a_connection_of_its_own_is_closed_with_it(server_process: ServerProcess, server: Server) -> None:
    params = values()
    optimizer = start(server, params, target=server_process.target)
    name, own = optimizer.run.name, optimizer._bound.server
    set_gradients(params, gradients(0, params))
    optimizer.step()
    optimizer.close()
    assert not worker_of(server, name)
    with pytest.raises(ConnectionClosed):
        own.list_runs()


# --- another one on the same run -------------------------------------------------------------------------------------


def test_a_second_optimizer_is_refused_and_the_first_goes_on(server: Server) -> None:
    pair = SideBySide(server, PRESET, adam)
    pair.train(0, 3)
    name = pair.remote.run.name
    for mode, error, words in (
        ("error", RunAlreadyExists, f"runs/{name}.* exists"),
        ("resume", RunBusy, f"is attached to runs/{name}; ask for a takeover"),
    ):
        mine = values(9)
        with pytest.raises(error, match=words):
            start(server, mine, run=name, on_existing=mode)
        assert all(torch.equal(param, value) for param, value in zip(mine, values(9), strict=True))
    pair.train(3)
    pair.assert_close()
    pair.remote.close()


@pytest.mark.parametrize("overlap", [False, True])
def test_an_optimizer_whose_run_was_taken_over(server: Server, overlap: bool) -> None:
    """The first one is told, and the run and its parameters stay what they are."""
    pair = SideBySide(server, PRESET, adam, overlap=overlap)
    pair.train(0, 3)
    mine = values(9)
    second = start(server, mine, run=pair.remote.run.name, on_existing="resume", takeover=True)
    assert all(torch.equal(param, value) for param, value in zip(mine, pair.there, strict=True))
    before = [param.detach().clone() for param in pair.there]
    set_gradients(pair.there, gradients(3, pair.there))
    with pytest.raises(Fenced, match="this stream no longer holds it"):
        pair.remote.step()
    assert all(torch.equal(param, value) for param, value in zip(pair.there, before, strict=True))
    assert second.run.describe().step == 3
    pair.remote, old = second, pair.remote
    pair.there = mine
    pair.train(3)
    pair.assert_close()
    old.close()
    assert worker_of(server, second.run.name), "the first one's end is nothing to the second"
    second.close()


def test_an_optimizer_whose_run_was_replaced(server: Server) -> None:
    """The new one begins from its own values; the first one's next step says that its run is gone."""
    pair = SideBySide(server, PRESET, adam)
    pair.train(0, 3)
    second = start(server, values(), run=pair.remote.run.name, on_existing="replace")
    set_gradients(pair.there, gradients(3, pair.there))
    with pytest.raises(RunNotFound, match="has been deleted"):
        pair.remote.step()
    pair.remote.close()
    assert second.run.describe().step == 0
    second.close()


@pytest.mark.parametrize("shared", [False, True])
def test_what_another_process_does_to_shared_parameters_during_a_step_is_told(
    server: Server, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """Hogwild. Between steps it is an edit like others."""
    param = torch.nn.Parameter(torch.zeros(3))
    if shared:
        param.share_memory_()
    with RemoteOptimizer([param], TorchAdam(lr=LR), target=server, run=new_name()) as optimizer:
        param.grad = torch.ones(3)
        optimizer.step()
        param.data.add_(1)
        optimizer.step()
        run_step = optimizer.run.step

        def step_of_both(*args: Any, **keywords: Any) -> Any:
            receipt = run_step(*args, **keywords)
            param.detach().numpy()[:] += 1
            return receipt

        monkeypatch.setattr(optimizer.run, "step", step_of_both)
        with pytest.warns(RuntimeWarning, match="shared memory were changed") if shared else nullcontext():
            optimizer.step()
