"""How fast a tenant may go: what it has used too fast, it waits for afterwards."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from gradwire.server.access.quotas import MOST, RATES, Quotas
from gradwire.wire.errors import QuotaExceeded

LONGEST_SECONDS = 60.0
"""What a block is waited for. One that would cost more is refused, unless it is a single step."""

DEBT_SECONDS = 600.0
"""What is remembered of a debt; more of it is forgiven."""

BURST_SECONDS = 1.0
"""So much of a rate may be used at once by who has used nothing."""


class Pace:
    """The rates of one tenant, through all its streams: token buckets that may be overdrawn.

    What comes is admitted, whatever it costs, and what comes after it waits until the debt is paid. So no block is cut
    for it. To be called on the event loop.

    Args:
        quotas: of the tenant, as they are when they are asked for.
    """

    def __init__(self, quotas: Callable[[], Quotas], clock: Callable[[], float] = time.monotonic) -> None:
        self._quotas = quotas
        self._clock = clock
        self._paid_at = dict.fromkeys(RATES, -math.inf)
        """When what has been used is paid for, by the clock."""

    def require(self, steps: int, size_bytes: int, streams: int = 1) -> None:
        """Raises QuotaExceeded for a block of more than one step that no wait would make good.

        Args:
            streams: that the tenant has open, each of which may send as much.
        """
        if steps == 1:
            return
        for quota, amount, rate in self._in_force(steps, size_bytes):
            enough = rate * LONGEST_SECONDS / streams
            if amount > enough:
                most = max(1, int(steps * enough / amount))
                shared = f", which {streams} streams share" if streams > 1 else ""
                raise QuotaExceeded(
                    f"quota {quota!r}: the block has {steps} steps, which is more than {LONGEST_SECONDS:g} s of your "
                    f"{rate}{shared}; expected at most {most} steps",
                    quota=quota,
                    used=amount,
                    limit=rate,
                    max_steps=most,
                )

    def use(self, steps: int, size_bytes: int) -> None:
        """Notes that so much has been done."""
        now = self._clock()
        for quota, amount, rate in self._in_force(steps, size_bytes):
            paid_at = max(self._paid_at[quota], now - BURST_SECONDS) + amount / rate
            self._paid_at[quota] = min(paid_at, now + DEBT_SECONDS)

    def wait_seconds(self) -> float:
        """How long nothing more is to be taken or given; 0: nothing is owed. To be asked again after that: others use
        the rates, too."""
        paid_at = max((self._paid_at[quota] for quota, _, _ in self._in_force(0, 0)), default=-math.inf)
        return max(0.0, paid_at - self._clock())

    def level(self, quota: str, rate: int) -> int:
        """How much of a second's use has not been worn off yet: above ``rate``, somebody waits."""
        return min(round(rate * max(0.0, self._paid_at[quota] - self._clock() + BURST_SECONDS)), MOST)

    def _in_force(self, steps: int, size_bytes: int) -> list[tuple[str, int, int]]:
        quotas = self._quotas()
        found = (
            ("steps_per_second", steps, quotas.steps_per_second),
            ("bytes_per_second", size_bytes, quotas.bytes_per_second),
        )
        return [(quota, amount, rate) for quota, amount, rate in found if rate is not None]


class StreamPace:
    """What one of a tenant's streams may send.

    Args:
        streams: how many the tenant has open.
    """

    def __init__(self, pace: Pace, streams: Callable[[], int]) -> None:
        self._pace = pace
        self._streams = streams

    def require(self, steps: int, size_bytes: int) -> None:
        """Raises QuotaExceeded for a new block that is too much at once."""
        self._pace.require(steps, size_bytes, max(1, self._streams()))

    def use_steps(self, steps: int) -> None:
        """They are about to be done."""
        self._pace.use(steps, 0)
