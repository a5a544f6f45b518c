"""Columns for a terminal."""

from __future__ import annotations

import time
from typing import Any

from gradwire.server.access.identity import ANYBODY
from gradwire.server.web.listing import EMPTY, Row, Rows
from gradwire.server.web.plain_text import of_all, of_one

FACTS: dict[str, Any] = {
    "state": "training",
    "step": 12,
    "steps_per_second": 3.5,
    "workers": 1,
    "durability": "journal",
    "parameters": 2048,
    "progress": None,
}


def test_a_line_for_each_run_in_columns() -> None:
    damaged = {"state": "damaged", "why": "its journal\nis broken"}
    found = Rows(
        1,
        {
            "runs/a": Row("runs/a", 1, None, FACTS, ""),
            "runs/longer-name": Row("runs/longer-name", 1, None, {**FACTS, "progress": time.time() - 7300}, ""),
            "runs/z": Row("runs/z", 1, None, damaged, ""),
        },
    )
    lines = of_all(found, ANYBODY).splitlines()
    assert lines[0].split() == [
        "RUN",
        "STATE",
        "STEP",
        "STEPS/S",
        "WORKERS",
        "DURABILITY",
        "PARAMETERS",
        "LAST",
        "STEP",
    ]
    assert lines[1].split() == ["runs/a", "training", "12", "3.5", "1", "journal", "2048", "-"]
    assert lines[2].endswith("2 h ago")
    assert lines[3].split(None, 2) == ["runs/z", "damaged", r"its journal\nis broken"]
    assert len({line.index("training") for line in lines[1:3]}) == 1
    assert of_all(EMPTY, ANYBODY) == "there are no runs yet"


def test_what_is_left_out_is_counted() -> None:
    about = {"tensors": [{"name": "w", "shape": []}], "tensor_count": 900}
    now = {
        "groups": [{"optimizer": "adam", "lr": 0.1}],
        "group_count": 1,
        "workers": [
            {"id": "w-0", "sequence": 3, "waits_for": "block 4", "waits_seconds": 9.6, "blocks": {"p50": 0.0123}}
        ],
        "worker_count": 1,
        "bytes": {"received": {"lane": 12, "shared_memory": 3}, "sent": {}},
        "round": {"number": 4, "waiting_for": "2 of 3", "outcomes": {"accepted": 5}},
        "snapshots": [],
        "snapshot_count": 0,
        "events": [],
    }
    text = of_one("runs/a", FACTS, about, now)
    assert "tensors (1 of 900)\n  w  scalar" in text
    assert "w-0  sequence 3  12.3 ms a block  waits for block 4 since 10 s" in text
    assert "  received  lane           12 bytes\n  received  shared memory  3 bytes" in text
    assert "round 4: 2 of 3; 5 accepted" in text
    assert "snapshots" not in text
