"""HuggingFace's ``Trainer`` takes a `RemoteOptimizer` as it takes any other: the same losses, checkpoints both ways.

Tolerance: each step differs from torch's by roundings, of which training makes a little more. The epsilon is larger
than usual because the true gradient of a key's bias is zero in attention: what is computed is rounding alone, which
Adam would turn into steps of the full learning rate.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradwire.client import Server, TorchAdamW
from gradwire.client.torch import RemoteOptimizer

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

LR, EPS = 1e-2, 1e-6
EXAMPLES, VOCABULARY, LENGTH = 48, 64, 12
BATCH, ACCUMULATE, EPOCHS = 4, 2, 3
STEPS = EXAMPLES // BATCH // ACCUMULATE * EPOCHS
HALF = STEPS // 2

Make = Callable[[Any], torch.optim.Optimizer]
_numbers = itertools.count()


class Tokens(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Sentences that count up from a random word."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        first = torch.randint(VOCABULARY, (EXAMPLES, 1), generator=generator)
        self.sentences = (first + torch.arange(LENGTH)) % VOCABULARY

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.sentences[index], "labels": self.sentences[index]}


def small_model(seed: int) -> Any:
    """Two blocks, whose input and output embeddings are one parameter."""
    torch.manual_seed(seed)
    size = {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": 16, "n_layer": 2, "n_head": 2}
    special = {"bos_token_id": 0, "eos_token_id": 0}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**size, **special, **dropout))


def groups(model: Any) -> list[dict[str, Any]]:
    """As the Trainer makes them itself: no weight decay for vectors."""
    params = list(model.parameters())
    return [
        {"params": [param for param in params if param.ndim > 1], "weight_decay": 0.1},
        {"params": [param for param in params if param.ndim < 2], "weight_decay": 0.0},
    ]


def local(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups(model), lr=LR, eps=EPS)


@pytest.fixture
def remote(server: Server) -> Iterator[Make]:
    made: list[RemoteOptimizer] = []

    def make(model: Any, overlap: bool = False) -> RemoteOptimizer:
        preset = TorchAdamW(lr=LR, eps=EPS)
        run = f"huggingface-{next(_numbers)}"
        made.append(RemoteOptimizer(groups(model), preset, target=server, run=run, overlap=overlap))
        return made[-1]

    yield make
    for optimizer in made:
        optimizer.close()


def train(make: Make, directory: Path, seed: int = 0, resume: Path | None = None) -> tuple[list[Any], Any]:
    """The log of each step, and the model."""
    model = small_model(seed)
    optimizer = make(model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    arguments = transformers.TrainingArguments(
        output_dir=str(directory),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATE,
        max_grad_norm=0.5,
        logging_steps=1,
        save_strategy="steps",
        save_steps=HALF,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=Tokens(), optimizers=(optimizer, scheduler)
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return [entry for entry in trainer.state.log_history if "loss" in entry], model


def check(found: tuple[list[Any], Any], expected: tuple[list[Any], Any]) -> None:
    for key in ("loss", "grad_norm", "learning_rate"):
        ours, theirs = ([entry[key] for entry in log] for log, _ in (found, expected))
        assert len(ours) == STEPS
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, err_msg=key)
    for param, expected_param in zip(found[1].parameters(), expected[1].parameters(), strict=True):
        torch.testing.assert_close(param, expected_param, rtol=1e-5, atol=1e-3 * LR)


@pytest.mark.parametrize("overlap", [False, True])
def test_trainer_gives_the_same_losses_and_parameters(remote: Any, tmp_path: Path, overlap: bool) -> None:
    """Accumulated, clipped and scheduled as the Trainer does it."""
    expected = train(local, tmp_path / "local")
    found = train(lambda model: remote(model, overlap), tmp_path / "remote")
    check(found, expected)
    losses = [entry["loss"] for entry in found[0]]
    assert losses[-1] < losses[0] - 0.1, "it did learn"
    assert max(entry["grad_norm"] for entry in found[0]) > 0.5, "something was clipped"


@pytest.mark.parametrize("ways", [("remote", "remote"), ("local", "remote"), ("remote", "local")])
def test_trainer_resumes_from_a_checkpoint(remote: Any, tmp_path: Path, ways: tuple[str, str]) -> None:
    """Saved half-way and finished by another Trainer, with a fresh optimizer and a model of other values."""
    makes = {"remote": remote, "local": local}
    expected = train(local, tmp_path / "whole")
    train(makes[ways[0]], tmp_path / "begun")
    checkpoint = tmp_path / "begun" / f"checkpoint-{HALF}"
    assert (checkpoint / "optimizer.pt").exists()
    found = train(makes[ways[1]], tmp_path / "finished", seed=1, resume=checkpoint)
    assert sorted(path.name for path in (tmp_path / "finished").iterdir()) == [f"checkpoint-{STEPS}"]
    check(found, expected)
