"""Parameters and arguments of which no optimizer can be made: a clear error, and no run is left on the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gradwire.client import InvalidHyperparameter, InvalidSpec, RunNotFound, Server, TorchAdam, TorchAdamW
from gradwire.client.torch import RemoteOptimizer
from tests.client.torch.side_by_side import LR, new_name, values

PRESET = TorchAdam(lr=LR)


def leaf(**keywords: Any) -> torch.Tensor:
    return torch.zeros(2, **keywords).requires_grad_()


ONE = leaf()
PARAMS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "none": (list, ValueError, "empty parameter list"),
    "one group of none": (lambda: [{"params": []}], ValueError, "groups are all empty; expected at least one"),
    "a tensor": (lambda: ONE, TypeError, "iterable of Tensors or dicts"),
    "a set": (lambda: [{"params": {ONE}}], TypeError, "ordered collections"),
    "no tensor": (lambda: [1.0], TypeError, "can only optimize Tensors"),
    "no leaf": (lambda: [ONE * 2], ValueError, "can't optimize a non-leaf Tensor"),
    "twice in a group": (lambda: [ONE, leaf(), ONE], ValueError, "group 0 has the same parameter twice"),
    "twice by name": (lambda: [("a", ONE), ("b", ONE)], ValueError, "group 0 has the same parameter twice"),
    "in two groups": (
        lambda: [{"params": [ONE]}, {"params": [leaf(), ONE]}],
        ValueError,
        "some parameters appear in more than one parameter group",
    ),
    "some with names": (lambda: [("a", ONE), leaf()], ValueError, "with/without names"),
    "complex": (
        lambda: [leaf(dtype=torch.complex64)],
        TypeError,
        r"is torch.complex64; .* optimize torch.view_as_real",
    ),
    "whole numbers": (lambda: [torch.zeros(2, dtype=torch.int64)], TypeError, "'0.0' is torch.int64; expected float32"),
    "8 bits": (lambda: [torch.zeros(2).to(torch.float8_e4m3fn)], TypeError, "is torch.float8_e4m3fn; expected float32"),
    "sparse": (lambda: [torch.eye(2).to_sparse()], TypeError, "is sparse .*; expected a dense one"),
    "meta": (lambda: [leaf(), leaf(device="meta")], ValueError, "'0.1' is on the meta device and has no values"),
    "no such key": (lambda: [{"parameters": [ONE]}], KeyError, "params"),
    "capturable": (lambda: [{"params": [ONE], "capturable": True}], NotImplementedError, "capturable=True is not"),
    "negative lr": (lambda: [{"params": [ONE], "lr": -1.0}], InvalidHyperparameter, "lr is -1.0; expected a finite"),
    "nan as eps": (lambda: [{"params": [ONE], "eps": float("nan")}], InvalidHyperparameter, "eps is nan; expected"),
    "beta of 1": (lambda: [{"params": [ONE], "betas": (1.0, 0.9)}], InvalidHyperparameter, "beta1 is 1.0; expected"),
    "several lrs": (lambda: [{"params": [ONE], "lr": torch.ones(2)}], TypeError, "lr is .*; expected a number"),
}


@pytest.mark.parametrize("what", PARAMS)
def test_parameters(server: Server, what: str) -> None:
    """No run is made of them."""
    params, error, words = PARAMS[what]
    name = new_name()
    with pytest.raises(error, match=words):
        RemoteOptimizer(params(), PRESET, target=server, run=name)
    with pytest.raises(RunNotFound):
        server.attach(name)
    assert not ONE._post_accumulate_grad_hooks


ARGUMENTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "optimizer": ({"optimizer": torch.optim.Adam}, TypeError, r"expected a preset such as TorchAdam\(lr=1e-3\)"),
    "run": ({"run": 3}, TypeError, "run is 3; expected the name of a run"),
    "bad run": ({"run": "a/b"}, InvalidSpec, "'runs/a/b' is no run name"),
    "target": ({"target": 50051}, TypeError, "target is 50051; expected host:port"),
    "on_existing": ({"on_existing": "append"}, ValueError, "expected 'error', 'resume' or 'replace'"),
    "maximize": ({"maximize": "yes"}, TypeError, "maximize is 'yes'; expected True or False"),
    "overlap": ({"overlap": "yes"}, TypeError, "overlap is 'yes'; expected True or False"),
    "non_finite": ({"non_finite": "ignore"}, ValueError, "expected one of 'reject', 'skip', 'allow'"),
    "clip_norm": ({"clip_norm": "1"}, TypeError, "clip_norm is '1'; expected a number"),
    "negative clip_norm": ({"clip_norm": -1.0}, InvalidHyperparameter, "clip_norm is -1"),
    "nan as clip_value": ({"clip_value": float("nan")}, InvalidHyperparameter, "clip_value is nan"),
    "dtype": ({"dtype": "float16"}, ValueError, "expected 'float32' or 'float64'"),
    "encoding": ({"gradient_encoding": "int3"}, ValueError, "encoding is 'int3'; expected one of"),
    "momentum": ({"momentum": 0.9}, TypeError, "momentum"),
}


@pytest.mark.parametrize("what", ARGUMENTS)
def test_arguments(server: Server, what: str) -> None:
    bad, error, words = ARGUMENTS[what]
    name = new_name()
    with pytest.raises(error, match=words):
        RemoteOptimizer(values(), **{"optimizer": PRESET, "target": server, "run": name, **bad})
    with pytest.raises(RunNotFound):
        server.attach(name)


@pytest.mark.parametrize("preset", [TorchAdam, TorchAdamW])
@pytest.mark.parametrize("key", ["capturable", "differentiable"])
def test_what_is_not_supported(preset: Any, key: str) -> None:
    with pytest.raises(NotImplementedError, match=f"{key}=True is not supported: the step runs on a server"):
        preset(**{key: True})
