"""Narrow and wide encodings on the wire: what they round, and what they leave alone.

The reference gets the gradients as the wire leaves them; what the server then holds is compared as in test_parity,
within RTOL. What the client holds is the server's value after ONE rounding to the encoding, exactly.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from gradwire.client import AMSGrad, NonFiniteGradient, Run, Server, TorchAdam
from tests.reference import ReferenceAdam, ReferenceConfig

Tensor = npt.NDArray[Any]

ENCODINGS: dict[str, npt.DTypeLike] = {
    "float32": np.float32,
    "float64": np.float64,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}
RTOL = {"float32": 2.0**-22, "float64": 1e-12}
LR = 1e-2
SHAPES: dict[str, tuple[int, ...]] = {"w": (700, 500), "b": (5,), "s": (), "none": (0,)}
"""w takes 3 slices of 512 KiB in float32 and 2 in bfloat16."""
each_encoding = pytest.mark.parametrize("encoding", ENCODINGS)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def values(seed: int, dtype: str) -> dict[str, Tensor]:
    random = np.random.default_rng(seed)
    return {name: np.asarray(random.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def through(encoding: str, value: Tensor, dtype: npt.DTypeLike) -> Tensor:
    """``value`` after ONE rounding to ``encoding``, in the precision of its receiver.

    ml_dtypes goes from float64 to bfloat16 in two roundings, so the 8 significant bits are cut out by hand.
    """
    if encoding == "bfloat16":
        mantissa, exponent = np.frexp(value.astype(np.float64))
        return np.asarray(np.ldexp(np.rint(mantissa * 2**8) / 2**8, exponent), dtype)
    return value.astype(ENCODINGS[encoding]).astype(dtype)


def assert_client_equals_server_after_encoding(run: Run, encoding: str) -> None:
    for name, exact in run.read().items():
        assert exact.dtype == run.params[name].dtype == run.dtype
        np.testing.assert_array_equal(run.params[name], through(encoding, exact, run.dtype), strict=True)


@each_dtype
@each_encoding
def test_parameters_come_back_rounded_once_and_the_server_keeps_all_digits(
    server: Server, encoding: str, dtype: str
) -> None:
    start = values(0, dtype)
    reference = ReferenceAdam(start, ReferenceConfig(lr=LR, amsgrad=True))
    with server.create_run(f"replies-{encoding}-{dtype}", start, AMSGrad(lr=LR), parameter_encoding=encoding) as run:
        for step in range(3):
            grads = values(10 + step, dtype)
            if step == 1:
                del grads["b"]
            run.step(grads)
            reference.step(grads)
            assert_client_equals_server_after_encoding(run, encoding)
        for name, exact in run.read().items():
            np.testing.assert_allclose(exact, reference.params[name], RTOL[dtype], RTOL[dtype] * LR)


@each_dtype
@each_encoding
def test_gradients_are_rounded_once_and_applied_in_the_run_s_precision(
    server: Server, encoding: str, dtype: str
) -> None:
    start = values(0, dtype)
    reference = ReferenceAdam(start, ReferenceConfig(lr=LR, amsgrad=True))
    with server.create_run(f"gradients-{encoding}-{dtype}", start, AMSGrad(lr=LR), gradient_encoding=encoding) as run:
        for step in range(3):
            grads = values(10 + step, dtype)
            receipt = run.step(grads)
            rounded = {name: through(encoding, value, dtype) for name, value in grads.items()}
            reference.step(rounded)
            norm = np.sqrt(sum(np.square(value, dtype=np.float64).sum() for value in rounded.values()))
            np.testing.assert_allclose(receipt.gradient_norm, norm, rtol=1e-13)
        for name, expected in reference.params.items():
            np.testing.assert_allclose(run.params[name], expected, RTOL[dtype], RTOL[dtype] * LR)
        assert_client_equals_server_after_encoding(run, dtype)


@each_encoding
def test_blocks_in_every_encoding_equal_single_steps(server: Server, encoding: str) -> None:
    """Both directions narrow at once, with and without a trajectory, with and without a second buffer."""
    start = {"x": np.asarray(np.random.default_rng(0).normal(size=90_000), np.float32)}
    options: dict[str, Any] = {"gradient_encoding": encoding, "parameter_encoding": encoding}
    block, single = (
        server.create_run(f"block-{encoding}-{kind}", start, AMSGrad(lr=LR), double_buffer=kind == "single", **options)
        for kind in ("block", "single")
    )
    for returns in ("trajectory", "last"):
        grads = np.asarray(np.random.default_rng(1).normal(size=(3, 90_000)), np.float32)
        found = block.step_many({"x": grads}, returns=returns)["x"]
        for k, row in enumerate(grads):
            single.step({"x": row})
            if returns == "trajectory":
                np.testing.assert_array_equal(found[k], single.params["x"], strict=True)
        np.testing.assert_array_equal(block.params["x"], single.params["x"], strict=True)
        np.testing.assert_array_equal(block.read()["x"], single.read()["x"], strict=True)
        assert_client_equals_server_after_encoding(block, encoding)


@pytest.mark.parametrize(("encoding", "spacing"), [("bfloat16", 2.0**-8), ("float16", 2.0**-11)])
def test_steps_too_small_for_the_encoding_add_up_on_the_server(server: Server, encoding: str, spacing: float) -> None:
    """Each step moves 1.0 by an eighth of what the encoding can tell below 1: by itself it would vanish."""
    lr = spacing / 8
    # beta = 0 and eps = 0 make each update lr * sign(g).
    optimizer = TorchAdam(lr=lr, betas=(0.0, 0.0), eps=0.0)
    with server.create_run(
        f"master-{encoding}", {"x": np.ones(3, np.float32)}, optimizer, parameter_encoding=encoding
    ) as run:
        for _ in range(2):
            run.step({"x": np.ones(3, np.float32)})
            assert run.params["x"].tolist() == [1.0] * 3, "nothing to be seen yet"
        for _ in range(62):
            run.step({"x": np.ones(3, np.float32)})
        assert run.params["x"].tolist() == [1.0 - 8 * spacing] * 3
        assert run.read()["x"].tolist() == [1.0 - 64 * lr] * 3


@pytest.mark.parametrize("policy", ["reject", "skip"])
def test_a_gradient_too_large_for_float16_is_infinite_on_the_server(server: Server, policy: str) -> None:
    with server.create_run(
        f"overflow-{policy}",
        {"x": np.zeros(2, np.float32)},
        AMSGrad(lr=LR),
        gradient_encoding="float16",
        non_finite=policy,
    ) as run:
        if policy == "skip":
            assert run.step({"x": np.array([1.0, 1e5], np.float32)}).skipped
        else:
            with pytest.raises(NonFiniteGradient, match="is inf at its element 1"):
                run.step({"x": np.array([1.0, 1e5], np.float32)})
        assert run.step({"x": np.array([1.0, 6e4], np.float32)}).step == 1


def test_a_float32_run_takes_float64_gradients_and_the_other_way_round(server: Server) -> None:
    """Arrays of any floating type go into any run; without a choice of encoding they travel in the run's own."""
    for dtype, other in (("float32", "float64"), ("float64", "float32")):
        start, grads = values(0, dtype), values(1, other)
        reference = ReferenceAdam(start, ReferenceConfig(lr=LR, amsgrad=True))
        with server.create_run(f"other-{dtype}", start, AMSGrad(lr=LR)) as run:
            run.step(grads)
            reference.step(grads)
            for name, expected in reference.params.items():
                np.testing.assert_allclose(run.params[name], expected, RTOL[dtype], RTOL[dtype] * LR)


