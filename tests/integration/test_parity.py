"""Promise 1, same numbers: a run on a real server against the formulas, step for step, over all knobs at once.

Tolerance. Server and reference do the same IEEE operations in the same order; only ``beta**t`` may differ, by one unit
in the last place (ulp) of float64, since C and LLVM each have a ``pow`` of their own. ``1 - beta**t`` is 1e-3 or more
here, so the scalars of a step differ by at most 2^-52 / 1e-3 = 2.2e-13 of themselves.
- float32: cast to float32 such scalars are the same, except where one lies that close to a rounding boundary
  (one in 3e5). So single ulps are allowed for, not expected: 2^-22 of each number.
- float64: 2.2e-13 of each UPDATE. A parameter moves by some 30 lr a step at most (first moment over second).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradwire.client import Adam, ParamGroup, Run, Server, WeightDecay, connect
from tests.reference import ReferenceAdam, ReferenceConfig
from tests.serving import ServerProcess

Tensor = npt.NDArray[Any]

RTOL = {"float32": 2.0**-22, "float64": 1e-12}
SHAPES: list[tuple[int, ...]] = [(), (1,), (0,), (3,), (2, 3), (2, 0, 4), (4, 1, 2), (40,)]
quick = settings(derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow], print_blob=False)


@dataclass(frozen=True)
class Block:
    """K steps: which tensors have no gradient, which rows hold a NaN, what changes from here on."""

    steps: int
    absent: frozenset[int]
    poisoned: frozenset[int]
    trajectory: bool
    overrides: Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True)
class Case:
    """A run and what happens to it."""

    groups: list[list[tuple[int, ...]]]
    configs: list[ReferenceConfig]
    dtype: Literal["float32", "float64"]
    policy: Literal["reject", "skip"]
    blocks: list[Block]
    seed: int


LR = st.sampled_from([0.0, 1e-4, 1e-2, 0.5])
BETAS = st.tuples(st.sampled_from([0.0, 0.9, 0.99]), st.sampled_from([0.0, 0.9, 0.999]))
EPS = st.sampled_from([0.0, 1e-16, 1e-8, 1e-3])
WEIGHT_DECAY = st.sampled_from([0.0, 0.01, 0.3])
BOUNDS = st.sampled_from([(-np.inf, np.inf), (-0.5, 0.75), (0.0, np.inf), (0.1, 0.1)])


@st.composite
def configs(draw: st.DrawFn) -> ReferenceConfig:
    """Any valid combination of the knobs."""
    amsgrad = draw(st.booleans())
    placement: Literal["eps_hat", "plain"] = draw(st.sampled_from(("eps_hat", "plain")))
    corrected = amsgrad and placement == "plain" and draw(st.booleans())
    return ReferenceConfig(
        lr=draw(LR),
        betas=draw(BETAS),
        eps=draw(EPS),
        weight_decay=draw(WEIGHT_DECAY),
        weight_decay_mode=draw(st.sampled_from(("decoupled", "decoupled_absolute", "coupled"))),
        amsgrad=amsgrad,
        epsilon_placement=placement,
        maximum_of="bias_corrected" if corrected else "raw",
        bias_correction=corrected or draw(st.booleans()),
        schedule=draw(st.sampled_from(("constant", "inverse_sqrt"))),
        bounds=draw(BOUNDS),
    )


OVERRIDES = st.fixed_dictionaries(
    {}, optional={"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY, "bounds": BOUNDS}
)


@st.composite
def cases(draw: st.DrawFn, steps: st.SearchStrategy[int], most_blocks: int) -> Case:
    groups = draw(st.lists(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3), min_size=1, max_size=3))
    tensors = sum(map(len, groups))
    policy: Literal["reject", "skip"] = draw(st.sampled_from(("reject", "skip")))
    blocks = []
    for _ in range(draw(st.integers(1, most_blocks))):
        k = draw(steps)
        absent = draw(st.frozensets(st.integers(0, tensors - 1), max_size=tensors - 1))
        poisoned = draw(st.frozensets(st.integers(0, k - 1), max_size=min(k, 3))) if policy == "skip" else frozenset()
        overrides = draw(st.dictionaries(st.integers(0, len(groups) - 1), OVERRIDES, max_size=2))
        blocks.append(Block(k, absent, poisoned, draw(st.booleans()), overrides))
    return Case(
        groups=groups,
        configs=[draw(configs()) for _ in groups],
        dtype=draw(st.sampled_from(("float32", "float64"))),
        policy=policy,
        blocks=blocks,
        seed=draw(st.integers(0, 2**16)),
    )


def hyperparameters(config: ReferenceConfig) -> dict[str, Any]:
    """A reference's config in the client's words."""
    coupled, absolute = config.weight_decay_mode == "coupled", config.weight_decay_mode == "decoupled_absolute"
    return {
        "lr": config.lr,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": WeightDecay(config.weight_decay, weight_decouple=not coupled, absolute=absolute),
        "optimized_update": config.epsilon_placement == "eps_hat",
        "amsgrad": config.amsgrad,
        "maximum_of": config.maximum_of.replace("_", "-"),
        "bias_correction": config.bias_correction,
        "schedule": config.schedule.replace("_", "-"),
        "bounds": None if config.bounds == (-np.inf, np.inf) else config.bounds,
    }


class Twins:
    """The same optimisation twice: a run on the server and the reference here."""

    def __init__(self, server: Server, case: Case) -> None:
        self.case = case
        self.random = np.random.default_rng(case.seed)
        named = [
            {f"g{g}t{t}": np.asarray(self.random.normal(size=shape), case.dtype) for t, shape in enumerate(shapes)}
            for g, shapes in enumerate(case.groups)
        ]
        self.configs = list(case.configs)
        self.group_of = {name: g for g, tensors in enumerate(named) for name in tensors}
        self.reference = ReferenceAdam({name: value for group in named for name, value in group.items()})
        self.set_reference_configs()
        self.lr_seen = max(config.lr for config in case.configs)
        self.steps = 0
        groups = [ParamGroup(group, **hyperparameters(c)) for group, c in zip(named, case.configs, strict=True)]
        self.run: Run = server.create_run(
            "parity", groups, Adam(), dtype=case.dtype, non_finite=case.policy, on_existing="replace"
        )

    def set_reference_configs(self) -> None:
        self.reference.configs = {name: self.configs[group] for name, group in self.group_of.items()}

    def play(self, block: Block) -> None:
        """One block on both sides, and everything that its answer says."""
        shapes = {name: value.shape for name, value in self.reference.params.items()}
        present = [name for index, name in enumerate(shapes) if index not in block.absent]
        grads = {
            name: np.asarray(self.random.normal(size=(block.steps, *shapes[name])), self.case.dtype) for name in present
        }
        full = [name for name in present if grads[name].size]
        for k in block.poisoned if full else ():
            grads[full[k % len(full)]].reshape(block.steps, -1)[k, -1] = (np.nan, np.inf, -np.inf)[k % 3]
        for group, changes in block.overrides.items():
            self.configs[group] = dataclasses.replace(self.configs[group], **changes)
        self.set_reference_configs()
        self.lr_seen = max([self.lr_seen, *(config.lr for config in self.configs)])

        rows = [{name: grads[name][k] for name in present} for k in range(block.steps)]
        finite = [all(np.isfinite(g).all() for g in row.values()) for row in rows]
        trajectory = []
        for row, applies in zip(rows, finite, strict=True):
            if applies:
                self.reference.step(row)
            trajectory.append(dict(self.reference.params))
        if block.steps == 1 and not block.trajectory:
            self.run.step(rows[0], overrides=block.overrides)
        else:
            returns = "trajectory" if block.trajectory else "last"
            found = self.run.step_many(grads, returns=returns, overrides=block.overrides)
            for name in shapes:
                expected = np.stack([values[name] for values in trajectory]) if block.trajectory else None
                self.assert_close(name, found[name], trajectory[-1][name] if expected is None else expected)
        self.steps += block.steps
        for name, value in self.reference.params.items():
            self.assert_close(name, self.run.params[name], value)
        self.check_receipt(rows[-1], finite)

    def check_receipt(self, last: Mapping[str, Tensor], finite: list[bool]) -> None:
        receipt = self.run.last_receipt
        assert receipt is not None
        assert receipt.step == self.reference.run_step
        assert receipt.skipped_steps == tuple(k for k, applies in enumerate(finite) if not applies)
        rates = [config.lr_at(max(1, self.reference.run_step)) for config in self.configs]
        np.testing.assert_allclose(receipt.learning_rates, rates, rtol=2**-52)
        if finite[-1]:
            norm = np.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in last.values()))
            np.testing.assert_allclose(receipt.gradient_norm, norm, rtol=1e-14)
        else:
            assert not np.isfinite(receipt.gradient_norm)

    def assert_close(self, name: str, found: Tensor, expected: Tensor) -> None:
        assert found.dtype == self.case.dtype
        rtol = RTOL[self.case.dtype]
        # Near zero a parameter is a difference of larger numbers, whose roundings it inherits.
        np.testing.assert_allclose(found, expected, rtol, rtol * (1 + 30 * self.lr_seen), err_msg=name)

    def assert_same_state(self) -> None:
        """Moments, steps and t, and the parameters read anew, which are the client's bit for bit."""
        state = self.run.state_dict()
        assert state["step"] == self.reference.run_step
        exact = self.run.read()
        for name, parts in state["tensors"].items():
            assert parts["step"] == self.reference.t[name]
            self.assert_close(name, parts["exp_avg"], self.reference.exp_avg[name])
            self.assert_close(name, parts["exp_avg_sq"], self.reference.exp_avg_sq[name])
            if self.reference.configs[name].amsgrad:
                self.assert_close(name, parts["max_exp_avg_sq"], self.reference.max_exp_avg_sq[name])
            np.testing.assert_array_equal(self.run.params[name], exact[name], strict=True)


