"""What is done again and again beside all else, whatever becomes of it once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable


async def again_and_again(
    look: Callable[[], Awaitable[object]], seconds: Callable[[], float], log: logging.Logger, failure: str
) -> None:
    """Until it is cancelled.

    Args:
        seconds: between two of them, and before the first one.
        failure: what cannot be done where ``look`` raises, in words; it is logged, and tried again.
    """
    while True:
        await asyncio.sleep(seconds())
        try:
            await look()
        except Exception:
            log.exception("%s; tried again in %g s", failure, seconds())
