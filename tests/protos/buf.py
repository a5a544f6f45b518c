"""Calls of buf on the contract or on a changed copy of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

PROTOS = Path(__file__).parents[2] / "protos"
IMAGE = PROTOS / "gradwire.v1.binpb"
BUF = Path(sys.executable).with_name("buf")


def buf(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BUF, *arguments], cwd=directory, capture_output=True, text=True, check=False, timeout=60)


def copy_of_protos(directory: Path) -> Path:
    """The .proto files and buf's configuration, to be changed at will."""
    for source in [PROTOS / "buf.yaml", *PROTOS.rglob("*.proto")]:
        target = directory / source.relative_to(PROTOS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    return directory


def replace(root: Path, name: str, old: str, new: str) -> None:
    """Changes one place of ``gradwire/v1/NAME.proto``, which must be there exactly once."""
    path = root / "gradwire/v1" / f"{name}.proto"
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {path.name}"
    path.write_text(text.replace(old, new))
