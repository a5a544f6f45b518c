"""Local steps, and outer ones on the server with what they have come to."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from gradwire.client import SGD, NonFiniteGradient, Server, Shared
from gradwire.client.torch import DiLoCo
from tests.client.torch.side_by_side import new_name
from tests.client.torch.test_shared_runs import BOTH, loss_of, model
from tests.client.torch.together import together

EVERY, ROUNDS = 3, 4
NESTEROV = {"lr": 0.7, "momentum": 0.9, "nesterov": True}


def inner_of(each: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(each.parameters(), lr=1e-2)


def local_steps(each: nn.Module, inner: torch.optim.Optimizer, rank: int, outer: int) -> None:
    for step in range(EVERY):
        inner.zero_grad()
        loss_of(each, rank, outer * EVERY + step).backward()
        inner.step()


def emulated(weights: tuple[float, ...]) -> list[torch.Tensor]:
    """The algorithm by torch alone: workers that train copies, and an outer optimizer of the mean of differences."""
    globally = model(1)
    outer = torch.optim.SGD(globally.parameters(), **NESTEROV)  # type: ignore[arg-type]
    workers = [copy.deepcopy(globally) for _ in weights]
    inners = [inner_of(worker) for worker in workers]
    for number in range(ROUNDS):
        for rank, (worker, inner) in enumerate(zip(workers, inners, strict=True)):
            local_steps(worker, inner, rank, number)
        for param, *theirs in zip(globally.parameters(), *(w.parameters() for w in workers), strict=True):
            deltas = [w * (param.detach() - their.detach()) for w, their in zip(weights, theirs, strict=True)]
            param.grad = torch.stack(deltas).sum(0) / sum(weights)
        outer.step()
        for worker in workers:
            worker.load_state_dict(globally.state_dict())
    return [param.detach() for param in globally.parameters()]


def trained(each: nn.Module, diloco: DiLoCo, rank: int, weight: float) -> None:
    for step in range(ROUNDS * EVERY):
        diloco.inner_optimizer.zero_grad()
        loss_of(each, rank, step).backward()
        diloco.step(weight=weight)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 3.0)])
def test_it_is_the_algorithm_as_torch_alone_does_it(server: Server, weights: tuple[float, ...]) -> None:
    name = new_name()
    models = [model(seed) for seed in (1, 2)]
    dilocos = [
        DiLoCo(each, inner_of(each), every=EVERY, run=name, target=server, workers=BOTH, worker_id=f"rank-{rank}")
        for rank, each in enumerate(models)
    ]
    works = zip(models, dilocos, range(2), weights, strict=True)
    together(*(partial(trained, *work) for work in works))
    for ours, others, theirs in zip(models[0].parameters(), models[1].parameters(), emulated(weights), strict=True):
        assert torch.equal(ours, others)
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-4, atol=1e-5)
    receipt = dilocos[0].last_receipt
    assert receipt is not None
    assert (receipt.step, receipt.total_weight) == (ROUNDS, EVERY * sum(weights))
    for diloco in dilocos:
        diloco.close()


def test_alone_it_is_the_algorithm_too(server: Server) -> None:
    each = model(1)
    with DiLoCo(each, inner_of(each), SGD(**NESTEROV), every=EVERY, run=new_name(), target=server) as diloco:  # type: ignore[arg-type]
        trained(each, diloco, 0, 1.0)
        assert diloco.run.step_count == ROUNDS
    for ours, theirs in zip(each.parameters(), emulated((1.0,)), strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-4, atol=1e-5)


def test_a_step_towards_where_the_local_steps_went(server: Server) -> None:
    """With lr 1 and nothing else an outer step ends exactly there: the sign is right."""
    each = nn.Linear(2, 1)
    with DiLoCo(
        each, torch.optim.SGD(each.parameters(), lr=0.5), SGD(lr=1.0), every=2, run=new_name(), target=server
    ) as d:
        for _ in range(2):
            for param in each.parameters():
                param.grad = torch.ones_like(param)
            before = [param.detach().clone() for param in each.parameters()]
            d.step()
        assert d.local_steps == 0
    for param, old in zip(each.parameters(), before, strict=True):
        torch.testing.assert_close(param.detach(), old - 0.5)


def test_parameters_of_16_bits_lose_nothing_that_local_steps_did_not_change(server: Server) -> None:
    each = nn.Linear(3, 1).to(torch.bfloat16)
    with DiLoCo(
        each, torch.optim.SGD(each.parameters(), lr=1.0), SGD(lr=0.001), every=1, run=new_name(), target=server
    ) as d:
        for param in each.parameters():
            param.grad = torch.ones_like(param)
        d.step()
        masters = d.run.read()
        for param in each.parameters():
            param.grad = torch.zeros_like(param)
        d.step()
        again = d.run.read()
    assert d.run.dtype == "float32"
    assert all((masters[name] == again[name]).all() for name in masters)
    assert any(
        bool((torch.from_numpy(v) != p.detach().float()).any())
        for v, p in zip(again.values(), each.parameters(), strict=True)
    )


def test_what_is_not_finite_is_refused_and_the_next_steps_begin_at_the_run_s_parameters(server: Server) -> None:
    each = model(1)
    begun = [param.detach().clone() for param in each.parameters()]
    workers = Shared(quorum=1)
    with DiLoCo(each, inner_of(each), every=1, run=new_name(), target=server, workers=workers) as diloco:
        with torch.no_grad():
            next(each.parameters()).fill_(torch.nan)
        with pytest.raises(NonFiniteGradient):
            diloco.step()
        assert diloco.local_steps == 0
        for param, old in zip(each.parameters(), begun, strict=True):
            assert torch.equal(param.detach(), old)
        assert diloco.outer_step().share == 0.0, "without local steps it passes"


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"every": 0}, ValueError, "^every is 0; expected 1 or more local steps"),
        ({"every": 2.0}, TypeError, "^every is 2.0; expected a whole number of local steps"),
        ({"workers": 2}, TypeError, r"^workers is 2; expected Shared\(...\)"),
        ({"run": 3}, TypeError, "^run is 3; expected the name of a run"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(server: Server, options: dict[str, Any], error: type, said: str) -> None:
    each = model(1)
    with pytest.raises(error, match=said):
        DiLoCo(each, inner_of(each), **{"every": 1, "run": new_name(), "target": server, **options})


def test_a_model_without_anything_to_train_is_refused(server: Server) -> None:
    each = model(1).requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that needs a gradient"):
        DiLoCo(each, torch.optim.SGD(each.parameters()), every=1, run=new_name(), target=server)
