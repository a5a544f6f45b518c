"""Edits of parameters count when a step begins, when the run is read, and at the end; never in a backward pass."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gradwire.client import Server, TorchAdam
from gradwire.client.torch import RemoteOptimizer
from gradwire.client.torch.bound_run import BoundRun
from tests.client.torch.side_by_side import LR, assert_close, assert_equal, copies, new_name, values


def make(server: Server, params: Any, **options: Any) -> RemoteOptimizer:
    return RemoteOptimizer(params, TorchAdam(lr=LR), target=server, run=new_name(), **options)


def sharpness_aware(model: torch.nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor) -> None:
    """One step of sharpness-aware minimization: the gradient is that of other weights than the step begins with."""
    params = list(model.parameters())
    model(inputs).square().mean().backward()
    moves = [param.grad * 0.1 for param in params if param.grad is not None]
    optimizer.zero_grad()
    with torch.no_grad():
        for param, move in zip(params, moves, strict=True):
            param.add_(move)
    model(inputs).square().mean().backward()
    with torch.no_grad():
        for param, move in zip(params, moves, strict=True):
            param.sub_(move)
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_others_during_backward_alone(server: Server, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    start = torch.nn.Linear(5, 4).to(dtype)
    models = [torch.nn.Linear(5, 4).to(dtype) for _ in range(2)]
    inputs = torch.randn(3, 5).to(dtype)
    for model in models:
        model.load_state_dict(start.state_dict())
    optimizers = [
        make(server, model.parameters(), overlap=overlap) for model, overlap in zip(models, (False, True), strict=True)
    ]
    for _ in range(12):
        for model, optimizer in zip(models, optimizers, strict=True):
            sharpness_aware(model, optimizer, inputs)
    plain, overlapped = ([param.detach() for param in model.parameters()] for model in models)
    assert_equal(overlapped, plain)
    assert not torch.equal(plain[0], start.weight)
    for optimizer in optimizers:
        optimizer.close()


def test_a_backward_without_a_step_leaves_the_run_as_it_was(server: Server) -> None:
    model = torch.nn.Linear(5, 4)
    with make(server, model.parameters(), overlap=True) as optimizer:
        inputs = torch.ones(2, 5)
        for _ in range(2):
            optimizer.zero_grad()
            model(inputs).sum().backward()
            optimizer.step()
        before = optimizer.run.digest()
        kept = [param.detach().clone() for param in model.parameters()]
        optimizer.zero_grad()
        with torch.no_grad():
            model.weight.add_(1)
        model(inputs).sum().backward()
        with torch.no_grad():
            model.weight.copy_(kept[0])
        assert optimizer.run.digest() == before


@pytest.mark.parametrize("how", ["read", "export", "fork", "close"])
def test_edits_after_the_last_step_are_written(server: Server, tmp_path: Path, how: str) -> None:
    """A critic's weights are clamped after each step, the last one too."""
    param = torch.nn.Parameter(torch.linspace(-1, 1, 5))
    optimizer = make(server, [param])
    param.grad = torch.ones(5)
    optimizer.step()
    with torch.no_grad():
        param.clamp_(-0.1, 0.1)
    run = optimizer.run
    if how == "read":
        (found,) = run.read().values()
    elif how == "export":
        run.export(tmp_path / "run", weights_only=True)
        found = load_file(tmp_path / "run").popitem()[1].numpy()
    elif how == "fork":
        with run.fork(new_name()) as other:
            (found,) = other.read().values()
    else:
        optimizer.close()
        with server.attach(run.name) as other:
            (found,) = other.read().values()
    assert torch.equal(torch.from_numpy(found.copy()), param.detach())
    optimizer.close()


def test_nothing_is_written_where_the_block_has_failed(server: Server) -> None:
    param, name = torch.nn.Parameter(torch.zeros(3)), new_name()

    def fail() -> None:
        with RemoteOptimizer([param], TorchAdam(), target=server, run=name):
            with torch.no_grad():
                param.fill_(7)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with server.attach(name) as run:
        (found,) = run.read().values()
        assert not found.any()


