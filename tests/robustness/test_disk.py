"""The disk that can lose power: what was flushed stays, the rest goes or may go; and what was found with it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from gradwire.server.store.disk import DiskStore
from tests.robustness.disk import Disk, FileKind, Loss
from tests.server.store.stored import append, create

_BEGIN = """
import ctypes, os, sys
from pathlib import Path
root = Path(sys.argv[1])
assert ctypes.CDLL(None).gradwire_shadow_begin(sys.argv[1].encode(), sys.argv[2].encode()) == 0
def flush(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def run(disk: Disk, library: Path, program: str) -> int:
    """Its exit status, after doing this with the library preloaded."""
    command = [sys.executable, "-c", _BEGIN + program, str(disk.root), str(disk.shadow)]
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    return subprocess.run(command, env=environment, timeout=60, check=False).returncode


def found(disk: Disk) -> dict[str, bytes]:
    return {str(p.relative_to(disk.root)): p.read_bytes() for p in disk.root.rglob("*") if p.is_file()}


def test_what_was_flushed_stays_and_the_rest_goes(disk: Disk, library: Path) -> None:
    program = """
(root / "sub").mkdir()
for name in ("whole", "no-name", "no-content", "sub/deep", "sub/unnamed"):
    (root / name).write_bytes(b"old")
for name in ("whole", "no-name", "sub/deep"):
    flush(root / name)
(root / "sub" / "unnamed").unlink()
flush(root / "sub")
(root / "sub" / "unnamed").write_bytes(b"new")
(root / "no-name").rename(root / "elsewhere")
(root / "no-name").touch()
(root / "no-name").unlink()
flush(root)
(root / "whole").write_bytes(b"newer")
(root / "elsewhere").rename(root / "further")
"""
    assert run(disk, library, program) == 0
    assert disk.control.flushes == 5
    disk.lose(Loss.UNFLUSHED, random.Random(0))
    assert found(disk) == {"whole": b"old", "elsewhere": b"old", "no-content": b"", "sub/deep": b"old"}


def test_a_process_that_is_killed_loses_nothing_by_itself(disk: Disk, library: Path) -> None:
    assert run(disk, library, "(root / 'a').write_bytes(b'a'); os.kill(os.getpid(), 9)") == -9
    disk.lose(Loss.NOTHING, random.Random(0))
    assert found(disk) == {"a": b"a"}


def test_by_chance_pages_and_names_are_old_or_new(disk: Disk, library: Path) -> None:
    (disk.root / "a").write_bytes(b"o" * 20_000)
    (disk.root / "b").write_bytes(b"")
    disk._trust()
    program = """
with (root / "a").open("r+b") as file:
    file.write(b"n" * 20_000)
(root / "b").rename(root / "c")
"""
    seen: set[tuple[bytes, ...]] = set()
    names: set[tuple[str, ...]] = set()
    for seed in range(12):
        (disk.root / "a").write_bytes(b"o" * 20_000)
        for left in ("b", "c"):
            (disk.root / left).unlink(missing_ok=True)
        (disk.root / "b").touch()
        disk._trust()
        assert run(disk, library, program) == 0
        disk.lose(Loss.SOME, random.Random(seed))
        files = found(disk)
        content = files.pop("a")
        pages = [content[at : at + 4096] for at in range(0, 20_000, 4096)]
        assert all(len(set(page)) == 1 for page in pages), "a page is old or new"
        seen.add(tuple(page[:1] for page in pages))
        names.add(tuple(files))
    assert len(seen) > 6
    assert names == {("b",), ("c",)}


@pytest.mark.parametrize("after", [False, True])
def test_a_flush_can_kill(disk: Disk, library: Path, after: bool) -> None:
    disk.control.kill_kind, disk.control.kill_after = FileKind.DIRECTORY.value, int(after)
    disk.control.kill_countdown = 2
    program = "(root / 'a').touch(); flush(root); (root / 'b').touch(); flush(root)"
    assert run(disk, library, program) == -9
    disk.lose(Loss.UNFLUSHED, random.Random(0))
    assert set(found(disk)) == ({"a", "b"} if after else {"a"})


def test_a_full_disk_takes_nothing(disk: Disk, library: Path) -> None:
    disk.control.full = 1
    program = """
try:
    (root / "a").write_bytes(b"a")
except OSError as error:
    sys.exit(error.errno)
"""
    assert run(disk, library, program) == 28
    assert disk.control.refused > 0


# --- what was found with it ------------------------------------------------------------------------------------------

_STORE = """
from tests.server.store.stored import *
store = reopened(root / "deep" / "data")
"""


def test_a_new_data_directory_outlives_a_power_cut_with_its_name(disk: Disk, library: Path) -> None:
    program = _STORE + "append(store, create(store), 1, 2); os._exit(0)"
    assert run(disk, library, program) == 0
    disk.lose(Loss.UNFLUSHED, random.Random(0))
    store = DiskStore(disk.root / "deep" / "data")
    assert [run.name for run in store.runs()] == ["runs/x"]
    assert store.losses() == [], "marks that were never flushed are no loss"
    store.close()


def test_a_deleted_run_is_not_missed_after_a_power_cut(tmp_path: Path) -> None:
    """Its mark was taken away, and that must not be undone."""
    flushed: list[bytes] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        fsync(descriptor)
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("acknowledged"):
            flushed.append((tmp_path / "data" / "acknowledged").read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", noting)
        store = DiskStore(tmp_path / "data")
        uid = create(store)
        append(store, uid, 1, 2)
        store.delete(uid).result(30)
        store.close()
    (tmp_path / "data" / "acknowledged").write_bytes(flushed[-1])
    store = DiskStore(tmp_path / "data")
    assert store.losses() == []
    store.close()
