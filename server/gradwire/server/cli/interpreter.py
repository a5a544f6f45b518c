"""What the interpreter of a server's process does by itself must not keep the event loop waiting.

`benchmarks/neighbours.py` shows what both bring where somebody makes runs of very many tensors.
"""

from __future__ import annotations

import gc
import sys

_SWITCH_SECONDS = 0.0005
"""Ten times as often as Python does: the event loop waits so long for a thread that is busy with Python."""


def switch_often() -> None:
    """A thread that others wait for gives way soon."""
    sys.setswitchinterval(_SWITCH_SECONDS)


def spare_what_stays() -> None:
    """All that has been loaded by now is there until the end, and garbage collection need not look at it each time."""
    gc.freeze()
