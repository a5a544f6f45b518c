"""The federated example as a user runs it: ``python client/train_federated.py``."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from gradwire.client import Receipt, Server
from tests.serving import ServerProcess

SCRIPT = Path(__file__).parents[2] / "client" / "train_federated.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, to call parts of it."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("train_federated", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # for its dataclasses
    spec.loader.exec_module(module)
    return module


def test_both_are_trained_and_compared(server_process: ServerProcess, server: Server, tmp_path: Path) -> None:
    before = {found.name for found in server.list_runs()}
    picture = tmp_path / "new" / "federated.png"
    command = [sys.executable, str(SCRIPT), "--target", server_process.target, "--plot", str(picture)]
    done = subprocess.run(
        [*command, "--rounds", "6", "--seeds", "1"], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"^(Fed\w+) +(\d+\.\d+)% ", done.stdout, re.MULTILINE))
    assert list(rows) == ["FedAvg", "FedAMSGrad"]
    assert min(float(accuracy) for accuracy in rows.values()) > 30, "one that guesses has 10"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(picture.read_bytes()) > 15_000
    assert {found.name for found in server.list_runs()} == before, "its runs are deleted"


def test_fedavg_on_the_server_is_fedavg_by_hand(server: Server, script: ModuleType) -> None:
    """The mean of the participants' parameters by their numbers of pictures, round for round; whoever was faster."""
    seed, rounds, lr = 3, 5, 0.5
    found = script.train(server, script.Trial("FedAvg", lr, 1.0), seed, rounds)
    clients, held_out = script.split(seed, script.CLIENTS)
    params, random, expected = script.new_params(), np.random.default_rng(seed), []
    for number in range(1, rounds + 1):
        chosen = random.choice(script.CLIENTS, script.PARTICIPANTS, replace=False).tolist()
        ends = [clients[n].train(params, lr, (seed, number, n)) for n in chosen]
        weights = [len(clients[n].pictures) for n in chosen]
        params = {
            name: np.average([end[name] for end in ends], axis=0, weights=weights).astype(np.float32) for name in params
        }
        expected.append(held_out.accuracy(params))
    assert found == pytest.approx(expected, abs=1.5 / len(held_out))  # roundings may move one picture
    assert found[-1] > found[0]
    assert found == script.train(server, script.Trial("FedAvg", lr, 1.0), seed, rounds), "whoever comes first"


def test_clients_are_told_apart_and_the_test_belongs_to_none(script: ModuleType) -> None:
    sets = {}
    for validation in (False, True):
        clients, held_out = script.split(7, script.CLIENTS, validation=validation)
        assert [client.name for client in clients[:2]] == ["client-00", "client-01"]
        kinds = [len(set(client.pictures.labels.tolist())) for client in clients]
        assert max(kinds) <= 4
        assert np.mean(kinds) < 2.6, "far from all ten"
        own = [picture.tobytes() for client in clients for picture in client.pictures.images]
        sets[validation] = (set(own), {picture.tobytes() for picture in held_out.images}, len(own), len(held_out))
        assert not sets[validation][0] & sets[validation][1]
    assert [each[2:] for each in sets.values()] == [(1437, 360), (1150, 287)]
    assert not sets[True][0] & sets[False][1], "learning rates are chosen without the test"
    assert not sets[True][1] & sets[False][1], "learning rates are chosen without the test"


def test_the_errors_of_softmax_regression_are_its_gradient(script: ModuleType) -> None:
    """One step of gradient descent, against differences of the loss."""
    clients, _ = script.split(0, script.CLIENTS)
    pictures = clients[0].pictures
    random = np.random.default_rng(0)
    start = {name: random.normal(size=value.shape).astype(np.float32) for name, value in script.new_params().items()}

    def loss(bias: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        scores = pictures.images.astype(np.float64) @ start["weights"] + bias
        return float(np.mean(np.log(np.exp(scores).sum(1)) - scores[np.arange(len(pictures)), pictures.labels]))

    bias = start["bias"].astype(np.float64)
    slopes = [(loss(bias + step) - loss(bias - step)) / 2e-5 for step in 1e-5 * np.eye(10)]
    np.testing.assert_allclose(pictures.errors(start).mean(0), slopes, atol=1e-5)


def test_a_contribution_that_is_not_applied_in_its_round_is_an_error(script: ModuleType) -> None:
    receipt = Receipt(7, 1.0, (1.0,), (), "MEMORY", outcome="accepted", round=7, contributors=10)
    script.check(receipt, 7)
    with pytest.raises(ValueError, match="a contribution was accepted, in round 7 of 10; expected round 8"):
        script.check(receipt, 8)


def test_tuning_names_the_best_of_each(
    server: Server, script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def several(server: Server, trial: object, options: object, *, validation: bool) -> object:
        assert validation
        return np.full((1, 5), 1 / len(str(trial)))  # the shortest name wins

    monkeypatch.setattr(script, "several", several)
    script.tune(server, None)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 + 20 + 2
    assert [line.split("  ")[1] for line in lines if line.startswith("best")] == [
        "FedAvg, SGD(lr=1), clients' lr 1",
        "FedAMSGrad(lr=1, tau=0.001), clients' lr 1",
    ]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--rounds", "0"], "expected 1 or more"),
        (["--target", "localhost"], "expected 'HOST:PORT'"),
    ],
)
def test_bad_flags_and_targets_are_named(
    tmp_path: Path,
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    expected: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--plot", str(tmp_path / "x.png"), *flags])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code != 0
    assert expected in str(ended.value.code) + capsys.readouterr().err
