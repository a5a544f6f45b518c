"""Several processes with one optimizer: here threads, each with a model and an optimizer of its own."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from gradwire.client import SGD, LayoutMismatch, LeaderBusy, NonFiniteGradient, Server, Shared, TorchAdam
from gradwire.client.torch import RemoteOptimizer
from tests.client.torch.side_by_side import new_name
from tests.client.torch.together import together

BOTH = Shared(quorum=2, deadline_seconds=20.0)


def model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


class Pair:
    """Two workers of a run; the first one leads."""

    def __init__(self, server: Server, preset: Any = None, workers: Shared = BOTH, **options: Any) -> None:
        self.models = [model(seed) for seed in (1, 2)]
        self.name = new_name()
        self.optimizers = [
            RemoteOptimizer(
                each.parameters(),
                TorchAdam(lr=1e-2) if preset is None else preset,
                run=self.name,
                target=server,
                workers=workers,
                worker_id=f"rank-{rank}",
                **options,
            )
            for rank, each in enumerate(self.models)
        ]

    @property
    def values(self) -> list[list[torch.Tensor]]:
        return [[p.detach().clone() for p in each.parameters()] for each in self.models]

    def backward(self, step: int, *, skip: int | None = None) -> None:
        """Gradients of both, each of its own batch."""
        for rank, each in enumerate(self.models):
            each.zero_grad()
            if rank != skip:
                loss_of(each, rank, step).backward()

    def step(self, *weights: float) -> None:
        steps = [
            partial(optimizer.step, weight=w) for optimizer, w in zip(self.optimizers, weights or (1, 1), strict=True)
        ]
        together(*steps)

    def train(self, steps: int) -> None:
        for step in range(steps):
            self.backward(step)
            self.step()

    def assert_same(self) -> None:
        first, second = self.values
        assert all(map(torch.equal, first, second))

    def close(self) -> None:
        for optimizer in self.optimizers:
            optimizer.close()


def batch(rank: int, step: int, examples: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(examples, 4, generator=generator), torch.randn(examples, 2, generator=generator)


def loss_of(each: nn.Module, rank: int, step: int) -> torch.Tensor:
    inputs, targets = batch(rank, step)
    return nn.functional.mse_loss(each(inputs), targets)


def test_the_creator_s_weights_count_and_the_others_take_them(server: Server) -> None:
    pair = Pair(server)
    first, second = pair.values
    assert all(map(torch.equal, first, model(1).parameters()))
    assert all(map(torch.equal, second, first))
    assert [optimizer.run.leads for optimizer in pair.optimizers] == [True, False]
    pair.close()


def test_half_an_answer_keeps_no_optimizer_from_stepping(server: Server) -> None:
    """The model's weights are copies, to which nothing is written before it is whole; `Run.step` alone would refuse."""
    pair = Pair(server)
    for optimizer in pair.optimizers:
        optimizer.run._parameters.stale = optimizer.run._parameters.mixed = True
    pair.train(2)
    pair.assert_same()
    pair.close()


