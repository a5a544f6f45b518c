"""What training scripts do around a step: scaling, clipping, hooks, closures, accumulation. As locally, to rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from gradwire.client import Server, TorchAdam
from gradwire.client.torch import RemoteOptimizer
from tests.client.torch.side_by_side import LR, STEPS, assert_close, new_name


class Model(nn.Module):
    """Small, with a branch that not every pass takes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first = nn.Linear(6, 8)
        self.branch = nn.Linear(8, 8)
        self.last = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, branch: bool = True) -> torch.Tensor:
        hidden = torch.tanh(self.first(x))
        if branch:
            hidden = hidden + torch.tanh(self.branch(hidden))
        out: torch.Tensor = self.last(hidden)
        return out


class Side:
    """One of the two trainings."""

    def __init__(self, make: Callable[[Any], Optimizer]) -> None:
        self.model = Model()
        self.optimizer = make(self.model.parameters())
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        self.seen: list[Any] = []

    def loss(self, step: int, branch: bool = True) -> torch.Tensor:
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        out: torch.Tensor = self.model(x, branch)
        return (out - 1).square().mean()

    def no_sync(self) -> Any:
        """What the local training has no need of."""
        return self.optimizer.no_sync() if isinstance(self.optimizer, RemoteOptimizer) else torch.enable_grad()


def plain(side: Side, step: int) -> None:
    side.optimizer.zero_grad()
    side.loss(step).backward()
    side.optimizer.step()


def overflowing(side: Side, step: int) -> torch.Tensor:
    """Steps 4 and 5 overflow."""
    return side.loss(step) * (float("inf") if step in (4, 5) else 1.0)


def scaled(side: Side, step: int) -> None:
    side.optimizer.zero_grad()
    side.scaler.scale(overflowing(side, step)).backward()
    side.scaler.step(side.optimizer)
    side.scaler.update()
    side.seen.append(side.scaler.get_scale())


def unscaled_and_clipped(side: Side, step: int) -> None:
    side.optimizer.zero_grad()
    side.scaler.scale(overflowing(side, step)).backward()
    side.scaler.unscale_(side.optimizer)
    nn.utils.clip_grad_norm_(side.model.parameters(), 0.05)
    side.scaler.step(side.optimizer)
    side.scaler.update()
    side.seen.append(side.scaler.get_scale())


def scaled_and_accumulated(side: Side, step: int) -> None:
    side.optimizer.zero_grad()
    with side.no_sync():
        side.scaler.scale(side.loss(100 + step)).backward()
    side.scaler.scale(overflowing(side, step)).backward()
    side.scaler.step(side.optimizer)
    side.scaler.update()
    side.seen.append(side.scaler.get_scale())


def clipped_by_norm(side: Side, step: int) -> None:
    side.optimizer.zero_grad()
    side.loss(step).backward()
    norm = nn.utils.clip_grad_norm_(side.model.parameters(), 0.05)
    side.optimizer.step()
    side.seen.append(bool(norm > 0.05))


def clipped_by_infinity_norm(side: Side, step: int) -> None:
    side.optimizer.zero_grad()
    side.loss(step).backward()
    nn.utils.clip_grad_norm_(side.model.parameters(), 0.05, norm_type=float("inf"), foreach=False)
    side.optimizer.step()


def clipped_by_value(side: Side, step: int) -> None:
    side.optimizer.zero_grad()
    side.loss(step).backward()
    nn.utils.clip_grad_value_(side.model.parameters(), 1e-2)
    side.optimizer.step()


def accumulated(side: Side, step: int) -> None:
    """Four micro-batches; the branch has its gradient from the first alone."""
    side.optimizer.zero_grad()
    for part in range(4):
        side.loss(10 * step + part, branch=part == 0).backward()
    side.optimizer.step()


def accumulated_without_sync(side: Side, step: int) -> None:
    side.optimizer.zero_grad()
    with side.no_sync():
        for part in range(3):
            side.loss(10 * step + part, branch=part == 0).backward()
    side.loss(10 * step + 3, branch=False).backward()
    side.optimizer.step()


def accumulated_over_a_failure(side: Side, step: int) -> None:
    """The exception leaves ``no_sync`` as it was found."""
    side.optimizer.zero_grad()
    try:
        with side.no_sync():
            side.loss(100 + step).backward()
            raise KeyError("mine")
    except KeyError:
        pass
    side.loss(step).backward()
    side.optimizer.step()


