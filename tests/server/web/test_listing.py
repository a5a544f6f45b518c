"""The list of runs, and what those are told who have seen an earlier one."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from gradwire.server.access.identity import Identity, Role
from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.series.run_series import RunSeries
from gradwire.server.web import listing
from gradwire.server.web.answers import to_json
from gradwire.server.web.listing import EMPTY, SPARK_POINTS, Row, Rows, spark_of

ADMIN = Identity("default", Role.ADMIN, "admin")
LAB = Identity("lab", Role.READ, "lab")


def row(name: str, version: int) -> Row:
    facts = {"step": version}
    return Row(name, version, version, facts, to_json(facts))


def rows(version: int, versions: dict[str, int], gone: tuple[tuple[int, str], ...] = (), since: int = 0) -> Rows:
    return Rows(version, {name: row(name, each) for name, each in versions.items()}, gone, since)


def told(found: Rows, who: Identity, since: int) -> list[dict[str, Any]]:
    return [json.loads(text) for text in found.news(who, since)]


def test_who_has_seen_nothing_is_told_all_that_it_may_see() -> None:
    found = rows(7, {"runs/a": 3, "tenants/lab/runs/b": 7})
    (news,) = told(found, ADMIN, 0)
    assert news["whole"]
    assert [one["name"] for one in news["rows"]] == ["runs/a", "tenants/lab/runs/b"]
    (news,) = told(found, LAB, 0)
    assert news["rows"] == [{"name": "runs/b", "step": 7}]
    assert told(EMPTY, ADMIN, 0) == [{"whole": True, "rows": [], "gone": []}], "that there are none is news, too"


def test_who_has_seen_some_is_told_what_is_newer() -> None:
    found = rows(7, {"runs/a": 3, "runs/b": 7}, ((5, "runs/gone"), (6, "tenants/lab/runs/gone"), (6, "runs/b")))
    assert told(found, ADMIN, 7) == []
    (news,) = told(found, ADMIN, 4)
    assert (news["whole"], [one["name"] for one in news["rows"]]) == (False, ["runs/b"])
    assert news["gone"] == ["runs/gone", "tenants/lab/runs/gone"], "what has come again is not gone"
    (news,) = told(found, LAB, 4)
    assert (news["rows"], news["gone"]) == ([], ["runs/gone"])


def test_who_was_away_for_too_long_is_told_all() -> None:
    assert told(rows(7, {"runs/a": 3}, since=6), ADMIN, 5)[0]["whole"]
    assert told(rows(7, {"runs/a": 3}, since=6), ADMIN, 6) == []


def test_very_many_come_in_pieces_that_are_taken_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_ROWS_AT_ONCE", 3)
    found = rows(1, {f"runs/{number}": 1 for number in range(7)})
    pieces = told(found, ADMIN, 0)
    assert [len(piece["rows"]) for piece in pieces] == [3, 3, 1]
    assert [piece["whole"] for piece in pieces] == [True, False, False]


def test_the_small_curve_is_of_what_says_most() -> None:
    series = RunSeries(MemoryBudget(2**30), "runs/x")
    assert spark_of(series) is None
    series.note_block(1, 2.0, (0.1,))
    assert spark_of(series) == {"name": "gradient_norm", "values": [2.0]}
    series.add(1, "accuracy", 0.5)
    found = spark_of(series)
    assert found is not None
    assert found["name"] == "accuracy"
    for step in range(1, 1000):
        series.add(step, "loss", math.inf if step == 500 else 1 / step)
    found = spark_of(series)
    assert found is not None
    assert found["name"] == "loss"
    assert SPARK_POINTS / 2 <= len(found["values"]) <= SPARK_POINTS
    assert "null" in to_json(found), "browsers know no infinity"
