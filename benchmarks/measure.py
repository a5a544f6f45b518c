"""What the benchmarks share: interleaved rounds, medians with their spread, tables, and which machine it was."""

from __future__ import annotations

import datetime
import gc
import importlib.metadata
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Contender = Callable[[], float]
"""Does one round of work and returns the seconds it took."""

_PACKAGES = ("gradwire", "grpcio", "protobuf", "numpy", "numba", "torch")


@dataclass(frozen=True)
class Timing:
    """The rounds of one contender, in order."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Between them lies the middle half of the rounds."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third

    def ratio(self, other: Timing) -> float:
        """Median over the rounds of ours / theirs. Both of a pair ran right after each other, so a machine that is busy
        for a while slows both of them."""
        return statistics.median(ours / theirs for ours, theirs in zip(self.seconds, other.seconds, strict=True))

    def milliseconds(self) -> str:
        """``median [first quartile .. third quartile]``."""
        low, high = (three_digits(1e3 * value) for value in self.quartiles)
        return f"{three_digits(1e3 * self.median)} ms [{low} .. {high}]"

    def rate(self, work: float) -> str:
        """Work per second as ``median [first quartile .. third quartile]``."""
        low, high = (three_digits(work / value) for value in reversed(self.quartiles))
        return f"{three_digits(work / self.median)} [{low} .. {high}]"

    def to_json(self) -> dict[str, object]:
        low, high = self.quartiles
        return {
            "median_seconds": self.median,
            "first_quartile_seconds": low,
            "third_quartile_seconds": high,
            "seconds": self.seconds,
        }


def three_digits(value: float) -> str:
    """``0.0123``, ``12.3``, ``12,300``."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:.3g}"


def timed(function: Callable[[], object]) -> Contender:
    """A contender that calls ``function`` once a round."""

    def contender() -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return contender


def repeated(contender: Contender, times: int) -> Contender:
    """A contender whose round is the mean of so many rounds, for what is too short to be timed alone."""
    return lambda: sum(contender() for _ in range(times)) / times


def interleave(contenders: Mapping[str, Contender], rounds: int, *, warm_up: int = 1) -> dict[str, Timing]:
    """Runs all contenders once a round; the first ``warm_up`` rounds do not count.

    The order is drawn for each round, by the same seed in each run: what a contender leaves behind (warm caches, a disk
    that has just been flushed, threads that have gone to sleep) must not always fall to the same one, nor to itself.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    order = random.Random(1)
    gc.collect()
    for index in range(warm_up + rounds):
        order.shuffle(names)
        for name in names:
            taken = contenders[name]()
            if index >= warm_up:
                seconds[name].append(taken)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(further_packages: Sequence[str] = ()) -> dict[str, object]:
    """What matters of the machine and its software, without names of hosts or paths."""
    versions = {}
    for package in (*_PACKAGES, *further_packages):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions,
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def describe(about: Mapping[str, object]) -> str:
    """`machine` as one line of text."""
    packages = about["packages"]
    assert isinstance(packages, dict)
    return (
        f"{about['date']}: {about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB, {about['system']}; "
        f"Python {about['python']}, {', '.join(f'{name} {version}' for name, version in packages.items())}; "
        f"load average before: {about['load_average_before']}"
    )


def cores() -> int:
    """Processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def save(path: Path | None, report: Mapping[str, object]) -> None:
    """Writes ``report`` as JSON, where a path is given."""
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n")
