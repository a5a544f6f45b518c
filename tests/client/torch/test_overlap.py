"""``overlap=True`` changes when gradients travel, never what is computed: bit for bit the results of ``overlap=False``.

Each training below is run with both. The model has several buckets, one of them of small tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from gradwire.client import RetryPolicy, Server, TorchAdam
from gradwire.client.torch import RemoteOptimizer

STEPS = 5
_numbers = itertools.count()


class Model(torch.nn.Module):
    """Three layers of 640 KB and a branch that not every pass takes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(400, 400)
        self.middle = torch.nn.Linear(400, 400)
        self.branch = torch.nn.Linear(400, 400)
        self.scale = torch.nn.Parameter(torch.tensor(1.5))
        self.frozen = torch.nn.Parameter(torch.ones(400), requires_grad=False)
        self.last = torch.nn.Linear(400, 3)

    def forward(self, x: torch.Tensor, branch: bool = True) -> torch.Tensor:
        hidden = torch.tanh(self.middle(torch.tanh(self.first(x))) * self.scale + self.frozen)
        if branch:
            hidden = hidden + torch.tanh(self.branch(hidden))
        out: torch.Tensor = self.last(hidden)
        return out


@dataclass
class Training:
    model: Model
    optimizer: RemoteOptimizer

    def loss(self, step: int, branch: bool = True) -> torch.Tensor:
        x = torch.randn(8, 400, generator=torch.Generator().manual_seed(step))
        out: torch.Tensor = self.model(x, branch)
        return out.square().mean()

    @property
    def sent(self) -> set[str]:
        """Tensors that have left, or are about to, for the next step."""
        run = self.optimizer.run
        return {run.layout.tensors[index].name for index in run._attachment.early.tensors}


def start(server: Server, overlap: bool, **options: Any) -> Training:
    torch.manual_seed(7)
    model = Model()
    name = f"overlap-{next(_numbers)}"
    preset = TorchAdam(lr=1e-2, amsgrad=True)
    optimizer = RemoteOptimizer(model.named_parameters(), preset, target=server, run=name, overlap=overlap, **options)
    return Training(model, optimizer)


def plain(t: Training, step: int) -> None:
    t.optimizer.zero_grad()
    t.loss(step).backward()
    t.optimizer.step()


def branches(t: Training, step: int) -> None:
    """Tensors without a gradient in every other step."""
    t.optimizer.zero_grad()
    t.loss(step, branch=step % 2 == 0).backward()
    t.optimizer.step()


def accumulation(t: Training, step: int) -> None:
    t.optimizer.zero_grad()
    with t.optimizer.no_sync():
        t.loss(10 * step).backward()
        with t.optimizer.no_sync():
            t.loss(10 * step + 1).backward()
        assert not t.sent
    t.loss(10 * step + 2).backward()
    t.optimizer.step()


def accumulation_ends_in_no_sync(t: Training, step: int) -> None:
    """The last backward adds to gradients that have left."""
    t.optimizer.zero_grad()
    t.loss(10 * step).backward()
    with t.optimizer.no_sync():
        t.loss(10 * step + 1).backward()
    t.optimizer.step()


def accumulation_without_no_sync(t: Training, step: int) -> None:
    """Each backward sends again."""
    t.optimizer.zero_grad()
    t.loss(10 * step).backward()
    t.loss(10 * step + 1, branch=False).backward()
    t.optimizer.step()


def clipping(t: Training, step: int) -> None:
    t.optimizer.zero_grad()
    t.loss(step).backward()
    torch.nn.utils.clip_grad_norm_(t.model.parameters(), 0.1)
    t.optimizer.step()


def data_clipping(t: Training, step: int) -> None:
    """Through ``.data``, which changes no version."""
    t.optimizer.zero_grad()
    t.loss(step).backward()
    for param in t.model.parameters():
        if param.grad is not None:
            param.grad.data.clamp_(-1e-4, 1e-4)
    t.optimizer.step()


def one_gradient_changed(t: Training, step: int) -> None:
    t.optimizer.zero_grad()
    t.loss(step).backward()
    assert t.model.middle.weight.grad is not None
    t.model.middle.weight.grad.mul_(3)
    t.optimizer.step()


def one_gradient_replaced(t: Training, step: int) -> None:
    t.optimizer.zero_grad()
    t.loss(step).backward()
    t.model.first.bias.grad = torch.full((400,), 0.25)
    t.optimizer.step()


def one_gradient_taken_away(t: Training, step: int) -> None:
    t.optimizer.zero_grad()
    t.loss(step).backward()
    t.model.middle.weight.grad = None
    t.optimizer.step()


def thrown_away(t: Training, step: int) -> None:
    """A backward pass, and then zero_grad instead of step."""
    t.loss(1000 + step).backward()
    t.optimizer.zero_grad()
    assert not t.sent
    t.loss(step, branch=False).backward()
    t.optimizer.step()


def thrown_away_by_the_model(t: Training, step: int) -> None:
    """The optimizer is not told."""
    t.loss(1000 + step).backward()
    t.model.zero_grad()
    t.loss(step, branch=False).backward()
    t.optimizer.step()
    t.model.zero_grad()


def zeroed_in_place(t: Training, step: int) -> None:
    t.optimizer.zero_grad(set_to_none=False)
    t.loss(step, branch=step % 2 == 0).backward()
    t.optimizer.step()


