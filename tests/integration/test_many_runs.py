"""Many runs at once, many tensors in one run, and one run of many slices: each equals its local twin.

Server and reference do the same float32 operations in the same order (see test_parity), so a few ulps are the bound:
RTOL of each value, and of the lr-sized differences of which parameters near zero consist.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gradwire.client import AMSGrad, NonFiniteGradient, Run, Server, connect
from tests.reference import ReferenceAdam, ReferenceConfig
from tests.serving import ServerProcess

Tensor = npt.NDArray[Any]

RTOL = 2.0**-22
LR = 1e-2


def normal(seed: int, *shape: int) -> Tensor:
    return np.asarray(np.random.default_rng(seed).normal(size=shape), np.float32)


def assert_twins(run: Run, reference: ReferenceAdam) -> None:
    for name, expected in reference.params.items():
        np.testing.assert_allclose(run.params[name], expected, RTOL, RTOL * LR, err_msg=f"{run.name} {name}")


class Pair:
    """A run and its local twin, stepped together."""

    def __init__(self, server: Server, number: int) -> None:
        start = {"w": normal(number, 17, number + 1), "b": normal(100 + number, number % 3)}
        betas = (0.9, 0.9 + number / 500)
        self.number = number
        self.run = server.create_run(f"many-{number}", start, AMSGrad(lr=LR, betas=betas))
        self.reference = ReferenceAdam(start, ReferenceConfig(lr=LR, betas=betas, amsgrad=True))
        self.steps = 0

    def step(self) -> None:
        """Of one, or a block of five."""
        self.steps += 1
        rows = 5 if self.steps % 4 == 0 else 1
        blocks = [
            {
                name: normal(10_000 * self.number + 10 * self.steps + k, *value.shape)
                for name, value in self.run.params.items()
            }
            for k in range(rows)
        ]
        self.reference.block(blocks)
        if rows == 1:
            self.run.step(blocks[0])
        else:
            self.run.step_many({name: np.stack([block[name] for block in blocks]) for name in self.run.params})


def in_threads(jobs: list[Callable[[], None]]) -> None:
    """All at once, from a common start; raises what any of them raises."""
    barrier = threading.Barrier(len(jobs))

    def work(job: Callable[[], None]) -> None:
        barrier.wait(30)
        job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        for future in [pool.submit(work, job) for job in jobs]:
            future.result()


def test_twenty_runs_over_four_connections_at_once(server_process: ServerProcess) -> None:
    """Each connection has a thread and five runs, which it steps in turn."""
    steps = 40

    def one_connection(first: int) -> None:
        with connect(server_process.target) as server:
            pairs = [Pair(server, number) for number in range(first, first + 5)]
            for _ in range(steps):
                for pair in pairs:
                    pair.step()
            for pair in pairs:
                assert pair.run.step_count == pair.reference.run_step == steps * 2
                assert_twins(pair.run, pair.reference)

    in_threads([lambda first=first: one_connection(first) for first in (0, 5, 10, 15)])  # type: ignore[misc]


def test_sixteen_threads_share_one_connection(server: Server) -> None:
    pairs = [Pair(server, number) for number in range(20, 36)]

    def one_run(pair: Pair) -> None:
        for _ in range(20):
            pair.step()

    in_threads([lambda pair=pair: one_run(pair) for pair in pairs])  # type: ignore[misc]
    for pair in pairs:
        assert_twins(pair.run, pair.reference)


def test_threads_that_share_a_run_take_turns(server: Server) -> None:
    """Sums of whole numbers do not depend on the order: beta1 = beta2 = 0 makes each step ``lr * sign(g)``."""
    run = server.create_run("shared", {"x": np.zeros(3, np.float32)}, AMSGrad(lr=1.0, betas=(0.0, 0.0), eps=0.0))
    ones = np.ones(3, np.float32)

    def many() -> None:
        for _ in range(50):
            run.step({"x": ones})

    in_threads([many] * 4)
    assert run.step_count == 200
    assert run.params["x"].tolist() == [-200.0] * 3


def test_a_thousand_tensors_in_one_run(server: Server) -> None:
    """Shapes of 0 to 4 dimensions, some of them empty; at each step another third of the tensors is absent."""
    random = np.random.default_rng(7)
    shapes = [tuple(random.integers(0 if i % 7 == 0 else 1, 5, i % 5).tolist()) for i in range(1000)]
    start = {f"tensor.{i}": normal(i, *shape) for i, shape in enumerate(shapes)}
    assert sum(value.size == 0 for value in start.values()) > 10
    reference = ReferenceAdam(start, ReferenceConfig(lr=LR, amsgrad=True))
    with server.create_run("thousand", start, AMSGrad(lr=LR)) as run:
        for step in range(6):
            grads = {
                f"tensor.{i}": normal(1000 * step + i, *shape) for i, shape in enumerate(shapes) if i % 3 != step % 3
            }
            run.step(grads)
            reference.step(grads)
            assert_twins(run, reference)
        steps = {name: parts["step"] for name, parts in run.state_dict()["tensors"].items()}
    assert steps == reference.t
    assert set(steps.values()) == {4}


@pytest.mark.parametrize("policy", ["reject", "skip"])
def test_two_million_elements(server: Server, policy: str) -> None:
    """8 MB each way in 16 slices: with ``"reject"`` the server answers slices while others arrive, with ``"skip"`` it
    answers when all have. A tensor in the middle is absent from the second step, a NaN at the end undoes the last."""
    sizes = {"a": 1_200_000, "b": 100_001, "c": 700_000}
    start = {name: normal(i, size) for i, (name, size) in enumerate(sizes.items())}
    reference = ReferenceAdam(start, ReferenceConfig(lr=LR, amsgrad=True))
    with server.create_run(f"big-{policy}", start, AMSGrad(lr=LR), non_finite=policy) as run:
        for step in range(3):
            grads = {name: normal(10 + step, size) for name, size in sizes.items() if (step, name) != (1, "b")}
            receipt = run.step(grads)
            reference.step(grads)
            assert_twins(run, reference)
            norm = np.sqrt(sum(np.square(g, dtype=np.float64).sum() for g in grads.values()))
            np.testing.assert_allclose(receipt.gradient_norm, norm, rtol=1e-13)
        for name, value in run.read().items():
            np.testing.assert_array_equal(run.params[name], value, strict=True)
        grads["c"][-1] = np.nan
        if policy == "skip":
            assert run.step(grads).skipped
        else:
            with pytest.raises(NonFiniteGradient, match=r"'c'.* nan at its element 699999"):
                run.step(grads)
            run.refresh()
        assert_twins(run, reference)
    server.delete_run(f"big-{policy}")
