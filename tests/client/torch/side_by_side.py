"""The same training twice: with a local optimizer of torch's, and with a `RemoteOptimizer`.

Tolerance, as in tests/integration/test_torch_parity.py: the formulas are the same, the order of roundings is not. Each
of the STEPS steps may differ by one rounding of the parameter, half an ulp on each side, and by some roundings of an
update, of which lr = 0.01 makes a hundredth: STEPS ulps of the largest parameter. A wrong formula shows far above that:
one tensor's gradients are about as small as eps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from gradwire.client import Adam, Server, TorchAdam, TorchAdamW
from gradwire.client.torch import RemoteOptimizer

STEPS = 20
LR = 1e-2
SHAPES = ((4, 3), (3,), (), (0, 2), (5,))
"""A matrix, a vector, a 0-d tensor, an empty one, and one whose gradients are tiny."""
TINY = 4

PRESETS: dict[str, tuple[type[Adam], Callable[..., Optimizer]]] = {
    "adam": (TorchAdam, torch.optim.Adam),
    "adamw": (TorchAdamW, torch.optim.AdamW),
}

Tensors = list[torch.Tensor]
Gradients = Sequence[torch.Tensor | None]
Groups = Callable[[Tensors], Any]

_numbers = itertools.count()


def new_name() -> str:
    """A run name that no other test has."""
    return f"side-{next(_numbers)}"


def values(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES)
    return [tensor.requires_grad_() for tensor in made]


def gradients(step: int, params: Tensors) -> list[torch.Tensor | None]:
    """Of size 1, and of the size of eps for one tensor; from step 5 to 10 the second has none."""
    generator = torch.Generator().manual_seed(1000 + step)
    found: list[torch.Tensor | None] = []
    for index, param in enumerate(params):
        grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        grad = (grad * (1e-8 if index == TINY else 1)).to(param.dtype)
        found.append(None if index == 1 and 5 <= step < 10 else grad)
    return found


def copies(params: Tensors) -> Tensors:
    """With the same values, strides and ``requires_grad``."""
    return [p.detach().clone(memory_format=torch.preserve_format).requires_grad_(p.requires_grad) for p in params]


def set_gradients(params: Tensors, grads: Gradients) -> None:
    """Each parameter gets a copy, in the gradient's own strides."""
    for param, grad in zip(params, grads, strict=True):
        param.grad = None if grad is None else grad.to(param.device).clone(memory_format=torch.preserve_format)


def assert_close(found: Tensors, expected: Tensors, steps: int = STEPS) -> None:
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours.dtype is theirs.dtype
        largest = float(theirs.detach().abs().max()) if theirs.numel() else 0.0
        tolerance = steps * torch.finfo(ours.dtype).eps * largest
        difference = (ours.detach() - theirs.detach()).abs().max() if ours.numel() else 0.0
        assert difference <= tolerance, f"tensor {index}"  # false for NaN


def assert_equal(found: Tensors, expected: Tensors) -> None:
    """To the last bit."""
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours.dtype is theirs.dtype
        assert torch.equal(ours, theirs), f"tensor {index}"


class SideBySide:
    """``here`` is trained by ``local``, ``there`` by ``remote``; both begin as copies of ``params``.

    Args:
        local: makes the local optimizer of what ``groups`` makes of the parameters.
        options: further arguments of `RemoteOptimizer`.
    """

    def __init__(
        self,
        server: Server,
        preset: Adam,
        local: Callable[[Any], Optimizer],
        params: Tensors | None = None,
        groups: Groups = list,
        **options: Any,
    ) -> None:
        start = values() if params is None else params
        self.here, self.there = copies(start), copies(start)
        self.local = local(groups(self.here))
        self.remote = RemoteOptimizer(groups(self.there), preset, **{"target": server, "run": new_name(), **options})

    @property
    def optimizers(self) -> tuple[Optimizer, RemoteOptimizer]:
        return self.local, self.remote

    def step(self, grads: Gradients) -> None:
        for params, optimizer in ((self.here, self.local), (self.there, self.remote)):
            set_gradients(params, grads)
            optimizer.step()

    def train(self, first: int = 0, last: int = STEPS, each: Callable[[int], None] | None = None) -> None:
        """Steps ``first`` to ``last``; ``each`` is called after each of them."""
        for step in range(first, last):
            self.step(gradients(step, self.here))
            if each is not None:
                each(step)

    def assert_close(self) -> None:
        assert_close(self.there, self.here)

    def check(self) -> None:
        """Trains, compares and closes."""
        self.train()
        self.assert_close()
        assert not torch.equal(self.there[0], values(0, self.there[0].dtype)[0]), "nothing has moved"
        self.remote.close()
