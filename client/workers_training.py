"""One worker of ``train_workers.py``: a process that computes the gradients of its part of each batch.

`train` is what a user writes. The rest tells the process that has started this one how it goes, so that it can draw it.
"""

from __future__ import annotations

import itertools
import signal
import sys
import time
from multiprocessing.connection import Connection

import torch
from digits import LR, Digits, make_model
from torch import nn
from workers_plan import JOINED, PAUSED, READY, Contribution, Plan

from gradwire.client import GradwireError, Run, Server, Shared, TorchAdam, connect


def join(server: Server, plan: Plan, worker_id: str, model: nn.Module) -> Run:
    """The first one makes the run, from its weights; all others, whenever they come, find it."""
    workers = Shared(
        start_with=plan.workers,
        grace_seconds=30,  # whoever has just attached is left the time for a first gradient
        lease_seconds=1,  # whoever has died is waited for no longer than that
    )
    params = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    optimizer = TorchAdam(lr=LR, amsgrad=True)
    return server.create_run(
        plan.run,
        params,
        optimizer,
        workers=workers,
        on_existing="resume",
        worker_id=worker_id,
        leads=worker_id == "rank-0",
    )


def train(run: Run, plan: Plan, place: int, pauses: int | None, model: nn.Module, pipe: Connection) -> None:
    """Contributes to every round from now on.

    Args:
        place: which part of each batch is this worker's: the pictures ``place``, ``place + workers``, ...
        pauses: after so many rounds it waits for a word before it goes on.
    """
    for name, parameter in model.named_parameters():
        parameter.data = torch.from_numpy(run.params[name])  # the same memory: each step changes the model, too
    batches = all_batches(plan)
    while (step := run.step_count) < plan.rounds:
        if step == pauses:
            wait_for_a_word(pipe, PAUSED)
        images, labels = (each[place :: plan.workers] for each in batches[step])
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        started = time.perf_counter()
        receipt = run.step({name: p.grad for name, p in model.named_parameters()}, weight=len(labels))
        told = (receipt.share, receipt.contributors, time.perf_counter() - started)
        pipe.send(Contribution(run.worker_id, receipt.round, receipt.outcome, loss.item(), len(labels), *told))


def all_batches(plan: Plan) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The batch of each round, the same in every process, so that who comes late knows which one it is."""
    digits = Digits(plan.seed)
    epochs = itertools.chain.from_iterable(digits.batches() for _ in itertools.count())
    return list(itertools.islice(epochs, plan.rounds))


def work(pipe: Connection, plan: Plan, worker_id: str, place: int, pauses: int | None) -> None:
    """A process from its beginning to its end. Exit code 1, and a line that says why, where it fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever has started us, who ends us
    torch.set_num_threads(1)  # there are several of us
    model = make_model(plan.seed)
    try:
        with connect(plan.target) as server:
            wait_for_a_word(pipe, READY)
            with join(server, plan, worker_id, model) as run:
                pipe.send(JOINED)
                train(run, plan, place, pauses, model, pipe)
            pipe.send(Digits(plan.seed).accuracy(model))
    except GradwireError as error:
        sys.exit(f"error: {worker_id}: {error}")


def wait_for_a_word(pipe: Connection, why: str) -> None:
    pipe.send(why)
    pipe.recv()
