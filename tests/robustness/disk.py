"""A disk that can lose power: what a server wrote and did not flush may be gone at its next start.

SIGKILL alone cannot show that something was acknowledged too early, because the page cache outlives the process. So a
small library (``preload.c``) is preloaded into the server. For the files of one directory it turns ``fsync`` and
``fdatasync`` into a copy, to a shadow beside the directory, of what they promise: the content of a file, the names in a
directory. After a kill the harness builds the directory anew, from the shadow alone or from a mixture.

What it covers: everything written by whatever call, because the whole file is copied at its flush; names that were
never made safe (created, renamed, removed); flushes that fail to happen; writes that fail for want of room.

What it does not: ``msync``, ``sync_file_range``, ``O_SYNC`` and ``syncfs`` count as no flush at all (the server uses
none of them); a disk that lies about its flushes; sectors that are torn inside 4 KiB of a file, or damaged where
nothing was written; the order in which a real file system would write. A flush that the kill interrupts has made safe
an arbitrary part of the file. The name of ``root`` itself counts as safe.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

_PAGE_BYTES = 4096
"""What is written of a file at once, or not at all."""


class Loss(Enum):
    """What a kill takes with it."""

    NOTHING = "nothing"
    """Only the process has died."""
    UNFLUSHED = "unflushed"
    """All that had not been flushed."""
    SOME = "some"
    """Of what had not been flushed, some pages, sizes and names, chosen by chance."""


class FileKind(Enum):
    """Files that a flush can be told apart by; the numbers are those of ``preload.c``."""

    LOG = 1
    DATABASE = 2
    SNAPSHOT = 3
    DIRECTORY = 4


class Control(ctypes.Structure):
    """The page shared with the server: the fields of ``struct control``."""

    full: int
    delay_us: int
    kill_kind: int
    kill_after: int
    kill_countdown: int
    flushes: int
    refused: int
    _fields_ = [  # ctypes wants a list
        (name, ctypes.c_int32)
        for name in ("full", "delay_us", "kill_kind", "kill_after", "kill_countdown", "flushes", "refused")
    ]


class NoCompiler(RuntimeError):
    """Raised where the library cannot be built."""


def build_library(directory: Path) -> Path:
    """Compiles ``preload.c``. Raises NoCompiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        raise NoCompiler("needs Linux and a C compiler (cc or gcc), to build the disk that loses what was not flushed")
    library = directory / "preload.so"
    source = Path(__file__).with_name("preload.c")
    command = [compiler, "-O2", "-fPIC", "-shared", "-Wall", "-Werror", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return library


@dataclass(frozen=True)
class _Name:
    """An entry of a directory."""

    inode: int
    is_directory: bool


_Names = dict[str, _Name]


class Disk:
    """``root`` is the directory that can lose power, ``shadow`` what the library keeps beside it."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "disk"
        self.shadow = directory / "shadow"
        self.root.mkdir()
        self.shadow.mkdir()
        with (self.shadow / "control").open("w+b") as file:
            file.truncate(_PAGE_BYTES)
            self._page = mmap.mmap(file.fileno(), _PAGE_BYTES)
        self.control = Control.from_buffer(self._page)
        self._trust()

    def lose(self, loss: Loss, chance: random.Random) -> None:
        """What is left after a power cut; no server may be running."""
        if loss is Loss.NOTHING:
            return
        left = self.root.with_name("left")
        self._rebuild(left, self.root, self.root.stat().st_ino, chance if loss is Loss.SOME else None)
        shutil.rmtree(self.root)
        left.rename(self.root)
        self._trust()

    def _trust(self) -> None:
        """From now on all that is there counts as flushed."""
        for part in ("inodes", "data", "names"):
            shutil.rmtree(self.shadow / part, ignore_errors=True)
            (self.shadow / part).mkdir()
        for path in [self.root, *self.root.rglob("*")]:
            inode = path.stat().st_ino
            if path.is_dir():
                lines = [f"{n.inode} {'d' if n.is_directory else 'f'} {name}\n" for name, n in _names(path).items()]
                (self.shadow / "names" / str(inode)).write_text("".join(lines))
            else:
                (self.shadow / "inodes" / str(inode)).hardlink_to(path)
                shutil.copyfile(path, self.shadow / "data" / str(inode))

    def _rebuild(self, target: Path, live: Path, inode: int, chance: random.Random | None) -> None:
        target.mkdir()
        safe = self._safe_names(inode)
        now = _names(live) if live.is_dir() and live.stat().st_ino == inode else {}
        for name, entry in (safe if chance is None else _mixed(safe, now, chance)).items():
            if entry.is_directory:
                self._rebuild(target / name, live / name, entry.inode, chance)
            else:
                (target / name).write_bytes(self._content(entry.inode, live / name, chance))
                (target / name).chmod(0o600)

    def _safe_names(self, inode: int) -> _Names:
        try:
            lines = (self.shadow / "names" / str(inode)).read_text().splitlines()
        except FileNotFoundError:
            return {}
        fields = [line.split(" ", 2) for line in lines]
        return {name: _Name(int(number), kind == "d") for number, kind, name in fields}

    def _content(self, inode: int, live: Path, chance: random.Random | None) -> bytes:
        safe_file, linked = self.shadow / "data" / str(inode), self.shadow / "inodes" / str(inode)
        safe = safe_file.read_bytes() if safe_file.exists() else b""
        if chance is None:
            return safe
        now = (linked if linked.exists() else live).read_bytes()
        size = chance.choice((len(safe), len(now)))
        mixed = bytearray(size)
        for at in range(0, size, _PAGE_BYTES):
            page = slice(at, min(at + _PAGE_BYTES, size))
            mixed[page] = chance.choice((safe, now))[page].ljust(page.stop - page.start, b"\0")
        return bytes(mixed)


def _names(directory: Path) -> _Names:
    with os.scandir(directory) as entries:
        return {e.name: _Name(e.inode(), e.is_dir(follow_symlinks=False)) for e in entries}


def _mixed(safe: _Names, now: _Names, chance: random.Random) -> _Names:
    """Of each change of a name since the last flush the old state or the new one. What was renamed keeps one name."""
    left: _Names = {}
    for name in sorted({*safe, *now}):
        entry = chance.choice((safe.get(name), now.get(name)))
        if entry is not None:
            left[name] = entry
    places = {entry.inode: name for name, entry in now.items()}
    for name, entry in safe.items():
        renamed = places.get(entry.inode)
        if renamed is None or renamed == name:
            continue
        if entry not in left.values():
            left[name] = entry
        elif left.get(name) == entry and left.get(renamed) == entry:
            del left[name]
    return left
