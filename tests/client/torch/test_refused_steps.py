"""Steps that are refused: they change nothing, neither here nor on the server, and training goes on after them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gradwire.client import InvalidHyperparameter, NonFiniteGradient, Server, TorchAdam
from gradwire.client.torch import RemoteOptimizer
from tests.client.torch.side_by_side import LR, SideBySide, Tensors, assert_equal, copies, new_name

PRESET = TorchAdam(lr=LR)


def adam(params: Any) -> torch.optim.Adam:
    return torch.optim.Adam(params, lr=LR)


@pytest.fixture(params=[False, True], ids=["plain", "overlap"])
def pair(server: Server, request: pytest.FixtureRequest) -> Iterator[SideBySide]:
    pair = SideBySide(server, PRESET, adam, overlap=request.param)
    pair.train(0, 3)
    yield pair
    pair.remote.close()


def refused(pair: SideBySide, error: type[Exception], words: str) -> None:
    """A step, which changes no parameter and no state."""
    before = copies(pair.there) if all(p.device.type != "meta" for p in pair.there) else []
    with pytest.raises(error, match=words):
        pair.remote.step()
    if before:
        assert_equal(pair.there, before)
    assert pair.remote.run.describe().step == 3


def goes_on(pair: SideBySide) -> None:
    for params in (pair.here, pair.there):
        for param in params:
            param.grad = None
    pair.train(3)
    pair.assert_close()


def with_gradients(params: Tensors) -> None:
    for param in params:
        param.grad = torch.ones_like(param)


@pytest.mark.parametrize("index", [0, 2, 3])
def test_a_changed_shape(pair: SideBySide, index: int) -> None:
    param = pair.there[index]
    kept = param.data
    with_gradients(pair.there)
    param.grad = None
    param.data = torch.zeros(*param.shape, 2)
    words = rf"'param_{index}' has shape .* now; the run has it as \({', '.join(map(str, kept.shape))}"
    refused(pair, ValueError, words)
    param.grad = torch.ones_like(param)
    refused(pair, ValueError, words)
    param.grad = None
    param.data = kept
    goes_on(pair)


def test_a_changed_dtype(pair: SideBySide) -> None:
    with_gradients(pair.there)
    kept = pair.there[0].data
    pair.there[0].grad = None
    pair.there[0].data = kept.double()
    refused(pair, ValueError, "'param_0' is torch.float64 now; the run was made for torch.float32")
    pair.there[0].data = kept
    goes_on(pair)


def test_a_model_that_has_become_another_type(server: Server) -> None:
    """``model.half()`` in the middle of a training."""
    model = torch.nn.Linear(3, 2)
    optimizer = RemoteOptimizer(model.parameters(), PRESET, target=server, run=new_name())
    model.half()
    with_gradients(list(model.parameters()))
    with pytest.raises(ValueError, match=r"is torch.float16 now; the run was made for torch.float32"):
        optimizer.step()
    model.float()
    with_gradients(list(model.parameters()))
    optimizer.step()
    optimizer.close()


def test_a_changed_device(pair: SideBySide) -> None:
    """To one without values."""
    param = pair.there[0]
    with_gradients(pair.there)
    kept = torch.nn.Parameter(param.detach().clone())
    meta = torch.nn.Parameter(torch.empty(param.shape, device="meta"))
    pair.there[0].grad = None
    torch.utils.swap_tensors(param, meta)
    assert param.device.type == "meta"
    refused(pair, ValueError, "'param_0' is on the meta device now, where it has no values to update")
    torch.utils.swap_tensors(param, kept)
    goes_on(pair)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_sparse_gradient(server: Server, overlap: bool) -> None:
    table = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = RemoteOptimizer(table.parameters(), PRESET, target=server, run=new_name(), overlap=overlap)
    before = table.weight.detach().clone()
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match=r"'param_0' is sparse; expected a dense one \(Embedding: sparse=False\)"):
        optimizer.step()
    assert torch.equal(table.weight, before)
    table.sparse = False
    optimizer.zero_grad()
    table(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    assert not torch.equal(table.weight, before)
    optimizer.close()


def test_a_complex_gradient(pair: SideBySide) -> None:
    """torch lets nobody put one there unless he says that he means it."""
    with_gradients(pair.there)
    param: Any = pair.there[0]
    param.grad = None
    param.grad_dtype = torch.complex64
    param.grad = torch.ones(param.shape, dtype=torch.complex64)
    refused(pair, TypeError, "gradient of 'param_0' is torch.complex64; expected a floating type")
    param.grad = None
    param.grad_dtype = torch.float32
    goes_on(pair)


def test_gradients_of_another_floating_type_are_taken(pair: SideBySide) -> None:
    """As torch lets one have them: with the values that they have."""
    for params in (pair.here, pair.there):
        param: Any = params[0]
        param.grad_dtype = None
        param.grad = torch.full(param.shape, 0.1, dtype=torch.bfloat16 if params is pair.there else torch.float32)
        if params is pair.here:
            param.grad = param.grad.bfloat16().float()
        for other in params[1:]:
            other.grad = None
    for optimizer in pair.optimizers:
        optimizer.step()
    pair.assert_close()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite(pair: SideBySide, value: float) -> None:
    with_gradients(pair.there)
    grad = pair.there[0].grad
    assert grad is not None
    grad[1, 1] = value
    refused(pair, NonFiniteGradient, "param_0")
    goes_on(pair)


@pytest.mark.parametrize(
    ("key", "value", "error", "words"),
    [
        ("lr", -1.0, InvalidHyperparameter, "lr is -1.0"),
        ("lr", float("nan"), InvalidHyperparameter, "lr is nan"),
        ("lr", "fast", TypeError, "lr is 'fast'; expected a number"),
        ("lr", None, TypeError, "lr is None; expected a number"),
        ("betas", (0.9, 1.0), InvalidHyperparameter, "beta2 is 1.0"),
        ("betas", (0.9,), TypeError, "betas is .*; expected two numbers"),
        ("weight_decay", -0.1, InvalidHyperparameter, "weight_decay is -0.1"),
        ("eps", -1e-8, InvalidHyperparameter, "eps is -1e-08"),
    ],
)
def test_a_hyperparameter_that_makes_no_sense(
    pair: SideBySide, key: str, value: Any, error: type[Exception], words: str
) -> None:
    """Whoever puts a good one back goes on as if nothing had been."""
    kept = pair.remote.param_groups[0][key]
    pair.remote.param_groups[0][key] = value
    with_gradients(pair.there)
    refused(pair, error, words)
    pair.remote.param_groups[0][key] = kept
    goes_on(pair)
