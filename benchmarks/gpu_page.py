"""What `benchmarks/gpu.py` found, as a page that is whole after each part."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from benchmarks.gpu_parts import Outcome, Part, missing
from benchmarks.measure import describe, machine, table

_PACKAGES = ("numba-cuda", "cuda-core", "cuda-bindings", "llvmlite", "grpcio-health-checking", "pytest-xdist")
_CARD = ("name", "driver_version", "memory.total", "compute_cap", "power.limit", "clocks.max.sm", "clocks.max.mem")


class Page:
    """Args: path: rewritten by each `write`; command: what the page says it was made by."""

    def __init__(self, path: Path, *, simulated: bool, command: str) -> None:
        self._path = path
        self._simulated = simulated
        self._command = command
        self.environment: list[str] = []
        self._outcomes: list[tuple[Part, Outcome]] = []

    @property
    def failures(self) -> int:
        """How many commands failed or were cut short."""
        return sum(outcome.failed for _, outcome in self._outcomes)

    @property
    def last(self) -> str:
        """The latest outcome in a line."""
        outcome = self._outcomes[-1][1]
        return f"{outcome.name}: {outcome.verdict} ({outcome.seconds:.0f} s)"

    def add(self, part: Part, outcome: Outcome) -> None:
        self._outcomes.append((part, outcome))

    def write(self) -> None:
        """The page as far as it has come, in place of the one before."""
        rows = [[o.name, o.verdict, f"{o.seconds:.0f}"] for _, o in self._outcomes]
        lines = ["# gradwire on a GPU", ""]
        if self._simulated:
            lines += ["**Simulated: no GPU was used, and no time on this page means anything.**", ""]
        lines += [f"Made by `make gpu` (`{self._command}`).", "", *self.environment, ""]
        lines += [table(("what", "outcome", "seconds"), rows), ""]
        previous = None
        for part, outcome in self._outcomes:
            if part is not previous:
                lines += [f"## {part.title}", ""]
                previous = part
            lines += [f"{outcome.name}: {outcome.verdict}", ""]
            lines += [outcome.output, ""] if outcome.output else []
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("\n".join(lines).rstrip() + "\n")
        os.replace(temporary, self._path)


def about_the_card(simulated: bool) -> list[str]:
    """Card, driver and versions as Markdown lines; what cannot be told says so."""
    lines = [f"- {describe(machine(_PACKAGES))}"]
    if absent := missing(["torch", "numba_cuda"]):
        return [*lines, f"- not installed: {', '.join(absent)}"]
    if simulated:
        return [*lines, "- numba's CUDA simulator"]
    query = ["nvidia-smi", f"--query-gpu={','.join(_CARD)}", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
        for card in found.splitlines():
            lines.append("- " + "; ".join(f"{k} {v.strip()}" for k, v in zip(_CARD, card.split(","), strict=True)))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        lines.append(f"- nvidia-smi does not say what card this is: {error}")
    import torch

    lines.append(f"- torch {torch.__version__} for CUDA {torch.version.cuda}, {torch.cuda.device_count()} card(s)")
    return lines
