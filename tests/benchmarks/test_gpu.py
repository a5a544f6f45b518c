"""``make gpu``, shown whole where there is no GPU: in numba's simulator, on tiny sizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_page import Page
from benchmarks.gpu_parts import PARTS, Command, Outcome, python_environment

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_all_parts_pass_in_the_simulator(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    command = [sys.executable, "benchmarks/gpu.py", "--simulate", "--page", str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    text = page.read_text()
    assert done.returncode == 0, text + done.stderr
    assert "no GPU was used" in text
    assert [part.title for part in PARTS.values() if f"## {part.title}" not in text] == []
    assert text.count("passed") >= 2 * sum(len(part.commands(True)) for part in PARTS.values())
    assert "DIFFERENT" not in text


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return Page(tmp_path / "gpu.md", simulated=False, command="python benchmarks/gpu.py")


def run(program: str, seconds: float = 60.0, **settings: bool) -> Outcome:
    command = Command("it", ("-c", program), seconds, **settings)  # type: ignore[arg-type]
    return command.run(seconds, python_environment(simulated=False))


def test_a_command_that_fails_shows_the_end_of_what_it_said(page: Page) -> None:
    outcome = run("print('first'); raise SystemExit(3)")
    assert (outcome.failed, outcome.verdict) == (True, "FAILED, exit code 3")
    assert "first" in outcome.output
    page.add(PARTS[2], outcome)
    assert page.failures == 1


def test_a_command_is_cut_short_and_what_it_had_said_stays() -> None:
    """Its children too: one that holds the output would be waited for."""
    program = "import subprocess; print('| a |', flush=True); subprocess.run(['sleep', '300'])"
    outcome = run(program, seconds=2.0)
    assert outcome.failed
    assert outcome.verdict.startswith("CUT SHORT")
    assert outcome.output == "| a |"


def test_what_is_missing_is_named(page: Page) -> None:
    page.add(PARTS[2], Command("it", (), 1.0).skipped("needs nonsense"))
    page.write()
    assert "| it | not run: needs nonsense | 0 |" in page._path.read_text()
    assert page.failures == 0
