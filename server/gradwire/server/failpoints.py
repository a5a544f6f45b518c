"""Places where a test can make the server fail. Off, and free, unless ``GRADWIRE_FAILPOINTS`` names them.

``GRADWIRE_FAILPOINTS="journal.before-commit=kill@3;snapshot.after-rename=sleep:0.5"``: at its third hit the first point
kills the process; every hit of the second one waits half a second. Actions: ``kill`` (SIGKILL), ``stop`` (SIGSTOP),
``raise`` (an I/O error), ``full`` (no space left on the device), ``sleep:SECONDS``. Without ``@N`` every hit acts.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from dataclasses import dataclass

ENVIRONMENT = "GRADWIRE_FAILPOINTS"


@dataclass
class _Armed:
    action: str
    at_hit: int
    """Acts at this hit only, counted from 1; 0: at each."""
    hits: int = 0


_armed: dict[str, _Armed] = {}
_lock = threading.Lock()


def failpoint(name: str) -> None:
    """Does what has been asked for at this point, if anything. Raises OSError for ``raise`` and ``full``."""
    if _armed:
        _hit(name)


def arm(name: str, action: str, at_hit: int = 0) -> None:
    """Switches a point on. Raises ValueError for an unknown action."""
    verb, _, argument = action.partition(":")
    if verb not in ("kill", "stop", "raise", "full", "sleep") or (verb == "sleep") != bool(argument):
        raise ValueError(f"failpoint {name}: action {action!r}; expected kill, stop, raise, full or sleep:SECONDS")
    if argument:
        float(argument)
    _armed[name] = _Armed(action, at_hit)


def disarm() -> None:
    """Switches all points off."""
    _armed.clear()


def arm_from(text: str) -> None:
    """Arms what ``text`` names, in the form of the environment variable. Raises ValueError."""
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, separator, action = part.partition("=")
        if not separator:
            raise ValueError(f"failpoint {part!r}; expected NAME=ACTION or NAME=ACTION@HIT")
        action, _, hit = action.partition("@")
        arm(name, action, int(hit or 0))


def _hit(name: str) -> None:
    with _lock:
        point = _armed.get(name)
        if point is None:
            return
        point.hits += 1
        if point.at_hit not in (0, point.hits):
            return
    verb, _, argument = point.action.partition(":")
    if verb == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # the signal is on its way; nothing after this point may happen
    elif verb == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif verb == "sleep":
        time.sleep(float(argument))
    else:
        number = errno.EIO if verb == "raise" else errno.ENOSPC
        raise OSError(number, f"{os.strerror(number)} (failpoint {name})")


arm_from(os.environ.get(ENVIRONMENT, ""))
