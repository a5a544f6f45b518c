"""The directory of a server's own that its lanes' socket lies in, and those that killed servers have left behind.

A server holds a lock on a file in its directory as long as it lives; the system gives it back for one that is killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)

PREFIX = "gradwire-lanes-"
_LOCK = "lock"


class LaneDirectory:
    """Made anew, with mode 0700; what servers of this user have left where it is made is removed. Raises OSError."""

    def __init__(self) -> None:
        remove_left_behind(Path(tempfile.gettempdir()))
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = -1
        try:
            # Nobody touches a directory without such a file: it has to be locked when it gets its name.
            being_locked = self.path / f"{_LOCK}-"
            self._lock = os.open(being_locked, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            _take(self._lock)
            being_locked.rename(self.path / _LOCK)
        except OSError:
            if self._lock >= 0:
                os.close(self._lock)
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def close(self) -> None:
        """Removes it, once it is empty but for the lock. May be called more than once."""
        if self._lock < 0:
            return
        with contextlib.suppress(OSError):  # above all: the directory is no more
            (self.path / _LOCK).unlink(missing_ok=True)
            self.path.rmdir()
        os.close(self._lock)
        self._lock = -1


def remove_left_behind(where: Path) -> None:
    """Removes the directories of this user's servers that are no more. Raises nothing."""
    with contextlib.suppress(OSError):
        for path in where.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):  # it is in use, or somebody else's, or another server has removed it
                _remove_if_left(path)


def _remove_if_left(path: Path) -> None:
    """Raises OSError unless it was."""
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        return
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        _take(lock)
        shutil.rmtree(path)
        log.info("removed %s, which a server that was killed had left", path)
    finally:
        os.close(lock)


def _take(lock: int) -> None:
    """Raises OSError where somebody has it."""
    import fcntl  # not on Windows

    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
