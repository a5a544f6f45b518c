"""Teams do the rounds that they are compared by, and the section is written where the last one stood."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import closing_cost, teams, workers, workers_page
from benchmarks.backend import Backend
from benchmarks.measure import Timing
from benchmarks.teams.gradwire_crowd import GradwireCrowd
from benchmarks.teams.task import Task
from benchmarks.teams.team import Team, Unavailable


def worst(team: Team, task: Task, rounds: int) -> float:
    """Largest difference of anybody's parameters to the expected ones."""
    expected = task.expected(rounds)
    return max(float(np.abs(params - expected).max()) for params in team.parameters())


@pytest.mark.parametrize(
    "name", [teams.OURS, teams.IN_SHARED_MEMORY, teams.WITHOUT_SHARED_MEMORY, teams.GLOO, teams.FLOWER]
)
def test_every_worker_of_a_team_has_the_parameters_of_all_rounds(name: str) -> None:
    task = Task(20_000, 2)
    try:
        team = teams.start(name, task)
    except Unavailable as reason:
        pytest.skip(str(reason))
    try:
        assert team.window(3) > 0
        assert worst(team, task, 3) < workers.TOLERANCE
        assert team.window(2) > 0
        assert worst(team, task, 5) < workers.TOLERANCE
        assert worst(team, task, 4) > 100 * workers.TOLERANCE, "a round more or less would not show"
    finally:
        team.close()


def test_threads_of_two_processes_are_workers_of_one_run() -> None:
    task = Task(100, 6)
    team = GradwireCrowd(task)
    try:
        assert len(team.workers) == 2
        assert team.window(3) > 0
        assert worst(team, task, 3) < workers.TOLERANCE
    finally:
        team.close()


def test_a_round_that_is_closed_alone_is_a_round() -> None:
    backend = Backend("cpu", 1)
    try:
        result = closing_cost.run(backend, workers=3, elements=5000, rounds=2)
    finally:
        backend.close()
    assert result.same
    assert set(result.timings) == {closing_cost.COPY, closing_cost.CLOSE, closing_cost.COMBINE}


def result(ours: float, gloo: float, ray: float) -> workers.Result:
    times = {teams.OURS: ours, teams.IN_SHARED_MEMORY: ours, teams.GLOO: gloo, teams.RAY: ray}
    timings = {name: Timing((seconds,) * 3) for name, seconds in times.items()}
    return workers.Result(Task(1_000_000, 2), timings, {teams.OURS: 0.0}, {teams.FLOWER: "not here"})


def closing(ours: float, floor: float) -> closing_cost.Result:
    timings = {closing_cost.COPY: Timing((floor,) * 3), closing_cost.CLOSE: Timing((ours,) * 3)}
    return closing_cost.Result(2, 100, timings, 0.0)


def test_a_missed_target_is_said() -> None:
    crowd = workers.Result(Task(10, 64), {teams.OURS: Timing((0.5,))}, {teams.OURS: 0.0}, {})
    good = workers_page.section([result(1.0, 1.0, 2.0)], crowd, [closing(1.2, 1.0)], "about", "settings")
    assert "MISSED" not in good
    assert good.count(": met)") == 4
    bad = workers_page.section([result(1.6, 1.0, 1.5)], crowd, [closing(1.4, 1.0)], "about", "settings")
    assert bad.count("MISSED") == 4
    assert "not here" in bad


def test_a_section_takes_the_place_of_the_last_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\nText.\n")
    workers_page.write("first\n", page)
    first = page.read_text()
    assert first.startswith("# Title\n\nText.\n\n")
    page.write_text(f"{first}\nWhat follows.\n")
    workers_page.write("second\n", page)
    assert page.read_text() == f"{first}\nWhat follows.\n".replace("first", "second")
