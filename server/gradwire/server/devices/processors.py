"""How many processors a server may use: those of its affinity, or fewer where its control group gives it less time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_OWN = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


def available_processors(own: Path = _OWN, mount: Path = _MOUNT) -> int:
    """At least 1. A container of 1.5 processors gets 2 threads: with one it could never use all of its time.

    Args:
        own: says which control groups this process is in.
        mount: where they are.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    quotas = [quota for group in _groups(own, mount) if (quota := _quota(group)) is not None]
    return max(1, min([count, *map(math.ceil, quotas)]))


def _groups(own: Path, mount: Path) -> Iterator[Path]:
    """Folders of the groups that bound this process's time: its own, and all around it. Of version 2 and version 1."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # no Linux, or no /proc
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root = mount
        elif "cpu" in controllers.split(","):
            root = mount / controllers
        else:
            continue
        # A container may see the path that the host has for it, with only its end mounted: then the root is its own.
        relative = Path(path.lstrip("/"))
        yield from (root / part for part in (relative, *relative.parents))


def _quota(group: Path) -> float | None:
    """Processors that a group's tasks may keep busy; None: no bound is set here."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # not there, or "max"
        return None
