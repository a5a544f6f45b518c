"""What the page has to be worked out beside the event loop, in few threads: whoever asks for much keeps others who ask
waiting, and nobody else. The threads are those in which the access file is looked at, too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

THREADS = 2


class Aside:
    """Of one server."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(THREADS)

    async def run(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Result of ``function``, in a thread, when one is free."""
        async with self._places:
            return await asyncio.to_thread(function, *arguments, **options)