class Interrupted:
    """Raises KeyboardInterrupt in the main thread while a run is being replaced, at a point of its own choice."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
        grow = BoundRun.grow

        def interrupted(run: BoundRun) -> None:
            if before:
                self._interrupt()
            grow(run)
            if not before:
                self._interrupt()

        monkeypatch.setattr(BoundRun, "grow", interrupted)

    def _interrupt(self) -> None:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]


@pytest.mark.parametrize("before", [True, False])
def test_add_param_group_is_whole_whenever_it_is_interrupted(
    server: Server, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    params = [torch.nn.Parameter(torch.zeros(4)) for _ in range(2)]
    optimizer = make(server, params[:1])

    def step() -> None:
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()

    step()
    Interrupted(monkeypatch, before)
    with pytest.raises(KeyboardInterrupt):
        optimizer.add_param_group({"params": params[1:]})
    assert len(optimizer.param_groups) == 2
    step()
    assert_close([param.detach() for param in params], [torch.full((4,), -2 * LR), torch.full((4,), -LR)])
    optimizer.close()


def test_param_groups_that_were_assigned_and_a_state_loaded(server: Server) -> None:
    """As a training that unfroze its backbone is resumed."""
    start = values()[:2]
    trained = copies(start)
    first = torch.optim.Adam(trained[:1], lr=LR)
    first.add_param_group({"params": trained[1:], "lr": LR / 10})
    for param in trained:
        param.grad = torch.ones_like(param)
    first.step()
    saved = first.state_dict()
    ours, theirs = copies(start), copies(start)
    for params, optimizer in ((ours, make(server, ours[:1])), (theirs, torch.optim.Adam(theirs[:1], lr=LR))):
        group = optimizer.param_groups[0]
        optimizer.param_groups = [group, {**group, "params": params[1:]}]
        optimizer.load_state_dict(saved)
        for _ in range(2):
            for param in params:
                param.grad = torch.ones_like(param)
            optimizer.step()
    assert_close(ours, theirs)


def test_compiled_code_steps_by_a_graph_break(server: Server) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    with make(server, model.parameters(), overlap=True) as optimizer:

        @torch.compile(backend="eager")  # type: ignore[untyped-decorator, unused-ignore]
        def train(inputs: torch.Tensor) -> None:
            optimizer.zero_grad()
            model(inputs).square().sum().backward()
            optimizer.step()

        before = model.weight.detach().clone()
        for steps in range(1, 4):
            train(torch.ones(2, 3))
            assert optimizer.run.step_count == steps
        assert not torch.equal(model.weight, before)


def test_hyperparameters_are_taken_as_frameworks_give_them(server: Server) -> None:
    ours, theirs = copies(values()), copies(values())
    local = torch.optim.Adam(theirs, lr=0.02, betas=(0.8, 0.9), weight_decay=0.1, amsgrad=True)
    remote = RemoteOptimizer(
        ours, target=server, run=new_name(), lr=0.02, betas=(0.8, 0.9), weight_decay=0.1, amsgrad=True
    )
    for _ in range(3):
        for params, optimizer in ((ours, remote), (theirs, local)):
            for param in params:
                param.grad = torch.ones_like(param)
            optimizer.step()
    assert_close(ours, theirs)
    remote.close()
    with pytest.raises(TypeError, match="momentum"):
        RemoteOptimizer(ours, target=server, run=new_name(), momentum=0.9)


def test_parameters_that_no_run_can_hold_are_refused_by_their_cause(server: Server) -> None:
    with pytest.raises(ValueError, match="lazy module has not seen a batch"):
        make(server, torch.nn.LazyLinear(2).parameters())

    class Sharded(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
            return function(*args, **(kwargs or {}))

    sharded = torch.Tensor._make_subclass(Sharded, torch.zeros(3), require_grad=True)
    with pytest.raises(TypeError, match="Sharded, a tensor subclass"):
        make(server, [sharded])
    with torch.inference_mode():
        param = torch.zeros(3)
        param.grad = torch.ones(3)
        optimizer = make(server, [param])
        optimizer.step()
        assert_close([param], [torch.full((3,), -LR)])
        optimizer.close()
