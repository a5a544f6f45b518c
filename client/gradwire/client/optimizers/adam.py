"""Adam and AMSGrad. The class picks the defaults, the keywords change them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gradwire.client.optimizers.numbers import number, pair, truth
from gradwire.client.optimizers.optimizer import SCHEDULES, Optimizer
from gradwire.v1 import run_pb2

_Adam = run_pb2.Adam

_MAXIMA = {"raw": _Adam.MAXIMUM_OF_RAW, "bias-corrected": _Adam.MAXIMUM_OF_BIAS_CORRECTED}


@dataclass(frozen=True)
class WeightDecay:
    """Weight decay as ``labml_nn.optimizers.WeightDecay`` names it.

    Args:
        weight_decay: the factor, >= 0.
        weight_decouple: True: ``p *= 1 - lr*weight_decay`` before the update (AdamW).
            False: ``g += weight_decay*p`` (L2).
        absolute: with ``weight_decouple``: ``p *= 1 - weight_decay``.
    """

    weight_decay: float = 0.0
    weight_decouple: bool = True
    absolute: bool = False

    def __post_init__(self) -> None:
        if self.absolute and not self.weight_decouple:
            raise ValueError("WeightDecay(absolute=True) needs weight_decouple=True: L2 decay has no absolute form")

    @property
    def mode(self) -> run_pb2.Adam.WeightDecayMode.ValueType:
        if not self.weight_decouple:
            return _Adam.WEIGHT_DECAY_MODE_COUPLED
        return _Adam.WEIGHT_DECAY_MODE_DECOUPLED_ABSOLUTE if self.absolute else _Adam.WEIGHT_DECAY_MODE_DECOUPLED


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam with labml's defaults (Kingma and Ba 2015; ``labml_nn.optimizers.adam``).

    Args:
        lr: learning rate, >= 0.
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: a `WeightDecay`, or a number for the preset's own kind of decay.
        optimized_update: True: the epsilon-hat form ``lr*sqrt(1-b2^t)/(1-b1^t) * m/(sqrt(v)+eps)``.
            False: the plain form ``lr/(1-b1^t) * m/(sqrt(v)/sqrt(1-b2^t)+eps)``, torch's.
        amsgrad: divide by the maximum of v over all steps (Reddi, Kale and Kumar 2018).
        maximum_of: ``"raw"`` (the paper, labml, torch) or ``"bias-corrected"`` (optax; needs ``amsgrad``,
            ``bias_correction`` and ``optimized_update=False``).
        bias_correction: False leaves out all ``1-b^t``, as the AMSGrad paper does.
        schedule: ``"constant"``, or ``"inverse-sqrt"``: lr/sqrt(t) at the run's step t = 1, 2, ...
        bounds: (low, high), every element is clamped to them after each step; None: no bounds.
        maximize: go up: the sign of the gradient is turned first, before weight decay (torch's ``maximize``).

    Raises ValueError or TypeError for a malformed argument; ranges are checked by the server (InvalidHyperparameter).
    """

    decoupled_by_default: ClassVar[bool] = True

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-16
    weight_decay: WeightDecay | float = 0.0
    optimized_update: bool = True
    amsgrad: bool = False
    maximum_of: str = "raw"
    bias_correction: bool = True
    schedule: str = "constant"
    bounds: tuple[float, float] | None = None
    maximize: bool = False

    def __post_init__(self) -> None:
        pair("betas", self.betas)
        if self.bounds is not None:
            pair("bounds", self.bounds)
        if self.maximum_of not in _MAXIMA:
            raise ValueError(f"maximum_of is {self.maximum_of!r}; expected one of {', '.join(map(repr, _MAXIMA))}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}; expected one of {', '.join(map(repr, SCHEDULES))}")
        for name in ("lr", "eps"):
            number(name, getattr(self, name))
        if not isinstance(self.weight_decay, WeightDecay):
            number("weight_decay", self.weight_decay)
        for name in ("optimized_update", "amsgrad", "bias_correction", "maximize"):
            truth(name, getattr(self, name))

    @property
    def slots(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if self.amsgrad else ("exp_avg", "exp_avg_sq")

    def to_group(self) -> run_pb2.Group:
        return run_pb2.Group(adam=self.to_message())

    def to_message(self) -> run_pb2.Adam:
        """This choice in the contract's words."""
        decay = self.decay()
        beta1, beta2 = pair("betas", self.betas)
        message = _Adam(
            lr=number("lr", self.lr),
            beta1=beta1,
            beta2=beta2,
            eps=number("eps", self.eps),
            weight_decay=decay.weight_decay,
            weight_decay_mode=decay.mode,
            amsgrad=bool(self.amsgrad),
            epsilon_placement=(
                _Adam.EPSILON_PLACEMENT_EPS_HAT if self.optimized_update else _Adam.EPSILON_PLACEMENT_PLAIN
            ),
            maximum_of=_MAXIMA[self.maximum_of],
            bias_correction=bool(self.bias_correction),
            schedule=SCHEDULES[self.schedule],
            maximize=bool(self.maximize),
        )
        if self.bounds is not None:
            message.low, message.high = self.bounds
        return message

    def decay(self) -> WeightDecay:
        """The weight decay with its kind said."""
        if isinstance(self.weight_decay, WeightDecay):
            return self.weight_decay
        return WeightDecay(number("weight_decay", self.weight_decay), weight_decouple=self.decoupled_by_default)


@dataclass(frozen=True, kw_only=True)
class AMSGrad(Adam):
    """AMSGrad with labml's defaults (``labml_nn.optimizers.amsgrad``). ``amsgrad=False`` is Adam, also per group."""

    amsgrad: bool = True


@dataclass(frozen=True, kw_only=True)
class TorchAdam(Adam):
    """``torch.optim.Adam``: eps 1e-8, the plain form, a number as ``weight_decay`` is L2.

    Args (beside Adam's):
        decoupled_weight_decay: True: a number as ``weight_decay`` is decoupled, as in AdamW. None: as the class says.
        foreach, fused: taken and without effect: they choose how torch computes where it runs itself.
        capturable, differentiable: False only; a remote step can be neither captured in a graph nor differentiated.

    ``lr`` and ``betas`` may be tensors of one element. Raises NotImplementedError for what is not supported.
    """

    decoupled_by_default: ClassVar[bool] = False

    eps: float = 1e-8
    optimized_update: bool = False
    decoupled_weight_decay: bool | None = None
    foreach: bool | None = None
    fused: bool | None = None
    capturable: bool = False
    differentiable: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("decoupled_weight_decay", "foreach", "fused"):
            if getattr(self, name) is not None:
                truth(name, getattr(self, name))
        for name in ("capturable", "differentiable"):
            if truth(name, getattr(self, name)):
                raise NotImplementedError(f"{name}=True is not supported: the step runs on a server")

    def decay(self) -> WeightDecay:
        if self.decoupled_weight_decay is None or isinstance(self.weight_decay, WeightDecay):
            return super().decay()
        return WeightDecay(number("weight_decay", self.weight_decay), weight_decouple=self.decoupled_weight_decay)


@dataclass(frozen=True, kw_only=True)
class TorchAdamW(TorchAdam):
    """``torch.optim.AdamW``: as TorchAdam, with decoupled weight decay 0.01, always decoupled as there."""

    decoupled_by_default: ClassVar[bool] = True

    weight_decay: WeightDecay | float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoupled_weight_decay is False:
            raise ValueError("TorchAdamW always decouples its weight decay; TorchAdam does not")
