"""The last record of a journal, and a snapshot: cut off at every byte, every byte changed. Never silently wrong.

Whole, or ended at an earlier step and said so, or refused: `tests.server.store.test_damage` defines these outcomes, and
damages whole files, at every so many bytes.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gradwire.server.store.disk import DiskStore
from tests.server.store.stored import append, create, entry, killed
from tests.server.store.test_damage import check, closed, last_transaction, left  # noqa: F401

STEPS = 7
MASKS = (0x01, 0x80, 0xFF)
FRAME_BYTES = 24 + 8192
NUMBERS_BYTES = 24
"""At most what SQLite puts before the fields of a row: lengths, types, the key, and the two short integers."""

Damage = Callable[[bytes, int], bytes]


def flips(mask: int) -> Damage:
    return lambda data, at: data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


def cut(data: bytes, at: int) -> bytes:
    return data[:at]


DAMAGES: dict[str, Damage] = {"cut": cut, **{f"flip {mask:#04x}": flips(mask) for mask in MASKS}}


def last_row(data: bytes, start: int = 0) -> range:
    """Where the row of the last block lies: from its first byte to the end of its hash."""
    last = entry(STEPS)
    gradients = bytes(last.gradients)
    at = data.index(gradients, start)
    assert data.find(gradients, at + 1) < 0, "it is there once"
    fields = len(last.worker_id) + len(last.block) + len(last.fingerprint)
    return range(at - fields - NUMBERS_BYTES, at + len(gradients) + 32)


def outcomes(directory: Path, scratch: Path, file: str, places: Iterator[int] | range, damage: Damage) -> Counter[str]:
    """What becomes of the store for each place that is damaged."""
    found: Counter[str] = Counter()
    good = (directory / file).read_bytes()
    for at in places:
        copy = killed(directory, scratch)
        (copy / file).write_bytes(damage(good, at))
        found[check(copy, STEPS)] += 1
        shutil.rmtree(copy)
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", sorted(DAMAGES))
def test_the_last_record_of_the_log(left: Path, tmp_path: Path, how: str) -> None:  # noqa: F811
    """Its row, and the head of the page that it was written with."""
    log = "journal.sqlite3-wal"
    data = (left / log).read_bytes()
    row = last_row(data, last_transaction(data))
    frame = 32 + (row.start - 32) // FRAME_BYTES * FRAME_BYTES
    places = [*range(frame, frame + 24), *row, *range(len(data) - 8, len(data))]
    found = outcomes(left, tmp_path / "copy", log, iter(places), DAMAGES[how])
    assert found == {"earlier": len(places)}, "SQLite drops the transaction in silence; the marks tell"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", sorted(DAMAGES))
def test_the_last_record_of_the_database(closed: Path, tmp_path: Path, how: str) -> None:  # noqa: F811
    file = "journal.sqlite3"
    row = last_row((closed / file).read_bytes())
    found = outcomes(closed, tmp_path / "copy", file, row, DAMAGES[how])
    assert sum(found.values()) == len(row)
    assert set(found) <= {"earlier", "refused", "whole"}
    # Some of the bytes before the row belong to nothing; of the row itself each is noticed.
    assert found["whole"] <= NUMBERS_BYTES
    assert found["refused"] + found["earlier"] >= len(row) - NUMBERS_BYTES


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", sorted(DAMAGES))
@pytest.mark.parametrize("which", ["newest", "only"])
def test_a_snapshot(left: Path, tmp_path: Path, which: str, how: str) -> None:  # noqa: F811
    """Of two the other one and the journal bring everything back; where it is the only one, the run is refused."""
    if which == "only":
        shutil.rmtree(left)
        store = DiskStore(left)
        uid = create(store, step=4)
        append(store, uid, 5, 6, STEPS)
        store.close()
    file = next(path for path in (left / "snapshots").iterdir() if "-4-" in path.name)
    size = file.stat().st_size
    found = outcomes(left, tmp_path / "copy", f"snapshots/{file.name}", range(size), DAMAGES[how])
    assert found == {"whole" if which == "newest" else "refused": size}
