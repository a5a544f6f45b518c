"""How long the event loop does not come to what is due: what every stream then waits for."""

from __future__ import annotations

import asyncio
from collections import deque

_EVERY_SECONDS = 0.25
_REMEMBERED = int(60 / _EVERY_SECONDS)


class LoopLag:
    """Measures while `watch` runs, as a task of the loop."""

    def __init__(self) -> None:
        self._lags: deque[float] = deque(maxlen=_REMEMBERED)

    @property
    def longest_seconds(self) -> float:
        """Of the last minute."""
        return max(self._lags, default=0.0)

    async def watch(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _EVERY_SECONDS
            await asyncio.sleep(_EVERY_SECONDS)
            self._lags.append(loop.time() - due)
