"""The time of an update is told from that of its transfer: against a server whose times are made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gradwire.client.doctor import measurement
from gradwire.v1 import train_pb2

ROUND_TRIP_SECONDS = 0.001
TRANSFER_SECONDS = 1e-6  # an element
UPDATE_SECONDS = 1e-8  # an element


class SlowLine:
    """A server at the end of a line that takes one element after another; its clock, its requests, its stream."""

    def __init__(self) -> None:
        self.now = 0.0
        self._free_at = 0.0
        self._answers: list[float] = []
        self._elements = 0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def put(self, request: train_pb2.TrainRequest | None) -> None:
        if request is None:
            return
        if request.HasField("attach"):
            self._answers.append(self.now)
            return
        arriving = len(request.gradients.data) // 4
        self._free_at = max(self.now, self._free_at) + arriving * TRANSFER_SECONDS
        self._elements += arriving
        if request.gradients.last:
            self._answers.append(self._free_at + ROUND_TRIP_SECONDS + self._elements * UPDATE_SECONDS)
            self._elements = 0

    def get(self) -> None:
        """Nothing: requests are looked at as they are put."""

    def __next__(self) -> None:
        self.now = max(self.now, self._answers.pop(0))

    def cancel(self) -> None:
        pass


class NoRun:
    """In place of a temporary run, whose making takes none of the line's time."""

    name = "doctor"

    def __init__(self, server: object, elements: int, non_finite: str) -> None:
        assert non_finite == "skip"

    def __enter__(self) -> NoRun:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass


def test_the_update_is_timed_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    elements = 2**20
    line = SlowLine()
    monkeypatch.setattr(measurement, "time", line)
    monkeypatch.setattr(measurement, "queue", SimpleNamespace(SimpleQueue=lambda: line))
    monkeypatch.setattr(measurement, "TemporaryRun", NoRun)
    server: Any = SimpleNamespace(_link=SimpleNamespace(stub=SimpleNamespace(Train=lambda requests: line)), target="")
    gradient = np.ones((1, elements), np.float32)
    transfer = elements * TRANSFER_SECONDS
    found = measurement._commit_seconds(server, gradient, wait_seconds=2 * transfer)
    # What is left of the transfer is its last slice, of at most 256 elements.
    assert found == pytest.approx(elements * UPDATE_SECONDS, abs=256 * TRANSFER_SECONDS)
    assert found < 0.9 * transfer
    assert line.now > 4 * 2 * transfer  # the slices before the last one had the time to arrive
