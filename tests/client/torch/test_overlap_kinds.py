"""``overlap=True`` with every kind of parameter and gradient: bit for bit the results of ``overlap=False``.

Tensors leave one by one here, small as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradwire.client import Server, TorchAdam
from gradwire.client.torch import RemoteOptimizer
from gradwire.client.torch import overlap as overlap_module
from tests.client.torch.side_by_side import LR, new_name

STEPS = 5


class Kinds(nn.Module):
    """One weight used twice, strided memory, 0-d, empty, frozen and unused parameters."""

    def __init__(self, *dtypes: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(1)
        first, last = (dtypes * 2)[:2]
        self.first = nn.Linear(6, 6, dtype=first)
        self.tied = nn.Linear(6, 6, dtype=first)
        self.tied.weight = self.first.weight
        self.strided = nn.Parameter(torch.randn(4, 6, dtype=last).t())
        self.conv = nn.Conv2d(1, 2, 2, dtype=last).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=last))
        self.empty = nn.Parameter(torch.zeros(0, 4, dtype=last))
        self.frozen = nn.Parameter(torch.ones(4, dtype=last), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(4, dtype=last))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.tied(torch.tanh(self.first(x.to(self.first.weight.dtype)))))
        hidden = (hidden.to(self.scale.dtype) @ self.strided) * self.scale + self.frozen
        image = self.conv(hidden.reshape(-1, 1, 2, 2))
        out: torch.Tensor = image.float().square().mean() + self.empty.float().sum()
        return out


DTYPES = {
    "float32": (torch.float32,),
    "float64": (torch.float64,),
    "bfloat16": (torch.bfloat16,),
    "float16": (torch.float16,),
    "float32 and float64": (torch.float32, torch.float64),
    "bfloat16 and float32": (torch.bfloat16, torch.float32),
}


def plain(model: nn.Module, optimizer: RemoteOptimizer, x: torch.Tensor) -> None:
    model(x).backward()


def accumulated(model: nn.Module, optimizer: RemoteOptimizer, x: torch.Tensor) -> None:
    with optimizer.no_sync():
        model(2 * x).backward()
    model(x).backward()


def checkpointed(model: nn.Module, optimizer: RemoteOptimizer, x: torch.Tensor) -> None:
    """Forward passes in the middle of the backward pass."""
    loss: Any = checkpoint(model, x.requires_grad_(), use_reentrant=False)
    loss.backward()


def checkpointed_by_a_backward_within(model: nn.Module, optimizer: RemoteOptimizer, x: torch.Tensor) -> None:
    loss: Any = checkpoint(model, x.requires_grad_(), use_reentrant=True)
    loss.backward()


def twice_through_the_graph(model: nn.Module, optimizer: RemoteOptimizer, x: torch.Tensor) -> None:
    loss = model(x)
    loss.backward(retain_graph=True)
    loss.backward()


def parts_of_the_parameters(model: nn.Module, optimizer: RemoteOptimizer, x: torch.Tensor) -> None:
    """One after another; the rest has no gradient."""
    assert isinstance(model, Kinds)
    loss = model(x)
    torch.autograd.backward(loss, inputs=[model.strided, model.first.weight], retain_graph=True)
    torch.autograd.backward(loss, inputs=[model.scale, model.conv.weight])


def gradients_made_by_hand(model: nn.Module, optimizer: RemoteOptimizer, x: torch.Tensor) -> None:
    """``torch.autograd.grad`` accumulates nothing."""
    params = [param for param in model.parameters() if param.requires_grad]
    for param, grad in zip(params, torch.autograd.grad(model(x), params, allow_unused=True), strict=True):
        param.grad = grad


def penalized(model: nn.Module, optimizer: RemoteOptimizer, x: torch.Tensor) -> None:
    """A gradient of a gradient."""
    x = x.requires_grad_()
    (slope,) = torch.autograd.grad(model(x), x, create_graph=True)
    (model(x) + slope.float().square().sum()).backward()


def autocast(model: nn.Module, optimizer: RemoteOptimizer, x: torch.Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(x)
    loss.backward()


WAYS = [
    accumulated,
    checkpointed,
    checkpointed_by_a_backward_within,
    twice_through_the_graph,
    parts_of_the_parameters,
    gradients_made_by_hand,
    penalized,
    autocast,
]

Way = Callable[[nn.Module, RemoteOptimizer, torch.Tensor], None]


@pytest.fixture
def check(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(overlap_module, "SLICE_BYTES", 1)

    def run(way: Way, *dtypes: torch.dtype, **options: Any) -> None:
        found = []
        ahead = 0
        for overlap in (False, True):
            model = Kinds(*dtypes)
            optimizer = RemoteOptimizer(
                model.named_parameters(),
                TorchAdam(lr=LR, eps=1e-4),
                target=server,
                run=new_name(),
                overlap=overlap,
                **options,
            )
            for step in range(STEPS):
                optimizer.zero_grad()
                way(model, optimizer, torch.randn(3, 6, generator=torch.Generator().manual_seed(step)))
                ahead += len(optimizer.run._attachment.early.tensors)
                optimizer.step()
            masters = [torch.from_numpy(value.copy()) for value in optimizer.run.read().values()]
            found.append([*model.parameters(), *masters])
            optimizer.close()
        assert (ahead == 0) == (way is gradients_made_by_hand)
        for index, (without, with_overlap) in enumerate(zip(*found, strict=True)):
            assert torch.equal(without, with_overlap), index
        assert not torch.equal(found[0][0], next(Kinds(*dtypes).parameters())), "nothing has moved"

    return run


@pytest.mark.parametrize("dtypes", DTYPES)
def test_kinds_of_parameters(check: Callable[..., None], dtypes: str) -> None:
    check(plain, *DTYPES[dtypes])


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_gradients(check: Callable[..., None], way: Way) -> None:
    check(way, torch.float32)


@pytest.mark.parametrize("options", [{"clip_norm": 0.05}, {"clip_value": 1e-3}, {"gradient_encoding": "bfloat16"}])
def test_options(check: Callable[..., None], options: dict[str, Any]) -> None:
    check(plain, torch.float32, **options)
