"""The worked example as a user runs it: ``python client/train_digits.py``."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from gradwire.client import Server
from tests.serving import ServerProcess

SCRIPT = Path(__file__).parents[2] / "client" / "train_digits.py"


def run(target: str, plot: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--target", target, "--plot", str(plot), "--epochs", "2", *flags]
    # Threads that wait for one another on processors that others use, too, make a fifth of the steps.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)


@pytest.fixture
def script() -> ModuleType:
    """The script as a module, to change a part of it."""
    spec = importlib.util.spec_from_file_location("train_digits", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("flags", [(), ("--overlap", "--seed", "1")])
def test_local_and_remote_losses_are_the_same(
    server_process: ServerProcess, server: Server, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    before = {found.name for found in server.list_runs()}
    done = run(server_process.target, tmp_path / "new" / "digits.png", *flags)
    assert done.returncode == 0, done.stderr
    epochs = re.findall(r"^ +(\d+) +(\d\.\d+) +(\d\.\d+) +(\d\.\de[-+]\d+)$", done.stdout, re.MULTILINE)
    assert [epoch for epoch, *_ in epochs] == ["1", "2"]
    for _, local, remote, difference in epochs:
        assert float(remote) == pytest.approx(float(local), abs=2e-6)
        assert float(difference) < 2e-6
    assert float(epochs[1][1]) < float(epochs[0][1]) - 0.1, "it does learn"
    accuracies = re.findall(r"test accuracy, (\w+): (\d+\.\d+)%", done.stdout)
    assert [which for which, _ in accuracies] == ["local", "remote"]
    assert float(accuracies[1][1]) == pytest.approx(float(accuracies[0][1]), abs=0.3)  # one picture of 360
    picture = (tmp_path / "new" / "digits.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000
    assert {found.name for found in server.list_runs()} == before, "its run is deleted"


def test_losses_that_differ_end_with_exit_code_1(
    server_process: ServerProcess,
    tmp_path: Path,
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The remote optimizer gets a hundred-thousandth more of learning rate."""
    make = script.make_optimizers

    def slightly_wrong(*arguments: Any) -> dict[str, torch.optim.Optimizer]:
        optimizers: dict[str, torch.optim.Optimizer] = make(*arguments)
        optimizers["remote"].param_groups[0]["lr"] *= 1.00001
        return optimizers

    monkeypatch.setattr(script, "make_optimizers", slightly_wrong)
    plot = str(tmp_path / "digits.png")
    monkeypatch.setattr(sys, "argv", ["x", "--target", server_process.target, "--epochs", "4", "--plot", plot])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert "the losses differ by" in str(ended.value.code)  # a message: the exit code is 1
    assert "the losses are the same" not in capsys.readouterr().out


def test_losses_that_are_not_numbers_are_not_the_same(script: ModuleType) -> None:
    nothing = {"local": [1.0, float("nan")], "remote": [1.0, float("nan")]}
    assert not abs(script.differences(nothing)).max() <= script.ROUNDINGS


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--epochs", "0"], "expected 1 or more"),
        (["--target", "localhost"], "expected 'HOST:PORT'"),
    ],
)
def test_bad_flags_and_targets_are_named(tmp_path: Path, flags: list[str], expected: str) -> None:
    done = run("embedded", tmp_path / "digits.png", *flags)
    assert done.returncode != 0
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
