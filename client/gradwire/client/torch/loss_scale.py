"""What a GradScaler leaves to the optimizer of a shared run.

Where gradients are not finite it does not call ``step`` at all, and the other workers would wait for this one. So the
optimizer says that it takes care of scales itself, as torch's fused ones do, and sends a contribution of no tensor.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def unscaled(optimizer: Any, params: Iterable[torch.Tensor]) -> bool:
    """Divides gradients by what a GradScaler has multiplied the loss by. Returns False, and leaves them alone, where
    they are not finite. Without a GradScaler nothing is done."""
    found, scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
    if found is not None and bool(found.item()):
        return False
    if found is not None and scale is not None:
        inverse = scale.double().reciprocal().float()  # as GradScaler.unscale_ has it
        for param in params:
            if param.grad is not None:
                param.grad.mul_(inverse.to(param.grad.device))
    return True
