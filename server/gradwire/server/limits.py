"""What this process may use of its machine: all of it, or less where its control group, or one around that, says so."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def available_processors(root: Path = Path("/")) -> int:
    """At least 1. A container of 1.5 processors gets 2 threads: with one it could never use all of its time."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    quotas = [quota for group in _groups("cpu", root) if (quota := _quota(group)) is not None]
    return max(1, min([count, *map(math.ceil, quotas)]))


def available_memory_bytes(root: Path = Path("/")) -> int:
    """The machine's memory, or the smallest limit that is set."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for group in _groups("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):  # of version 2, and of version 1
            try:
                memory = min(memory, int((group / name).read_text()))
            except (OSError, ValueError):  # not there, or "max"
                continue
    return memory


def _quota(group: Path) -> float | None:
    """Processors that a group's tasks may keep busy; None: no bound is set here."""
    try:
        if (group / "cpu.max").exists():  # version 2
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # not there, or "max"
        return None


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the control groups that bound this process, from its own up to the outermost; some may not exist.

    Args:
        controller: what they bound, as Linux calls it: ``cpu``, ``memory``.
        root: of the file system.
    """
    mounted = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux, or no /proc
        lines = []
    # What is mounted in a container may be its own group alone, under another name: then the outermost is it.
    for line in [*lines, "0::/", f"0:{controller}:/"]:
        controllers, _, own = line.partition(":")[2].partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        parts = [part for part in own.split("/") if part not in ("", "..")]
        # Version 2 has one tree for all; those of version 1 are named after their controllers, and linked to from each.
        for name in {controllers, controller} if controllers else {""}:
            yield from (mounted.joinpath(name, *parts[:depth]) for depth in range(len(parts), -1, -1))
