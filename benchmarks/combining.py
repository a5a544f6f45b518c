"""A round's gradients become one, and it is applied: how near is that to reading them once and updating once?

python benchmarks/combining.py [--device cuda] [--workers 2 8] [--quick] [--out FILE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.backend import FLOAT32, Backend
from benchmarks.long_vector import PLAIN, Vector
from benchmarks.measure import Timing, cores, describe, interleave, machine, save, table, timed
from gradwire.server.rounds.pieces import pieces_of
from gradwire.wire.layout import Layout, Range

TARGET = 1.3
"""Closing a round may take this many times its floor."""

READ, COPY = "read all gradients", "copy of a step's bytes"
MEAN, WEIGHTED, CLOSE = "mean", "weighted mean", "mean, its norm, AMSGrad step"
STEP_BYTES = 36
"""A step reads five vectors of float32 and writes four."""

HEADER = ("one round", "device", "workers", "median [middle half]", "GB/s", "x floor")


@dataclass(frozen=True)
class Result:
    """What one backend did with so many gradients of ``elements`` float32."""

    label: str
    workers: int
    elements: int
    timings: dict[str, Timing]
    difference: float
    """Largest |ours - numpy's| of the weighted mean."""

    @property
    def same(self) -> bool:
        """Gradients are about 1 in size."""
        return self.difference < 1e-6

    def to_floor(self, name: str) -> float:
        """The floor of a mean is to read what it reads; it also writes a vector."""
        if name != CLOSE:
            return self.timings[name].ratio(self.timings[READ])
        together = zip(self.timings[READ].seconds, self.timings[COPY].seconds, strict=True)
        return self.timings[name].ratio(Timing(tuple(map(sum, together))))

    @property
    def on_target(self) -> bool:
        return self.to_floor(CLOSE) <= TARGET

    def bytes_moved(self, name: str) -> int:
        """Of memory, without what a processor reads of a vector only to write to it."""
        vectors = {READ: self.workers, COPY: 9, MEAN: self.workers + 1, WEIGHTED: self.workers + 1}
        return 4 * self.elements * vectors.get(name, self.workers + 1 + 1 + 9)

    def rows(self) -> list[list[str]]:
        return [
            [
                name,
                self.label,
                str(self.workers),
                timing.milliseconds(),
                f"{self.bytes_moved(name) / timing.median / 1e9:.1f}",
                "" if name in (READ, COPY) else f"{self.to_floor(name):.2f}",
            ]
            for name, timing in self.timings.items()
        ]

    def to_json(self) -> dict[str, object]:
        return {
            "device": self.label,
            "workers": self.workers,
            "elements": self.elements,
            "closing_to_floor": self.to_floor(CLOSE),
            "largest_difference_to_numpy": self.difference,
            "timings": {name: timing.to_json() for name, timing in self.timings.items()},
        }


def run(backend: Backend, workers: int, elements: int, rounds: int) -> Result:
    backend.begin()
    random = np.random.default_rng(1)
    values = [random.standard_normal((1, elements), np.float32) for _ in range(workers)]
    gradients = [backend.upload(value) for value in values]
    layout = Layout([[("w", (elements,))]])
    weights = [32.0 - worker for worker in range(workers)]
    equal = pieces_of(layout, [(1.0, frozenset())] * workers, mean=True)
    weighted = pieces_of(layout, [(weight, frozenset()) for weight in weights], mean=True)
    out = backend.device.allocate(1, elements, FLOAT32)
    vector = Vector(backend, PLAIN, random.standard_normal((1, elements), np.float32))

    def close() -> None:
        backend.device.combine(out, gradients, equal)
        backend.device.square_sums(out, 0, [Range(0, elements)])
        vector.update(out)

    read, pool = _reader(backend, values)
    contenders: dict[str, Callable[[], object]] = {
        READ: read,
        COPY: backend.copier(STEP_BYTES // 2 * elements),
        MEAN: lambda: backend.device.combine(out, gradients, equal),
        WEIGHTED: lambda: backend.device.combine(out, gradients, weighted),
        CLOSE: close,
    }
    timings = interleave({name: timed(call) for name, call in contenders.items()}, rounds, warm_up=2)
    backend.device.combine(out, gradients, weighted)
    expected = sum(weight * value.astype(np.float64) for weight, value in zip(weights, values, strict=True))
    difference = float(np.abs(backend.download(out) - expected / sum(weights)).max())
    pool.shutdown()
    return Result(backend.label, workers, elements, timings, difference)


def _reader(
    backend: Backend, values: Sequence[np.ndarray[Any, Any]]
) -> tuple[Callable[[], object], ThreadPoolExecutor]:
    """Reads all gradients, by as many threads as combine them: the largest of their bytes is found faster than numpy
    adds floats up. On a GPU torch's sum."""
    pool = ThreadPoolExecutor(backend.threads)
    if backend.torch_device.type == "cuda":
        tensors = [backend.tensor(value) for value in values]
        return backend.synchronized(lambda: [tensor.sum() for tensor in tensors]), pool
    parts = [part for value in values for part in np.array_split(value.view(np.uint8)[0], backend.threads)]
    return lambda: list(pool.map(np.max, parts)), pool


def main() -> int:
    options = _options()
    about = machine()
    print(describe(about), end="\n\n")
    results = []
    for threads in [1] if options.device != "cpu" else options.threads or sorted({1, cores()}):
        backend = Backend(options.device, threads)
        results += [run(backend, workers, options.elements, options.rounds) for workers in options.workers]
        backend.close()
    print(f"{options.elements:,} float32, {options.rounds} interleaved rounds\n")
    print(table(HEADER, [row for result in results for row in result.rows()]), end="\n\n")
    for result in results:
        numbers = "same numbers" if result.same else "DIFFERENT NUMBERS"
        print(
            f"- {result.label}, {result.workers} workers: a round is closed in {result.to_floor(CLOSE):.2f}x reading "
            f"its gradients and copying a step's bytes (target {TARGET}: {'met' if result.on_target else 'NOT met'}); "
            f"largest difference to numpy {result.difference:.1e}: {numbers}"
        )
    save(options.out, {"benchmark": "combining", "machine": about, "rounds": [result.to_json() for result in results]})
    return 0 if all(result.same for result in results) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--threads", type=int, nargs="+", help="of the CPU (default: 1, and all processors)")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 8], help="gradients of a round (default: 2 8)")
    parser.add_argument("--elements", type=int, help="of each gradient (default: 25,000,000)")
    parser.add_argument("--rounds", type=int, help="(default: 15)")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, measures nothing")
    parser.add_argument("--out", type=Path, help="write all figures to this file, as JSON")
    options = parser.parse_args()
    options.elements = options.elements or (1_000_000 if options.quick else 25_000_000)
    options.rounds = options.rounds or (5 if options.quick else 15)
    return options


if __name__ == "__main__":
    sys.exit(main())
