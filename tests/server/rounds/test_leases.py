"""Who has a place at a shared run, and for how long."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.engine import run as run_module
from gradwire.server.engine.block import Kind, Outcome, Receipt
from gradwire.server.engine.run import Run
from gradwire.server.engine.shared import SharedRun
from gradwire.server.engine.spec import RunSpec
from gradwire.server.engine.workers import Holder
from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.optimizers.adam import AdamHyperparameters
from gradwire.server.rounds import members
from gradwire.server.rounds.leases import AttachShared, Leases
from gradwire.wire.errors import Fenced, GradwireError, LeaderBusy, RunBusy
from gradwire.wire.layout import Layout

OPTIONS = SharedRun(lease_seconds=30.0, max_workers=3, start_with=2)


class Scene:
    """A run, and a clock that the test moves."""

    def __init__(self, run: Run, options: SharedRun = OPTIONS) -> None:
        self.run = run
        self.now = 1000.0
        self.ended: list[tuple[str, GradwireError]] = []
        self.leases = Leases(run, options, lambda: self.now)

    def attach(self, worker_id: str, **fields: Any) -> Holder:
        return self.leases.attach(
            AttachShared(worker_id, **fields), lambda error: self.ended.append((worker_id, error))
        )

    def leased(self) -> list[str]:
        return [member.worker_id for member in self.leases.all_leased()]


@pytest.fixture
def scene() -> Iterator[Scene]:
    spec = RunSpec("runs/x", Layout([[("w", (4,))]]), np.dtype(np.float32), (AdamHyperparameters(),), shared=OPTIONS)
    with ThreadPoolExecutor(1) as executor:
        yield Scene(Run(spec, CpuDevice(1), MemoryBudget(2**20), executor))


def test_a_broken_stream_is_waited_for_and_a_leave_is_not(scene: Scene) -> None:
    a, b = scene.attach("a"), scene.attach("b")
    scene.leases.detach(a, left=True)
    scene.leases.detach(b, left=False)
    assert scene.leased() == ["b"]
    assert scene.leases.next_end() == 1030.0
    scene.now = 1029.9
    assert scene.leased() == ["b"]
    scene.now = 1030.0
    assert (scene.leased(), scene.leases.next_end()) == ([], None)


def test_nobody_is_fenced_but_the_same_worker(scene: Scene) -> None:
    old = scene.attach("a")
    scene.attach("b")
    new = scene.attach("a")
    ((worker_id, error),) = scene.ended
    assert (worker_id, type(error), scene.run.epoch) == ("a", Fenced, 0)
    scene.leases.detach(old, left=True)  # it hears of that late
    assert scene.leased() == ["a", "b"]
    assert new.record is old.record


def test_the_run_begins_when_there_were_enough_at_a_time(scene: Scene) -> None:
    scene.leases.detach(scene.attach("a"), left=True)
    b = scene.attach("b")
    assert not scene.leases.started
    scene.attach("a")
    scene.leases.detach(b, left=True)
    assert scene.leases.started


def test_there_are_as_many_places_as_may_be(scene: Scene) -> None:
    holds = [scene.attach(name) for name in "abc"]
    with pytest.raises(RunBusy, match="3 workers are at work on runs/x, as many as may be"):
        scene.attach("d")
    scene.attach("a")
    scene.leases.detach(holds[1], left=False)
    scene.now += 30.0
    scene.attach("d")


def test_who_leads_does_so_as_long_as_it_is_leased(scene: Scene) -> None:
    hold = scene.attach("a", leads=True)
    with pytest.raises(LeaderBusy, match="worker 'a' leads"):
        scene.attach("b", leads=True)
    scene.attach("a", leads=True)
    hold = scene.attach("a", leads=True)
    scene.leases.detach(hold, left=False)
    with pytest.raises(LeaderBusy):
        scene.attach("b", leads=True)
    scene.now += 30.0
    assert scene.leases.leader == ""
    scene.attach("b", leads=True)
    assert scene.leases.leader == "b"
    scene.attach("c", leads=True, takeover=True)
    assert scene.leases.leader == "c"
    scene.attach("c")
    assert scene.leases.leader == ""


def test_a_worker_goes_on_from_what_it_says_that_it_has(scene: Scene) -> None:
    scene.run.step = 10
    for worker_id, fields, step in [("a", {}, 10), ("b", {"base_step": 7}, 7), ("c", {"base_step": 99}, 10)]:
        scene.attach(worker_id, **fields)
        member = scene.leases.members.get(worker_id)
        assert member is not None
        assert member.step == step


def test_leased_workers_are_never_forgotten(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "MAX_WORKERS", 4)
    monkeypatch.setattr(members, "MAX_WORKERS", 4)
    kept = [scene.attach("a"), scene.attach("b")]
    for number in range(8):
        hold = scene.attach(f"passing-{number}")
        scene.leases.detach(hold, left=True)
        scene.now += 1.0
    assert {"a", "b"} <= set(scene.run.workers)
    assert {"a", "b"} <= {member.worker_id for member in scene.leases.members}
    assert len(scene.run.workers) == len(list(scene.leases.members)) == 4
    assert scene.run.has_forgotten
    assert scene.attach("passing-0").perhaps_forgotten
    assert kept[0].record is scene.run.workers["a"]


def test_who_waits_in_a_round_is_not_forgotten(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "MAX_WORKERS", 2)
    scene.leases.detach(scene.attach("a"), left=True)
    for number in range(3):
        hold = scene.leases.attach(AttachShared(f"passing-{number}"), lambda error: None, contributors={"a"})
        scene.leases.detach(hold, left=True)
    assert "a" in scene.run.workers


def test_shares_are_of_all_that_was_accepted(scene: Scene) -> None:
    scene.attach("a"), scene.attach("b")
    for worker_id, share in (("a", 0.25), ("b", 0.75)):
        scene.leases.note(worker_id, Outcome(Kind.ACCEPTED, "QUORUM", "", 1, share, 2, 8.0))
    scene.leases.note("b", Outcome(Kind.STALE, "TOO_STALE", ""))
    found = {member.worker_id: (member.weight, member.outcomes[Kind.STALE]) for member in scene.leases.members}
    assert found == {"a": (2.0, 0), "b": (6.0, 1)}
    assert scene.leases.members.total_weight == 8.0


def test_after_a_start_those_of_the_last_round_are_leased(scene: Scene) -> None:
    run = scene.run
    run.rounds = 2
    for worker_id, number in (("a", 2), ("b", 1), ("c", 2)):
        outcome = Outcome(Kind.ACCEPTED, "QUORUM", "", number)
        run.hold(worker_id, lambda error: None).record.answer(1, Receipt(2, 0.0, (), contribution=outcome), 4)
    assert Scene(run).leased() == ["a", "c"]
    assert Scene(run).leases.started
