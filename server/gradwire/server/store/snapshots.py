"""Snapshots as safetensors files: written whole, flushed, renamed into place; read only if they are as written."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from gradwire.server.failpoints import failpoint
from gradwire.server.store.base import PIECE_BYTES, SnapshotDamaged, Vector
from gradwire.server.store.json_text import object_text

SUFFIX = ".safetensors"
UNFINISHED = ".tmp"

_DTYPES: dict[np.dtype[Any], str] = {np.dtype(np.float32): "F32", np.dtype(np.float64): "F64"}
_WORDS = {word: dtype for dtype, word in _DTYPES.items()}


def write_file(path: Path, vectors: Mapping[str, Vector], metadata: Mapping[str, str]) -> tuple[int, str]:
    """Writes and flushes a safetensors file; returns its size in bytes and its SHA-256. Raises OSError.

    The library's own writer wants all values in memory a second time and does not say when they are on disk.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    sha256 = hashlib.sha256()
    failpoint("snapshot.before-write")
    try:
        with unfinished.open("xb", buffering=0) as file:
            header = safetensors_header({name: (v.dtype, v.shape) for name, v in vectors.items()}, metadata)
            size = _write(file, sha256, header)
            for vector in vectors.values():
                for piece in vector.pieces():
                    size += _write(file, sha256, np.ascontiguousarray(piece).view(np.uint8).data)
                    failpoint("snapshot.mid-write")
            failpoint("snapshot.before-fsync")
            os.fsync(file.fileno())
        failpoint("snapshot.before-rename")
        unfinished.rename(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    failpoint("snapshot.after-rename")
    sync_directory(path.parent)
    return size, sha256.hexdigest()


def read_file(path: Path, sha256: str | None) -> tuple[dict[str, str], dict[str, Vector]]:
    """Metadata and vectors of a safetensors file; the vectors read the file when they are asked. It is opened once: a
    header may name a quarter of a million tensors, and is read each time.

    Args:
        sha256: what the file must be; None: any well-formed file will do.

    Raises SnapshotDamaged.
    """
    try:
        if sha256 is not None and (found := file_sha256(path)) != sha256:
            raise SnapshotDamaged(f"{path.name} has SHA-256 {found[:16]}..., expected {sha256[:16]}...")
        file: Any = safe_open(path, framework="numpy")
        metadata = dict(file.metadata() or {})
        vectors = {}
        for name in file.keys():  # noqa: SIM118  # a safetensors file is no mapping
            part = file.get_slice(name)
            dtype = _WORDS.get(part.get_dtype())
            if dtype is None:
                raise SnapshotDamaged(f"tensor {name!r} of {path.name} is {part.get_dtype()}; expected F32 or F64")
            vectors[name] = _vector(file, name, dtype, tuple(part.get_shape()))
    except (OSError, SafetensorError) as error:
        raise SnapshotDamaged(f"{path.name} cannot be read: {error}") from error
    return metadata, vectors


def file_sha256(path: Path) -> str:
    """Raises OSError."""
    sha256 = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE_BYTES):
            sha256.update(piece)
    return sha256.hexdigest()


def sync_directory(path: Path) -> None:
    """Makes the names in a directory safe. Raises OSError."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def sync_file(path: Path) -> None:
    """Makes safe what is in a file, whoever has written it. Raises OSError."""
    _sync(path, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def safetensors_header(
    tensors: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """What a safetensors file begins with; then come the tensors' elements, in this order, without gaps."""
    fields: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, (dtype, shape) in tensors.items():
        stop = start + math.prod(shape) * dtype.itemsize
        fields[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = object_text(fields).encode()
    text += b" " * (-len(text) % 8)  # so that the values are aligned
    return len(text).to_bytes(8, "little") + text


def _write(file: Any, sha256: Any, data: bytes | memoryview) -> int:
    sha256.update(data)
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
    return len(data)


def _vector(file: Any, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Vector:
    def pieces() -> Iterator[npt.NDArray[Any]]:
        size = int(np.prod(shape, dtype=np.int64))
        if size == 0:
            return
        if not shape:
            yield file.get_tensor(name).reshape(1)
            return
        row = size // shape[0]
        rows = max(1, PIECE_BYTES // (row * dtype.itemsize))
        part = file.get_slice(name)
        for start in range(0, shape[0], rows):
            yield part[start : min(start + rows, shape[0])].reshape(-1)

    return Vector(dtype, shape, pieces)
