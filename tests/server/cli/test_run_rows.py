"""A run in one line, and as an object."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gradwire.server.cli.run_rows import COLUMNS, data_of, duration, row_of, short, state_of, summaries
from gradwire.v1 import run_pb2, service_pb2

KEYS = (
    "name state damage step steps_per_second idle_seconds workers worker_id elements dtype durability "
    "waits_for waits_seconds"
)


def summary(**fields: Any) -> service_pb2.RunSummary:
    told: dict[str, Any] = {"name": "runs/x", "step": 7, "elements": 25_600_000, "dtype": run_pb2.DTYPE_FLOAT32}
    return service_pb2.RunSummary(durability=run_pb2.DURABILITY_JOURNAL, **{**told, **fields})


WAIT = service_pb2.Wait(kind=service_pb2.WAITS_FOR_BLOCK, text="block 8\x1b[2J", seconds=14.2)


def test_a_row() -> None:
    found = row_of(
        summary(attached_worker_id="w\n", attached_workers=1, steps_per_second=12.345, idle_seconds=90, wait=WAIT)
    )
    assert dict(zip(COLUMNS, found, strict=True)) == {
        "name": "x",
        "state": "running",
        "step": "7",
        "steps/s": "12.3",
        "workers": r"w\n",
        "size": "25.6M float32",
        "durability": "JOURNAL",
        "progress": "2 min ago",
        "waits for": r"block 8\x1b[2J, for 14 s",
    }


def test_a_row_of_what_an_old_server_says() -> None:
    found = row_of(summary(attached_worker_id="w"))
    assert (found.state, found.steps_per_second, found.progress, found.waits_for) == ("attached", "-", "-", "-")


def test_a_run_that_cannot_be_served() -> None:
    damaged = service_pb2.RunSummary(name="runs/x", damage="it is\ntorn")
    assert row_of(damaged) == ("x", "damaged", "-", "-", "-", "-", "-", "-", r"it is\ntorn")
    found = data_of(damaged)
    assert {key for key, value in found.items() if value is not None} == {"name", "state", "damage"}


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "idle"),
        ({"idle_seconds": 3.0}, "idle"),
        ({"attached_workers": 2}, "attached"),
        ({"attached_workers": 2, "idle_seconds": 3.0}, "waiting"),
        ({"attached_workers": 2, "idle_seconds": 0.1, "steps_per_second": 0.1}, "running"),
    ],
)
def test_states(fields: dict[str, Any], state: str) -> None:
    assert state_of(summary(**fields)) == state


def test_the_keys_that_programs_go_by() -> None:
    for run in (summary(), summary(wait=WAIT, idle_seconds=1.0, attached_workers=3)):
        assert " ".join(data_of(run)) == KEYS
    assert (data_of(summary(attached_worker_id="w"))["workers"], data_of(summary())["workers"]) == (1, 0)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (0.0512, "0.0512"),
        (999, "999"),
        (1234, "1.23k"),
        (25.6e6, "25.6M"),
        (999.7e6, "1000M"),
        (2e12, "2000G"),
    ],
)
def test_counts(count: float, text: str) -> None:
    assert short(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min"), (7300, "2 h"), (300_000, "3 d")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_one_run_by_its_name_or_by_that_with_its_tenant() -> None:
    """An older server shows all."""
    shown = [summary(), summary(name="runs/y")]
    stub: Any = SimpleNamespace(ListRuns=lambda request: service_pb2.ListRunsResponse(runs=shown))
    assert [run.name for run in summaries(stub)] == ["runs/x", "runs/y"]
    assert [run.name for run in summaries(stub, "runs/y")] == ["runs/y"]
    assert list(summaries(stub, "tenants/lab/runs/y")) == []
    del shown[0]
    assert [run.name for run in summaries(stub, "tenants/lab/runs/y")] == ["runs/y"]
    assert list(summaries(stub, "tenants/lab/runs/x")) == []
