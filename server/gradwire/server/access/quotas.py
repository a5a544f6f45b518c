"""How much a tenant may hold, and how fast it may go."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quotas:
    """None: no bound but the server's own."""

    runs: int | None = None
    memory: int | None = None
    """Bytes, counted as ``--max-memory`` is."""
    streams: int | None = None
    """Train streams at a time."""
    parameters: int | None = None
    """Elements of one run."""
    tensors: int | None = None
    """Tensors of one run."""
    disk: int | None = None
    """Bytes of stored runs, as `gradwire.server.durability.run_storage` counts them."""
    steps_per_second: int | None = None
    """Through all streams; see `pacing`."""
    bytes_per_second: int | None = None
    """Of gradients, parameters, uploads, downloads, in both directions together."""


SIZES = frozenset({"memory", "disk", "bytes_per_second"})
"""What may be written with a unit."""

RATES = ("steps_per_second", "bytes_per_second")
"""What may not be 0: one would wait for ever."""

MOST = 2**63 - 1
"""Of any of them, and of its use."""
