"""Files of many tensors."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from gradwire.server.store import snapshots
from gradwire.server.store.base import Vector


def test_a_file_is_opened_once_for_all_of_its_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its header, which names them all, is read whenever it is opened: the time would grow with their square."""
    opened: list[Path] = []

    def noting(path: Path, **options: Any) -> Any:
        opened.append(path)
        return safe_open(path, **options)

    monkeypatch.setattr(snapshots, "safe_open", noting)
    values = {str(index): np.full((index % 3,), index, np.float32) for index in range(20)}
    vectors = {
        name: Vector(array.dtype, array.shape, functools.partial(iter, [array])) for name, array in values.items()
    }
    path = tmp_path / "x.safetensors"
    snapshots.write_file(path, vectors, {})
    _, found = snapshots.read_file(path, None)
    for name, array in values.items():
        assert found[name].array().tolist() == array.tolist()
    assert opened == [path]
