"""A gradwire server that notes how late its event loop comes to what is due, every two milliseconds.

python benchmarks/watched_server.py FILE serve ...

At its end it writes [moment by the monotonic clock, seconds late] of each to FILE, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from gradwire.server.__main__ import main
from gradwire.server.rpc.loop_lag import LoopLag

_EVERY_SECONDS = 0.002

_noted: list[tuple[float, float]] = []


async def _watch(lag: LoopLag) -> None:
    while True:
        due = time.monotonic() + _EVERY_SECONDS
        await asyncio.sleep(_EVERY_SECONDS)
        _noted.append((due, time.monotonic() - due))


if __name__ == "__main__":
    file = Path(sys.argv.pop(1))
    LoopLag.watch = _watch  # type: ignore[method-assign, assignment]
    try:
        main()
    finally:
        file.write_text(json.dumps(_noted))
