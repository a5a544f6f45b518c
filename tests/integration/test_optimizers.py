"""Every optimizer over a real channel: the numbers of its formulas, groups of several optimizers, overrides, blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from gradwire.client import (
    SGD,
    Adagrad,
    Adam,
    AMSGrad,
    FedAdagrad,
    FedAdam,
    FedAMSGrad,
    FedYogi,
    InvalidHyperparameter,
    NonFiniteGradient,
    Optimizer,
    ParamGroup,
    Run,
    Server,
    Yogi,
    connect,
)
from tests import reference_optimizers as formulas
from tests.reference import Tensor
from tests.reference_optimizers import ReferenceRun, Rule
from tests.serving import ServerProcess

SHAPES: dict[str, tuple[int, ...]] = {"w": (4, 3), "b": (7,), "s": (), "none": (0, 2)}
CASES: dict[str, tuple[Optimizer, Rule]] = {
    "sgd": (SGD(lr=0.1, weight_decay=0.01), formulas.Sgd(lr=0.1, weight_decay=0.01)),
    "fedavgm": (SGD(lr=1, momentum=0.9, dampening=0.5), formulas.Sgd(lr=1, momentum=0.9, dampening=0.5)),
    "diloco": (
        SGD(lr=0.7, momentum=0.9, nesterov=True, bounds=(-1, 1)),
        formulas.Sgd(lr=0.7, momentum=0.9, nesterov=True, bounds=(-1, 1)),
    ),
    "adagrad": (
        Adagrad(lr=0.1, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.5, schedule="inverse-sqrt"),
        formulas.Adagrad(
            lr=0.1, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.5, schedule="inverse_sqrt"
        ),
    ),
    "yogi": (Yogi(lr=0.1, maximize=True), formulas.Yogi(lr=0.1, maximize=True)),
    "fedadam": (FedAdam(tau=0.5), formulas.FedOpt(rule="adam", tau=0.5)),
    "fedyogi": (FedYogi(), formulas.FedOpt(rule="yogi")),
    "fedadagrad": (FedAdagrad(), formulas.FedOpt(rule="adagrad", betas=(0.0, 0.0))),
    "fedamsgrad": (FedAMSGrad(tau=0.9), formulas.FedOpt(rule="amsgrad", tau=0.9)),
}
each_case = pytest.mark.parametrize("case", CASES)


def values(seed: int, dtype: str = "float64") -> dict[str, Tensor]:
    random = np.random.default_rng(seed)
    return {name: np.asarray(random.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], rtol: float = 1e-12) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol, rtol, err_msg=name)


def assert_same_state(run: Run, reference: ReferenceRun, rtol: float = 1e-12) -> None:
    state = run.state_dict()["tensors"]
    for name, slots in reference.slots.items():
        assert state[name]["step"] == reference.t[name]
        assert_close(state[name], slots, rtol)


@each_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_promise_1_same_numbers_for_every_optimizer(server: Server, case: str, dtype: str) -> None:
    """A remote step equals the formulas, for single steps and blocks, with a tensor absent now and then."""
    optimizer, rule = CASES[case]
    reference = ReferenceRun(values(0, dtype), rule)
    rtol = 1e-12 if dtype == "float64" else 2.0**-18
    with server.create_run(f"optimizers-{case}-{dtype}", values(0, dtype), optimizer) as run:
        assert set(run.slots) == set(reference.slots["w"])
        assert_same_state(run, reference, rtol)  # what it begins with
        for k in range(4):
            grads = values(10 + k, dtype)
            if k == 1:
                del grads["b"]
            reference.step(grads)
            run.step(grads)
            assert_close(run.params, reference.params, rtol)
        rows = [values(20 + k, dtype) for k in range(6)]
        expected = reference.block(rows)
        grads = {name: np.stack([row[name] for row in rows]) for name in SHAPES}
        found = run.step_many(grads, returns="trajectory")
        for name in SHAPES:
            assert_close({name: found[name]}, {name: np.stack([params[name] for params in expected])}, rtol)
        assert_same_state(run, reference, rtol)


@each_case
def test_a_block_equals_its_single_steps_bit_for_bit(server: Server, case: str) -> None:
    optimizer, _ = CASES[case]
    rows = [values(k, "float32") for k in range(5)]
    with (
        server.create_run(f"optimizers-{case}-block", values(9, "float32"), optimizer) as block,
        server.create_run(f"optimizers-{case}-single", values(9, "float32"), optimizer) as single,
    ):
        block.step_many({name: np.stack([row[name] for row in rows]) for name in SHAPES})
        for row in rows:
            single.step(row)
        assert block.digest() == single.digest()


@pytest.mark.parametrize("case", ["sgd", "diloco", "fedadam", "adagrad"])
def test_what_is_computed_while_it_arrives_is_the_same(server: Server, far_process: ServerProcess, case: str) -> None:
    """A gradient of several slices, whose parts a distant server computes into a second state."""
    optimizer, _ = CASES[case]
    random = np.random.default_rng(0)
    start, *grads = (random.normal(size=700_000).astype(np.float32) for _ in range(4))
    with connect(far_process.target) as far:
        digests = []
        for connection in (server, far):
            with connection.create_run(f"optimizers-{case}-far", {"x": start}, optimizer) as run:
                for gradient in grads:
                    run.step({"x": gradient})
                digests.append(run.digest())
    assert digests[0] == digests[1]


@each_case
def test_what_is_not_finite_is_refused_or_left_out(server: Server, case: str) -> None:
    optimizer, rule = CASES[case]
    bad = values(1)
    bad["w"][0, 0] = np.nan
    with server.create_run(f"optimizers-{case}-reject", values(0), optimizer) as run:
        with pytest.raises(NonFiniteGradient):
            run.step(bad)
        assert_close(run.read(), values(0), 0)
    reference = ReferenceRun(values(0), rule)
    reference.step(values(2))
    with server.create_run(f"optimizers-{case}-skip", values(0), optimizer, non_finite="skip") as run:
        assert run.step(bad).skipped
        run.step(values(2))  # still the first step
        assert_close(run.params, reference.params)
        assert_same_state(run, reference)


@each_case
def test_state_is_taken_back_and_goes_with_a_new_run(server: Server, case: str) -> None:
    optimizer, _ = CASES[case]
    with server.create_run(f"optimizers-{case}-first", values(0), optimizer) as run:
        for k in range(3):
            run.step(values(k))
        state, params = run.state_dict(), run.read()
        with server.create_run(f"optimizers-{case}-second", params, optimizer, state=state) as again:
            for other in (run, again):
                other.step(values(7))
            assert again.digest() == run.digest()
            run.write(params)
            run.load_state_dict(state)
            run.step(values(7))
            assert again.digest() == run.digest()


def test_groups_of_one_run_may_have_different_optimizers(server: Server) -> None:
    """The run's slots are all that any of them keeps; each leaves alone what is not its own."""
    start = values(0)
    rules = {"w": CASES["diloco"][1], "b": CASES["yogi"][1], "s": CASES["adagrad"][1], "none": formulas.Sgd(lr=0.5)}
    groups = [
        ParamGroup({"w": start["w"]}, CASES["diloco"][0]),
        ParamGroup({"b": start["b"]}, CASES["yogi"][0]),
        ParamGroup({"s": start["s"]}, CASES["adagrad"][0]),
        ParamGroup({"none": start["none"]}, lr=0.5),
    ]
    reference = ReferenceRun(start, rules)
    with server.create_run("optimizers-mixed", groups, SGD()) as run:
        assert set(run.slots) == {"momentum_buffer", "exp_avg", "exp_avg_sq", "sum"}
        kinds = [group.WhichOneof("optimizer") for group in run.describe().spec.groups]
        assert kinds == ["sgd", "yogi", "adagrad", "sgd"]
        for k in range(3):
            reference.step(values(k + 1))
            run.step(values(k + 1))
        assert_close(run.params, reference.params)
        assert_same_state(run, reference)
        state = run.state_dict()["tensors"]
        assert not state["w"]["sum"].any()
        assert not state["b"]["momentum_buffer"].any()


