"""What lies in the cache of kernels is run as code: it is taken only from where nobody else could have put it."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path

import pytest

from gradwire.server import kernel_cache
from gradwire.server.kernel_cache import KernelFiles, cache_dir

STRANGER = 64_021
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user, which root alone can")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is this user's alone; nothing has been said of it yet."""
    monkeypatch.setenv("GRADWIRE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(kernel_cache, "warn", kernel_cache.warn.__wrapped__)
    return tmp_path / "cache"


def found() -> Path | None:
    return kernel_cache.kernel_directory.__wrapped__()


def test_directory_is_made_for_this_user_alone(cache: Path) -> None:
    before = os.umask(0)
    try:
        directory = found()
    finally:
        os.umask(before)
    assert directory == cache / "kernels"
    assert [path.stat().st_mode & 0o777 for path in (cache, directory)] == [0o700, 0o700]


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
@pytest.mark.parametrize("which", ["kernels", "cache"])
def test_directory_that_others_write_to_is_refused_by_name(
    cache: Path, caplog: pytest.LogCaptureFixture, which: str, mode: int
) -> None:
    (cache / "kernels").mkdir(parents=True)
    path = cache / "kernels" if which == "kernels" else cache
    path.chmod(mode)
    sticky_parent = which == "cache" and mode == 0o1777  # as /tmp is: nobody can move what is ours
    assert found() == (cache / "kernels" if sticky_parent else None)
    assert (f"others can write to {path} (mode {mode:o})" in caplog.text) != sticky_parent


@as_root
@pytest.mark.parametrize("which", ["kernels", "cache"])
def test_directory_of_somebody_else_is_refused_by_name(
    cache: Path, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    (cache / "kernels").mkdir(parents=True)
    path = cache / "kernels" if which == "kernels" else cache
    os.chown(path, STRANGER, STRANGER)
    assert found() is None
    assert f"{path} belongs to user {STRANGER}" in caplog.text


def test_link_is_followed_to_what_is_ours_alone(cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    cache.mkdir()
    (cache / "kernels").symlink_to(elsewhere)
    assert found() == cache / "kernels"
    elsewhere.chmod(0o777)
    assert found() is None
    assert f"others can write to {elsewhere}" in caplog.text


@as_root
def test_link_of_somebody_else_is_refused(cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.mkdir()
    (cache / "kernels").symlink_to(tmp_path)
    os.chown(cache / "kernels", STRANGER, STRANGER, follow_symlinks=False)
    assert found() is None
    assert f"kernels belongs to user {STRANGER}" in caplog.text


@pytest.mark.parametrize("kind", ["file", "link to nothing", "link to itself"])
def test_something_else_in_its_place_is_named(cache: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    cache.mkdir()
    if kind == "file":
        (cache / "kernels").touch()
    else:
        (cache / "kernels").symlink_to("nothing" if kind == "link to nothing" else "kernels")
    assert found() is None
    assert f"cannot keep compiled kernels in {cache}/kernels: " in caplog.text


def test_without_a_home_the_place_is_checked_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its name can be foreseen, so whoever was there first may have left code in it."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("GRADWIRE_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert cache_dir() == tmp_path / f"gradwire-{os.getuid()}"
    cache_dir().mkdir()
    cache_dir().chmod(0o777)
    assert found() is None
    assert f"others can write to {cache_dir()}" in caplog.text


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(cache: Path) -> KernelFiles:
    directory = found()
    assert directory is not None
    return KernelFiles(directory, "f")


def kept_in(cache: Path) -> Path:
    (path,) = (cache / "kernels").iterdir()
    return path


def test_what_was_saved_is_found_under_its_key_alone(cache: Path, files: KernelFiles) -> None:
    files.save(("int", 1), b"code")
    assert kept_in(cache).stat().st_mode & 0o777 == 0o600
    assert files.load(("int", 1)) == b"code"
    assert files.load(("int", 2)) is None


class Bomb:
    """Pickled, it is a call."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("a planted file was run",)


@pytest.mark.parametrize("fault", ["bad digest", "group", "all", pytest.param("stranger", marks=as_root)])
def test_file_that_others_could_have_written_is_not_run(
    cache: Path, files: KernelFiles, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    files.save("key", b"code")
    path = kept_in(cache)
    if fault == "bad digest":
        path.write_bytes(bytes(32) + pickle.dumps(Bomb()))
    elif fault == "stranger":
        os.chown(path, STRANGER, STRANGER)
    else:
        path.chmod(0o660 if fault == "group" else 0o606)
    assert files.load("key") is None
    assert f"cannot use the compiled kernel {path}" in caplog.text


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_something_else_in_the_place_of_a_file_is_not_read(
    cache: Path, files: KernelFiles, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files.save("key", b"code")
    path = kept_in(cache)
    moved = path.rename(tmp_path / "moved")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(moved)
    else:
        path.mkdir()
    assert files.load("key") is None
    files.save("key", b"code")
    assert f"cannot use the compiled kernel {path}" in caplog.text
    assert files.load("key") == (None if kind == "directory" else b"code")
    assert [path.suffix for path in (cache / "kernels").iterdir()] == [".kernel"]


def test_full_disk_is_named_and_leaves_nothing(
    cache: Path, files: KernelFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        files.save("key", b"code")
    assert list((cache / "kernels").iterdir()) == []
    assert "No space left on device" in caplog.text
    assert logging.getLevelName(caplog.records[0].levelno) == "WARNING"
