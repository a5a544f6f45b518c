"""Sends many cases and says what became of them: ``make fuzz``.

python -m tests.fuzz [--messages N] [--first CASE] [--processes N] [--docs]
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from tests.fuzz.sweep import send

PAGE = Path(__file__).parents[2] / "docs/reliability.md"
BEGIN, END = "<!-- fuzz: begin -->", "<!-- fuzz: end -->"
SPAN = 10_000_000
"""How far one process's cases lie from those of the next."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000, help="(default: a million)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default: 0)")
    parser.add_argument("--processes", type=int, default=1, help=f"each with cases {SPAN:,} further on (default: 1)")
    parser.add_argument("--docs", action="store_true", help="write the summary into docs/reliability.md")
    options = parser.parse_args()
    started = time.monotonic()
    share = -(-options.messages // options.processes)
    ranges = [(options.first + number * SPAN, share) for number in range(options.processes)]
    if options.processes == 1:
        found = [send(*ranges[0])]
    else:
        with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
            found = pool.starmap(send, ranges, chunksize=1)
    outcomes = sum((one.outcomes for one in found), Counter[str]())
    errors = [message for one in found for message in one.errors]
    text = (
        f"{datetime.now(UTC):%Y-%m-%d}: cases {' and '.join(f'{one.first} to {one.last}' for one in found)}, "
        f"{sum(one.sent for one in found):,} messages, {time.monotonic() - started:,.0f} s; "
        f"errors logged: {len(errors)}. Answers: "
        + ", ".join(f"{reason} {count:,}" for reason, count in outcomes.most_common())
        + "."
    )
    print(text)
    print("\n".join(errors[:20]))
    if options.docs:
        page = PAGE.read_text()
        begin, end = page.index(BEGIN) + len(BEGIN), page.index(END)
        PAGE.write_text(f"{page[:begin]}\n{text}\n{page[end:]}")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
