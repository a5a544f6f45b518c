"""A real model on real data: a small network on scikit-learn's digits, trained remotely and locally.

Tolerance. One step differs from torch's by roundings (see test_torch_parity), and training carries them on: a network
of rectified units multiplies a difference by a little more than one at each step. Over the STEPS steps here they are
given a factor of 100 on top of one rounding of the loss: 1e-5 of it in float32, 1e-13 in float64. Against the
reference, which rounds as the server does, a tenth of that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from gradwire.client import AMSGrad, Server, TorchAdam
from tests.reference import ReferenceAdam, ReferenceConfig

Tensor = npt.NDArray[Any]
Params = dict[str, Tensor]

STEPS = 60
BATCH = 128
LOSS_RTOL = {"float32": 1e-5, "float64": 1e-13}
each_float = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, npt.NDArray[np.int64]]:
    """1,797 pictures of 8 x 8 pixels, scaled to 0 .. 1, and what they show."""
    from sklearn.datasets import load_digits  # not while tests are collected: it takes a second in every worker

    bunch: Any = load_digits()
    return bunch.data / 16.0, bunch.target.astype(np.int64)


def batch(step: int, count: int) -> npt.NDArray[np.int64]:
    """Indices of the pictures of one step."""
    return np.random.default_rng(step).integers(0, count, BATCH)


def perceptron(dtype: str) -> torch.nn.Sequential:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    return model.to(getattr(torch, dtype))


@each_float
def test_a_torch_model_trains_to_the_same_losses(
    server: Server, digits: tuple[Tensor, npt.NDArray[np.int64]], dtype: str
) -> None:
    """``torch.optim.Adam(amsgrad=True)`` here; there the gradients go out and parameters are copied back each step."""
    images, labels = torch.from_numpy(digits[0].astype(dtype)), torch.from_numpy(digits[1])
    local, remote = perceptron(dtype), perceptron(dtype)
    optimizer = torch.optim.Adam(local.parameters(), lr=1e-2, weight_decay=1e-4, amsgrad=True)

    def backward(model: torch.nn.Sequential, step: int) -> float:
        chosen = torch.from_numpy(batch(step, len(labels)))
        loss = torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        model.zero_grad()
        loss.backward()
        return loss.item()

    losses: dict[str, list[float]] = {"local": [], "remote": []}
    start = {name: parameter.detach().numpy() for name, parameter in remote.named_parameters()}
    preset = TorchAdam(lr=1e-2, weight_decay=1e-4, amsgrad=True)
    with server.create_run(f"digits-torch-{dtype}", start, preset) as run:
        for step in range(STEPS):
            losses["local"].append(backward(local, step))
            optimizer.step()
            losses["remote"].append(backward(remote, step))
            run.step({name: parameter.grad for name, parameter in remote.named_parameters()})
            with torch.no_grad():
                for name, parameter in remote.named_parameters():
                    parameter.copy_(torch.from_numpy(run.params[name]))
    np.testing.assert_allclose(losses["remote"], losses["local"], rtol=LOSS_RTOL[dtype])
    assert losses["remote"][0] > 2.2
    with torch.no_grad():
        right = (remote(images).argmax(1) == labels).double().mean()
    assert float(right) > 0.9, "it did learn"


def forward_and_gradients(params: Params, x: Tensor, y: npt.NDArray[np.int64]) -> tuple[float, Params]:
    """Cross entropy of a two-layer perceptron, and its gradients, by hand."""
    hidden = np.maximum(x @ params["w1"] + params["b1"], 0)
    logits = hidden @ params["w2"] + params["b2"]
    shifted = logits - logits.max(1, keepdims=True)
    log_odds = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    rows = np.arange(len(y))
    error = np.exp(log_odds)
    error[rows, y] -= 1
    error /= len(y)
    back = (error @ params["w2"].T) * (hidden > 0)
    grads = {"w1": x.T @ back, "b1": back.sum(0), "w2": hidden.T @ error, "b2": error.sum(0)}
    return -float(log_odds[rows, y].mean()), grads


@each_float
def test_a_numpy_model_trains_with_labml_s_amsgrad_to_the_same_losses(
    server: Server, digits: tuple[Tensor, npt.NDArray[np.int64]], dtype: str
) -> None:
    """No torch at all: the epsilon-hat form, against the reference."""
    images, labels = digits[0].astype(dtype), digits[1]
    random = np.random.default_rng(0)
    start: Params = {
        "w1": (random.normal(size=(64, 32)) / 8).astype(dtype),
        "b1": np.zeros(32, dtype),
        "w2": (random.normal(size=(32, 10)) / 6).astype(dtype),
        "b2": np.zeros(10, dtype),
    }
    config = ReferenceConfig(lr=1e-2, betas=(0.9, 0.99), amsgrad=True, weight_decay=1e-3)
    reference = ReferenceAdam(start, config)
    losses: dict[str, list[float]] = {"local": [], "remote": []}
    preset = AMSGrad(lr=1e-2, betas=(0.9, 0.99), weight_decay=1e-3)
    with server.create_run(f"digits-numpy-{dtype}", start, preset) as run:
        for step in range(STEPS):
            chosen = batch(step, len(labels))
            loss, grads = forward_and_gradients(reference.params, images[chosen], labels[chosen])
            losses["local"].append(loss)
            reference.step(grads)
            loss, grads = forward_and_gradients(run.params, images[chosen], labels[chosen])
            losses["remote"].append(loss)
            run.step(grads)
        logits = np.maximum(images @ run.params["w1"] + run.params["b1"], 0) @ run.params["w2"] + run.params["b2"]
    np.testing.assert_allclose(losses["remote"], losses["local"], rtol=LOSS_RTOL[dtype] / 10)
    assert losses["remote"][0] > 2.2
    assert (logits.argmax(1) == labels).mean() > 0.9, "it did learn"
