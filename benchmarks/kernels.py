"""The kernels alone, without the wire: a step over a long vector, of AMSGrad and of the others, and a long block over
one element.

python benchmarks/kernels.py [--device cuda] [--quick] [--only amsgrad|optimizers] [--out FILE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import every_optimizer, long_block, long_vector
from benchmarks.backend import Backend
from benchmarks.measure import cores, describe, machine, save, table


def main() -> int:
    options = _options()
    about = machine()
    print(describe(about), end="\n\n")
    counts = [1] if options.device != "cpu" else options.threads or sorted({1, cores()})
    try:
        backends = [Backend(options.device, threads) for threads in counts]
    except RuntimeError as error:
        print(f"{options.device}: NOT RUN, no figures: {error}")
        save(options.out, {"benchmark": "kernels", "machine": about, "not_run": str(error)})
        return 0
    same, sections = True, dict[str, object]()
    parts = {"amsgrad": _amsgrad, "optimizers": _others}
    for name, part in parts.items():
        if options.only in (None, name):
            is_same, figures = part(backends, options)
            same, sections = same and is_same, {**sections, **figures}
    for backend in backends:
        backend.close()
    save(options.out, {"benchmark": "kernels", "machine": about, "rounds": options.rounds, **sections})
    return 0 if same else 1


def _amsgrad(backends: Sequence[Backend], options: argparse.Namespace) -> tuple[bool, dict[str, object]]:
    """A step over a long vector and a long block over one element: whether the numbers are torch's, and all figures."""
    vectors: list[long_vector.Result] = []
    for elements in options.elements:
        results = [long_vector.run(backend, elements, options.rounds) for backend in backends]
        print(f"AMSGrad, K=1, {elements:,} float32, {options.rounds} interleaved rounds\n")
        print(table(long_vector.HEADER, [row for result in results for row in result.rows()]), end="\n\n")
        print("\n".join(f"- {result.label}: {result.verdict()}" for result in results), end="\n\n", flush=True)
        vectors += results
    block = long_block.run(backends[0], options.steps, options.rounds)  # one element cannot be split
    print(f"AMSGrad, K={options.steps:,}, one float32, {options.rounds} interleaved rounds\n")
    print(table(long_block.HEADER, block.rows()), end="\n\n")
    print(f"- {block.label}: {block.verdict()}")
    if options.device == "cpu":  # the targets are the CPU kernels'
        print(f"- target, a step at most {long_vector.TARGET}x torch fused: {_met(r.on_target for r in vectors)}")
        print(f"- target, a block at least {long_block.TARGET:,.0f} updates/s: {_met([block.on_target])}")
    print(flush=True)
    same = block.same and all(vector.same for vector in vectors)
    return same, {"long_vector": [v.to_json() for v in vectors], "long_block": [block.to_json()]}


def _others(backends: Sequence[Backend], options: argparse.Namespace) -> tuple[bool, dict[str, object]]:
    """As `_amsgrad`: a step of each other optimizer, with the most threads."""
    results = every_optimizer.run(backends[-1], options.elements[0], options.rounds)
    print(f"Other optimizers, K=1, {options.elements[0]:,} float32, {options.rounds} interleaved rounds\n")
    print(table(every_optimizer.HEADER, [result.row() for result in results]), end="\n\n")
    if options.device == "cpu":
        print(f"- target, a step at most {long_vector.TARGET}x torch fused, or x a copy: ", end="")
        print(_met(result.on_target for result in results))
    same = all(result.same for result in results)
    print(f"- largest difference to torch {max(result.difference for result in results):.1e}", end="")
    print(f": {'same' if same else 'DIFFERENT'} numbers", flush=True)
    return same, {"every_optimizer": [result.to_json() for result in results]}


def _met(verdicts: Iterable[bool]) -> str:
    return "met" if all(verdicts) else "NOT met"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--threads", type=int, nargs="+", help="of the CPU (default: 1, and all processors)")
    parser.add_argument("--elements", type=int, nargs="+", help="of the long vector (default: 25,000,000)")
    parser.add_argument("--steps", type=int, help="of the long block (default: 1,000,000)")
    parser.add_argument("--rounds", type=int, help="(default: 15)")
    parser.add_argument("--only", choices=["amsgrad", "optimizers"], help="AMSGrad alone, or the others")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, measures nothing")
    parser.add_argument("--out", type=Path, help="write all figures to this file, as JSON")
    options = parser.parse_args()
    elements, steps, rounds = (1_000_000, 100_000, 5) if options.quick else (25_000_000, 1_000_000, 15)
    options.elements = options.elements or [elements]
    options.steps = options.steps or steps
    options.rounds = options.rounds or rounds
    return options


if __name__ == "__main__":
    sys.exit(main())
