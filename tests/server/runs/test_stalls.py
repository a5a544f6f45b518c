"""A stall is told once, and again only when something has moved."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from gradwire.server.engine.activity import Wait, WaitsFor
from gradwire.server.runs import stalls
from gradwire.server.runs.stalls import LOOK_SECONDS, STALL_SECONDS, STALLS, Stalls


class Worker:
    """Attached, and waits as the test says."""

    worker_id = "w\n"
    stall_told = False
    waits: Wait | None = None

    def wait(self) -> Wait | None:
        return self.waits

    def waits_for(self, kind: WaitsFor, seconds: float) -> None:
        self.waits = Wait(kind, f"what is {kind.name}", seconds)


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def told(worker: Worker, caplog: pytest.LogCaptureFixture) -> Any:
    """Looks once; what the log says."""
    run: Any = SimpleNamespace(spec=SimpleNamespace(name="runs/x"), holders=[worker])
    watching = Stalls(lambda: [run])

    def look() -> list[str]:
        caplog.clear()
        asyncio.run(watching.look())
        return [record.getMessage() for record in caplog.records if record.name == stalls.__name__]

    return look


@pytest.mark.parametrize("kind", sorted(STALLS))
def test_each_is_told_once(worker: Worker, told: Any, kind: WaitsFor) -> None:
    worker.waits_for(kind, STALL_SECONDS - 1)
    assert told() == []
    worker.waits_for(kind, STALL_SECONDS)
    assert told() == [f"runs/x: worker 'w\\n' has waited 30 s for what is {kind.name}"]
    worker.waits_for(kind, STALL_SECONDS + LOOK_SECONDS)
    assert told() == []


def test_again_when_it_has_moved(worker: Worker, told: Any) -> None:
    worker.waits_for(WaitsFor.DISK, STALL_SECONDS)
    assert len(told()) == 1
    worker.waits_for(WaitsFor.DISK, 1)
    assert told() == []
    worker.waits_for(WaitsFor.DISK, STALL_SECONDS)
    assert len(told()) == 1


@pytest.mark.parametrize("kind", sorted(set(WaitsFor) - STALLS))
def test_what_may_take_its_time_is_no_stall(worker: Worker, told: Any, kind: WaitsFor) -> None:
    worker.waits_for(kind, 1000 * STALL_SECONDS)
    assert told() == []
    worker.waits = None
    assert told() == []


def test_what_has_moved_is_seen_to_have() -> None:
    assert LOOK_SECONDS < STALL_SECONDS


def test_one_that_cannot_be_looked_at_ends_nothing(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stalls, "LOOK_SECONDS", 0)
    looks = 0

    def runs() -> list[Any]:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise asyncio.CancelledError
        raise RuntimeError("not now")

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(Stalls(runs).watch())
    assert "not now" in caplog.text
