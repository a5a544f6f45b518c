"""``DataLoader`` with worker processes, which are forked from a process that has a connection.

Whether the loader, its workers, or the optimizer was there first: the batches and the losses are those of a training
without workers.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from gradwire.client import Server, TorchAdam
from gradwire.client.torch import RemoteOptimizer
from tests.client.torch.side_by_side import LR, assert_close, new_name

EXAMPLES, BATCH, EPOCHS = 24, 4, 2

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform"),
    # Python 3.12 and later warn of any fork of a process with threads, of which torch has some of its own.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


def example(index: int) -> torch.Tensor:
    return torch.randn(5, generator=torch.Generator().manual_seed(index))


class Examples(Dataset[torch.Tensor]):
    """``optimizer`` comes along into the workers, as what hangs on a module or a closure does."""

    def __init__(self, optimizer: RemoteOptimizer | None = None) -> None:
        self.optimizer = optimizer

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        return example(index)


class Streamed(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        info = torch.utils.data.get_worker_info()
        start, stride = (0, 1) if info is None else (info.id, info.num_workers)
        return (example(index) for index in range(start, EXAMPLES, stride))


def model() -> torch.nn.Module:
    torch.manual_seed(2)
    return torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))


def epoch(network: torch.nn.Module, optimizer: torch.optim.Optimizer, loader: Any) -> None:
    for batch in loader:
        optimizer.zero_grad()
        network(batch).sub(1).square().mean().backward()
        optimizer.step()


@contextmanager
def workers(data: Dataset[torch.Tensor], count: int, *, persistent: bool = True) -> Iterator[Any]:
    """A loader whose workers end here. Left to the garbage collector they cost five seconds each, in whichever test it
    runs: it ends their queues before the loader says in them that it is over."""
    loader: Any = DataLoader(
        data, BATCH, num_workers=count, persistent_workers=persistent, multiprocessing_context="fork"
    )
    try:
        yield loader
    finally:
        if loader._iterator is not None:
            loader._iterator._shutdown_workers()


@pytest.fixture(scope="module")
def expected() -> list[torch.Tensor]:
    """The parameters after a local training without workers."""
    network = model()
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    for _ in range(EPOCHS):
        epoch(network, optimizer, DataLoader(Examples(), BATCH))
    return list(network.parameters())


def start(server: Server, network: torch.nn.Module, overlap: bool) -> RemoteOptimizer:
    return RemoteOptimizer(network.parameters(), TorchAdam(lr=LR), target=server, run=new_name(), overlap=overlap)


def check(network: torch.nn.Module, optimizer: RemoteOptimizer, expected: list[torch.Tensor]) -> None:
    assert optimizer.run.describe().step == EPOCHS * EXAMPLES // BATCH
    assert_close(list(network.parameters()), expected, 8 * EPOCHS * EXAMPLES // BATCH)
    optimizer.close()


@pytest.mark.parametrize("overlap", [False, True])
def test_workers_forked_before_the_optimizer_is_made(
    server: Server, expected: list[torch.Tensor], overlap: bool
) -> None:
    """They live through the training."""
    network = model()
    with workers(Examples(), 2) as loader:
        iterator = iter(loader)  # forks
        optimizer = start(server, network, overlap)
        epoch(network, optimizer, iterator)
        epoch(network, optimizer, loader)
        check(network, optimizer, expected)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
def test_workers_forked_after_the_optimizer_was_made(
    server: Server, expected: list[torch.Tensor], overlap: bool, persistent: bool
) -> None:
    """Which they have with them; anew for each epoch, unless they are kept."""
    network = model()
    optimizer = start(server, network, overlap)
    with workers(Examples(optimizer), 2, persistent=persistent) as loader:
        for _ in range(EPOCHS):
            epoch(network, optimizer, loader)
        check(network, optimizer, expected)


def test_workers_forked_in_the_middle_of_a_step(server: Server, expected: list[torch.Tensor]) -> None:
    """With gradients on their way, and edits to be written."""
    network = model()
    optimizer = start(server, network, overlap=True)
    batches = list(DataLoader(Examples(), BATCH))
    for number in range(EPOCHS * len(batches)):
        optimizer.zero_grad()
        network(batches[number % len(batches)]).sub(1).square().mean().backward()
        if number % 4 == 1:
            assert len(list(DataLoader(Examples(), BATCH, num_workers=1, multiprocessing_context="fork"))) == 6
        optimizer.step()
        with torch.no_grad():
            next(network.parameters()).mul_(1.0)
    check(network, optimizer, expected)


def test_a_stream_of_examples(server: Server, expected: list[torch.Tensor]) -> None:
    network = model()
    optimizer = start(server, network, overlap=True)
    for _ in range(EPOCHS):
        epoch(network, optimizer, DataLoader(Streamed(), BATCH, num_workers=1, multiprocessing_context="fork"))
    check(network, optimizer, expected)


def test_an_embedded_server(expected: list[torch.Tensor]) -> None:
    """It ends with this process's optimizer, whoever has been forked meanwhile and still lives."""
    network = model()
    optimizer = RemoteOptimizer(network.parameters(), TorchAdam(lr=LR), target="embedded", run="loader", overlap=True)
    with workers(Examples(), 1) as loader:
        for _ in range(EPOCHS):
            epoch(network, optimizer, loader)
        embedded = optimizer._bound.server.embedded
        assert embedded is not None
        check(network, optimizer, expected)
        assert embedded._process.poll() is not None


# --- in the forked process itself ------------------------------------------------------------------------------------


def in_child(network: torch.nn.Module, optimizer: RemoteOptimizer, answers: Any) -> None:
    """Everything that needs the server, by name, and what came of it."""
    state: dict[str, Any] = {"state": {}, "param_groups": optimizer.param_groups}
    uses: dict[str, Any] = {
        "step": optimizer.step,
        "state_dict": optimizer.state_dict,
        "load_state_dict": lambda: optimizer.load_state_dict(state),
        "add_param_group": lambda: optimizer.add_param_group({"params": [torch.zeros(2)]}),
        "run": lambda: optimizer.run,
    }
    network(torch.ones(2, 5)).sum().backward()
    said = {}
    for name, use in uses.items():
        try:
            said[name] = repr(use())
        except RuntimeError as error:
            said[name] = str(error)
    optimizer.zero_grad()
    optimizer.close()
    answers.put(said)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_forked_process_is_told_that_the_optimizer_is_not_its_own(server: Server, overlap: bool) -> None:
    """And does not disturb the one that made it, nor by its end."""
    network = model()
    optimizer = start(server, network, overlap)
    context = multiprocessing.get_context("fork")
    answers: Any = context.SimpleQueue()
    network(torch.ones(2, 5)).sum().backward()
    child = context.Process(target=in_child, args=(network, optimizer, answers))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    said = answers.get()
    assert len(said) == 5
    assert set(said.values()) == {"this optimizer belongs to the process that made it; a forked one cannot use it"}
    optimizer.step()
    assert optimizer.run.describe().step == 1
    assert len(optimizer.param_groups) == 1
    optimizer.close()
