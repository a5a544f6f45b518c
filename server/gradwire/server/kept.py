"""How one run is kept in a store."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gradwire.server.store.base import Store


@dataclass(eq=False)
class Kept:
    """Belongs to a run from the moment that it is stored."""

    store: Store
    fingerprint: str
    """Of the kernels of this server."""
    journals: bool
    """Whether each block is journaled before it is applied."""
    saved_version: int
    """The run's version in its newest snapshot."""
    saved_step: int
    due_after_steps: int
    """A snapshot is due after so many steps; 0: after none in particular."""
    due_after_bytes: int
    """A snapshot is due when so much has been journaled."""
    wake: Callable[[], None]
    """Called when a snapshot is due."""
    loss: str = ""
    """See ``gradwire.v1.Run.loss``."""
    saved_at: float = field(default_factory=time.monotonic)
    journal_bytes: int = 0
    """What has been journaled since the newest snapshot."""

    def due(self, step: int) -> bool:
        """Whether a snapshot is due, however recent the last one is."""
        return 0 < self.due_after_steps <= step - self.saved_step or self.journal_bytes >= self.due_after_bytes

    def saved(self, version: int, step: int) -> None:
        """Notes that the run's newest snapshot is of now, or was a moment ago."""
        self.saved_version = version
        self.saved_step = step
        self.saved_at = time.monotonic()
        self.journal_bytes = 0
