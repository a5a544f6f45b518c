"""One server to a directory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from gradwire.server.store.base import StoreError
from gradwire.server.store.snapshots import sync_directory


def lock_directory(directory: Path) -> int:
    """Makes the directory and locks it; returns the descriptor that holds the lock. Raises StoreError."""
    path = directory / "lock"
    try:
        _make_for_good(directory)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"cannot write to {directory}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise StoreError(f"another server, process {owner or 'unknown'}, uses {directory}") from None
        raise StoreError(f"cannot lock {path}: {error.strerror}") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _make_for_good(directory: Path) -> None:
    """Makes a directory whose name outlives a power cut, and each parent that is not there. Raises OSError."""
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in reversed(made or [directory]):  # one that is there may have been made a moment before a power cut
        with contextlib.suppress(PermissionError):  # a parent that may not be read is not ours
            sync_directory(path.parent)
