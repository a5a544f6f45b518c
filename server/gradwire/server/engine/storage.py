"""What a run knows of its being stored."""

from __future__ import annotations

from typing import Protocol


class Storage(Protocol):
    """How one run is stored. All the rest of it is the business of whoever stores it, see `durability.run_storage`."""

    journals: bool
    """Whether each block is journaled before it is applied."""
    loss: str
    """See ``gradwire.v1.Run.loss``."""
