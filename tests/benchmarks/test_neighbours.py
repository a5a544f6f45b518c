"""What is said of neighbours is of the time when both were there."""

from __future__ import annotations

import time

from benchmarks.neighbours import Windows, percentile


def test_lags_are_those_of_the_windows() -> None:
    windows = Windows()
    begin = time.monotonic()
    windows.add([0.001] * 99 + [0.1], begin, 3)
    windows.add([0.002] * 100, time.monotonic(), 4)
    end = time.monotonic()
    noted = [(begin - 1, 0.5), (begin, 0.003), (end, 0.004), (end + 1, 0.6)]
    assert windows.lags(noted)[0] == 0.003
    assert not {0.5, 0.6} & set(windows.lags(noted))
    assert windows.rounds_of_a == 7
    assert len(windows.step_seconds) == 200
    assert windows.p99s[1] == percentile([0.002] * 100, 99) == 0.002
