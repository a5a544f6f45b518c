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
    import os, gc
    if os.environ.get("SWI"): sys.setswitchinterval(float(os.environ["SWI"]))
    if os.environ.get("FRZ"):
        from gradwire.server.app import Server
        _s = Server.start
        async def start(self):
            await _s(self); gc.collect(); gc.freeze()
        Server.start = start
    LoopLag.watch = _watch  # type: ignore[method-assign, assignment]
    try:
        main()
    finally:
        file.write_text(json.dumps(_noted))
