"""``RemoteOptimizer.log``: values go with the next step, or when the optimizer is closed."""

from __future__ import annotations

import pytest
import torch

from gradwire.client import Server, TorchAdam
from gradwire.client.torch import RemoteOptimizer
from tests.client.torch.side_by_side import LR, new_name


@pytest.mark.parametrize("overlap", [False, True])
def test_values_go_with_the_next_step_and_what_is_left_with_the_end(server: Server, overlap: bool) -> None:
    param, name = torch.nn.Parameter(torch.ones(5)), new_name()
    with RemoteOptimizer([param], TorchAdam(lr=LR), target=server, run=name, overlap=overlap) as optimizer:
        for _ in range(3):
            optimizer.zero_grad()
            loss = (param * 3).sum()
            loss.backward()
            optimizer.log(loss=loss)
            optimizer.step()
        optimizer.log({"val/loss": torch.tensor(0.5)})
    with server.attach(name) as run:
        series = run.series("loss")
        assert series.first_step.tolist() == [1, 2, 3]
        assert series.first[0] == 15.0
        assert run.series("val/loss").last.tolist() == [0.5]
