"""What a server of torch's does with gradients, whatever brought them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from benchmarks.backend import torch_device
from benchmarks.contenders.problem import Array, Problem


def as_tensor(array: Array) -> torch.Tensor:
    """The same memory, also where it is read-only, as what comes off a wire is; torch does not write to gradients."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


class TorchServer:
    """The parameters, and torch's optimizer of them; ``fused`` False: as torch chooses."""

    def __init__(self, problem: Problem, *, fused: bool = True, values: Sequence[torch.Tensor] | None = None) -> None:
        torch.set_num_threads(problem.threads)
        place = torch_device(problem.device)
        self._cpu = place.type == "cpu"
        values = values or [torch.from_numpy(array) for array in problem.parameters()]
        self.params = [torch.nn.Parameter(value if self._cpu else value.to(place)) for value in values]
        self._optimizer = torch.optim.Adam(self.params, amsgrad=True, fused=fused or None)

    def step(self, gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Takes gradients on the CPU; returns the new parameters there, which may be the server's own."""
        for param, gradient in zip(self.params, gradients, strict=True):
            param.grad = gradient if self._cpu else gradient.to(param.device, non_blocking=True)
        self._optimizer.step()
        return [param.detach().cpu() for param in self.params]
