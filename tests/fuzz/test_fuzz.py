"""Some thousand messages that nobody planned for; ``make fuzz`` sends a million."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.fuzz.fuzzer import Broken, Fuzzer
from tests.fuzz.messages import METHODS, Maker

CASES = 1500
"""Of 1.4 messages each."""


@pytest.mark.timeout(300)
def test_nothing_breaks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sent = 0
    with Fuzzer(tmp_path) as fuzzer:
        for case in range(CASES):
            fuzzer.run(case)
        fuzzer.finish()
        sent = sum(fuzzer.outcomes.values())
        reasons = set(fuzzer.outcomes)
    assert sent == CASES
    # That the cases reach behind the first check.
    assert {
        "OK",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "PROTOCOL_VIOLATION",
        "RUN_NOT_FOUND",
        "INVALID_SPEC",
    } <= reasons
    assert {"INVALID_HYPERPARAMETER", "INVALID_SLICE"} & reasons
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
    assert not errors


def test_what_nobody_planned_for_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A harness that sees nothing finds nothing."""

    async def broken(*arguments: object) -> None:
        raise RuntimeError("seeded")

    monkeypatch.setattr("gradwire.server.runs.operations.roll_back", broken)
    expected = "RollBack: status 13: unexpected error in RollBack"
    with Fuzzer(tmp_path) as fuzzer, pytest.raises(Broken, match=expected):
        sum(fuzzer.run(case) for case in range(CASES))


@pytest.mark.parametrize("method", METHODS)
def test_a_case_is_the_same_each_time(method: str) -> None:
    assert Maker(7).stream(method) == Maker(7).stream(method)
    streams = {tuple(Maker(seed).stream(method)) for seed in range(30)}
    assert len(streams) > (1 if METHODS[method].input_type.fields else 0)
