"""Tensors of ``optimizer.state`` that somebody has kept since a step made their values old."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from gradwire.client.torch.tensors import Look

Place = tuple[torch.Tensor, str]
"""A parameter, and a key of its state."""


class HeldTensors:
    """They change as torch's do, when their state is next fetched. Whether somebody has them still, weak references
    tell."""

    def __init__(self) -> None:
        self._held: list[tuple[Place, weakref.ref[torch.Tensor], Look]] = []

    def add(self, place: Place, tensor: torch.Tensor) -> None:
        """The values of ``tensor`` have just become old."""
        self._held.append((place, weakref.ref(tensor), Look(tensor)))

    def clear(self) -> None:
        """They are of no more interest."""
        self._held.clear()

    def alive(self) -> dict[Place, torch.Tensor]:
        """Those that somebody has."""
        return {place: held for place, reference, _ in self._held if (held := reference()) is not None}

    def changed(self) -> dict[Place, torch.Tensor]:
        """Those that were changed when their values were old already, if what they mean can be known: all elements are
        one number. Raises ValueError for others, once."""
        found = {}
        for place, reference, look in self._held:
            held = reference()
            if held is None or not look.changed(held):
                continue
            if held.numel() and not bool((held == held.reshape(-1)[0]).all()):
                self._held.clear()
                raise ValueError(
                    f"a tensor {place[1]!r} of optimizer.state was changed that had been read before the last step, "
                    "whose values were old; expected optimizer.state[param] to be read anew after each step"
                )
            found[place] = held
        return found


def refilled(held: torch.Tensor | None, value: Any) -> Any:
    """``value``, in the tensor that somebody has of it where that is possible."""
    if held is None or held.is_inference() or _kind(held) != _kind(value):
        return value
    return held.copy_(value)


def _kind(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device