def closure(side: Side, step: int) -> None:
    def run() -> float:
        side.optimizer.zero_grad()
        loss = side.loss(step)
        loss.backward()
        return loss.item()

    side.seen.append(round(side.optimizer.step(run), 4))


def stepped_twice(side: Side, step: int) -> None:
    """With the same gradients."""
    plain(side, step)
    side.optimizer.step()


def stepped_from_a_hook(side: Side, step: int) -> None:
    """In the middle of the backward pass, as some scripts do to free gradients early."""
    side.optimizer.zero_grad()
    weight: Any = side.model.first.weight
    handle = weight.register_post_accumulate_grad_hook(lambda _: side.optimizer.step())
    side.loss(step).backward()
    handle.remove()


def detected_anomalies(side: Side, step: int) -> None:
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        plain(side, step)


LOOPS = [
    plain,
    scaled,
    unscaled_and_clipped,
    scaled_and_accumulated,
    clipped_by_norm,
    clipped_by_infinity_norm,
    clipped_by_value,
    accumulated,
    accumulated_without_sync,
    accumulated_over_a_failure,
    closure,
    stepped_twice,
    stepped_from_a_hook,
    detected_anomalies,
]


@pytest.fixture(params=[False, True], ids=["plain", "overlap"])
def sides(server: Server, request: pytest.FixtureRequest) -> Iterator[tuple[Side, Side]]:
    """The local training, and the remote one."""
    preset = TorchAdam(lr=LR, eps=1e-6, amsgrad=True)
    remote = Side(lambda p: RemoteOptimizer(p, preset, target=server, run=new_name(), overlap=request.param))
    yield Side(lambda p: torch.optim.Adam(p, lr=LR, eps=1e-6, amsgrad=True)), remote
    assert isinstance(remote.optimizer, RemoteOptimizer)
    remote.optimizer.close()


def check(sides: tuple[Side, Side], train: Callable[[Side, int], None]) -> None:
    for side in sides:
        for step in range(STEPS):
            train(side, step)
    local, remote = sides
    # Gradients follow parameters here, which doubles and redoubles a difference a few times.
    assert_close(list(remote.model.parameters()), list(local.model.parameters()), 8 * STEPS)
    assert remote.seen == local.seen
    steps = [[entry["step"] for entry in side.optimizer.state_dict()["state"].values()] for side in sides]
    assert steps[0] == steps[1] != []


@pytest.mark.parametrize("train", LOOPS)
def test_training_loops(sides: tuple[Side, Side], train: Callable[[Side, int], None]) -> None:
    check(sides, train)
    seen = sides[1].seen
    if train in (scaled, unscaled_and_clipped, scaled_and_accumulated):
        assert seen[3] > seen[5] < seen[-1], "two overflows halved the scale, twice; then it grew"
        assert sides[1].optimizer.state_dict()["state"][0]["step"] == STEPS - 2
    if train is clipped_by_norm:
        assert True in seen


def test_hooks_of_the_step(sides: tuple[Side, Side]) -> None:
    """One's own and everybody's, in torch's order; they may look at parameters and gradients, and change both."""
    for side in sides:

        def before(optimizer: Optimizer, args: Any, kwargs: Any, side: Side = side) -> None:
            side.seen.append("before")
            for param in side.model.parameters():
                if param.grad is not None:
                    param.grad.mul_(0.5)

        def after(optimizer: Optimizer, args: Any, kwargs: Any, side: Side = side) -> None:
            side.seen.append("after")
            with torch.no_grad():
                side.model.first.weight.clamp_(-0.3, 0.3)

        side.optimizer.register_step_pre_hook(before)
        side.optimizer.register_step_post_hook(after)
    owners = {id(side.optimizer): side for side in sides}
    handles = [
        register_optimizer_step_pre_hook(lambda optimizer, *_: owners[id(optimizer)].seen.append("all before")),
        register_optimizer_step_post_hook(lambda optimizer, *_: owners[id(optimizer)].seen.append("all after")),
    ]
    try:
        check(sides, plain)
    finally:
        for handle in handles:
            handle.remove()
    assert sides[1].seen[:4] == ["all before", "before", "after", "all after"]
    assert len(sides[1].seen) == 4 * STEPS


def test_the_profiler_sees_the_step(sides: tuple[Side, Side]) -> None:
    with torch.autograd.profiler.profile() as profile:
        plain(sides[1], 0)
    names = {event.name for event in profile.function_events or ()}
    assert {"Optimizer.step#RemoteOptimizer.step", "Optimizer.zero_grad#RemoteOptimizer.zero_grad"} <= names
