"""Where compiled kernels are kept on disk, and whether what lies there may be run.

To load a compiled function is to run whoever wrote its file. So nothing is taken from a directory that others can write
to, nor a file that is not, byte for byte, what was written. A cache is only a cache: whatever is wrong with it is said
once in the log, and kernels are compiled anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numba.core import serialize

log = logging.getLogger(__name__)

_DIGEST_BYTES = 32
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def cache_dir() -> Path:
    """``$GRADWIRE_CACHE_DIR``, else ``$XDG_CACHE_HOME/gradwire``, else ``~/.cache/gradwire``."""
    own = os.environ.get("GRADWIRE_CACHE_DIR")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "gradwire"
    except RuntimeError:  # no home directory at all
        return Path(tempfile.gettempdir()) / f"gradwire-{os.getuid()}"


@functools.cache
def kernel_directory() -> Path | None:
    """Where kernels are kept; None: nowhere, which has been said."""
    directory = (cache_dir() / "kernels").absolute()
    try:
        _make(directory)
        for path in (directory, directory.resolve(strict=True)):
            if danger := _danger(path):
                _warn_directory(f"nothing is loaded from or kept in {directory}: {danger}")
                return None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
        _warn_directory(f"cannot keep compiled kernels in {directory}: {_words(error)}")
        return None
    return directory


@functools.cache
def warn(what: str) -> None:
    """Says once what is wrong with the cache."""
    log.warning("%s", what)


def _warn_directory(what: str) -> None:
    warn(f"{what}. Kernels are compiled anew at every start; set GRADWIRE_CACHE_DIR to a directory that is yours alone")


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or repr(error)


def _make(directory: Path) -> None:
    """Makes it, and each parent that is not there, for nobody else. Raises OSError."""
    for path in (*reversed(directory.parents), directory):
        if not path.exists():
            with contextlib.suppress(FileExistsError):  # a server that starts beside this one has made it
                path.mkdir(0o700)
    if not directory.is_dir():
        raise NotADirectoryError(0, "it is no directory")


def _danger(directory: Path) -> str:
    """How somebody else could put a file there: into it, or another directory in its place. Empty: nobody can."""
    for path in (directory, *directory.parents):
        status = path.lstat()
        if status.st_uid not in (0, os.geteuid()):
            return f"{path} belongs to user {status.st_uid}"
        if stat.S_ISLNK(status.st_mode) or not status.st_mode & _OTHERS:
            continue
        # Whoever writes to a sticky directory, as /tmp is, cannot move what others have there.
        if path == directory or not status.st_mode & stat.S_ISVTX:
            return f"others can write to {path} (mode {stat.S_IMODE(status.st_mode):o})"
    return ""


class KernelFiles:
    """The files of one compiled function, one for each set of types and kind of processor: numba asks it for them.

    numba's own files share an index, which two processes must not write at once, and are run without a look at them.

    Args:
        stem: stands for the source, and for all that a compiled function depends on besides numba's key.
    """

    def __init__(self, directory: Path, stem: str) -> None:
        self._directory = directory
        self._stem = stem

    def load(self, key: Any) -> Any:
        """What was saved under ``key``; None: nothing, or it cannot be used."""
        path = self._path(key)
        try:
            content = _read(path)
            if content is None:
                return None
            digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
            if hashlib.sha256(data).digest() != digest:
                raise ValueError("it is not what was written")
            found, kept = serialize.loads(data)  # as numba does with its own; written by this user, and unchanged
            return kept if found == key else None
        except Exception as error:
            warn(f"cannot use the compiled kernel {path}: {_words(error)}; it is compiled anew")
            return None

    def save(self, key: Any, kept: Any) -> None:
        """Keeps it if it can; renamed into place whole, so that nobody reads half of it."""
        path = self._path(key)
        try:
            data: bytes = serialize.dumps((key, kept))  # type: ignore[no-untyped-call]
            with _unfinished(path) as file:
                file.write(hashlib.sha256(data).digest() + data)
        except Exception as error:
            _warn_directory(f"cannot keep a compiled kernel in {self._directory}: {_words(error)}")

    def flush(self) -> None:
        """Part of what numba expects."""

    def _path(self, key: Any) -> Path:
        return self._directory / f"{self._stem}_{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.kernel"


def _read(path: Path) -> bytes | None:
    """None: there is no such file. Raises OSError, and PermissionError for a file that others could have written."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)  # a FIFO would hang
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PermissionError(0, "it is no regular file")
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & _OTHERS:
            raise PermissionError(0, "others could have written it")
        return file.read()


@contextlib.contextmanager
def _unfinished(path: Path) -> Iterator[Any]:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with open(descriptor, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
