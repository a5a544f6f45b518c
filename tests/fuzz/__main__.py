"""Sends many cases and says what became of them: ``make fuzz``.

python -m tests.fuzz [--messages N] [--first CASE] [--docs]
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from tests.fuzz.fuzzer import Fuzzer

PAGE = Path(__file__).parents[2] / "docs/reliability.md"
BEGIN, END = "<!-- fuzz: begin -->", "<!-- fuzz: end -->"


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000, help="(default: a million)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default: 0)")
    parser.add_argument("--docs", action="store_true", help="write the summary into docs/reliability.md")
    options = parser.parse_args()
    errors = _Errors()
    logging.getLogger().addHandler(errors)
    sent, case, started = 0, options.first, time.monotonic()
    with tempfile.TemporaryDirectory() as directory, Fuzzer(Path(directory)) as fuzzer:
        while sent < options.messages:
            sent += fuzzer.run(case)
            case += 1
            if case % 10_000 == 0:
                print(f"{case} cases, {sent} messages, {time.monotonic() - started:.0f} s", flush=True)
        fuzzer.finish()
        outcomes = fuzzer.outcomes
    text = (
        f"{datetime.now(UTC):%Y-%m-%d}: cases {options.first} to {case - 1}, {sent:,} messages, "
        f"{time.monotonic() - started:,.0f} s; errors logged: {len(errors.messages)}. Answers: "
        + ", ".join(f"{reason} {count:,}" for reason, count in outcomes.most_common())
        + "."
    )
    print(text)
    print("\n".join(errors.messages[:20]))
    if options.docs:
        page = PAGE.read_text()
        begin, end = page.index(BEGIN) + len(BEGIN), page.index(END)
        PAGE.write_text(f"{page[:begin]}\n{text}\n{page[end:]}")
    return 1 if errors.messages else 0


if __name__ == "__main__":
    sys.exit(main())
