"""One element, blocks of K steps: how many steps a second for which K?

python benchmarks/blocks.py [--quick] [--table FILE.md] [--picture FILE.png] [--out FILE]
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import floors
from benchmarks.child import SERVE, Child, same_threads
from benchmarks.contenders.local_torch import Fused
from benchmarks.contenders.problem import Problem
from benchmarks.measure import Timing, describe, interleave, machine, repeated, save, table, three_digits, timed
from gradwire.client import Run, TorchAdam, connect

LAST, TRAJECTORY = "answered with the last value", "answered with every value"
ECHO, LOCAL = "raw gRPC echo of the same bytes", "local torch, fused, step by step"
HEADER = ("K", f"steps/s, {LAST}", f"steps/s, {TRAJECTORY}", "trajectory x echo", "last x local torch")


def measure(run: Run, steps: int, rounds: int) -> dict[str, Timing]:
    """Seconds of a block of ``steps``, and of one local step."""
    repeats = max(1, min(200, 20_000 // steps))
    block = {"x": np.where(np.arange(steps) % 101 == 1, 1010, -10).astype(np.float32)[:, None]}
    echo = floors.fastest_echo(4 * steps, repeats=repeats, rounds=max(3, rounds // 2))
    problem = Problem(1)
    local, gradients = Fused(problem), problem.gradients()
    contenders = {
        LAST: timed(functools.partial(run.step_many, block)),
        TRAJECTORY: timed(functools.partial(run.step_many, block, returns="trajectory")),
        ECHO: echo.exchange,
        LOCAL: timed(functools.partial(local.step, gradients)),
    }
    everybody = {name: repeated(contender, repeats) for name, contender in contenders.items()}
    everybody[LOCAL] = repeated(contenders[LOCAL], 200)
    timings = interleave(everybody, rounds, warm_up=2)
    echo.close()
    return timings


def same(run: Run, steps: int) -> bool:
    """Whether a block of ``steps`` does what as many single steps do, bit for bit."""
    gradients = np.random.default_rng(3).standard_normal((steps, 1), np.float32)
    params, state = run.read(), run.state_dict()
    block = run.step_many({"x": gradients}, returns="trajectory")["x"]
    run.write(params)
    run.load_state_dict(state)
    singly = []
    for gradient in gradients:
        run.step({"x": gradient})
        singly.append(run.params["x"].copy())
    return np.array_equal(block, np.array(singly))


def main() -> int:
    options = _options()
    same_threads(1)
    about = machine()
    print(describe(about), end="\n\n")
    server_process = Child([*SERVE, "--listen", floors.LOOPBACK, "--threads", "1"])
    results: dict[int, dict[str, Timing]] = {}
    with connect(server_process.said["addresses"][0]) as server:
        params = {"x": np.zeros(1, np.float32)}
        with server.create_run("blocks", params, TorchAdam(amsgrad=True), shared_memory=False) as run:
            equal = same(run, 300)
            for steps in options.blocks:
                results[steps] = measure(run, steps, options.rounds)
    server_process.close()
    text = page(results, options.rounds)
    print(text)
    print(f"- a block of 300 steps = 300 single steps, bit for bit: {'yes' if equal else 'NO'}")
    if options.table:
        options.table.write_text(f"{text}\n{describe(about)}.\n")
    if options.picture:
        picture(results, options.picture)
    report = {
        "benchmark": "blocks",
        "machine": about,
        "equal_bit_for_bit": equal,
        "results": [
            {"steps": steps, "timings": {name: timing.to_json() for name, timing in timings.items()}}
            for steps, timings in results.items()
        ],
    }
    save(options.out, report)
    return 0 if equal else 1


def page(results: dict[int, dict[str, Timing]], rounds: int) -> str:
    rows = []
    for steps, timings in results.items():
        echo = timings[TRAJECTORY].ratio(timings[ECHO])
        local = steps / timings[LAST].ratio(timings[LOCAL])
        both = (timings[name].rate(steps) for name in (LAST, TRAJECTORY))
        rows.append([f"{steps:,}", *both, f"{echo:.2f}", three_digits(local)])
    about = f"AMSGrad over one float32 on loopback TCP, {rounds} interleaved rounds; medians with the middle half."
    return f"{about}\n\n{table(HEADER, rows)}\n"


def picture(results: dict[int, dict[str, Timing]], path: Path) -> None:
    """Steps a second over K, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    blocks = list(results)
    figure, axis = plt.subplots(figsize=(6.4, 4.2))

    def curve(name: str, rates: Sequence[float], style: str, color: str) -> None:
        axis.plot(blocks, rates, style, color=color, label=name, markersize=4)

    for name, style, color in ((LAST, "o-", "#1b6ca8"), (TRAJECTORY, "s-", "#58a4d8"), (ECHO, "--", "#999999")):
        curve(name, [steps / timings[name].median for steps, timings in results.items()], style, color)
    curve(LOCAL, [1 / timings[LOCAL].median for timings in results.values()], ":", "#d98f3e")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("K, steps in a block")
    axis.set_ylabel("steps a second")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs="+", help="values of K (default: 1 10 100 ... 1,000,000)")
    parser.add_argument("--rounds", type=int, help="(default: 11)")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, measures nothing")
    parser.add_argument("--table", type=Path, help="write the table to this file, as Markdown")
    parser.add_argument("--picture", type=Path, help="write the picture to this file, as PNG")
    parser.add_argument("--out", type=Path, help="write all figures to this file, as JSON")
    options = parser.parse_args()
    options.blocks = options.blocks or ([1, 1000] if options.quick else [10**power for power in range(7)])
    options.rounds = options.rounds or (3 if options.quick else 11)
    return options


if __name__ == "__main__":
    sys.exit(main())
