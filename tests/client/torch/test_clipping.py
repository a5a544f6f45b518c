"""``clip_norm`` and ``clip_value`` of a `RemoteOptimizer`: as ``torch.nn.utils`` clips before a local step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from gradwire.client import Server, TorchAdam
from tests.client.torch.side_by_side import LR, STEPS, SideBySide, gradients, set_gradients, values

OPTIONS: list[dict[str, float]] = [
    {"clip_norm": 4.0},
    {"clip_norm": 1e6},
    {"clip_norm": 0.0},
    {"clip_value": 0.3},
    {"clip_value": 0.3, "clip_norm": 1.0},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_server_clips_as_torch_does(server: Server, options: dict[str, Any], dtype: torch.dtype) -> None:
    """With some gradients missing in some steps; the gradients here stay what they are."""
    pair = SideBySide(
        server,
        TorchAdam(lr=LR, eps=1e-4, amsgrad=True),
        lambda p: torch.optim.Adam(p, lr=LR, eps=1e-4, amsgrad=True),
        values(0, dtype),
        **options,
    )
    clipped = 0
    for step in range(STEPS):
        grads = gradients(step, pair.here)
        set_gradients(pair.here, grads)
        if "clip_value" in options:
            clip_grad_value_(pair.here, options["clip_value"])
        if "clip_norm" in options:
            clipped += bool(clip_grad_norm_(pair.here, options["clip_norm"]) > options["clip_norm"])
        pair.local.step()
        set_gradients(pair.there, grads)
        pair.remote.step()
        for param, grad in zip(pair.there, grads, strict=True):
            assert (param.grad is None) == (grad is None)
            assert grad is None or torch.equal(param.grad, grad)  # type: ignore[arg-type]
        assert pair.remote.last_receipt is not None
        norm = torch.stack([grad.double().norm() for grad in grads if grad is not None]).norm().item()
        assert pair.remote.last_receipt.gradient_norm == pytest.approx(norm, rel=1e-6), "before any clipping"
    pair.assert_close()
    if options == {"clip_norm": 4.0}:
        assert 0 < clipped < STEPS, "some are clipped and some are not"
    pair.remote.close()
