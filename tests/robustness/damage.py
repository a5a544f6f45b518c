"""Harm to the files of a store that no server uses at the moment: what no crash does, but disks and people do."""

from __future__ import annotations

import random
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

_NUMBER_BITS = 36


def turn_a_sign(data: Path, run: str, chance: random.Random) -> bool:
    """Turns the sign of one gradient in a run's journal: every norm stays what it was. False: there is none."""
    with _opened(data) as database:
        keys = _needed(database, run)
        if not keys:
            return False
        key = chance.choice(keys)
        (gradients,) = database.execute("SELECT gradients FROM journal WHERE key = ?", (key,)).fetchone()
        at = 4 * chance.randrange(len(gradients) // 4)
        (value,) = struct.unpack_from("<f", gradients, at)
        changed = gradients[:at] + struct.pack("<f", -value) + gradients[at + 4 :]
        database.execute("UPDATE journal SET gradients = ? WHERE key = ?", (changed, key))
        database.commit()
    return True


def drop_a_block(data: Path, run: str, chance: random.Random) -> bool:
    """Deletes one row of a run's journal. False: it is empty."""
    with _opened(data) as database:
        keys = _needed(database, run)
        if not keys:
            return False
        database.execute("DELETE FROM journal WHERE key = ?", (chance.choice(keys),))
        database.commit()
    return True


def truncate_the_log(data: Path, chance: random.Random) -> bool:
    """Cuts some bytes off the database's log. False: there is none."""
    log = data / "journal.sqlite3-wal"
    if not log.exists() or not log.stat().st_size:
        return False
    size = log.stat().st_size
    with log.open("r+b") as file:
        file.truncate(max(0, size - chance.randrange(1, 20_000)))
    return True


def harm_the_newest_snapshot(data: Path, chance: random.Random) -> bool:
    """Changes one bit of the youngest snapshot file. False: there is none."""
    files = sorted((data / "snapshots").glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    if not files:
        return False
    content = bytearray(files[-1].read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    files[-1].write_bytes(content)
    return True


KINDS: dict[str, Callable[[Path, str, random.Random], bool]] = {
    "sign": turn_a_sign,
    "block": drop_a_block,
    "log": lambda data, run, chance: truncate_the_log(data, chance),
    "snapshot": lambda data, run, chance: harm_the_newest_snapshot(data, chance),
}
"""By name: what is done to the files of a run, or of all."""


def _needed(database: sqlite3.Connection, run: str) -> list[int]:
    """Keys of those rows of a run's journal that its newest snapshot does not include; none of one that is not there:
    a life may be too short for its worker to have made it."""
    found = database.execute("SELECT id FROM runs WHERE name = ?", (f"runs/{run}",)).fetchone()
    if found is None:
        return []
    (number,) = found
    (newest,) = database.execute("SELECT max(number) FROM snapshots WHERE run = ?", (number,)).fetchone()
    first, last = (number << _NUMBER_BITS) + newest + 1, (number + 1) << _NUMBER_BITS
    return [key for (key,) in database.execute("SELECT key FROM journal WHERE key BETWEEN ? AND ?", (first, last))]


def _opened(data: Path) -> closing[sqlite3.Connection]:
    database = sqlite3.connect(data / "journal.sqlite3")
    database.execute("PRAGMA locking_mode=EXCLUSIVE")
    return closing(database)
