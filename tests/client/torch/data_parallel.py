"""N processes that train one network together: ``python -m tests.client.torch.data_parallel HOW N WHERE``.

HOW is ``ddp`` (torch's DistributedDataParallel over gloo, WHERE a file to meet at) or ``shared`` (RemoteOptimizer on a
shared run, WHERE a server). Prints the losses of each process as JSON. They are forked: torch is imported once.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn

from gradwire.client import Shared, TorchAdam
from gradwire.client.torch import RemoteOptimizer

STEPS = 10
BATCH = 32
"""Of all processes together."""
LR = 3e-3
RUN = "data-parallel"

Losses = list[float]


def make_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def train(model: nn.Module, optimizer: Any, rank: int = 0, workers: int = 1) -> Losses:
    """The part of each batch that is this process's."""
    bunch: Any = load_digits()
    images, labels = torch.from_numpy(bunch.data / 16).float(), torch.from_numpy(bunch.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    losses = []
    for step in range(STEPS):
        own = order[step * BATCH : (step + 1) * BATCH].chunk(workers)[rank]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[own]), labels[own])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def with_ddp(rank: int, workers: int, meeting_place: str) -> Losses:
    """The process group is left to the end of the process. To destroy it is to wait, with the interpreter held, for a
    thread of gloo's that may still want the interpreter to drop its last tensors: then both wait for ever.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # not whatever this machine's name leads to
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_place}", rank=rank, world_size=workers, timeout=timedelta(seconds=60)
    )
    model = nn.parallel.DistributedDataParallel(make_model())
    return train(model, torch.optim.Adam(model.parameters(), lr=LR, amsgrad=True), rank, workers)


def with_shared_run(rank: int, workers: int, target: str) -> Losses:
    model = make_model(rank)  # the creator's weights count
    together = Shared(start_with=workers, deadline_seconds=60)
    with RemoteOptimizer(
        model.parameters(), TorchAdam(lr=LR, amsgrad=True), target=target, run=RUN, workers=together
    ) as optimizer:
        return train(model, optimizer, rank, workers)


Train = Callable[[int, int, str], Losses]


def work(function: Train, rank: int, workers: int, where: str, losses: Connection, all_done: Barrier) -> None:
    """One of the processes. It ends when all have done their part, and nobody needs its connections any more."""
    os.environ["RANK"] = str(rank)
    losses.send(function(rank, workers, where))
    all_done.wait()


def main() -> None:
    how, count, where = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    forking = multiprocessing.get_context("fork")
    all_done = forking.Barrier(count)
    receivers = []
    for rank in range(count):
        receiver, sender = forking.Pipe(duplex=False)
        function = with_ddp if how == "ddp" else with_shared_run
        forking.Process(target=work, args=(function, rank, count, where, sender, all_done), daemon=True).start()
        sender.close()
        receivers.append(receiver)
    print(json.dumps([receiver.recv() for receiver in receivers]))


if __name__ == "__main__":
    main()
