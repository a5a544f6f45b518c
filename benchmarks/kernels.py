"""The kernels alone, without the wire: a step over a long vector, of AMSGrad and of the others, and a long block over
one element.

python benchmarks/kernels.py [--device cuda] [--quick] [--only optimizers] [--out FILE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
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
    others = every_optimizer.run(backends[-1], options.elements[0], options.rounds)
    print(f"Other optimizers, K=1, {options.elements[0]:,} float32, {options.rounds} interleaved rounds\n")
    print(table(every_optimizer.HEADER, [result.row() for result in others]), end="\n\n")
    print(f"- target, a step at most {long_vector.TARGET}x torch fused, or x a copy: ", end="")
    print(f"{_met(r.on_target for r in others)}\n", flush=True)
    others_json = {"every_optimizer": [result.to_json() for result in others]}
    if options.only:
        save(options.out, {"benchmark": "kernels", "machine": about, "rounds": options.rounds, **others_json})
        return 0 if all(result.same for result in others) else 1
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
    for backend in backends:
        backend.close()
    if options.device == "cpu":  # the targets are the CPU kernels'
        print(f"- target, a step at most {long_vector.TARGET}x torch fused: {_met(r.on_target for r in vectors)}")
        print(f"- target, a block at least {long_block.TARGET:,.0f} updates/s: {_met([block.on_target])}")
    same = block.same and all(vector.same for vector in vectors) and all(result.same for result in others)
    sections = {"long_vector": [v.to_json() for v in vectors], "long_block": [block.to_json()], **others_json}
    save(options.out, {"benchmark": "kernels", "machine": about, "rounds": options.rounds, **sections})
    return 0 if same else 1


def _met(verdicts: Iterable[bool]) -> str:
    return "met" if all(verdicts) else "NOT met"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--threads", type=int, nargs="+", help="of the CPU (default: 1, and all processors)")
    parser.add_argument("--elements", type=int, nargs="+", help="of the long vector (default: 25,000,000)")
    parser.add_argument("--steps", type=int, help="of the long block (default: 1,000,000)")
    parser.add_argument("--rounds", type=int, help="(default: 15)")
    parser.add_argument("--only", choices=["optimizers"], help="the other optimizers than AMSGrad, and nothing else")
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