@pytest.mark.parametrize("overlap", [False, True])
def test_two_workers_do_what_one_does_with_their_batches_together(server: Server, overlap: bool) -> None:
    """To rounding: the mean of two means is rounded otherwise."""
    pair = Pair(server, overlap=overlap)
    alone = model(1)
    local = torch.optim.Adam(alone.parameters(), lr=1e-2)
    for step in range(20):
        pair.backward(step)
        pair.step(8, 8)
        local.zero_grad()
        ((loss_of(alone, 0, step) + loss_of(alone, 1, step)) / 2).backward()
        local.step()
        pair.assert_same()
    for ours, theirs in zip(pair.values[0], alone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
    receipt = pair.optimizers[1].last_receipt
    assert receipt is not None
    assert (receipt.step, receipt.share, receipt.total_weight) == (20, 0.5, 16.0)
    pair.close()


@pytest.mark.parametrize("options", [{"gradient_encoding": "int8", "parameter_encoding": "int8"}, {"dtype": "float64"}])
def test_encodings_work_as_with_one_worker(server: Server, options: dict[str, Any]) -> None:
    pair = Pair(server, **options)
    begun = pair.values[0]
    pair.train(5)
    pair.assert_same()
    assert not torch.equal(pair.values[0][0], begun[0])
    pair.close()


def test_weights_count(server: Server) -> None:
    pair = Pair(server, SGD(lr=1.0))
    before = pair.values[0]
    pair.backward(0)
    gradients = [[p.grad.clone() for p in each.parameters() if p.grad is not None] for each in pair.models]
    pair.step(1, 3)
    for old, new, a, b in zip(before, pair.values[0], *gradients, strict=True):
        torch.testing.assert_close(new, old - (a + 3 * b) / 4)
    pair.close()


def test_a_worker_without_gradients_passes_and_nobody_waits_for_it(server: Server) -> None:
    pair = Pair(server)
    before = pair.values[0]
    pair.backward(0, skip=1)
    pair.step()
    receipts = [optimizer.last_receipt for optimizer in pair.optimizers]
    assert [receipt.share for receipt in receipts if receipt is not None] == [1.0, 0.0]
    assert not torch.equal(pair.values[0][0], before[0])
    pair.assert_same()
    pair.close()


def test_a_grad_scaler_that_skips_passes(server: Server) -> None:
    pair = Pair(server, SGD(lr=1.0))
    before = pair.values[0]
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in pair.models]
    for rank, (each, scaler) in enumerate(zip(pair.models, scalers, strict=True)):
        loss = loss_of(each, rank, 0) * (torch.inf if rank else 1.0)
        scaler.scale(loss).backward()
    together(*(partial(s.step, o, weight=2) for s, o in zip(scalers, pair.optimizers, strict=True)))
    for scaler in scalers:
        scaler.update()
    assert [scaler.get_scale() for scaler in scalers] == [1024.0, 512.0]
    shares = [o.last_receipt.share for o in pair.optimizers if o.last_receipt is not None]
    assert shares == [1.0, 0.0]
    expected = model(1)
    loss_of(expected, 0, 0).backward()
    for old, new, p in zip(before, pair.values[1], expected.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(new, old - p.grad, rtol=1e-5, atol=1e-6)
    pair.close()


def test_a_gradient_that_is_not_finite_raises_for_its_sender_who_has_the_newest_parameters(server: Server) -> None:
    pair = Pair(server, workers=Shared(quorum=1, max_staleness=10))
    leader, other = pair.optimizers
    pair.backward(0)
    leader.step()
    for p in pair.models[1].parameters():
        p.grad = torch.full_like(p, torch.nan)
    with pytest.raises(NonFiniteGradient):
        other.step()
    pair.assert_same()
    pair.close()


# --- who leads -------------------------------------------------------------------------------------------------------


def test_the_leader_s_learning_rate_counts(server: Server) -> None:
    pair = Pair(server)
    for optimizer in pair.optimizers:
        optimizer.param_groups[0]["lr"] = 5e-3
    pair.train(4)
    receipt = pair.optimizers[1].last_receipt
    assert receipt is not None
    assert receipt.learning_rates == (5e-3,)
    pair.close()


def test_another_learning_rate_raises_when_it_lasts(server: Server) -> None:
    pair = Pair(server)
    pair.optimizers[1].param_groups[0]["lr"] = 5e-3
    pair.train(2)
    pair.backward(2)
    with pytest.raises(LeaderBusy, match=r"the learning rates of worker rank-1 are \[0.005\], .*\[0.01\], for 3 steps"):
        pair.step()
    pair.assert_same()
    pair.optimizers[1].param_groups[0]["lr"] = 1e-2
    pair.train(1)
    pair.close()


def test_a_learning_rate_that_is_late_does_not(server: Server) -> None:
    pair = Pair(server)
    for late in range(4):
        pair.optimizers[0].param_groups[0]["lr"] = 1e-2 + late
        pair.train(2)
        pair.optimizers[1].param_groups[0]["lr"] = 1e-2 + late
        pair.train(1)
    pair.close()


def test_rates_of_a_schedule_of_the_run_s_are_compared_as_they_are_in_force(server: Server) -> None:
    pair = Pair(server, TorchAdam(lr=1e-2, schedule="inverse-sqrt"))
    pair.train(5)
    pair.close()


def test_edits_of_a_worker_that_does_not_lead_raise(server: Server) -> None:
    pair = Pair(server)
    pair.train(1)
    with torch.no_grad():
        next(pair.models[1].parameters()).add_(1.0)
    pair.backward(1)
    with pytest.raises(LeaderBusy, match=r"parameters were changed here between steps \('param_0'\)"):
        pair.optimizers[1].step()
    with pytest.raises(LeaderBusy, match="rank-1 does not lead"):
        pair.optimizers[1].run.read()
    pair.close()


def test_edits_of_the_leader_count_and_the_gradients_of_others_from_before_do_not(server: Server) -> None:
    pair = Pair(server, SGD(lr=1.0))
    pair.train(1)
    pair.backward(1)
    with torch.no_grad():
        for p in pair.models[0].parameters():
            p.fill_(1.0)
    pair.optimizers[0].run.digest()  # writes them
    pair.optimizers[1].step()
    receipt = pair.optimizers[1].last_receipt
    assert receipt is not None
    assert (receipt.outcome, receipt.reason) == ("stale", "HISTORY_CHANGED")
    pair.assert_same()
    pair.train(1)
    pair.assert_same()
    pair.close()


def test_all_load_a_checkpoint_and_the_leader_s_counts(server: Server) -> None:
    first = Pair(server)
    first.train(3)
    saved = first.optimizers[0].state_dict()
    first.close()
    pair = Pair(server)
    for optimizer in reversed(pair.optimizers):  # those who do not lead write nothing, whoever is first
        optimizer.load_state_dict(saved)
    assert pair.optimizers[1].state_dict()["state"][0]["step"] == 3
    pair.backward(0)
    pair.step()
    outcomes = [o.last_receipt.outcome for o in pair.optimizers if o.last_receipt is not None]
    assert outcomes == ["accepted", "accepted"]
    pair.close()


def test_a_checkpoint_that_does_not_fit_is_refused_by_all(server: Server) -> None:
    saved = torch.optim.Adam(model(1).parameters(), amsgrad=True).state_dict()
    pair = Pair(server)
    for optimizer in pair.optimizers:
        with pytest.raises(ValueError, match="amsgrad"):
            optimizer.load_state_dict(saved)
    pair.close()


def test_who_closes_with_edits_of_its_own_keeps_them(server: Server) -> None:
    pair = Pair(server)
    with torch.no_grad():
        next(pair.models[1].parameters()).add_(1.0)
    pair.optimizers[1].close()
    pair.optimizers[0].close()


# --- bad input -------------------------------------------------------------------------------------------------------


def test_runs_of_one_worker_and_shared_ones_are_not_mixed(server: Server) -> None:
    name = new_name()
    one = RemoteOptimizer(model(1).parameters(), run=name, target=server)
    with pytest.raises(ValueError, match=r"^weight is 2, but this run has one worker at a time"):
        one.step(weight=2)
    one.close()
    with pytest.raises(LayoutMismatch, match="exists as a run of one worker; it can only be resumed without workers="):
        RemoteOptimizer(model(1).parameters(), run=name, target=server, workers=BOTH)
    pair = Pair(server)
    with pytest.raises(LayoutMismatch, match="exists as a run of many workers; it can only be resumed with workers"):
        RemoteOptimizer(model(1).parameters(), run=pair.name, target=server, on_existing="resume")
    pair.close()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"workers": 4}, TypeError, r"^workers is 4; expected Shared\(...\)"),
        ({"workers": BOTH, "on_existing": "replace"}, ValueError, "^on_existing is 'replace' with workers"),
        ({"workers": BOTH, "leads": 1.5}, TypeError, "^leads is 1.5; expected True, False or None"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(server: Server, options: dict[str, Any], error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        RemoteOptimizer(model(1).parameters(), run=new_name(), target=server, **options)


def test_the_groups_of_a_shared_run_cannot_change(server: Server) -> None:
    pair = Pair(server)
    for optimizer in pair.optimizers:
        with pytest.raises(ValueError, match="is shared: its groups and parameters cannot change"):
            optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    pair.train(1)
    pair.close()


def test_two_leaders_are_one_too_many(server: Server) -> None:
    pair = Pair(server)
    with pytest.raises(LeaderBusy, match="worker 'rank-0' leads"):
        RemoteOptimizer(
            model(3).parameters(), run=pair.name, target=server, workers=BOTH, worker_id="rank-2", leads=True
        )
    pair.close()
