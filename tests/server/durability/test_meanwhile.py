"""A journaled block is computed while the disk is waited for: into a second state, which counts only afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradwire.client import AMSGrad, Server, StorageFailed, connect
from gradwire.client.transport.retry import RetryPolicy
from gradwire.server import failpoints
from gradwire.server.devices.cpu import CpuDevice
from tests.faults.bare import fresh_name
from tests.faults.hosted import HostedServer

SIZES = {"weight": 20_000, "bias": 1000}


class AwayDevice(CpuDevice):
    """Counts the updates that go to a second state, and fails them on demand."""

    away = 0
    fails = False

    def update(self, *arguments: Any, **options: Any) -> None:
        if options.get("target") is not None:
            self.away += 1
            if self.fails:
                raise RuntimeError("no such memory")
        super().update(*arguments, **options)


@pytest.fixture
def device() -> AwayDevice:
    return AwayDevice(threads=1)


@pytest.fixture(params=["messages", "shared memory"])
def server(
    request: pytest.FixtureRequest, device: AwayDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    monkeypatch.setenv("GRADWIRE_SHARED_MEMORY", str(int(request.param == "shared memory")))
    with HostedServer(device, near=True, data_dir=str(tmp_path)) as hosted, connect(hosted.target) as connection:
        yield connection
    failpoints.disarm()


def draw(seed: int, steps: int | None = None) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    lead = () if steps is None else (steps,)
    return {name: random.standard_normal((*lead, size), np.float32) for name, size in SIZES.items()}


def without_bias(seed: int) -> dict[str, Any]:
    return {"weight": draw(seed)["weight"]}


def with_infinity(seed: int) -> dict[str, Any]:
    gradients = draw(seed)
    gradients["weight"][7] = np.inf
    return gradients


@pytest.mark.parametrize(
    ("options", "make", "away"),
    [
        pytest.param({}, draw, True, id="all tensors"),
        pytest.param({}, without_bias, False, id="an absent tensor"),
        pytest.param({"non_finite": "skip"}, with_infinity, True, id="a step that is left out"),
        pytest.param({"clip_norm": 1.0}, draw, False, id="clipped"),
    ],
)
def test_what_is_computed_meanwhile_is_what_is_computed_afterwards(
    server: Server, device: AwayDevice, options: dict[str, Any], make: Callable[[int], dict[str, Any]], away: bool
) -> None:
    runs = [
        server.create_run(fresh_name(durability), draw(0), AMSGrad(lr=0.1), durability=durability, **options)
        for durability in ("JOURNAL", "MEMORY")
    ]
    for seed in range(1, 4):
        before = device.away
        for run in runs:
            run.step(draw(seed) if seed == 1 else make(seed))
            if seed > 1 and run is runs[0]:
                assert (device.away > before) == away
        assert {name: array.tobytes() for name, array in runs[0].params.items()} == {
            name: array.tobytes() for name, array in runs[1].params.items()
        }
    for run in runs:
        trajectory = run.step_many(draw(9, 3), returns="trajectory")
        assert trajectory["weight"].shape == (3, SIZES["weight"])
    assert runs[0].digest() == runs[1].digest()


def test_where_the_second_state_fails_the_update_is_made_in_place(server: Server, device: AwayDevice) -> None:
    run, twin = (
        server.create_run(fresh_name(durability), draw(0), AMSGrad(lr=0.1), durability=durability)
        for durability in ("JOURNAL", "MEMORY")
    )
    device.fails = True
    for seed in (1, 2):
        run.step(draw(seed))
        twin.step(draw(seed))
    assert device.away >= 2
    assert run.digest() == twin.digest()


def test_a_block_that_cannot_be_journaled_leaves_the_run_as_it_was(server: Server, device: AwayDevice) -> None:
    run = server.create_run(
        fresh_name("refused"), draw(0), AMSGrad(lr=0.1), durability="JOURNAL", retry=RetryPolicy(deadline_seconds=1)
    )
    run.step(draw(1))
    digest = run.digest()
    failpoints.arm("journal.before-commit", "raise", at_hit=1)
    before = device.away
    with pytest.raises(StorageFailed):
        run.step(draw(2))
    assert device.away > before, "it had been computed"
    assert run.digest() == digest
    run.step(draw(2))
    twin = server.create_run(fresh_name("twin"), draw(0), AMSGrad(lr=0.1), durability="MEMORY")
    for seed in (1, 2):
        twin.step(draw(seed))
    assert run.digest() == twin.digest()
