"""What torch.compile must not trace: it talks to a server, whose answers no graph knows of."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def uncompiled(function: Callable[P, T]) -> Callable[P, T]:
    """Compiled code calls ``function`` by a graph break. As ``torch.compiler.disable``, which has no types."""
    wrapped: Callable[P, T] = torch.compiler.disable(function)  # type: ignore[no-untyped-call, unused-ignore]
    return wrapped
