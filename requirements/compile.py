"""Writes ``constraints.txt`` (all that CI, peers and integrations install), ``requirements/demo.txt`` (no torch) and
``requirements/flower.txt`` (a peer that agrees with none of them).

All hold for Python 3.11 and later on any platform. Versions that are there already stay, as long as pyproject.toml
allows them; ``--upgrade`` takes the newest. Needs ``uv``. torch is held at TORCH, of which CPU builds exist.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

TORCH = "torch==2.13.0"
ROOT = Path(__file__).resolve().parent.parent
# torch pins these itself, exactly, in the builds that need them.
LEFT_TO_TORCH = ("nvidia-", "triton", "cuda-toolkit", "setuptools")


def write(path: Path, comment: str, extras: tuple[str, ...], options: list[str]) -> None:
    """Pinned requirements of the package with some extras, with environment markers."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"]
    command += ["--no-header", "--no-annotate", "--no-emit-package", "gradwire", "--constraint", "-", "pyproject.toml"]
    command += [flag for extra in extras for flag in ("--extra", extra)]
    # uv takes a file that it is to write for what is preferred.
    subprocess.run([*command, "--output-file", str(path), *options], cwd=ROOT, input=TORCH, text=True, check=True)
    lines = [line for line in path.read_text().splitlines() if not line.startswith(LEFT_TO_TORCH)]
    path.write_text("\n".join([f"# {comment}; `make constraints` writes this file.", *lines]) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    options = ["--upgrade"] if parser.parse_args().upgrade else []
    everything = ("dev", "integrations", "peers")
    write(ROOT / "constraints.txt", "Versions that `make test`, CI and the images install", everything, options)
    write(ROOT / "requirements/demo.txt", "What `make demo` installs", ("server", "plot"), options)
    write(ROOT / "requirements/flower.txt", "Flower, for `make rounds`", ("flower",), options)
