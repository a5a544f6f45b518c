"""Optimizer presets: their defaults are those of the library they name, and the message says every choice."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from gradwire.client import Adam, AMSGrad, ParamGroup, TorchAdam, TorchAdamW, WeightDecay
from gradwire.client.overrides import to_override
from gradwire.v1 import run_pb2

torch: Any = pytest.importorskip("torch")

PRESETS = [Adam, AMSGrad, TorchAdam, TorchAdamW]
each_preset = pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.__name__)

A = run_pb2.Adam
LABML: dict[str, Any] = {
    "lr": 1e-3,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-16,
    "weight_decay": 0.0,
    "weight_decay_mode": A.WEIGHT_DECAY_MODE_DECOUPLED,
    "amsgrad": False,
    "epsilon_placement": A.EPSILON_PLACEMENT_EPS_HAT,
    "maximum_of": A.MAXIMUM_OF_RAW,
    "bias_correction": True,
    "schedule": A.SCHEDULE_CONSTANT,
    "maximize": False,
}
TORCH = LABML | {
    "eps": 1e-8,
    "weight_decay_mode": A.WEIGHT_DECAY_MODE_COUPLED,
    "epsilon_placement": A.EPSILON_PLACEMENT_PLAIN,
}


def choices(message: run_pb2.Adam) -> dict[str, Any]:
    """Every field that the message sets; enums and bools always."""
    found = {name: getattr(message, name) for name in LABML}
    return found | {name: getattr(message, name) for name in ("low", "high") if message.HasField(name)}


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (Adam(), LABML),
        (AMSGrad(), LABML | {"amsgrad": True}),
        (AMSGrad(amsgrad=False), LABML),
        (TorchAdam(), TORCH),
        (TorchAdam(amsgrad=True), TORCH | {"amsgrad": True}),
        (TorchAdamW(), TORCH | {"weight_decay": 0.01, "weight_decay_mode": A.WEIGHT_DECAY_MODE_DECOUPLED}),
    ],
    ids=["Adam", "AMSGrad", "AMSGrad(amsgrad=False)", "TorchAdam", "TorchAdam(amsgrad)", "TorchAdamW"],
)
def test_preset_in_the_words_of_the_contract(optimizer: Adam, expected: dict[str, Any]) -> None:
    assert choices(optimizer.to_message()) == expected


@pytest.mark.parametrize(("preset", "reference"), [(TorchAdam, torch.optim.Adam), (TorchAdamW, torch.optim.AdamW)])
def test_torch_presets_have_the_defaults_of_torch(preset: type[Adam], reference: type[Any]) -> None:
    theirs = inspect.signature(reference.__init__).parameters
    ours = preset()
    for name in ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize"):
        assert getattr(ours, name) == theirs[name].default, name


@pytest.mark.parametrize(
    ("keywords", "fields"),
    [
        ({"lr": 0.5}, {"lr": 0.5}),
        ({"betas": (0.1, 0.2)}, {"beta1": 0.1, "beta2": 0.2}),
        ({"betas": [0.1, 0.2]}, {"beta1": 0.1, "beta2": 0.2}),
        ({"eps": 1e-4}, {"eps": 1e-4}),
        ({"weight_decay": 0.1}, {"weight_decay": 0.1}),
        ({"optimized_update": False}, {"epsilon_placement": A.EPSILON_PLACEMENT_PLAIN}),
        ({"amsgrad": True}, {"amsgrad": True}),
        ({"maximize": True}, {"maximize": True}),
        ({"maximum_of": "bias-corrected"}, {"maximum_of": A.MAXIMUM_OF_BIAS_CORRECTED}),
        ({"bias_correction": False}, {"bias_correction": False}),
        ({"schedule": "inverse-sqrt"}, {"schedule": A.SCHEDULE_INVERSE_SQRT}),
        ({"bounds": (-1, 1)}, {"low": -1.0, "high": 1.0}),
        ({"lr": np.float32(0.5)}, {"lr": 0.5}),
        ({"lr": torch.tensor(0.5)}, {"lr": 0.5}),
    ],
    ids=str,
)
def test_every_keyword_reaches_the_message(keywords: dict[str, Any], fields: dict[str, Any]) -> None:
    assert choices(Adam(**keywords).to_message()) == LABML | fields


@pytest.mark.parametrize(
    ("decay", "mode"),
    [
        (WeightDecay(0.1), A.WEIGHT_DECAY_MODE_DECOUPLED),
        (WeightDecay(0.1, weight_decouple=False), A.WEIGHT_DECAY_MODE_COUPLED),
        (WeightDecay(0.1, absolute=True), A.WEIGHT_DECAY_MODE_DECOUPLED_ABSOLUTE),
    ],
    ids=["decoupled", "coupled", "absolute"],
)
@each_preset
def test_weight_decay_of_each_kind_on_each_preset(preset: type[Adam], decay: WeightDecay, mode: int) -> None:
    message = preset(weight_decay=decay).to_message()
    assert (message.weight_decay, message.weight_decay_mode) == (0.1, mode)


@each_preset
def test_a_number_as_weight_decay_is_the_kind_of_the_preset(preset: type[Adam]) -> None:
    message = preset(weight_decay=0.25).to_message()
    coupled = preset is TorchAdam
    assert message.weight_decay == 0.25
    assert message.weight_decay_mode == (A.WEIGHT_DECAY_MODE_COUPLED if coupled else A.WEIGHT_DECAY_MODE_DECOUPLED)


def test_l2_decay_has_no_absolute_form() -> None:
    with pytest.raises(ValueError, match=r"absolute=True.* needs weight_decouple=True"):
        WeightDecay(0.1, weight_decouple=False, absolute=True)


@pytest.mark.parametrize("keywords", [{"momentum": 0.9}, {"learning_rate": 0.1}, {"beta1": 0.9}], ids=str)
@each_preset
def test_unknown_keyword_is_an_error(preset: type[Adam], keywords: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(keywords))):
        preset(**keywords)


@each_preset
def test_hyperparameters_are_keywords_only(preset: Any) -> None:
    with pytest.raises(TypeError, match="positional"):
        preset(0.1)


@pytest.mark.parametrize(
    ("keywords", "error", "what"),
    [
        ({"betas": 0.9}, TypeError, "betas is 0.9; expected two numbers"),
        ({"betas": (0.9,)}, TypeError, "expected two numbers"),
        ({"betas": (0.9, 0.99, 0.999)}, TypeError, "expected two numbers"),
        ({"betas": ("0.9", 0.99)}, TypeError, "betas is '0.9'"),
        ({"bounds": 1}, TypeError, "bounds is 1; expected two numbers"),
        ({"bounds": (None, 1)}, TypeError, "bounds is None"),
        ({"lr": "0.1"}, TypeError, "lr is '0.1'; expected a number"),
        ({"lr": None}, TypeError, "lr is None"),
        ({"lr": True}, TypeError, "lr is True"),
        ({"lr": [0.1]}, TypeError, "lr is"),
        ({"eps": "tiny"}, TypeError, "eps is 'tiny'"),
        ({"weight_decay": "L2"}, TypeError, "weight_decay is 'L2'"),
        ({"maximum_of": "corrected"}, ValueError, "expected one of 'raw', 'bias-corrected'"),
        ({"schedule": "cosine"}, ValueError, "expected one of 'constant', 'inverse-sqrt'"),
        ({"schedule": "inverse_sqrt"}, ValueError, "schedule is 'inverse_sqrt'"),
    ],
    ids=str,
)
def test_malformed_hyperparameter_is_refused_before_anything_is_sent(
    keywords: dict[str, Any], error: type[Exception], what: str
) -> None:
    with pytest.raises(error, match=what):
        Adam(**keywords)


def test_groups_change_what_they_name_and_no_more() -> None:
    optimizer = AMSGrad(lr=0.1, betas=(0.5, 0.6), bounds=(-1, 1))
    changed = optimizer.replace(ParamGroup({}, lr=0.2, amsgrad=False).hyperparameters)
    assert isinstance(changed, AMSGrad)
    assert choices(changed.to_message()) == choices(optimizer.to_message()) | {"lr": 0.2, "amsgrad": False}
    assert optimizer.lr == 0.1


def test_group_with_an_unknown_hyperparameter_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"AMSGrad has no hyperparameter 'nesterov'; expected one of \['amsgrad'"):
        AMSGrad().replace({"nesterov": True})
    with pytest.raises(ValueError, match="schedule is 'cosine'"):
        AMSGrad().replace({"schedule": "cosine"})


def test_override_sets_what_it_names_and_no_more() -> None:
    changes: Mapping[str, Any] = {"lr": 0.5, "betas": (0.1, 0.2)}
    override = to_override(3, changes)
    assert override == run_pb2.Override(group=3, lr=0.5, beta1=0.1, beta2=0.2)
    assert to_override(0, {"bounds": (-2, 2), "eps": 0, "weight_decay": 1}) == run_pb2.Override(
        group=0, low=-2, high=2, eps=0, weight_decay=1
    )


@pytest.mark.parametrize(
    "name", ["amsgrad", "maximize", "schedule", "optimized_update", "maximum_of", "bias_correction", "nesterov"]
)
def test_choices_that_need_other_state_cannot_change_during_a_run(name: str) -> None:
    with pytest.raises(TypeError, match=f"'{name}' cannot change during a run"):
        to_override(0, {name: True})


def test_override_with_a_malformed_number_is_refused() -> None:
    with pytest.raises(TypeError, match="lr is 'fast'"):
        to_override(0, {"lr": "fast"})
