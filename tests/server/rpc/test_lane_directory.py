"""The directory of a server that is killed is removed by the next one; nothing else is."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from gradwire.server.rpc.lane_directory import PREFIX, LaneDirectory
from tests.children import child

HOLDS_ONE = (
    "from gradwire.server.rpc.lane_directory import LaneDirectory as D; d = D(); print(d.path, flush=True); input()"
)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_that_of_a_server_that_was_killed_is_removed_by_the_next_one(temporary: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with child([sys.executable, "-c", HOLDS_ONE], env=environment) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        (left / "socket").touch()
        beside = LaneDirectory()
        assert left.exists(), "its server lives"
        process.kill()
        process.wait()
        last = LaneDirectory()
        assert not left.exists()
    assert {path.name for path in temporary.iterdir()} == {beside.path.name, last.path.name}
    for directory in (beside, last):
        directory.close()
        directory.close()
    assert not list(temporary.iterdir())


def test_what_is_no_directory_of_a_server_stays(temporary: Path) -> None:
    unlocked, elsewhere = temporary / f"{PREFIX}unlocked", temporary / "elsewhere"
    for path in (unlocked, elsewhere):
        path.mkdir()
        (path / "kept").touch()
    (elsewhere / "lock").touch()
    (temporary / f"{PREFIX}link").symlink_to(elsewhere)
    (temporary / f"{PREFIX}file").touch()
    LaneDirectory().close()
    assert len(list(temporary.iterdir())) == 4
    assert (unlocked / "kept").exists()
    assert (elsewhere / "kept").exists()


def open_below(directory: Path) -> list[str]:
    """Files of this process, those too that have no name any more. Other threads may close theirs meanwhile."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return [path for path in found if path.startswith(str(directory))]


@pytest.mark.parametrize(("owner", "failing"), [(fcntl, "flock"), (Path, "rename")])
def test_one_that_cannot_be_had_leaves_neither_a_directory_nor_a_descriptor(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, owner: object, failing: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, failing)

    monkeypatch.setattr(owner, failing, fail)
    with pytest.raises(OSError, match=failing):
        LaneDirectory()
    assert not open_below(temporary)
    assert not list(temporary.iterdir())
