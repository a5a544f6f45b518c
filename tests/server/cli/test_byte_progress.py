"""A bar on a terminal, and nothing elsewhere."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from gradwire.client import AMSGrad, connect
from gradwire.server.cli import runs
from gradwire.server.cli.byte_progress import byte_progress
from gradwire.server.cli.commands import cli
from tests.faults.hosted import HostedServer


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def shown(monkeypatch: pytest.MonkeyPatch, total_bytes: int, *, terminal: bool) -> str:
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    with byte_progress(total_bytes) as add:
        for _ in range(3):
            add(2**20)
    return stream.getvalue()


def test_bytes_of_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, 3 * 2**20, terminal=True)
    for done in range(4):
        assert f"{done} of 3 MiB" in text
    assert "100%" in text


def test_a_file_that_has_grown_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "2 of 2 MiB" in shown(monkeypatch, 2 * 2**20, terminal=True)


@pytest.mark.parametrize(("total_bytes", "terminal"), [(3 * 2**20, False), (0, True)])
def test_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch, total_bytes: int, terminal: bool) -> None:
    assert shown(monkeypatch, total_bytes, terminal=terminal) == ""


def test_both_ways_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all their bytes, and beside what is written."""
    told: list[list[int]] = []

    class Noting:
        def __init__(self, total_bytes: int) -> None:
            told.append([total_bytes])

        def __enter__(self) -> object:
            return told[-1].append

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(runs, "byte_progress", Noting)
    path = tmp_path / "x.safetensors"
    with HostedServer() as hosted, connect(hosted.target) as server:
        server.create_run("x", {"w": np.zeros(500_000)}, AMSGrad()).close()
        for arguments in (["export", "x", str(path)], ["import", "y", str(path)]):
            assert CliRunner().invoke(cli, ["runs", *arguments, "--target", hosted.target]).exit_code == 0
    size = path.stat().st_size
    assert [total for total, *_ in told] == [size, size]
    assert [sum(parts) for _, *parts in told] == [size, size]
