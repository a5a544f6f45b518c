"""A block is computed while it arrives or when it is whole, as its peer is far or near: the numbers are the same."""

from __future__ import annotations

import numpy as np

from gradwire.client import TorchAdam, connect
from tests.faults.hosted import HostedServer

SIZES = {"weight": 700_001, "absent": 100_003, "bias": 300_000}


def trained(near: bool) -> tuple[str, int]:
    """The run after four steps of several messages each, and the room that its stream had taken."""
    random = np.random.default_rng(3)
    draw = {name: random.standard_normal((5, size), np.float32) for name, size in SIZES.items()}
    with HostedServer(near=near) as hosted, connect(hosted.target) as server:
        run = server.create_run("run", {name: rows[4] for name, rows in draw.items()}, TorchAdam(amsgrad=True))
        before = hosted.used_bytes
        for step in range(4):
            run.step({name: rows[step] for name, rows in draw.items() if step != 2 or name != "absent"})
        return run.digest(), hosted.used_bytes - before


def test_near_and_far_give_the_same_bits_and_near_needs_no_second_state() -> None:
    vector_bytes = 4 * sum(SIZES.values())
    near, near_bytes = trained(near=True)
    far, far_bytes = trained(near=False)
    assert near == far
    assert near_bytes < 2 * vector_bytes < 4 * vector_bytes <= far_bytes