@pytest.fixture(scope="module")
def connection(server_process: ServerProcess) -> Iterator[Server]:
    """One connection for all examples that hypothesis makes up."""
    with connect(server_process.target) as server:
        yield server


def check(connection: Server, case: Case) -> None:
    twins = Twins(connection, case)
    with twins.run:
        for block in case.blocks:
            twins.play(block)
        twins.assert_same_state()


@settings(quick, max_examples=250)
@given(case=cases(st.sampled_from([1, 1, 2, 7]), most_blocks=6))
def test_promise_1_same_numbers(connection: Server, case: Case) -> None:
    """A remote step equals the local step of the reference, to float rounding."""
    check(connection, case)


@settings(quick, max_examples=30)
@given(case=cases(st.just(1000), most_blocks=2))
def test_promise_1_same_numbers_in_blocks_of_1000(connection: Server, case: Case) -> None:
    """Neither scalars nor roundings drift over a long block."""
    check(connection, case)


def test_a_step_without_any_gradient_counts_as_a_step_of_the_run_alone(connection: Server) -> None:
    config = ReferenceConfig(lr=0.1, schedule="inverse_sqrt", amsgrad=True)
    twins = Twins(connection, Case([[(2,), ()]], [config], "float32", "reject", [], 0))
    everything = Block(1, frozenset(), frozenset(), False, {})
    nothing = dataclasses.replace(everything, absent=frozenset({0, 1}))
    with twins.run:
        for block in (everything, nothing, everything):
            twins.play(block)
        twins.assert_same_state()
    assert (twins.reference.run_step, twins.reference.t["g0t0"]) == (3, 2)


def test_zero_dimensional_float64_gradients_keep_their_digits(connection: Server) -> None:
    """numpy's arithmetic on 0-d arrays gives numpy scalars, and its float64 is a Python float too."""
    run = connection.create_run("parity-scalar", {"x": np.array(0.1)}, Adam(betas=(0.9, 0.5)), on_existing="replace")
    with run:
        gradient: Any = run.params["x"] * 3.0
        assert isinstance(gradient, float), "what this test is about"
        run.step({"x": gradient})
        assert run.dtype == np.float64
        assert run.state_dict()["tensors"]["x"]["exp_avg_sq"] == 0.5 * gradient * gradient