def test_an_outer_step_of_rate_1_ends_at_the_mean_of_the_workers(server: Server) -> None:
    """FedAvg: the pseudo-gradient is before minus after, averaged over who took part."""
    with server.create_run("optimizers-fedavg", values(0), SGD(lr=1)) as run:
        for round_ in range(3):
            before = {name: value.copy() for name, value in run.params.items()}
            workers = [values(10 * round_ + k) for k in (1, 2)]
            run.step({name: sum(before[name] - after[name] for after in workers) / 2 for name in before})
            assert_close(run.params, {name: (workers[0][name] + workers[1][name]) / 2 for name in before})


@pytest.mark.parametrize("case", ["sgd", "diloco", "fedyogi"])
def test_gradients_are_clipped_before_any_of_it(server: Server, case: str) -> None:
    optimizer, rule = CASES[case]
    reference = ReferenceRun(values(0), rule)
    with server.create_run(f"optimizers-{case}-clipped", values(0), optimizer, clip_norm=0.5) as run:
        for k in range(3):
            grads = values(k)
            norm = np.sqrt(sum(np.square(grad).sum() for grad in grads.values()))
            reference.step({name: np.asarray(grad * (0.5 / (norm + 1e-6))) for name, grad in grads.items()})
            run.step(grads)
        assert_close(run.params, reference.params)


