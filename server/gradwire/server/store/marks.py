"""What has been acknowledged, noted beside the database so that a loss inside it does not go unnoticed.

SQLite drops a damaged end of its log in silence: the transactions in it, acknowledged as they were, are gone. These
marks are written after each transaction, before anybody is told, without a flush: they outlive the process, and after
a power cut they may be older than the database, never newer. A database behind its marks has lost something.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import struct
import zlib
from pathlib import Path

from gradwire.server.store.base import Acknowledged

log = logging.getLogger(__name__)

_RECORD = struct.Struct("<16sQQ")
_CHECK = struct.Struct("<I")
_SIZE = 64
"""Divides the page size: no record lies on two pages."""

COMMITS = 0
"""The record that counts the transactions that have changed anything but a run's journal."""


class Marks:
    """One record for each run, at its number in the database. Raises OSError from the constructor."""

    def __init__(self, path: Path) -> None:
        self.existed = path.exists()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not self.existed:
            self.write(COMMITS, "", 0, 0)
            os.fsync(self._file)

    def read(self, slot: int, uid: str = "") -> Acknowledged | None:
        """The mark of a run; None: there is none, or it is damaged."""
        record = os.pread(self._file, _SIZE, slot * _SIZE)
        if not _is_good(record):
            return None
        whose, number, step = _RECORD.unpack_from(record)
        return Acknowledged(number, step) if whose == _key(uid) else None

    def owned(self) -> set[int]:
        """The records that belong to a run, whichever."""
        data = os.pread(self._file, os.fstat(self._file).st_size, 0)
        records = (data[at : at + _SIZE] for at in range(0, len(data), _SIZE))
        return {slot for slot, record in enumerate(records) if slot != COMMITS and _is_good(record)}

    def write(self, slot: int, uid: str, number: int, step: int) -> None:
        """Never fails: a mark that is missing only makes a loss harder to see."""
        record = _RECORD.pack(_key(uid), number, step)
        record += _CHECK.pack(zlib.crc32(record))
        try:
            os.pwrite(self._file, record.ljust(_SIZE, b"\0"), slot * _SIZE)
        except OSError as error:
            log.warning("cannot note what has been acknowledged: %s", error)

    def clear(self, slot: int) -> None:
        """Takes a mark away, for good: one that came back would be missed for a run. Never fails."""
        try:
            os.pwrite(self._file, bytes(_SIZE), slot * _SIZE)
            os.fsync(self._file)
        except OSError as error:
            log.warning("cannot take back what has been acknowledged: %s", error)

    def close(self) -> None:
        os.close(self._file)


def _is_good(record: bytes) -> bool:
    size = _RECORD.size
    if len(record) < size + _CHECK.size or not any(record):
        return False
    check: int = _CHECK.unpack_from(record, size)[0]
    return check == zlib.crc32(record[:size])


@functools.lru_cache(maxsize=4096)
def _key(uid: str) -> bytes:
    return hashlib.sha256(uid.encode()).digest()[:16]
