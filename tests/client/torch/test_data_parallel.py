"""N processes on one shared run train as DistributedDataParallel does, and as one process with all of the batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gradwire.client import Server
from tests.client.torch.data_parallel import LR, RUN, Losses, make_model, train
from tests.serving import ServerProcess

TOLERANCE = 2e-5
"""Of a loss: the sum over processes and the mean over a batch round in another order."""


def processes(how: str, count: int, where: str) -> list[Losses]:
    """The losses of each of ``count`` processes."""
    command = [sys.executable, "-m", "tests.client.torch.data_parallel", how, str(count), where]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=100, check=True).stdout
    losses: list[Losses] = json.loads(printed)
    return losses


def of_a_large_batch(seed: int) -> Losses:
    """One process with all of each batch."""
    model = make_model(seed)
    return train(model, torch.optim.Adam(model.parameters(), lr=LR, amsgrad=True))


def with_shared_run(server: Server, server_process: ServerProcess, count: int) -> tuple[list[Losses], int]:
    """The losses of each process, and with whose weights all have begun: the creator's, whoever that is."""
    shared = processes("shared", count, server_process.target)
    server.delete_run(RUN)
    first = np.mean([losses[0] for losses in shared])
    creators = [rank for rank in range(count) if first_loss(rank) == pytest.approx(first, rel=1e-6)]
    assert len(creators) == 1, "all began with the weights of one of them"
    return shared, creators[0]


@pytest.mark.parametrize("count", [2, 4])
def test_the_losses_are_those_of_ddp_and_of_a_large_batch(
    server: Server, server_process: ServerProcess, tmp_path: Path, count: int
) -> None:
    shared, creator = with_shared_run(server, server_process, count)
    ddp = processes("ddp", count, str(tmp_path / "meeting-place"))
    assert np.allclose(np.mean(shared, axis=0), of_a_large_batch(creator), rtol=0, atol=TOLERANCE)
    assert np.allclose(np.mean(ddp, axis=0), of_a_large_batch(0), rtol=0, atol=TOLERANCE)  # it broadcasts rank 0's
    if creator == 0:
        assert np.allclose(shared, ddp, rtol=0, atol=TOLERANCE)


def first_loss(seed: int) -> float:
    model = make_model(seed)
    return train(model, torch.optim.Adam(model.parameters(), lr=LR))[0]
