"""Many cases, one after another, to a server of their own."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.fuzzer import Fuzzer


@dataclass(frozen=True)
class Found:
    """By one process."""

    first: int
    last: int
    sent: int
    outcomes: Counter[str]
    errors: list[str]


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def send(first: int, messages: int) -> Found:
    """Cases from ``first`` on, to a server of their own. Raises what `Fuzzer` does."""
    errors = _Errors()
    logging.getLogger().addHandler(errors)
    sent, case, started = 0, first, time.monotonic()
    with tempfile.TemporaryDirectory() as directory, Fuzzer(Path(directory)) as fuzzer:
        while sent < messages:
            sent += fuzzer.run(case)
            case += 1
            if case % 10_000 == 0:
                print(f"to case {case}: {sent} messages, {time.monotonic() - started:.0f} s", flush=True)
        fuzzer.finish()
        return Found(first, case - 1, sent, fuzzer.outcomes, errors.messages)
