"""Lightning takes a `RemoteOptimizer` from ``configure_optimizers`` as it takes any other.

Tolerance: each step differs from torch's by roundings, of which training makes a little more.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradwire.client import Server, TorchAdam
from gradwire.client.torch import RemoteOptimizer

lightning = pytest.importorskip("lightning")
callbacks = pytest.importorskip("lightning.pytorch.callbacks")
LightningModule: Any = lightning.LightningModule

LR = 1e-2
BATCHES, BATCH, EPOCHS = 12, 8, 4

Make = Callable[[torch.nn.Module], torch.optim.Optimizer]
_numbers = itertools.count()

pytestmark = [
    # Lightning asks torch for what torch now calls otherwise.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    # Whoever resumes writes into a directory of its own.
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
]


class Module(LightningModule):  # type: ignore[misc]
    """A small regression."""

    def __init__(self, make: Make, scheduled: bool, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = torch.nn.Sequential(torch.nn.Linear(10, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        self.losses: list[float] = []
        self._make = make
        self._scheduled = scheduled

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.layers(x), y)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = self._make(self)
        if not self._scheduled:
            return optimizer
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}


def local(module: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=LR, amsgrad=True)


@pytest.fixture
def remote(server: Server) -> Iterator[Any]:
    made: list[RemoteOptimizer] = []

    def make(module: torch.nn.Module, overlap: bool = False) -> RemoteOptimizer:
        preset = TorchAdam(lr=LR, amsgrad=True)
        run = f"lightning-{next(_numbers)}"
        made.append(RemoteOptimizer(module.parameters(), preset, target=server, run=run, overlap=overlap))
        return made[-1]

    yield make
    for optimizer in made:
        optimizer.close()


def loader() -> Any:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(BATCHES * BATCH, 10, generator=generator)
    data = torch.utils.data.TensorDataset(x, 3 * x.square().mean(1, keepdim=True))
    return torch.utils.data.DataLoader(data, batch_size=BATCH)


def train(
    make: Make, directory: Path, scheduled: bool = False, seed: int = 0, resume: Path | None = None, **options: Any
) -> Module:
    module = Module(make, scheduled, seed)
    trainer = lightning.Trainer(
        accelerator="cpu",
        default_root_dir=directory,
        max_epochs=EPOCHS,
        gradient_clip_val=0.5,
        callbacks=[callbacks.ModelCheckpoint(directory, "{epoch}", save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, loader(), ckpt_path=resume)
    assert trainer.global_step == trainer.optimizers[0].state_dict()["state"][0]["step"]
    return module


def check(found: Module, expected: Module, skipped: int = 0) -> None:
    assert len(found.losses) == len(expected.losses) - skipped == EPOCHS * BATCHES - skipped
    np.testing.assert_allclose(found.losses, expected.losses[skipped:], rtol=1e-5)
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-3 * LR)


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_lightning_gives_the_same_losses_and_parameters(
    remote: Any, tmp_path: Path, scheduled: bool, overlap: bool, accumulate: int
) -> None:
    expected = train(local, tmp_path / "local", scheduled, accumulate_grad_batches=accumulate)
    found = train(
        lambda module: remote(module, overlap), tmp_path / "remote", scheduled, accumulate_grad_batches=accumulate
    )
    check(found, expected)
    assert found.losses[-1] < found.losses[0] / 2, "it did learn"


@pytest.mark.parametrize("ways", [("remote", "remote"), ("local", "remote"), ("remote", "local")])
def test_lightning_resumes_from_a_checkpoint(remote: Any, tmp_path: Path, ways: tuple[str, str]) -> None:
    """Saved half-way and finished by another Trainer, with a fresh optimizer and a module of other values."""
    makes = {"remote": remote, "local": local}
    expected = train(local, tmp_path / "whole", scheduled=True)
    train(makes[ways[0]], tmp_path / "begun", scheduled=True)
    checkpoint = tmp_path / "begun" / f"epoch={EPOCHS // 2 - 1}.ckpt"
    found = train(makes[ways[1]], tmp_path / "finished", scheduled=True, seed=1, resume=checkpoint)
    check(found, expected, skipped=EPOCHS // 2 * BATCHES)
