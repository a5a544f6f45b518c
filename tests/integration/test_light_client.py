"""The base install trains: an environment with ``pip install .`` and nothing else, against a server elsewhere."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from tests.reference import ReferenceAdam, ReferenceConfig
from tests.serving import ServerProcess

ROOT = Path(__file__).parents[2]
VENV = ROOT / ".venv-base"
PYTHON = VENV / "bin" / "python"
UNREACHABLE = ("connection broken", "NewConnectionError", "name resolution", "(from versions: none)")
"""What pip says where there is no index; a pin that does not exist is another matter."""

pytestmark = pytest.mark.timeout(600)

PROGRAM = """
import importlib.util, json, sys
from pathlib import Path

found = [name for name in ("torch", "numba", "matplotlib", "rich", "scipy") if importlib.util.find_spec(name)]
assert not found, f"the base install brings {found}"

import gradwire.client
import numpy as np
from gradwire.client import AMSGrad, connect

assert Path(gradwire.client.__file__).is_relative_to(sys.prefix), gradwire.client.__file__
with connect(sys.argv[1]) as server:
    params = {"w": np.linspace(-1, 1, 12).reshape(3, 4).astype(np.float32), "b": np.zeros(4, np.float32)}
    with server.create_run("light-client", params, AMSGrad(lr=0.05, betas=(0.9, 0.99), bounds=(-1, 1))) as run:
        for _ in range(20):
            run.step({"w": 2 * run.params["w"] - 1, "b": run.params["b"] + 0.5})
        block = {"w": np.ones((30, 3, 4), np.float32), "b": -np.ones((30, 4), np.float32)}
        trajectory = run.step_many(block, returns="trajectory")
        assert np.array_equal(trajectory["w"][-1], run.params["w"])
        assert run.state_dict()["step"] == run.last_receipt.step == 50
        values = {name: value.astype(float).tolist() for name, value in run.read().items()}
assert "torch" not in sys.modules
print(json.dumps(values))
"""


def digest(paths: Iterable[Path]) -> str:
    """Of the contents and names of files."""
    total = hashlib.sha256(sys.version.encode())
    for path in sorted(paths):
        total.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def pip(*arguments: str) -> None:
    """Raises subprocess.CalledProcessError."""
    subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", *arguments], check=True, capture_output=True, text=True)


def install() -> None:
    """Makes the environment anew where its requirements have changed, else only our own part of it."""
    constraints = ROOT / "constraints.txt"
    inputs = [path for path in (ROOT / "pyproject.toml", constraints) if path.exists()]
    sources = [path for name in ("protos", "server", "client") for path in (ROOT / name).rglob("*")]
    keys = {
        "requirements": digest(inputs),
        "sources": digest(path for path in sources if path.is_file() and path.suffix != ".pyc"),
    }
    stamp = VENV / "installed.json"
    known = json.loads(stamp.read_text()) if stamp.exists() else {}
    if known == keys:
        return
    if known.get("requirements") != keys["requirements"]:
        shutil.rmtree(VENV, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True, capture_output=True)
        pip(*(("--constraint", str(constraints)) if constraints.exists() else ()), str(ROOT))
    else:
        stamp.unlink()
        pip("--no-deps", "--force-reinstall", str(ROOT))
    stamp.write_text(json.dumps(keys))


@pytest.fixture(scope="module")
def base() -> Path:
    """The interpreter of an environment that holds the base install."""
    with open(ROOT / "pyproject.toml") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs may start at once
        try:
            install()
        except subprocess.CalledProcessError as error:
            offline = any(text in f"{error.stdout}{error.stderr}" for text in UNREACHABLE)
            if offline and os.environ.get("CI", "").lower() not in ("1", "true"):
                pytest.skip("pip reaches no package index")
            pytest.fail(f"{error}\n{error.stdout}{error.stderr}")
    return PYTHON


def run(base: Path, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs in isolation: neither the working directory nor PYTHONPATH can lend what is not installed."""
    return subprocess.run(
        [base, "-I", *arguments], cwd=directory, capture_output=True, text=True, check=False, timeout=60
    )


def test_promise_4_light_clients_train(base: Path, server_process: ServerProcess, tmp_path: Path) -> None:
    """No torch and no numba is importable there, and the numbers are those of the reference."""
    result = run(base, tmp_path, "-c", PROGRAM, server_process.target)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)

    params = {"w": np.linspace(-1, 1, 12).reshape(3, 4).astype(np.float32), "b": np.zeros(4, np.float32)}
    config = ReferenceConfig(lr=0.05, betas=(0.9, 0.99), amsgrad=True, bounds=(-1, 1))
    reference = ReferenceAdam(params, config)
    for _ in range(20):
        reference.step({"w": 2 * reference.params["w"] - 1, "b": reference.params["b"] + np.float32(0.5)})
    for _ in range(30):
        reference.step({"w": np.ones((3, 4), np.float32), "b": -np.ones(4, np.float32)})
    for name, value in reference.params.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-6)


def test_the_install_holds_every_package_and_its_types(base: Path, tmp_path: Path) -> None:
    program = """
from importlib.resources import files
for name in ("v1", "wire", "server", "client"):
    assert files(f"gradwire.{name}").joinpath("py.typed").is_file(), name
assert files("gradwire.v1").joinpath("service.proto").is_file()
"""
    result = run(base, tmp_path, "-c", program)
    assert result.returncode == 0, result.stderr


def test_the_server_says_what_it_lacks(base: Path, tmp_path: Path) -> None:
    result = run(base, tmp_path, "-m", "gradwire.server", "serve")
    assert result.returncode == 1
    assert "is not installed; the server needs: pip install 'gradwire[server]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_commands_that_need_no_server_part_are_there(
    base: Path, server_process: ServerProcess, tmp_path: Path
) -> None:
    """``gradwire`` measures a server, asks for its health and lists its runs."""
    target = ("--target", server_process.target)
    measured = run(base, tmp_path, "-m", "gradwire.server", "doctor", *target, "--parameters", "1000", "--json")
    assert measured.returncode == 0, measured.stderr
    assert json.loads(measured.stdout)["steps"]
    healthy = run(base, tmp_path, "-m", "gradwire.server", "health", *target)
    assert healthy.stdout == f"{server_process.target}: SERVING\n", healthy.stderr
    listed = run(base, tmp_path, "-m", "gradwire.server", "runs", "list", *target)
    assert listed.returncode == 0, listed.stderr


def test_an_embedded_server_says_so_too(base: Path, tmp_path: Path) -> None:
    program = """
from gradwire.client import EmbeddedServerError, connect
try:
    connect("embedded")
except EmbeddedServerError as error:
    print(error)
"""
    result = run(base, tmp_path, "-c", program)
    assert "the embedded server did not start: gradwire: " in result.stdout, result.stderr
    assert "pip install 'gradwire[server]'" in result.stdout