def edits_after_the_step(t: Training, step: int) -> None:
    plain(t, step)
    with torch.no_grad():
        t.model.first.weight.clamp_(-0.01, 0.01)
    t.model.last.weight.data.clamp_(-0.01, 0.01)


def edits_after_the_backward(t: Training, step: int) -> None:
    """The write ends the stream on which the gradients have left."""
    t.optimizer.zero_grad()
    t.loss(step).backward()
    with torch.no_grad():
        t.model.middle.weight.mul_(0.9)
    t.optimizer.step()


def closure(t: Training, step: int) -> None:
    values: list[torch.Tensor] = []

    def loss() -> torch.Tensor:
        t.optimizer.zero_grad()
        values.append(t.loss(step))
        values[-1].backward()
        return values[-1]

    assert t.optimizer.step(loss) is values[0]


def unfreezing(t: Training, step: int) -> None:
    if step == 2:
        t.model.frozen.requires_grad_()
        t.model.first.requires_grad_(False)
    plain(t, step)


def scaling(t: Training, step: int) -> None:
    """The third step overflows and is left out."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    t.optimizer.zero_grad()
    loss = t.loss(step) * (float("inf") if step == 2 else 1.0)
    scaler.scale(loss).backward()
    scaler.step(t.optimizer)
    scaler.update()


TRAININGS = [
    plain,
    branches,
    accumulation,
    accumulation_ends_in_no_sync,
    accumulation_without_no_sync,
    clipping,
    data_clipping,
    one_gradient_changed,
    one_gradient_replaced,
    one_gradient_taken_away,
    thrown_away,
    thrown_away_by_the_model,
    zeroed_in_place,
    edits_after_the_step,
    edits_after_the_backward,
    closure,
    unfreezing,
    scaling,
]


@pytest.mark.parametrize("train", TRAININGS)
def test_results_are_those_without_overlap(server: Server, train: Callable[[Training, int], None]) -> None:
    trainings = [start(server, overlap) for overlap in (False, True)]
    for training in trainings:
        for step in range(STEPS):
            train(training, step)
    for (name, expected), found in zip(
        trainings[0].model.named_parameters(), trainings[1].model.parameters(), strict=True
    ):
        assert torch.equal(expected, found), name
    receipts = [training.optimizer.last_receipt for training in trainings]
    assert receipts[0] == receipts[1]
    for training in trainings:
        training.optimizer.close()


@pytest.mark.parametrize("options", [{"clip_norm": 0.01}, {"clip_value": 1e-4}], ids=lambda o: next(iter(o)))
def test_the_server_clips_what_has_left(server: Server, options: dict[str, float]) -> None:
    trainings = [start(server, overlap, **options) for overlap in (False, True)]
    for training in trainings:
        for step in range(STEPS):
            plain(training, step)
    for expected, found in zip(trainings[0].model.parameters(), trainings[1].model.parameters(), strict=True):
        assert torch.equal(expected, found)


@pytest.fixture
def training(server: Server) -> Iterator[Training]:
    t = start(server, overlap=True)
    plain(t, 0)
    yield t
    t.optimizer.close()


def test_gradients_leave_during_the_backward_pass(training: Training) -> None:
    """All that autograd made has left before ``step`` is called, which sends none of it again."""
    seen: list[int] = []
    training.model.middle.weight.register_post_accumulate_grad_hook(lambda _: seen.append(len(training.sent)))
    training.optimizer.zero_grad()
    training.loss(1).backward()
    assert seen[0] > 0, "the layers behind the middle one left before it was done"
    assert training.sent == {name for name, param in training.model.named_parameters() if param.grad is not None}
    gradients = training.optimizer._bound.binding.gradients()
    overlap = training.optimizer._bound.overlap
    assert overlap is not None
    assert set(overlap.still_holding(gradients)) == training.sent


def test_nothing_is_applied_before_the_step(training: Training) -> None:
    before = {name: value.copy() for name, value in training.optimizer.run.read().items()}
    training.loss(1).backward()
    after = training.optimizer.run.read()
    assert all((before[name] == after[name]).all() for name in before)
    assert training.optimizer.run.describe().step == 1


def test_an_abandoned_backward_does_not_disturb_another_use_of_the_run(training: Training) -> None:
    """State and parameters are read and written with gradients staged on the server."""
    training.loss(1).backward()
    state = training.optimizer.state_dict()
    training.optimizer.load_state_dict(state)
    training.optimizer.zero_grad()
    plain(training, 2)
    assert training.optimizer.run.describe().step == 2


def test_hooks_end_with_the_optimizer(server: Server) -> None:
    t = start(server, overlap=True)
    t.optimizer.close()
    t.loss(1).backward()
    assert not t.model.first.weight._post_accumulate_grad_hooks


def test_a_lost_connection_during_the_backward_pass_costs_nothing(server: Server) -> None:
    """The stream on which gradients have left is gone; the step sends all of them on a new one."""
    trainings = [start(server, overlap, retry=RetryPolicy(deadline_seconds=20)) for overlap in (False, True)]
    for t in trainings:
        for step in range(STEPS):
            t.optimizer.zero_grad()
            t.loss(step).backward()
            stream = t.optimizer.run._attachment.stream
            assert stream is not None
            if step % 2:
                stream.abandon()
            t.optimizer.step()
            assert t.optimizer.last_receipt is not None
            assert t.optimizer.last_receipt.step == step + 1
    for expected, found in zip(trainings[0].model.parameters(), trainings[1].model.parameters(), strict=True):
        assert torch.equal(expected, found)
