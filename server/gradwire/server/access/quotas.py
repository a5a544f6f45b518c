"""How much a tenant may hold."""

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
