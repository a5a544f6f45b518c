"""Presets of a shell are those of the client, and what they cannot take is refused by what they can."""

from __future__ import annotations

import click
import pytest

import gradwire.client
from gradwire.client import Optimizer
from gradwire.server.cli.presets import PRESETS, group_of
from gradwire.server.rpc.hyperparameters import decode_group

OF_THE_CLIENT = {
    name: kind
    for name in gradwire.client.__all__
    if isinstance(kind := getattr(gradwire.client, name), type)
    and issubclass(kind, Optimizer)
    and kind is not Optimizer
}


def test_there_are_those_that_the_client_has() -> None:
    assert set(PRESETS) == set(OF_THE_CLIENT)


@pytest.mark.parametrize("name", PRESETS)
def test_each_means_what_the_client_s_does(name: str) -> None:
    assert decode_group(0, group_of(name, [])) == decode_group(0, OF_THE_CLIENT[name]().to_group())


@pytest.mark.parametrize(
    ("name", "settings", "changes"),
    [
        (
            "AMSGrad",
            ["lr=0.25", "betas=0.8,0.9", "bounds=-1,inf"],
            {"lr": 0.25, "betas": (0.8, 0.9), "bounds": (-1, float("inf"))},
        ),
        ("AMSGrad", ["amsgrad=false", "bias_correction=false"], {"amsgrad": False, "bias_correction": False}),
        ("TorchAdamW", ["weight_decay=0.5", "maximize=true"], {"weight_decay": 0.5, "maximize": True}),
        ("SGD", ["momentum=0.9", "nesterov=true"], {"momentum": 0.9, "nesterov": True}),
        ("Adagrad", ["lr_decay=0.1", "schedule=inverse-sqrt"], {"lr_decay": 0.1, "schedule": "inverse-sqrt"}),
        ("FedYogi", ["tau=0.1", "betas=0,0.9"], {"tau": 0.1, "betas": (0.0, 0.9)}),
    ],
)
def test_numbers_are_the_client_s(name: str, settings: list[str], changes: dict[str, object]) -> None:
    assert decode_group(0, group_of(name, settings)) == decode_group(0, OF_THE_CLIENT[name](**changes).to_group())
    assert group_of(name, settings) != PRESETS[name], "which stays as it is"


@pytest.mark.parametrize(
    ("name", "settings", "error"),
    [
        ("SGD", ["lr"], "'lr'; expected NAME=VALUE, such as lr=0.1"),
        ("Yogi", ["momentum=0.9"], "Yogi has no 'momentum'; expected one of betas, bias_correction, bounds, eps, "),
        ("SGD", ["eps=1"], "SGD has no 'eps'; expected one of bounds, dampening, lr, maximize, momentum, nesterov, "),
        ("Adam", ["beta1=0.9"], "Adam has no 'beta1'; expected one of amsgrad, betas"),
        ("SGD", ["lr=fast"], "lr is 'fast'; expected a number, such as lr=0.1"),
        ("SGD", ["lr=1,2"], "lr is '1,2'; expected a number"),
        ("Adam", ["betas=0.9"], "betas is '0.9'; expected two numbers, such as betas=0.9,0.99"),
        ("SGD", ["nesterov=yes"], "nesterov is 'yes'; expected one of true, false"),
        ("SGD", ["schedule=cosine"], "schedule is 'cosine'; expected one of constant, inverse-sqrt"),
        ("SGD", ["lr=1", "lr=2"], "lr is given twice"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, settings: list[str], error: str) -> None:
    with pytest.raises(click.BadParameter) as refused:
        group_of(name, settings)
    assert error in refused.value.message
