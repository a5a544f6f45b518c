"""A vector laid out as ResNet-50's parameters, and a random problem over it whose loss is known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Tensors = dict[str, Floats]


def resnet50() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the 161 tensors, 25,557,032 elements."""
    return dict(_shapes())


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _convolution("stem", 64, 3, 7)
    width = 64
    for stage, (blocks, planes) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            yield from _convolution(f"{name}.conv1", planes, width, 1)
            yield from _convolution(f"{name}.conv2", planes, planes, 3)
            yield from _convolution(f"{name}.conv3", 4 * planes, planes, 1)
            if block == 0:
                yield from _convolution(f"{name}.downsample", 4 * planes, width, 1)
            width = 4 * planes
    yield "fc.weight", (1000, width)
    yield "fc.bias", (1000,)


def _convolution(name: str, outputs: int, inputs: int, side: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A convolution and the normalization behind it."""
    yield f"{name}.weight", (outputs, inputs, side, side)
    yield f"{name}.norm.weight", (outputs,)
    yield f"{name}.norm.bias", (outputs,)


class NoisyBowl:
    """``loss = mean of c/2 (p - goal)^2``, with a curvature ``c`` of each tensor's own between 0.01 and 100.

    Gradients are those of the loss times the number of elements, with noise as large as the first of them; the noise of
    a step is the same whoever asks.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self._shapes = shapes
        self._sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
        self._curvature = {name: np.float32(10 ** random.uniform(-2, 2)) for name in shapes}
        self._goal = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        self._noise = random.standard_normal(max(self._sizes.values()) + 2**16, np.float32)
        self.elements = sum(self._sizes.values())

    def start(self) -> Tensors:
        """Where training begins."""
        return {name: np.zeros(shape, np.float32) for name, shape in self._shapes.items()}

    def loss(self, params: Tensors) -> float:
        total = 0.0
        for name, goal in self._goal.items():
            away = (params[name] - goal).reshape(-1)
            total += 0.5 * float(self._curvature[name]) * float(np.dot(away, away))
        return total / self.elements

    def gradients(self, params: Tensors, step: int) -> Tensors:
        offsets = np.random.default_rng(step).integers(0, 2**16, len(self._shapes))
        found: Tensors = {}
        for (name, shape), offset in zip(self._shapes.items(), offsets, strict=True):
            noise = self._noise[offset : offset + self._sizes[name]].reshape(shape)
            found[name] = self._curvature[name] * (params[name] - self._goal[name] + noise)
        return found
