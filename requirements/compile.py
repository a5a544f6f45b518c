"""Writes ``constraints.txt`` (everything that CI installs) and ``requirements/demo.txt`` (the demo: no torch).

Both hold for Python 3.10 and later on any platform. Needs ``uv``. torch is held at TORCH, of which CPU builds exist.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TORCH = "torch==2.13.0"
ROOT = Path(__file__).resolve().parent.parent
# torch pins these itself, exactly, in the builds that need them.
LEFT_TO_TORCH = ("nvidia-", "triton", "cuda-toolkit", "setuptools")


def resolve(*extras: str) -> list[str]:
    """Pinned requirements of the package with some extras, with environment markers."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.10"]
    command += ["--no-header", "--no-annotate", "--no-emit-package", "gradwire", "--constraint", "-", "pyproject.toml"]
    command += [flag for extra in extras for flag in ("--extra", extra)]
    done = subprocess.run(command, cwd=ROOT, input=TORCH, text=True, stdout=subprocess.PIPE, check=True)
    return [line for line in done.stdout.splitlines() if not line.startswith(LEFT_TO_TORCH)]


def write(path: Path, comment: str, lines: list[str]) -> None:
    path.write_text("\n".join([f"# {comment}; `make constraints` writes this file.", *lines]) + "\n")


if __name__ == "__main__":
    write(ROOT / "constraints.txt", "Versions that `make test`, CI and the images install", resolve("dev"))
    write(ROOT / "requirements/demo.txt", "What `make demo` installs", resolve("server", "plot"))
