"""The regret experiment as a user runs it: ``python client/synthetic.py``."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gradwire.client import connect
from tests.children import child
from tests.serving import ServerProcess

SCRIPT = Path(__file__).parents[2] / "client" / "synthetic.py"
DRAWS = importlib.util.find_spec("matplotlib") is not None
"""The environments of `make versions` have none."""

# Steps -> (AMSGrad x, AMSGrad R/N, Adam x, Adam R/N), constant lr 0.01. The seed's own loop gives these.
SEED = {
    20_000: (-0.140226, 0.466280, 0.992748, 0.581277),
    1_000_000: (-0.947221, 0.336070, 1.0, 0.497637),
    10_000_000: (-0.954311, 0.330028, 1.0, 0.497936),
}


def run(target: str, out: Path, *flags: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Runs the script; its summary by (optimizer, schedule)."""
    command = [sys.executable, str(SCRIPT), "--target", target, "--out", str(out), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "summary.json").read_text())
    return {(row["optimizer"], row["schedule"]): row for row in rows}


def tracked(out: Path) -> list[dict[str, str]]:
    """What is written of every thousandth step."""
    with (out / "regret.csv").open() as file:
        return list(csv.DictReader(file))


def check(rows: dict[tuple[str, str], dict[str, Any]], steps: int) -> None:
    """Holds the constant-rate rows against the seed's numbers."""
    amsgrad_x, amsgrad_regret, adam_x, adam_regret = SEED[steps]
    expected = {"amsgrad": (amsgrad_x, amsgrad_regret), "adam": (adam_x, adam_regret)}
    for optimizer, (x, regret) in expected.items():
        row = rows[optimizer, "constant"]
        assert row["steps"] == steps
        assert row["x"] == pytest.approx(x, abs=1e-5)
        assert row["average_regret"] == pytest.approx(regret, abs=2e-6)


def test_ten_million_steps_end_where_the_seed_ends(server_process: ServerProcess, tmp_path: Path) -> None:
    rows = run(server_process.target, tmp_path)
    check(rows, 10_000_000)
    assert rows["amsgrad", "inverse-sqrt"]["x"] == pytest.approx(-0.9993, abs=1e-4)
    assert rows["amsgrad", "inverse-sqrt"]["average_regret"] == pytest.approx(0.0124, abs=1e-4)
    assert rows["adam", "inverse-sqrt"]["x"] > 0.99
    if DRAWS:
        picture = (tmp_path / "regret.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 20_000


def test_a_million_steps_in_odd_blocks(server_process: ServerProcess, tmp_path: Path) -> None:
    check(
        run(server_process.target, tmp_path, "--steps", "1_000_000", "--block", "33333", "--schedule", "constant"),
        1_000_000,
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "yogi", "fedadam", "fedyogi", "fedadagrad", "fedamsgrad"])
def test_the_other_optimizers_run_it_too(server_process: ServerProcess, tmp_path: Path, optimizer: str) -> None:
    """Blocks of any size give the same bits."""
    flags = ("--steps", "4000", "--schedule", "constant", "--optimizer", optimizer)
    (row,) = run(server_process.target, tmp_path / "long", *flags).values()
    (same,) = run(server_process.target, tmp_path / "short", *flags, "--block", "999").values()
    assert (row["optimizer"], row["steps"]) == (optimizer, 4000)
    assert row["x"] == same["x"]
    assert -1 <= row["x"] <= 1
    assert row["x"] != 0


def test_interactive_run_equals_the_seed_and_the_block_run_bit_for_bit(
    server_process: ServerProcess, tmp_path: Path
) -> None:
    """``--block 1`` is one round trip a step; blocks of any size give the same bits."""
    check(run(server_process.target, tmp_path, "--steps", "20000", "--schedule", "constant", "--block", "7919"), 20_000)
    flags = ("--steps", "2100", "--schedule", "constant")
    single = run(server_process.target, tmp_path / "single", *flags, "--block", "1")
    blocks = run(server_process.target, tmp_path / "blocks", *flags, "--block", "1583")
    for key, row in single.items():
        assert blocks[key]["x"] == row["x"]
        assert blocks[key]["average_regret"] == row["average_regret"]
    curves = [(tmp_path / name / "regret.csv").read_text() for name in ("single", "blocks")]
    assert curves[0] == curves[1]


