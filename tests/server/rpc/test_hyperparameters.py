"""Hyperparameters as messages and as stored text: each comes back as it was, and Adam's bytes never change."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gradwire.server.durability.records import groups_from_data, groups_to_data
from gradwire.server.engine.staged_block import override_groups
from gradwire.server.optimizers.adam import AdamHyperparameters, EpsilonPlacement, MaximumOf, WeightDecayMode
from gradwire.server.optimizers.fed_opt import FedOptHyperparameters, Rule
from gradwire.server.optimizers.known import OPTIMIZERS
from gradwire.server.optimizers.schedules import Schedule
from gradwire.server.optimizers.sgd import SgdHyperparameters
from gradwire.server.rpc.hyperparameters import decode_group, decode_numbers, encode_group
from gradwire.v1 import run_pb2
from gradwire.wire.errors import InvalidHyperparameter, InvalidSpec

ADAM = AdamHyperparameters(
    lr=0.5,
    amsgrad=True,
    weight_decay_mode=WeightDecayMode.COUPLED,
    epsilon_placement=EpsilonPlacement.PLAIN,
    maximum_of=MaximumOf.BIAS_CORRECTED,
    low=-1.0,
    schedule=Schedule.INVERSE_SQRT,
    maximize=True,
)
GROUPS = [ADAM, *(kind() for kind in OPTIMIZERS.values())]
GROUPS += [
    SgdHyperparameters(lr=0.7, momentum=0.9, nesterov=True, high=2.0, maximize=True),
    FedOptHyperparameters(rule=Rule.YOGI, beta1=0.0, schedule=Schedule.INVERSE_SQRT),
]


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_a_group_comes_back_as_it_was(group: Any) -> None:
    message = run_pb2.Group.FromString(encode_group(group).SerializeToString())
    assert decode_group(0, message) == group
    assert groups_from_data(json.loads(json.dumps(groups_to_data([group])))) == (group,)


def test_adam_s_message_and_text_are_those_of_the_first_servers() -> None:
    """What older servers and clients have written, and will read."""
    assert encode_group(ADAM).SerializeToString().hex() == (
        "124409000000000000e03f11cdccccccccccec3f192b8716d9cef7ef3f21bc89d897b2d29c3c2900000000000000003003380140024802"
        "5001580261000000000000f0bf7001"
    )
    assert json.dumps(groups_to_data([ADAM])) == (
        '[{"optimizer": "adam", "lr": 0.5, "beta1": 0.9, "beta2": 0.999, "eps": 1e-16, "weight_decay": 0.0, '
        '"weight_decay_mode": "COUPLED", "amsgrad": true, "epsilon_placement": "PLAIN", '
        '"maximum_of": "BIAS_CORRECTED", "bias_correction": true, "schedule": "INVERSE_SQRT", "low": -1.0, '
        '"high": Infinity, "maximize": true}]'
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_a_message_does_not_say_is_the_documented_default(name: str) -> None:
    message = run_pb2.Group()
    getattr(message, name).SetInParent()
    assert decode_group(0, message) == OPTIMIZERS[name]()


def test_a_group_without_an_optimizer_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidSpec, match=r"group 3 names no optimizer .* expected one of adam, sgd, adagrad, yogi"):
        decode_group(3, run_pb2.Group())


def test_a_choice_that_there_is_not_is_refused_by_name() -> None:
    with pytest.raises(InvalidSpec, match=r"rule is 9; expected one of 1 \(ADAM\)"):
        decode_group(0, run_pb2.Group(fed_opt=run_pb2.FedOpt(rule=9)))  # type: ignore[arg-type]


def test_stored_text_of_an_optimizer_that_is_not_known_is_no_group() -> None:
    with pytest.raises(ValueError, match="lion, which this server does not know"):
        groups_from_data([{"optimizer": "lion", "lr": 0.1}])


def test_an_override_of_what_an_optimizer_does_not_have_is_refused() -> None:
    overrides = decode_numbers([run_pb2.Override(group=0, lr=0.5, momentum=0.9), run_pb2.Override(group=1, beta1=0.5)])
    assert overrides == {0: {"lr": 0.5, "momentum": 0.9}, 1: {"beta1": 0.5}}
    with pytest.raises(InvalidHyperparameter, match="override of group 0: its optimizer has no momentum; expected"):
        override_groups((AdamHyperparameters(), AdamHyperparameters()), overrides)
    with pytest.raises(InvalidHyperparameter, match="override of group 1: its optimizer has no beta1") as caught:
        override_groups((SgdHyperparameters(momentum=0.5), SgdHyperparameters()), overrides)
    assert caught.value.metadata["field"] == "beta1"


@pytest.mark.parametrize(
    ("group", "changes"),
    [
        (SgdHyperparameters(momentum=0.9), {"momentum": 0.0}),
        (SgdHyperparameters(), {"momentum": 0.9}),
        (FedOptHyperparameters(), {"beta1": 0.0}),
        (FedOptHyperparameters(beta1=0.0), {"beta1": 0.9}),
    ],
    ids=str,
)
def test_an_override_cannot_change_what_is_kept(group: Any, changes: dict[str, float]) -> None:
    with pytest.raises(InvalidHyperparameter, match="it would change the state that the group keeps"):
        override_groups((group,), {0: changes})
