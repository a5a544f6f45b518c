"""The floors move the bytes that they say they move, and contenders do the step that they are compared by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import contenders, floors
from benchmarks.contenders.problem import Problem, Unavailable
from benchmarks.measure import Timing, interleave, repeated


@pytest.mark.parametrize("duplex", [True, False])
@pytest.mark.parametrize("size_bytes", [1, 300_000])
def test_raw_tcp_can_be_repeated(size_bytes: int, duplex: bool) -> None:
    floor = floors.RawTcp(size_bytes, duplex=duplex)
    try:
        assert all(floor.exchange() > 0 for _ in range(3))
    finally:
        floor.close()


@pytest.mark.parametrize("client", floors.KINDS)
@pytest.mark.parametrize("server", floors.KINDS)
def test_an_echo_answers_every_message(server: str, client: str, tmp_path: Path) -> None:
    echo = floors.GrpcEcho(server, client, f"unix:{tmp_path}/socket")
    try:
        assert echo.exchange([b"a", bytes(700_000), b"c"]) > 0
        assert echo.round_trips([b"d", b"e"]) > 0
    finally:
        echo.close()


def test_the_fastest_echo_is_one_of_those_that_were_tried() -> None:
    echo = floors.fastest_echo(600_000, rounds=1)
    try:
        assert sum(map(len, echo.messages)) == 600_000
        assert len(echo.tried) == 8  # two servers, two clients, two slice sizes
        assert echo.tried[echo.way].median == min(timing.median for timing in echo.tried.values())
        assert echo.exchange() > 0
    finally:
        echo.close()


@pytest.mark.parametrize("name", [*contenders.OURS, contenders.BY_HAND, "naive unary gRPC", "zmq by hand"])
def test_contenders_compute_what_local_torch_computes(name: str) -> None:
    problem = Problem(1000, tensors=3)
    gradients = problem.gradients()
    local = contenders.start(contenders.LOCAL, problem)
    try:
        contender = contenders.start(name, problem)
    except Unavailable as reason:
        pytest.skip(str(reason))
    try:
        for _ in range(5):
            found = contender.step(gradients)
            expected = local.step(gradients)
        for ours, theirs, before in zip(found, expected, problem.parameters(), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
            assert not np.allclose(ours, before, atol=1e-3)
    finally:
        contender.close()


def test_a_round_of_what_is_repeated_is_its_mean() -> None:
    values = iter([9.0, 1.0, 3.0, 5.0, 7.0])
    next(values)
    timings = interleave({"x": repeated(lambda: next(values), 2)}, rounds=2, warm_up=0)
    assert timings["x"] == Timing((2.0, 6.0))