def test_csv_holds_every_thousandth_step_with_x_before_it(server_process: ServerProcess, tmp_path: Path) -> None:
    run(server_process.target, tmp_path, "--steps", "5500", "--optimizer", "adam", "--schedule", "constant")
    rows = tracked(tmp_path)
    assert [int(row["step"]) for row in rows] == [1000, 2000, 3000, 4000, 5000]
    for row in rows:
        t = int(row["step"]) - 1  # the seed counts from 0
        slope = 1010.0 if t % 101 == 1 else -10.0
        assert float(row["loss"]) == pytest.approx(slope * (float(row["x"]) + 1), rel=1e-12)
    assert set(rows[0]) == {"optimizer", "schedule", "step", "x", "loss", "average_regret"}


def test_what_is_kept_can_be_looked_at(server_process: ServerProcess, tmp_path: Path) -> None:
    flags = ("--steps", "4000", "--schedule", "constant", "--optimizer", "adam", "--keep", "kept")
    (row,) = run(server_process.target, tmp_path, *flags).values()
    with connect(server_process.target) as server:
        with server.attach("kept-adam-constant") as found:
            assert found.step_count == 4000
            assert float(found.params["x"]) == pytest.approx(row["x"])
            series = {name: found.series(name) for name in ("x", "loss", "average_regret")}
        server.delete_run("kept-adam-constant")
    rows = tracked(tmp_path)
    for name, each in series.items():  # the page draws what the seed tracks
        assert each.first_step.tolist() == [int(written["step"]) for written in rows] == [1000, 2000, 3000, 4000]
        assert each.last.tolist() == pytest.approx([float(written[name]) for written in rows], rel=1e-12)


def test_summary_has_the_documented_keys(server_process: ServerProcess, tmp_path: Path) -> None:
    rows = run(
        server_process.target, tmp_path, "--steps", "1000", "--optimizer", "amsgrad", "--schedule", "inverse-sqrt"
    )
    assert list(rows) == [("amsgrad", "inverse-sqrt")]
    assert set(rows["amsgrad", "inverse-sqrt"]) == {
        "optimizer",
        "schedule",
        "variant",
        "steps",
        "x",
        "average_regret",
        "seconds",
        "steps_per_second",
    }


def test_stochastic_variant_depends_on_the_seed_and_not_on_the_block(
    server_process: ServerProcess, tmp_path: Path
) -> None:
    flags = ("--steps", "30000", "--variant", "stochastic", "--optimizer", "amsgrad", "--schedule", "constant")
    found = {}
    for name, extra in {"a": (), "b": ("--block", "101"), "c": ("--seed", "1")}.items():
        row = run(server_process.target, tmp_path / name, *flags, *extra)["amsgrad", "constant"]
        assert row["variant"] == "stochastic"
        found[name] = (row["x"], row["average_regret"])
    assert found["a"] == found["b"]
    assert found["a"] != found["c"]


def test_interrupt_stops_cleanly_and_writes_what_there_is(server_process: ServerProcess, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--target", server_process.target, "--out", str(tmp_path), "--block", "1"]
    with child(command, env={**os.environ, "COLUMNS": "100"}) as process:
        assert process.stderr is not None
        process.stderr.readline()  # which server it is: the experiment begins
        assert "adam" in process.stderr.readline()  # some seconds of steps
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert len(rows) == 1
    assert 0 < rows[0]["steps"] < 10_000_000
    assert "adam" in output
    assert "stopped early" in errors
    assert (tmp_path / "regret.csv").exists()
    assert (tmp_path / "regret.png").exists() == DRAWS


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--steps", "0"], "expected 1 or more"),
        (["--block", "2000000"], "expected at most"),
        (["--optimizer", "lion"], "invalid choice"),
        (["--target", "localhost", "--steps", "10"], "expected 'HOST:PORT'"),
    ],
)
def test_bad_flags_and_targets_are_named(tmp_path: Path, flags: list[str], expected: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(tmp_path), *flags], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
