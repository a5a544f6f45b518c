"""What the module path of a child is made of; real children are in test_embedded_server.py."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from gradwire.client.transport.python_child import module_path, python_command, python_environment

LIBRARY = "/opt/library"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def run_as(monkeypatch: pytest.MonkeyPatch, *, file: Path | None = None, module: str | None = None) -> None:
    """As if this process had been started with a file, with ``-m`` or with neither."""
    main = ModuleType("__main__")
    if file is not None:
        main.__file__ = str(file)
    main.__spec__ = ModuleSpec(module, None) if module else None
    monkeypatch.setitem(sys.modules, "__main__", main)


def test_a_script_s_directory_is_no_part_of_it(here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "train.py").touch()
    (tmp_path / "link.py").symlink_to(scripts / "train.py")
    run_as(monkeypatch, file=tmp_path / "link.py")
    monkeypatch.setattr(sys, "path", [str(scripts), LIBRARY, str(here)])
    assert module_path() == [LIBRARY, str(here)], "here somebody has asked for it"


@pytest.mark.parametrize("module", ["package.train", "pytest.__main__"])
def test_nor_is_the_working_directory_of_a_module(here: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    run_as(monkeypatch, file=here / "package" / "train.py", module=module)
    monkeypatch.setattr(sys, "path", [str(here), LIBRARY])
    assert module_path() == [LIBRARY]


def test_nor_is_that_of_a_prompt_or_a_notebook(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_as(monkeypatch)
    monkeypatch.setattr(sys, "path", ["", LIBRARY, ""])
    assert module_path() == [LIBRARY]


def test_nor_is_a_directory_that_is_a_program(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``python DIRECTORY``, ``python FILE.zip``."""
    run_as(monkeypatch, file=Path("/opt/program/__main__.py"), module="__main__")
    monkeypatch.setattr(sys, "path", ["/opt/program", LIBRARY])
    assert module_path() == [LIBRARY]


def test_what_somebody_has_asked_for_is(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By PYTHONPATH or ``sys.path``; relative entries mean what they mean here."""
    run_as(monkeypatch, module="package.train")
    monkeypatch.setattr(sys, "path", ["first", str(here), str(here), LIBRARY, ".", "/with:colon"])
    assert module_path() == [f"{here}/first", str(here), LIBRARY, str(here)]


def test_a_directory_that_gradwire_itself_comes_from_is(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["gradwire"], "__path__", [f"{here}/gradwire"])
    run_as(monkeypatch)
    monkeypatch.setattr(sys, "path", ["", LIBRARY])
    assert module_path() == [str(here), LIBRARY]


def test_a_working_directory_that_has_been_deleted_harms_nobody(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here.rmdir()
    run_as(monkeypatch, module="package.train")
    monkeypatch.setattr(sys, "path", ["", "relative", LIBRARY])
    assert module_path() == [LIBRARY]


_SHOW = "import sys; print(sys.path, sys.flags.no_user_site)"


@pytest.mark.parametrize("flags", [(), ("-I",), ("-E", "-s"), ("-P",)], ids=" ".join)
def test_a_child_has_the_path_of_its_parent(flags: tuple[str, ...], tmp_path: Path) -> None:
    """Whatever the parent was told to ignore, and has changed since."""
    code = f"""
import os, subprocess, sys
sys.path = [{str(tmp_path / "lib")!r}, *sys.path]
import gradwire.client  # imports nothing from the working directory
from gradwire.client.transport.python_child import python_command, python_environment
os.environ["PYTHONPATH"] = "."
child = subprocess.run([*python_command(), "-c", {_SHOW!r}], env=python_environment(), capture_output=True, text=True)
sys.path = [entry for entry in sys.path if entry]
print(sys.path, sys.flags.no_user_site)
print(child.stdout, child.stderr, end="")
"""
    environment = {**os.environ, "PYTHONPATH": f"{os.pathsep}other", "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        [sys.executable, *flags, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    ours, theirs = result.stdout.strip().splitlines()
    assert ours == theirs


def test_the_command_names_this_interpreter() -> None:
    assert python_command()[:2] == [sys.executable, "-P"]
    assert python_environment()["PYTHONPATH"].split(os.pathsep) == module_path()
