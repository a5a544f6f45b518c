"""An embedded server starts wherever its client does, and takes what its client gives it and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gradwire.client import EmbeddedServerError, connect
from gradwire.client.transport import embedded_server
from gradwire.client.transport.embedded_server import EmbeddedServer

SCRIPT = """
import json, os
from gradwire.client import Adam, connect
os.chdir(os.environ["PLANTED"])  # to which an empty entry of PYTHONPATH would lead a child
with connect("embedded", data_dir="kept") as server:
    with server.create_run("r", {"x": [0.0]}, Adam(), durability="JOURNAL") as run:
        print()
        print(json.dumps({"step": run.step({"x": [1.0]}).step, "target": server.target}))
"""


def test_it_starts_in_a_hostile_place(tmp_path: Path) -> None:
    """All at once, for a start takes a second: modules that lie in the working directory and beside the script, a
    module that prints, a temporary directory that no socket's address can hold, and settings for another server."""
    planted, scripts, site, temporary = (
        tmp_path / name for name in ("planted", "scripts", "site", "a#b?c%20" + "L" * 90)
    )
    for folder in (planted, scripts, site, temporary):
        folder.mkdir()
    for folder in (planted, scripts):
        for name in ("click", "numba", "safetensors", "xxhash", "select", "coverage", "scipy"):
            (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    (scripts / "select.py").unlink()  # the client imports that itself
    (scripts / "train.py").write_text(SCRIPT)
    (site / "sitecustomize.py").write_text("""print('{"addresses": ["welcome"]}\\nhello', end="")\n""")
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONSAFEPATH", "GRADWIRE_TARGET")}
    environment |= {
        "GRADWIRE_DATA_DIR": str(tmp_path / "another"),
        "GRADWIRE_MAX_PARAMETERS": "0",
        "GRADWIRE_DEVICE": "none",
        "GRADWIRE_LISTEN": "203.0.113.1:1",
        "NUMBA_DEBUG_CACHE": "1",
        "PLANTED": str(planted),
        "PYTHONPATH": os.pathsep.join(["", str(site)]),
        "TMPDIR": str(temporary),
    }
    command = [sys.executable, str(scripts / "train.py")]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout.splitlines()[-1])
    assert said["step"] == 1
    assert not Path(said["target"].removeprefix("unix:")).parent.exists()
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "another").exists()
    assert (planted / "kept").is_dir()
    assert list(temporary.iterdir()) == []


def test_what_a_child_says_before_it_fails_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(EmbeddedServerError, match=r"^the embedded server did not start: .*runs"):
        connect("embedded", data_dir=tmp_path / "runs")


def test_its_directory_is_private_and_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("L" * 90, "a#b", "a?b", "a%20b", "a b", "ä", "gone"):
        place = tmp_path / name
        if name != "gone":
            place.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        directory = Path(embedded_server._private_directory())
        try:
            assert directory.parent == Path("/tmp")
            assert directory.stat().st_mode & 0o777 == 0o700
        finally:
            directory.rmdir()


def test_without_a_place_for_its_socket_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(EmbeddedServerError, match=r"no place for the embedded server's socket: .*; set TMPDIR"):
        EmbeddedServer()


def test_without_an_interpreter_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(EmbeddedServerError, match=r"sys\.executable names none"):
        EmbeddedServer()


def test_a_start_that_is_interrupted_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(self: EmbeddedServer, pipe: int) -> bytes:
        started.append(self)
        raise KeyboardInterrupt

    started: list[EmbeddedServer] = []
    monkeypatch.setattr(EmbeddedServer, "_first_line", interrupt)
    with pytest.raises(KeyboardInterrupt):
        EmbeddedServer()
    (server,) = started
    assert server._process.poll() is not None
    assert not Path(server._directory).exists()
