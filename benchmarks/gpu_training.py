"""What users do, with a server on a GPU: the regret experiment, digits, and a torch model whose parameters are on it.

python benchmarks/gpu_training.py synthetic|digits|card ... [--quick]
"""

from __future__ import annotations

import argparse
import functools
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import regret
from benchmarks.backend import torch_device
from benchmarks.child import ROOT, SERVE, Child
from benchmarks.measure import interleave, table, three_digits, timed
from benchmarks.synthetic import KNOWN
from gradwire.client import TorchAdam, connect
from gradwire.client.torch import RemoteOptimizer


def synthetic(target: str, quick: bool) -> bool:
    """Adam and AMSGrad in blocks, against the values that the experiment is known by."""
    steps, block, first = (60, 30, 30) if quick else (10_000_000, 500_000, 20_000)
    rows, same = [], True
    with connect(target) as server:
        for amsgrad in (False, True):
            found = regret.blocks(server, amsgrad, steps, block, first)
            # Too few steps for a known value: the CPU's.
            known = KNOWN.get((amsgrad, steps)) or _on_the_cpu(amsgrad, steps, block, first)
            right = math.isclose(found.x, known[0], abs_tol=1e-5)
            right &= math.isclose(found.average_regret, known[1], abs_tol=2e-6)
            same &= right
            name = "AMSGrad" if amsgrad else "Adam"
            rate = three_digits(steps / found.seconds)
            rows.append([name, f"{found.x:.6f}", f"{found.average_regret:.6f}", rate, "yes" if right else "NO"])
    print(f"{steps:,} steps in blocks of {block:,}\n")
    print(table(("optimizer", "x", "average regret", "steps/s", "as it must be"), rows))
    return same


def _on_the_cpu(amsgrad: bool, steps: int, block: int, first: int) -> tuple[float, float]:
    with connect("embedded") as server:
        found = regret.blocks(server, amsgrad, steps, block, first)
    return found.x, found.average_regret


def digits(target: str, quick: bool) -> bool:
    """``client/train_digits.py`` as a user starts it."""
    epochs = "1" if quick else "5"
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        command = [sys.executable, str(ROOT / "client/train_digits.py"), "--target", target, "--epochs", epochs]
        done = subprocess.run(
            [*command, "--plot", f"{directory}/digits.png"], stdout=subprocess.PIPE, text=True, check=False
        )
    print(f"```text\n{done.stdout.strip()}\n```")
    return done.returncode == 0


def card(target: str, quick: bool) -> bool:
    """A multilayer perceptron whose parameters and gradients are on the card, beside torch's fused optimizer there."""
    place = torch_device("cuda").type
    width, layers, rounds = (8, 2, 2) if quick else (1024, 8, 15)
    trainings: dict[str, tuple[torch.nn.Sequential, torch.optim.Optimizer]] = {}
    with connect(target) as server:
        for name in ("torch fused", "RemoteOptimizer", "RemoteOptimizer, overlap"):
            torch.manual_seed(0)
            parts = [part for _ in range(layers) for part in (torch.nn.Linear(width, width), torch.nn.Tanh())]
            model = torch.nn.Sequential(*parts).to(place)
            optimizer: torch.optim.Optimizer
            if name == "torch fused":
                optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, eps=1e-4, amsgrad=True, fused=True)
            else:
                preset = TorchAdam(lr=1e-4, eps=1e-4, amsgrad=True)
                overlap = name.endswith("overlap")
                optimizer = RemoteOptimizer(
                    model.parameters(), preset, target=server, run=f"card-{overlap}", overlap=overlap
                )
            trainings[name] = model, optimizer
        inputs = torch.randn(width, width, device=place)

        def iteration(model: torch.nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
            if place == "cuda":
                torch.cuda.synchronize()

        contenders = {name: timed(functools.partial(iteration, *pair)) for name, pair in trainings.items()}
        timings = interleave(contenders, rounds, warm_up=2)
        theirs = _values(trainings["torch fused"][0])
        differences = {name: float((_values(model) - theirs).abs().max()) for name, (model, _) in trainings.items()}
    count = theirs.numel()
    print(f"{count:,} float32 parameters on {place}, {rounds} interleaved rounds of forward, backward and step\n")
    rows = [[name, timing.milliseconds(), f"{differences[name]:.1e}"] for name, timing in timings.items()]
    print(table(("one iteration", "median [middle half]", "largest difference to torch"), rows))
    return all(difference < 1e-5 for difference in differences.values())


def _values(model: torch.nn.Module) -> Any:
    return torch.cat([param.detach().flatten().cpu() for param in model.parameters()])


def main() -> int:
    ways = {"synthetic": synthetic, "digits": digits, "card": card}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=ways, nargs="+")
    parser.add_argument("--quick", action="store_true", help="sizes for the simulator: shows that it works")
    options = parser.parse_args()
    child = Child([*SERVE, "--listen", "127.0.0.1:0", "--device", "cuda"])
    try:
        same = all(ways[what](child.said["addresses"][0], options.quick) for what in options.what)
    finally:
        child.close()
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