def test_one_step_may_mix_precisions(server: Server) -> None:
    """float16 and bfloat16 have no common type in numpy."""
    grads: dict[str, Tensor] = {
        "a": np.array([1.0, 2.0], np.float16),
        "b": np.array([3.0, 1.0], ml_dtypes.bfloat16),
        "c": np.array([0.5, 1.0], ">f4"),
        "d": np.array([0.25, 1.0]),
    }
    start = {name: np.zeros(2, np.float32) for name in grads}
    with server.create_run("mixed", start, TorchAdam(betas=(0.5, 0.5))) as run:
        run.step(grads)
        state = run.state_dict()["tensors"]
    for name, gradient in grads.items():
        assert state[name]["exp_avg"].tolist() == [0.5 * float(value) for value in gradient]


def test_attach_chooses_encodings_of_its_own(server: Server) -> None:
    start = {"x": np.asarray([1 / 3, 1e-3], np.float32)}
    with server.create_run("reattached", start, AMSGrad(lr=LR), parameter_encoding="bfloat16") as run:
        run.step({"x": np.ones(2, np.float32)})
        assert_client_equals_server_after_encoding(run, "bfloat16")
    with server.attach("reattached") as run:
        run.step({"x": np.ones(2, np.float32)})
        assert_client_equals_server_after_encoding(run, "float32")


@pytest.mark.parametrize("options", [{"gradient_encoding": "int4"}, {"parameter_encoding": "int4"}], ids=str)
def test_an_unknown_encoding_is_refused(server: Server, options: dict[str, Any]) -> None:
    server.create_run("unknown-encoding", {"x": np.zeros(1, np.float32)}, AMSGrad(), on_existing="replace").close()
    with pytest.raises(ValueError, match="encoding is 'int4'; expected one of 'float32'"):
        server.attach("unknown-encoding", **options)
