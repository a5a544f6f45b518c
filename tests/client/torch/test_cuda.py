"""Parameters on a GPU, and on their way there and back: as on the CPU. Skipped where there is no GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gradwire.client import Server, TorchAdam
from gradwire.client.torch import RemoteOptimizer
from tests.client.torch.side_by_side import LR, SideBySide, Tensors, assert_close, new_name, values

DEVICE = "cuda"
STEPS = 10
PRESET = TorchAdam(lr=LR, eps=1e-4, amsgrad=True)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def adam(params: Any) -> torch.optim.Adam:
    return torch.optim.Adam(params, lr=LR, eps=1e-4, amsgrad=True)


def model() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(400, 400), nn.Tanh(), nn.Linear(400, 400), nn.Tanh(), nn.Linear(400, 2))


def train(network: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int, device: str) -> None:
    for step in range(first, last):
        optimizer.zero_grad()
        x = torch.randn(4, 400, generator=torch.Generator().manual_seed(step)).to(device)
        network(x).sub(1).square().mean().backward()
        optimizer.step()


def on_the_cpu(tensors: Any) -> Tensors:
    return [tensor.detach().cpu() for tensor in tensors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_parameters(server: Server, dtype: torch.dtype) -> None:
    """Of any kind of memory; the gradients are the same, so the CPU's results are too, bit for bit."""
    start = [*values(0, dtype), torch.randn(5, 4).to(dtype).t()]
    sides = []
    for device in (DEVICE, "cpu"):
        params = [param.detach().clone().to(device).requires_grad_() for param in start]
        optimizer = RemoteOptimizer(params, PRESET, target=server, run=new_name())
        for step in range(STEPS):
            for param in params:
                grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(step))
                param.grad = grad.to(device=device, dtype=dtype)
            optimizer.step()
            if step == 5:
                with torch.no_grad():
                    params[0][1, 1] = 0.5
        for entry in optimizer.state_dict()["state"].values():
            assert entry["exp_avg"].device.type == device
        sides.append(on_the_cpu(params))
        optimizer.close()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*sides, strict=True))


@pytest.mark.parametrize("overlap", [False, True])
def test_a_training(server: Server, overlap: bool) -> None:
    """Beside a local one on the same device; on a stream of one's own, too."""
    there, here = model().to(DEVICE), model().to(DEVICE)
    remote = RemoteOptimizer(there.parameters(), PRESET, target=server, run=new_name(), overlap=overlap)
    local = adam(here.parameters())
    for network, optimizer in ((there, remote), (here, local)):
        train(network, optimizer, 0, STEPS, DEVICE)
        if DEVICE == "cuda":
            with torch.cuda.stream(torch.cuda.Stream()):
                train(network, optimizer, STEPS, 2 * STEPS, DEVICE)
                torch.cuda.synchronize()
    for ours, theirs in zip(on_the_cpu(there.parameters()), on_the_cpu(here.parameters()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    remote.close()


def test_overlap_changes_nothing(server: Server) -> None:
    found = []
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for overlap in (False, True):
            network = model().to(DEVICE)
            optimizer = RemoteOptimizer(network.parameters(), PRESET, target=server, run=new_name(), overlap=overlap)
            train(network, optimizer, 0, STEPS, DEVICE)
            found.append(on_the_cpu(network.parameters()))
            optimizer.close()
    finally:
        torch.use_deterministic_algorithms(False)
    assert_close(found[1], found[0], STEPS)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_device_that_changes_between_steps(server: Server, overlap: bool) -> None:
    """``model.cuda()`` after the optimizer was made, and ``model.cpu()`` later: the state need not move."""
    network = model()
    optimizer = RemoteOptimizer(network.parameters(), PRESET, target=server, run=new_name(), overlap=overlap)
    reference = model()
    train(network, optimizer, 0, 3, "cpu")
    network.to(DEVICE)
    train(network, optimizer, 3, 6, DEVICE)
    network.to("cpu")
    train(network, optimizer, 6, STEPS, "cpu")
    train(reference, adam(reference.parameters()), 0, STEPS, "cpu")
    for ours, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert optimizer.run.describe().step == STEPS
    optimizer.close()


def test_a_checkpoint_goes_to_torch_and_back(server: Server) -> None:
    start = [param.detach().to(DEVICE).requires_grad_() for param in values()]
    pair = SideBySide(server, PRESET, adam, start)
    pair.train(0, 5)
    pair.local.load_state_dict(pair.remote.state_dict())
    pair.remote.load_state_dict(pair.local.state_dict())
    assert {entry["exp_avg"].device.type for entry in pair.local.state_dict()["state"].values()} == {DEVICE}
    pair.train(5)
    assert_close(on_the_cpu(pair.there), on_the_cpu(pair.here))
    pair.remote.close()
