"""A transfer that takes long is in the log; others are not."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from gradwire.client import AMSGrad, Server
from gradwire.client.calls import creation, files
from gradwire.client.transport import progress_log
from gradwire.client.transport.progress_log import TELL_SECONDS, ProgressLog
from tests.server.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Clock:
    caplog.set_level(logging.INFO)
    return Clock.of(progress_log, monkeypatch)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == progress_log.__name__]


def test_it_is_told_now_and_then(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    sent = ProgressLog("creating runs/x\n", 100 * 2**20)
    for _ in range(100):
        sent.add(2**20)
        clock.now += TELL_SECONDS / 40
    assert said(caplog) == [rf"creating runs/x\n: {done} of 100 MiB" for done in (41, 81)]


def test_what_is_not_known_is_not_said(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    sent = ProgressLog("importing runs/x", 0)
    clock.now += TELL_SECONDS
    sent.add(2**21)
    assert said(caplog) == ["importing runs/x: 2 of 2 MiB"]


def test_creation_import_and_export_count_all_their_bytes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, list[int]]] = []

    class Noting(ProgressLog):
        def __init__(self, what: str, total_bytes: int) -> None:
            super().__init__(what, total_bytes)
            self.parts: list[int] = []
            told.append((what, total_bytes, self.parts))

        def add(self, size_bytes: int) -> None:
            self.parts.append(size_bytes)

    for module in (creation, files):
        monkeypatch.setattr(module, "ProgressLog", Noting)
    path = tmp_path / "x.safetensors"
    with server.create_run("told", {"w": np.zeros(500_000)}, AMSGrad()) as run:
        run.export(path)
        state = run.state_dict()
    server.import_run("told-again", path).close()
    server.create_run("told-too", {"w": np.zeros(500_000)}, AMSGrad(), state=state).close()
    size = path.stat().st_size
    expected = {
        "creating runs/told": 4_000_000,
        "exporting runs/told": size,
        "importing runs/told-again": size,
        "creating runs/told-too": 4 * 4_000_000,
    }
    assert {what: total for what, total, _ in told} == expected
    assert {what: sum(parts) for what, _, parts in told} == expected
