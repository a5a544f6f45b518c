"""Promise: what goes through shared memory gives the same bits as what goes through gRPC."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradwire.client import AMSGrad, ParamGroup, Run, Server, TorchAdam
from gradwire.wire import shared as wire_shared
from tests.faults.bare import fresh_name
from tests.shared_memory.conftest import shared_slices, taken_slices

SHAPES = {"a": (300, 700), "b": (3,), "c": (1_000_001,), "empty": (0, 5), "d": (40_000,), "e": (1, 130_000)}
"""5.5 MB of float32: slices of several sizes, through parts that are used over and over."""


def tensors(seed: int, steps: int | None = None, dtype: str = "float32") -> dict[str, np.ndarray[Any, Any]]:
    return dict(_drawn(seed, steps, dtype))


@functools.lru_cache(16)
def _drawn(seed: int, steps: int | None, dtype: str) -> dict[str, np.ndarray[Any, Any]]:
    """To draw them takes longer than a step; no test writes into them."""
    random = np.random.default_rng(seed)
    lead = () if steps is None else (steps,)
    drawn = {name: random.standard_normal((*lead, *shape), np.float32).astype(dtype) for name, shape in SHAPES.items()}
    for values in drawn.values():
        values.flags.writeable = False
    return drawn


def pair(server: Server, plain: Server, dtype: str = "float32", **options: Any) -> tuple[Run, Run]:
    """The same run twice: once through shared memory, once not."""
    params = tensors(0, dtype=dtype)
    runs = [
        connection.create_run(fresh_name("same"), params, AMSGrad(lr=0.01), dtype=dtype, **options)
        for connection in (server, plain)
    ]
    assert [run.shares_memory for run in runs] == [True, False]
    return runs[0], runs[1]


def assert_same(ours: Any, theirs: Any) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].tobytes() == theirs[name].tobytes(), name


def check(shared: Run, remote: Run, *, refreshes: int = 0) -> None:
    """The same on both clients and both servers."""
    assert_same(shared.params, remote.params)
    assert_same(shared.read(), remote.read())
    assert shared.last_receipt == remote.last_receipt
    assert shared.refreshes == remote.refreshes == refreshes
    shared.close()
    remote.close()


def flat(gradient: np.ndarray[Any, Any]) -> Callable[[], np.ndarray[Any, Any]]:
    return lambda: gradient.reshape(1, -1)


ENCODINGS = [None, "float32", "float64", "bfloat16", "float16"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("gradients", ENCODINGS)
def test_every_encoding(server: Server, plain: Server, dtype: str, gradients: str | None) -> None:
    for parameters in ENCODINGS:
        shared, remote = pair(server, plain, dtype, gradient_encoding=gradients, parameter_encoding=parameters)
        for seed in range(2):
            grads = tensors(seed + 1, dtype=dtype)
            shared.step(grads)
            remote.step(grads)
        assert shared_slices(shared) > 0
        assert taken_slices(shared) > 0
        check(shared, remote)


def test_gradients_of_any_dtype(server: Server, plain: Server) -> None:
    """Converted on their way into the memory; neighbouring tensors in one slice may have different ones."""
    shared, remote = pair(server, plain, gradient_encoding="bfloat16")
    for dtypes in itertools.islice(itertools.permutations(["float32", "float64", "float16", "float32"]), 4):
        grads = tensors(3)
        for name, dtype in zip(grads, [*dtypes, "float64", "float64"], strict=True):
            grads[name] = grads[name].astype(dtype)
        shared.step(grads)
        remote.step(grads)
    check(shared, remote)


def test_gradients_of_any_layout_in_memory(server: Server, plain: Server) -> None:
    shared, remote = pair(server, plain)
    grads = tensors(3)
    grads["a"] = np.asfortranarray(grads["a"])
    grads["c"] = np.repeat(grads["c"], 2)[::2]
    assert not grads["c"].flags.contiguous
    for run in (shared, remote):
        run.step(grads)
    check(shared, remote)


@pytest.mark.parametrize("absent", [("a",), ("c",), ("b", "d"), ("a", "c", "e"), ("a", "b", "c", "d", "e")])
def test_absent_tensors(server: Server, plain: Server, absent: tuple[str, ...]) -> None:
    shared, remote = pair(server, plain)
    for seed in range(3):
        grads = tensors(seed)
        if seed == 1:
            for name in absent:
                del grads[name]
        for run in (shared, remote):
            run.step(grads, lr=0.1 / (seed + 1))
    check(shared, remote)


@pytest.mark.parametrize("returns", ["last", "trajectory", "none"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_blocks(server: Server, plain: Server, returns: str, steps: int) -> None:
    shared, remote = pair(server, plain)
    for seed in range(2):
        grads = tensors(seed, steps)
        if seed:
            del grads["c"]
        values = [run.step_many(grads, returns=returns) for run in (shared, remote)]
        assert_same(*values)
    if returns == "none":
        shared.refresh()
        remote.refresh()
    assert shared_slices(shared) > 0
    check(shared, remote, refreshes=int(returns == "none"))


def test_one_element_and_very_many_steps(server: Server, plain: Server) -> None:
    """Its vector is too small for shared memory; blocks go in messages, as they always did."""
    grads = np.random.default_rng(0).standard_normal((100_000, 1)).astype(np.float32)
    runs = [
        server.create_run(fresh_name("one"), {"x": np.ones(1, np.float32)}, AMSGrad()) for server in (server, plain)
    ]
    assert not any(run.shares_memory for run in runs)
    assert_same(*(run.step_many({"x": grads}, returns="trajectory") for run in runs))


@pytest.mark.parametrize("rows", [3, 40])
def test_long_blocks_of_a_vector_that_is_just_large_enough(server: Server, plain: Server, rows: int) -> None:
    params = {"x": np.zeros(16_384, np.float32)}
    grads = np.random.default_rng(0).standard_normal((rows, 16_384)).astype(np.float32)
    runs = [server.create_run(fresh_name("edge"), params, AMSGrad()) for server in (server, plain)]
    assert [run.shares_memory for run in runs] == [True, False]
    assert_same(*(run.step_many({"x": grads}, returns="trajectory") for run in runs))
    assert shared_slices(runs[0]) > 0
    assert taken_slices(runs[0]) > 0
    check(*runs)


@pytest.mark.parametrize("gradients", [None, "bfloat16"])
def test_gradients_that_leave_ahead_of_their_step(server: Server, plain: Server, gradients: str | None) -> None:
    """More of them than there is room for while nobody reads answers; some twice, some forgotten."""
    shared, remote = pair(server, plain, gradient_encoding=gradients)
    plain_names = [name for name in SHAPES if name != "empty"]
    for seed in range(4):
        grads, others = tensors(seed), tensors(seed + 10)
        for run in (shared, remote):
            assert run.send_ahead({name: flat(others[name]) for name in plain_names})
            if seed == 2:
                run.discard_ahead()
            for name in reversed(plain_names[1:]):
                assert run.send_ahead({name: flat(grads[name])})
            run.step(grads, ahead=plain_names[2:])
    check(shared, remote)


def test_a_part_that_is_small_beside_its_vector(server: Server, plain: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte of the region is used more than ten times in a step, each time when its reader has taken it."""
    monkeypatch.setattr(wire_shared, "MAX_PART_BYTES", part := 2 * 2**20)
    size = 6_000_000
    params = {"x": np.random.default_rng(0).standard_normal(size, np.float32)}
    grads = {"x": np.random.default_rng(1).standard_normal(size, np.float32)}
    runs = [server.create_run(fresh_name("large"), params, TorchAdam(amsgrad=True)) for server in (server, plain)]
    for run in runs:
        run.step(grads)
    assert shared_slices(runs[0]) == -(-size * 4 // wire_shared.slice_bytes(part)), "none went in a message"
    check(*runs)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("shared_params", [False, True])
def test_gradients_that_are_parameters(server: Server, plain: Server, steps: int, shared_params: bool) -> None:
    """Those of the product of two tensors are each other. Their slices leave while answers come in."""
    size = 1_500_000
    params = dict(zip("ab", np.random.default_rng(0).standard_normal((2, size), np.float32), strict=True))
    runs = [
        connection.create_run(fresh_name("product"), params, AMSGrad(lr=0.01), shared_params=shared_params)
        for connection in (server, plain, plain)
    ]
    for _ in range(4):
        for run in runs:
            others = {"a": run.params["b"], "b": run.params["a"]}
            if run is runs[-1]:
                others = {name: value.copy() for name, value in others.items()}
            run.step_many({name: np.broadcast_to(value, (steps, size)) for name, value in others.items()})
        assert_same(runs[0].params, runs[-1].params)
        assert_same(runs[1].params, runs[-1].params)


def test_clipping_and_groups(server: Server, plain: Server) -> None:
    values = tensors(0)
    groups = [
        ParamGroup({"a": values["a"], "b": values["b"]}),
        ParamGroup({"c": values["c"]}, lr=0.5, bounds=(-0.5, 0.5)),
    ]
    runs = [
        connection.create_run(fresh_name("groups"), groups, AMSGrad(), clip_norm=1.0, clip_value=2.0)
        for connection in (server, plain)
    ]
    for seed in range(3):
        grads = {name: tensors(seed)[name] for name in "abc"}
        for run in runs:
            run.step(grads)
    check(*runs)


def test_double_buffers(server: Server, plain: Server) -> None:
    shared, remote = pair(server, plain, double_buffer=True)
    for run in (shared, remote):
        run.step(tensors(1))
    check(shared, remote)
