"""The client in JavaScript, which has nothing of ours but the .proto files, gets the same bits as the Python client."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gradwire.client import Adam, AMSGrad, Server
from tests.children import child
from tests.serving import ServerProcess

EXAMPLE = Path(__file__).parents[2] / "examples/node"
STEPS = 25_000
"""Two blocks of the demo and a half."""


def node() -> str:
    """The interpreter. Skips where it or its packages are missing; in `make integrations` that is a failure."""
    found = shutil.which("node")
    missing = "node" if found is None else "examples/node/node_modules (npm ci)"
    if found is None or not (EXAMPLE / "node_modules").is_dir():
        if os.environ.get("GRADWIRE_INTEGRATIONS"):
            pytest.fail(f"{missing} is missing")
        pytest.skip(f"{missing} is missing; `make integrations` needs it")
    return found


def run(script: str, *arguments: object) -> list[Any]:
    command = [node(), str(EXAMPLE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def sha256(values: npt.NDArray[Any]) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


def test_the_experiment_is_the_same_bit_for_bit(server: Server) -> None:
    slopes = np.where(np.arange(STEPS) % 101 == 1, np.float32(1010), np.float32(-10))
    found = run("demo.js", server.target, STEPS)
    for line, preset in zip(found, (Adam, AMSGrad), strict=True):
        choice = preset(lr=1e-2, betas=(0.9, 0.99), bounds=(-1, 1))
        with server.create_run(f"node-{preset.__name__}", {"x": np.zeros((), np.float32)}, choice) as ours:
            trajectory = ours.step_many({"x": slopes}, returns="trajectory")["x"]
        assert line["optimizer"] == preset.__name__
        assert line["x"] == float(trajectory[-1])
        assert line["trajectory"] == sha256(trajectory)
        before = np.concatenate([np.zeros(1), trajectory[:-1].astype(np.float64)])
        assert line["averageRegret"] == pytest.approx(float(np.mean(slopes * (before + 1))), rel=1e-9)


def test_a_server_that_is_not_there_yet_is_waited_for() -> None:
    """As in the README's commands, which start the server and the demo at once."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        target = f"127.0.0.1:{free.getsockname()[1]}"
    with child([node(), str(EXAMPLE / "demo.js"), target, "10"]) as demo, ServerProcess(listen=target):
        output, errors = demo.communicate(timeout=90)
    assert (demo.returncode, errors) == (0, "")
    assert [json.loads(line)["optimizer"] for line in output.splitlines()] == ["Adam", "AMSGrad"]


def test_each_block_is_applied_once_over_broken_streams_and_refusals_are_read(server: Server, tmp_path: Path) -> None:
    gradients = np.random.default_rng(1).standard_normal((3, 300_000)).astype(np.float32)  # several slices
    (tmp_path / "gradients").write_bytes(gradients.tobytes())
    (found,) = run("check.js", server.target, "node-check", tmp_path / "gradients", gradients.shape[1])
    with server.create_run("node-check-ours", {"w": np.zeros(gradients.shape[1], np.float32)}, AMSGrad()) as ours:
        expected = [sha256(ours.step_many({"w": gradients}, returns="trajectory")["w"])]
        for _ in range(2):
            ours.step({"w": gradients[0]})
            expected.append(sha256(ours.params["w"]))
    assert found["created"] == [True, False]
    assert [receipt["step"] for receipt in found["receipts"]] == [3, 4, 5]
    assert [receipt["repeated"] for receipt in found["receipts"]] == [True, False, False]
    assert found["values"] == expected
    assert [(refusal["reason"], refusal["applied"]) for refusal in found["refusals"]] == [
        ("RUN_ALREADY_EXISTS", False),
        ("RUN_BUSY", False),
        ("NON_FINITE_GRADIENT", False),
        ("RUN_NOT_FOUND", False),
    ]
    assert found["refusals"][1]["metadata"]["attached_worker_id"] == "node"
    assert found["refusals"][2]["metadata"]["tensor"] == "w"
