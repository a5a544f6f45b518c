"""The example of many workers as a user runs it: ``python client/train_workers.py``."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import uuid
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gradwire.client import Adam, Server
from tests.serving import ServerProcess

SCRIPT = Path(__file__).parents[2] / "client" / "train_workers.py"
ROUNDS = 12


def run(target: str, plot: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--target", target, "--plot", str(plot), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, to change a part of it."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("train_workers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_and_two_processes_learn_the_same_and_a_third_replaces_one_that_is_killed(
    server_process: ServerProcess, server: Server, tmp_path: Path
) -> None:
    before = {found.name for found in server.list_runs()}
    picture = tmp_path / "new" / "workers.png"
    done = run(server_process.target, picture, "--workers", "1", "2", "--rounds", str(ROUNDS))
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^ +(\d+) +(\d\.\d+) +(\d\.\d+) ", done.stdout, re.MULTILINE)
    assert [workers for workers, *_ in rows] == ["1", "2", "2"]
    (_, first, last), two, eventful = rows
    assert float(last) < float(first) - 0.05, "it does learn"
    assert [float(loss) for loss in two[1:]] == pytest.approx([float(first), float(last)], abs=2e-6)
    assert eventful[1] == two[1]
    assert abs(float(eventful[2]) - float(last)) > 1e-5, "half of the pictures were missing for a while"
    assert "rank-1 killed, rank-2 joins late" in done.stdout
    waited = re.search(r"round 5 waited (\d+\.\d) s for rank-1", done.stdout)
    assert waited is not None
    assert float(waited[1]) >= 0.9, "its lease is a second"
    assert "the losses are the same" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(picture.read_bytes()) > 15_000
    assert {found.name for found in server.list_runs()} == before, "its runs are deleted"


def trained(script: ModuleType, workers: int, factor: float = 1.0, events: Any = None) -> Any:
    """A training of equal shares, as if it had taken place; ``factor``: of its losses."""
    from workers_plan import Contribution

    plan = script.Plan("nowhere", "none", workers, ROUNDS, 0)
    training = script.Training(plan, events, seconds=1.0)
    for step, count in enumerate(script.expected_contributors(training)):
        for place in range(count):
            told = (f"rank-{place}", step + 1, "accepted", factor / (step + 1), 32, 1 / count, count, 0.1)
            training.contributions.append(Contribution(*told))
    return training


def test_losses_that_differ_end_with_exit_code_1(
    server_process: ServerProcess,
    tmp_path: Path,
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def train(server: Server, options: Any, workers: int, events: Any = None) -> Any:
        return trained(script, workers, 1 + 1e-5 * (workers == 2), events)

    monkeypatch.setattr(script, "train", train)
    plot = str(tmp_path / "workers.png")
    flags = ["--target", server_process.target, "--rounds", str(ROUNDS), "--plot", plot, "--workers"]
    for workers, differs in ((["1", "3"], False), (["1", "2"], True)):
        monkeypatch.setattr(sys, "argv", ["x", *flags, *workers])
        if not differs:
            script.main()
            continue
        with pytest.raises(SystemExit) as ended:
            script.main()
        assert "the losses differ by 84 roundings" in str(ended.value.code)  # a message: the exit code is 1
    assert capsys.readouterr().out.count("the losses are the same") == 1


def test_losses_are_means_over_pictures_and_not_over_workers(script: ModuleType) -> None:
    from workers_plan import Contribution

    training = script.Training(script.Plan("nowhere", "none", 2, 2, 0), None)
    for worker_id, pictures, loss in (("rank-0", 30, 1.0), ("rank-1", 10, 3.0)):
        training.contributions.append(Contribution(worker_id, 1, "accepted", loss, pictures, pictures / 40, 2, 0.1))
    training.contributions.append(Contribution("rank-0", 0, "stale", 9.0, 30, 0.0, 0, 0.1))
    np.testing.assert_array_equal(training.losses, [1.5, np.nan])


def test_somebody_who_is_missing_in_a_round_or_there_in_vain_is_an_error(script: ModuleType) -> None:
    from workers_plan import Contribution

    whole = trained(script, 3)
    script.check(whole)
    whole.contributions = [each for each in whole.contributions if each.round != 7]
    with pytest.raises(ValueError, match="round 7 of 3 workers had 0; expected 3"):
        script.check(whole)
    late = trained(script, 3)
    late.contributions.append(Contribution("rank-2", 0, "stale", 1.0, 30, 0.0, 0, 0.1))
    with pytest.raises(ValueError, match="a contribution of rank-2 was stale"):
        script.check(late)


def test_a_worker_that_fails_ends_the_training_and_says_why(server_process: ServerProcess, server: Server) -> None:
    """The name of its run is taken, by a run of other tensors."""
    name = f"taken-{uuid.uuid4().hex[:8]}"
    server.create_run(name, {"x": np.zeros(3, np.float32)}, Adam()).close()
    program = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "from workers_crew import Crew, Plan\n"
        f"with Crew(Plan({server_process.target!r}, {name!r}, 2, 12, 0), None) as crew:\n"
        "    crew.listen()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert re.search(r"error: rank-[01]: .*", done.stderr), done.stderr
    assert re.search(r"WorkerFailed: rank-[01] ended with exit code 1; expected 0", done.stderr)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--rounds", "8"], "expected 9 or more"),
        (["--workers", "1"], "one of them 2 or more"),
        (["--workers", "0", "2"], "expected numbers from 1 to 16"),
        (["--workers", "32"], "expected numbers from 1 to 16"),
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
