"""A file that is written whole or not at all: what a run is exported to, by either side."""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def is_stream(path: Path) -> bool:
    """Whether there is no file to put in the place of ``path``: a device, a FIFO, or an open descriptor, such as
    ``/dev/stdout``. What is written there is gone. Raises OSError, for a directory above all."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path} is a directory; expected a file")
    folder = os.path.realpath(path.parent)
    return not stat.S_ISREG(mode) or folder == "/dev" or folder.startswith("/proc/")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """What the body writes is at ``path`` when it has ended; where it fails, nothing has changed.

    A symbolic link stays one, and leads to what was written. Into a stream (`is_stream`) it is written at once.
    Raises OSError.
    """
    if is_stream(path):
        with path.open("wb") as file:
            yield file
        return
    place = Path(os.path.realpath(path))
    unfinished = place.with_name(f".gradwire-{uuid.uuid4().hex[:8]}.tmp")  # not longer for a name that is long already
    try:
        with unfinished.open("xb") as file:
            if place.exists():  # what was private stays so
                os.fchmod(file.fileno(), stat.S_IMODE(place.stat().st_mode))
            yield file
        os.replace(unfinished, place)
    finally:
        unfinished.unlink(missing_ok=True)
