"""Time that passes when a test says so."""

from __future__ import annotations

from types import ModuleType

import pytest


class Clock:
    """What a module knows as ``time``."""

    now = 100.0

    @classmethod
    def of(cls, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Clock:
        """The clock that ``module`` goes by from now on."""
        clock = cls()
        monkeypatch.setattr(module, "time", clock)
        return clock

    def monotonic(self) -> float:
        return self.now
