"""``gradwire doctor`` against real servers."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gradwire.client import Server, connect
from gradwire.client.doctor import measurement
from gradwire.client.doctor.command import main
from gradwire.client.doctor.measurement import Cell
from gradwire.client.doctor.report import best
from tests.children import child
from tests.serving import ServerProcess

QUICK = ("--parameters", "1000,200000", "--blocks", "1,3", "--seconds", "0.02")


@pytest.fixture(scope="module")
def small() -> Iterator[ServerProcess]:
    """A server with room for runs of about a million elements."""
    with ServerProcess("--max-memory", "64MiB") as process:
        yield process


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert exit_code(*arguments, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def temporary_runs(server: Server) -> list[str]:
    return [run.name for run in server.list_runs() if run.name.startswith("doctor-")]


def test_it_measures_every_encoding_and_block_and_leaves_nothing(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report(capsys, "--target", server.target, *QUICK)
    assert 1e-5 < found["round_trip_seconds"] < 1
    assert found["upload_bytes_per_second"] > 1e6
    assert found["download_bytes_per_second"] > 1e6
    assert found["updates_per_second"] > 1e6
    assert 0 < found["elements"] <= 2**24
    cells = found["steps"]
    assert {(cell["parameters"], cell["encoding"], cell["block"]) for cell in cells} == {
        (parameters, encoding, block)
        for parameters in (1000, 200_000)
        for encoding in measurement.ENCODINGS
        for block in (1, 3)
    }
    for cell in cells:
        assert cell["step_seconds"] > 0, cell
        assert cell["error"] == ""
        assert cell["extrapolated"] == (cell["measured_elements"] < cell["parameters"])
        assert cell["received_bytes"] == pytest.approx(
            measurement.ENCODINGS[cell["encoding"]] * cell["measured_elements"] * cell["block"], rel=0.02
        )
        assert cell["sent_bytes"] == pytest.approx(
            measurement.ENCODINGS[cell["encoding"]] * cell["measured_elements"], rel=0.02
        )
    for quickest in found["best"]:
        same = [cell["step_seconds"] for cell in cells if cell["parameters"] == quickest["parameters"]]
        assert quickest["step_seconds"] == min(same)
    assert temporary_runs(server) == []


def test_what_the_server_refuses_is_said_and_the_rest_is_measured(
    small: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("--parameters", "1000,8000000", "--encodings", "float32", "--blocks", "1")
    cells = report(capsys, "--target", small.target, *sizes, "--seconds", "0.5")["steps"]
    assert cells[0]["error"] == ""
    assert cells[0]["step_seconds"] > 0
    assert "are free" in cells[1]["error"]
    assert cells[1]["step_seconds"] is None
    assert exit_code("--target", small.target, *sizes, "--seconds", "0.5") == 0
    text = capsys.readouterr().out
    assert "refused: 8,000,000 parameters, float32, block 1:" in text


@pytest.mark.parametrize("installed", [True, False], ids=["rich", "plain"])
def test_the_table_with_and_without_rich(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    if not installed:
        real = importlib.import_module

        def without_rich(name: str) -> Any:
            if name.startswith("rich"):
                raise ModuleNotFoundError(name)
            return real(name)

        monkeypatch.setattr(importlib, "import_module", without_rich)
    monkeypatch.setenv("COLUMNS", "120")
    assert exit_code("--target", server.target, *QUICK, "--encodings", "float32,bfloat16") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("round trip: ") for line in lines)
    rows = [line for line in lines if "200,000" in line and " *" in line]
    assert len(rows) == 2, lines
    assert ("│" in rows[0]) == installed
    assert any(line.startswith("1,000 parameters: ") for line in lines)


def test_extrapolated_times_are_marked_and_grow_with_the_vector(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("--parameters", "200000000", "--blocks", "1", "--encodings", "float32", "--seconds", "0.02")
    (cell,) = report(capsys, "--target", server.target, *sizes)["steps"]
    assert cell["extrapolated"]
    assert cell["step_seconds"] > 200_000_000 * 8 / 1e11
    assert exit_code("--target", server.target, *sizes) == 0
    assert "~" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_deletes_the_temporary_run(server: Server, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "gradwire.client.doctor", "--target", server.target, "--seconds", "20"]
    with child(command) as process:
        deadline = time.monotonic() + 60
        while not temporary_runs(server):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert temporary_runs(server) == []


def test_without_a_server_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--target", "localhost") == 1
    assert capsys.readouterr().err.startswith("gradwire doctor: target is 'localhost'; expected 'HOST:PORT'")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--parameters", "0"], "below 1"),
        (["--blocks", "1,x"], "'1,x' is no list of numbers"),
        (["--parameters", "inf"], "'inf' is no list of numbers"),
        (["--encodings", "float32,int4"], "'int4' is none of float32"),
        (["--seconds", "-1"], "no positive number"),
        (["--seconds", "nan"], "no positive number"),
        (["--seconds", "x"], "no positive number"),
    ],
)
def test_bad_options_are_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    assert exit_code(*arguments) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("module", ["gradwire.server", "gradwire.client.doctor"])
def test_it_is_a_subcommand_and_a_program(server: Server, module: str) -> None:
    command = [sys.executable, "-m", module, *(["doctor"] if module == "gradwire.server" else [])]
    options = ["--target", server.target, *QUICK, "--encodings", "float32", "--json"]
    result = subprocess.run([*command, *options], capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)["steps"]) == 4
    broken = subprocess.run([*command, "--seconds", "x"], capture_output=True, text=True, timeout=60, check=False)
    assert broken.returncode == 2
    assert "--seconds" in broken.stderr


def test_the_server_s_command_passes_the_arguments_on(server: Server) -> None:
    """Also where click, not ``main``, finds the word."""
    code = "from gradwire.server.cli.commands import cli; cli()"
    command = [sys.executable, "-c", code, "doctor", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ})
    assert result.returncode == 0
    assert "--parameters" in result.stdout


def test_best_leaves_out_what_was_refused() -> None:
    quick = Cell(10, "float32", 1, 1.0, 10, 0, 0)
    slow = Cell(10, "int8", 1, 2.0, 10, 0, 0)
    refused = Cell(10, "int8", 8, float("nan"), 10, 0, 0, "no room")
    assert best([refused, slow, quick]) is quick
    assert best([refused]) is None
    assert np.isnan(refused.step_seconds)


def test_embedded(capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, "--target", "embedded", *QUICK, "--encodings", "float32")
    assert "embedded" in found["server"]


def test_a_connection_that_was_there_before_is_not_disturbed(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    with connect(server.target) as other:
        run = other.create_run("beside-the-doctor", {"x": np.zeros(3, np.float32)}, _adam())
        report(capsys, "--target", server.target, *QUICK, "--encodings", "float32")
        assert run.step({"x": np.ones(3, np.float32)}).step == 1
        other.delete_run("beside-the-doctor")


def _adam() -> Any:
    from gradwire.client import Adam

    return Adam()
