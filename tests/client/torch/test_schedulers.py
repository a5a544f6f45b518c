"""Every scheduler of torch's gives the trajectory that it gives locally: what it writes into the groups travels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import Optimizer, lr_scheduler
from torch.optim.swa_utils import SWALR

from gradwire.client import Server, TorchAdam, TorchAdamW
from gradwire.client.torch import RemoteOptimizer
from tests.client.torch.side_by_side import LR, STEPS, SideBySide, Tensors, copies, gradients, new_name

HALF = STEPS // 2
Make = Callable[[Optimizer], Any]

SCHEDULERS: dict[str, Make] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=4, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, milestones=[3, 11], gamma=0.3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.9),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, factor=0.1, total_iters=5),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=15, power=2.0),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1.0 / (1 + step)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.5 if step % 3 == 0 else 1.2),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=12, eta_min=1e-4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=6),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=LR, total_steps=STEPS + 1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, base_lr=1e-3, max_lr=LR, step_size_up=4, cycle_momentum=False),
    "CyclicLR-betas": lambda o: lr_scheduler.CyclicLR(o, base_lr=1e-3, max_lr=LR, step_size_up=4),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.3, patience=1, cooldown=1),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=5), lr_scheduler.CosineAnnealingLR(o, T_max=10)],
        milestones=[5],
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, gamma=0.9), lr_scheduler.ConstantLR(o, factor=0.5, total_iters=7)]
    ),
    "SWALR": lambda o: SWALR(o, swa_lr=1e-3, anneal_epochs=6),
}
RATES: dict[str, Any] = {
    "float": lambda: LR,
    "tensor": lambda: torch.tensor(LR),
}
PRESET = TorchAdam(lr=LR, amsgrad=True)
CYCLES_BETAS = ("OneCycleLR", "CyclicLR-betas")
each_scheduler = pytest.mark.parametrize("name", SCHEDULERS)


def advance(scheduler: Any, step: int) -> None:
    """As a training loop does; the loss of one that watches it falls, stands still, and falls again."""
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(1.0 if 4 < step < 14 else 2.0 / (1 + step))
    else:
        scheduler.step()


def groups_of(rate: Callable[[], Any]) -> Callable[[Tensors], list[dict[str, Any]]]:
    """Two groups, each with a rate of its own: torch's schedulers write into tensors."""
    return lambda p: [{"params": p[:2], "lr": rate()}, {"params": p[2:], "lr": 2 * rate()}]


def rates(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def start(server: Server, name: str, rate: Callable[[], Any]) -> tuple[SideBySide, list[Any]]:
    pair = SideBySide(server, PRESET, lambda p: torch.optim.Adam(p, lr=LR, amsgrad=True), groups=groups_of(rate))
    return pair, [SCHEDULERS[name](optimizer) for optimizer in pair.optimizers]


def train(pair: SideBySide, schedulers: list[Any], first: int, last: int) -> list[Any]:
    """Both by turns; the server must step with the rates that the local groups have. Returns what was in force."""
    seen = []
    for step in range(first, last):
        expected = rates(pair.local)
        pair.step(gradients(step, pair.here))
        assert pair.remote.last_receipt is not None
        assert list(pair.remote.last_receipt.learning_rates) == expected
        seen.append((*expected, *(group["betas"] for group in pair.local.param_groups)))
        for scheduler in schedulers:
            advance(scheduler, step)
        assert rates(pair.remote) == rates(pair.local)
    return seen


@pytest.mark.parametrize("rate", RATES)
@each_scheduler
def test_the_local_trajectory(server: Server, name: str, rate: str) -> None:
    pair, schedulers = start(server, name, RATES[rate])
    seen = train(pair, schedulers, 0, STEPS)
    pair.assert_close()
    assert len({found[:2] for found in seen}) > 1, "the rates never changed"
    assert (len({found[2] for found in seen}) > 1) == (name in CYCLES_BETAS)
    assert schedulers[1].get_last_lr() == schedulers[0].get_last_lr()
    for group in pair.remote.param_groups:
        assert isinstance(group["lr"], torch.Tensor) == (rate != "float"), "tensors are written into, not replaced"
    pair.remote.close()


@each_scheduler
def test_restored_half_way(server: Server, name: str) -> None:
    """Parameters, optimizer and scheduler go on from their states, on a new run; the other side was never stopped."""
    pair, schedulers = start(server, name, RATES["float"])
    train(pair, schedulers, 0, HALF)
    saved, scheduler_state = pair.remote.state_dict(), schedulers[1].state_dict()
    pair.remote.close()
    pair.there = copies(pair.there)
    pair.remote = RemoteOptimizer(groups_of(RATES["float"])(pair.there), PRESET, target=server, run=new_name())
    schedulers[1] = SCHEDULERS[name](pair.remote)
    schedulers[1].load_state_dict(scheduler_state)
    pair.remote.load_state_dict(saved)
    assert rates(pair.remote) == rates(pair.local)
    train(pair, schedulers, HALF, STEPS)
    pair.assert_close()
    pair.remote.close()


@pytest.mark.parametrize("name", ["CosineAnnealingLR", "LambdaLR", "ReduceLROnPlateau"])
def test_a_resumed_run_with_a_restored_scheduler(server: Server, name: str) -> None:
    """The run has the rate of its last step, which a new scheduler takes for its first; the saved one knows better."""
    pair, schedulers = start(server, name, RATES["float"])
    train(pair, schedulers, 0, HALF)
    run, scheduler_state = pair.remote.run.name, schedulers[1].state_dict()
    assert pair.remote.last_receipt is not None
    last = list(pair.remote.last_receipt.learning_rates)
    pair.remote.close()
    pair.remote = RemoteOptimizer(
        groups_of(RATES["float"])(pair.there), PRESET, target=server, run=run, on_existing="resume"
    )
    assert rates(pair.remote) == last
    schedulers[1] = SCHEDULERS[name](pair.remote)
    schedulers[1].load_state_dict(scheduler_state)
    for group, rate in zip(pair.remote.param_groups, schedulers[1].get_last_lr(), strict=True):
        group["lr"] = rate
    train(pair, schedulers, HALF, STEPS)
    pair.assert_close()
    pair.remote.close()


@pytest.mark.parametrize("overlap", [False, True])
def test_the_rate_changes_between_the_backward_pass_and_the_step(server: Server, overlap: bool) -> None:
    """Gradients that have left are stepped with the rate of the step."""
    models = [torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)]
    models[1].load_state_dict(models[0].state_dict())
    remote = RemoteOptimizer(models[1].parameters(), TorchAdamW(lr=LR), target=server, run=new_name(), overlap=overlap)
    optimizers: list[Optimizer] = [torch.optim.AdamW(models[0].parameters(), lr=LR), remote]
    schedulers = [SCHEDULERS["ExponentialLR"](optimizer) for optimizer in optimizers]
    for optimizer in optimizers:
        optimizer.step()  # of nothing: schedulers ask for one before their own
    for step in range(STEPS):
        for model, optimizer, scheduler in zip(models, optimizers, schedulers, strict=True):
            optimizer.zero_grad()
            model(torch.full((2, 3), 0.1 * step)).square().sum().backward()
            scheduler.step()
            optimizer.step()
    for found, expected in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=STEPS * 2.0**-23)
    remote.close()
