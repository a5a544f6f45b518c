"""A file is there whole or not at all, and what is no file is written into."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from gradwire.wire.whole_file import is_stream, whole_file


def write(path: Path, data: bytes = b"new") -> None:
    with whole_file(path) as file:
        file.write(data)


def test_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), whole_file(path) as file:  # noqa: PT012
        file.write(b"half" + path.read_bytes())
        file.flush()
        file.write("this fails")  # type: ignore[call-overload]
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["x"])
    write(path)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"new", ["x"])


def test_longest_name_that_a_file_may_have(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    write(path)
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("there", [True, False])
def test_link_is_written_through(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if there:
        (folder / "x").write_bytes(b"old")
    (tmp_path / "between").symlink_to("folder/x")
    (tmp_path / "link").symlink_to(tmp_path / "between")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "between").is_symlink()
    assert (folder / "x").read_bytes() == b"new"


def test_fifo_is_written_into(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    writer = threading.Thread(target=write, args=(path,))
    writer.start()
    assert path.read_bytes() == b"new"
    writer.join()
    assert path.is_fifo()
    assert is_stream(path)


def test_devices_and_descriptors_are_written_into(tmp_path: Path) -> None:
    write(Path("/dev/null"))
    assert Path("/dev/null").is_char_device()
    reader, writer = os.pipe()
    with open(reader, "rb") as pipe, open(writer, "wb"):
        write(Path(f"/dev/fd/{writer}"))
        assert pipe.read(3) == b"new"
    with (tmp_path / "x").open("wb") as file:  # as `export NAME /dev/stdout > x`
        write(Path(f"/dev/fd/{file.fileno()}"))
        assert os.fstat(file.fileno()).st_size == 3


def test_directory_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        write(tmp_path)


def test_a_private_file_stays_private(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(0o600)
    with whole_file(path) as file:
        file.write(b"new")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)
