"""Shared memory by hand: a floor of what one host can do.

The client copies its gradients into memory that the server maps too and tells it so; torch's fused step works on that
memory as it lies there; the client copies the parameters out. No checks, no second copy, one client.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.child import Child, ready
from benchmarks.contenders.problem import Array, Contender, Problem, Unavailable
from benchmarks.contenders.torch_server import TorchServer


class SharedMemory(Contender):
    def __init__(self, problem: Problem) -> None:
        if not hasattr(os, "memfd_create"):
            raise Unavailable("memory without a name needs Linux")
        memory = os.memfd_create("by-hand")
        os.ftruncate(memory, 2 * problem.size_bytes)
        go, self._go = os.pipe()
        self._done, done = os.pipe()
        descriptors = (memory, go, done)
        arguments = ["-m", __spec__.name, problem.to_text(), *map(str, descriptors)]
        self._child = Child(arguments, threads=problem.threads, keep_descriptors=descriptors)
        self._gradients, self._shared = _views(problem, memory)
        self._params = problem.parameters()
        for descriptor in descriptors:
            os.close(descriptor)

    def step(self, gradients: Sequence[Array]) -> Sequence[Array]:
        for shared, gradient in zip(self._gradients, gradients, strict=True):
            np.copyto(shared, gradient)
        os.write(self._go, b"g")
        os.read(self._done, 1)
        for param, shared in zip(self._params, self._shared, strict=True):
            np.copyto(param, shared)
        return self._params

    def close(self) -> None:
        os.close(self._go)
        self._child.close()
        os.close(self._done)


def _views(problem: Problem, memory: int) -> tuple[list[Array], list[Array]]:
    """The gradients' and the parameters' arrays in the shared memory."""
    flat = np.frombuffer(mmap.mmap(memory, 2 * problem.size_bytes), np.float32).reshape(2, -1)
    gradients, params = ([row[at : at + problem.size] for at in range(0, row.size, problem.size)] for row in flat)
    return gradients, params


def _serve(problem: Problem, memory: int, go: int, done: int) -> None:
    gradients, params = _views(problem, memory)
    for param, value in zip(params, problem.parameters(), strict=True):
        np.copyto(param, value)
    server = TorchServer(problem, values=[torch.from_numpy(param) for param in params])
    tensors = [torch.from_numpy(gradient) for gradient in gradients]
    ready(None)
    while os.read(go, 1):
        values = server.step(tensors)
        if problem.device != "cpu":
            for param, updated in zip(params, values, strict=True):
                np.copyto(param, updated.numpy())
        os.write(done, b"d")


if __name__ == "__main__":
    _serve(Problem.from_text(sys.argv[1]), *map(int, sys.argv[2:]))
