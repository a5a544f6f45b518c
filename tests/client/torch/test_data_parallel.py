"""N processes on one shared run train as DistributedDataParallel does, and as one process with all of the batch."""

from __future__ import annotations

import json
import os
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
    """What ``count`` processes print."""
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.client.torch.data_parallel", how, str(rank), str(count), where],
            env={**os.environ, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        printed = [process.communicate(timeout=100)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert [process.returncode for process in running] == [0] * count
    return [json.loads(text) for text in printed]


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
def test_the_losses_are_those_of_a_large_batch(server: Server, server_process: ServerProcess, count: int) -> None:
    shared, creator = with_shared_run(server, server_process, count)
    assert np.allclose(np.mean(shared, axis=0), of_a_large_batch(creator), rtol=0, atol=TOLERANCE)


@pytest.mark.skipif(
    not os.environ.get("GRADWIRE_INTEGRATIONS"),
    reason="two processes of gloo hang now and then, at their start or end: `make integrations` compares with them",
)
@pytest.mark.parametrize("count", [2, 4])
def test_the_losses_are_those_of_ddp(server: Server, server_process: ServerProcess, tmp_path: Path, count: int) -> None:
    shared, creator = with_shared_run(server, server_process, count)
    ddp = processes("ddp", count, str(tmp_path / "meeting-place"))
    assert np.allclose(np.mean(ddp, axis=0), of_a_large_batch(0), rtol=0, atol=TOLERANCE)  # it broadcasts rank 0's
    assert np.allclose(np.mean(shared, axis=0), of_a_large_batch(creator), rtol=0, atol=TOLERANCE)
    if creator == 0:
        assert np.allclose(shared, ddp, rtol=0, atol=TOLERANCE)


def first_loss(seed: int) -> float:
    model = make_model(seed)
    return train(model, torch.optim.Adam(model.parameters(), lr=LR))[0]