OVERRIDES: dict[str, dict[str, Any]] = {
    "fedavgm": {"lr": 0.5, "momentum": 0.5, "dampening": 0.1, "weight_decay": 0.1, "bounds": (-1.0, 1.0)},
    "adagrad": {"lr": 0.5, "lr_decay": 0.5, "weight_decay": 0.2, "eps": 0.1},
    "yogi": {"betas": (0.5, 0.6), "eps": 0.1, "weight_decay": 0.2},
    "fedadam": {"betas": (0.5, 0.6), "tau": 0.1, "lr": 0.3},
}


@pytest.mark.parametrize("case", OVERRIDES)
def test_every_number_can_change_from_a_step_on(server: Server, case: str) -> None:
    optimizer, rule = CASES[case]
    reference = ReferenceRun(values(0), rule)
    with server.create_run(f"optimizers-{case}-overrides", values(0), optimizer) as run:
        for k in range(4):
            reference.step(values(k))
            run.step(values(k), overrides={0: OVERRIDES[case]} if k == 2 else None)
            if k == 1:
                reference.rules = dict.fromkeys(SHAPES, dataclasses.replace(rule, **OVERRIDES[case]))
        assert_close(run.params, reference.params)
        for name in OVERRIDES[case]:
            if name in ("betas", "bounds"):
                continue
            with pytest.raises(InvalidHyperparameter, match=f"override of group 0: {name} is nan"):
                run.step(values(9), overrides={0: {name: np.nan}})
        assert_close(run.read(), reference.params)


def test_a_number_that_the_optimizer_does_not_have_is_refused_and_nothing_applied(server: Server) -> None:
    with server.create_run("optimizers-no-momentum", values(0), AMSGrad()) as run:
        with pytest.raises(InvalidHyperparameter, match="its optimizer has no momentum; expected some of lr, beta1"):
            run.step(values(1), overrides={0: {"momentum": 0.9}})
        assert_close(run.read(), values(0), 0)
    with pytest.raises(InvalidHyperparameter, match="group 0: nesterov with momentum 0"):
        server.create_run("optimizers-nesterov", values(0), SGD(nesterov=True))


def test_forks_keep_the_state_and_a_new_optimizer_must_have_the_same(server: Server) -> None:
    with server.create_run("optimizers-trunk", values(0), Yogi()) as run:
        run.step(values(1))
        with run.fork("optimizers-fork", optimizer=FedYogi(lr=0.5)) as forked:
            assert forked.describe().spec.groups[0].fed_opt.lr == 0.5
            assert_close(
                forked.state_dict()["tensors"]["w"], {"exp_avg_sq": run.state_dict()["tensors"]["w"]["exp_avg_sq"]}
            )
        with pytest.raises(InvalidHyperparameter, match=r"the run would have the slots \['momentum_buffer'\]"):
            run.fork("optimizers-refused", optimizer=SGD(momentum=0.9))


@each_case
def test_export_and_import_bring_every_optimizer_along(server: Server, case: str, tmp_path: Any) -> None:
    optimizer, _ = CASES[case]
    with server.create_run(f"optimizers-{case}-export", values(0), optimizer) as run:
        run.step(values(1))
        run.export(tmp_path / "run.safetensors")
        with server.import_run(f"optimizers-{case}-import", tmp_path / "run.safetensors") as again:
            assert again.digest() == run.digest()
            assert again.describe().spec.groups == run.describe().spec.groups
        with server.import_run(
            f"optimizers-{case}-weights", tmp_path / "run.safetensors", weights_only=optimizer
        ) as fresh:
            assert_close(fresh.read(), run.read(), 0)
            state = ReferenceRun(values(0), CASES[case][1])
            assert_same_state(fresh, state)


@pytest.mark.parametrize("durability", ["JOURNAL", "SNAPSHOT"])
def test_a_server_that_is_killed_brings_back_runs_of_every_optimizer(durability: str, tmp_path: Any) -> None:
    """The journal is replayed through the same kernels."""
    digests: dict[str, str] = {}
    with ServerProcess("--data-dir", str(tmp_path)) as process, connect(process.target) as connection:
        mixed = [
            ParamGroup({name: value}, optimizer)
            for (name, value), optimizer in zip(
                values(0).items(), (Yogi(), SGD(), FedAdagrad(), AMSGrad()), strict=True
            )
        ]
        runs: dict[str, tuple[Any, Optimizer]] = {
            case: (values(0), optimizer) for case, (optimizer, _) in CASES.items()
        }
        for case, (params, optimizer) in {**runs, "adam": (values(0), Adam()), "mixed": (mixed, SGD())}.items():
            with connection.create_run(case, params, optimizer, durability=durability) as run:
                for k in range(3):
                    run.step(values(k))
                if durability == "SNAPSHOT":
                    run.save_snapshot()
                digests[case] = run.digest()
        process.kill()
    with ServerProcess("--data-dir", str(tmp_path)) as process, connect(process.target) as connection:
        for case, digest in digests.items():
            with connection.attach(case) as run:
                assert run.digest() == digest
                run.step(values(5))
