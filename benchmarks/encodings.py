"""What the encodings save and what they cost: bytes per step, and training beside float32, which is exact.

python benchmarks/encodings.py [--quick] [--out FILE]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from sklearn.datasets import load_digits

from benchmarks.measure import describe, machine, save, table, three_digits
from benchmarks.resnet import NoisyBowl, resnet50
from gradwire.client import Receipt, Run, Server, TorchAdam, connect

PAIRS = [
    ("float32", "float32"),
    ("bfloat16", "bfloat16"),
    ("float16", "float16"),
    ("int8", "float32"),
    ("float32", "int8"),
    ("int8", "int8"),
]
"""Encodings of the gradients and of the parameters."""

EXACT = PAIRS[0]


@dataclass(frozen=True)
class Wire:
    """What one step sends, and how long it takes here."""

    up: int
    down: int
    seconds: float

    @staticmethod
    def of(receipt: Receipt | None, seconds: list[float]) -> Wire:
        """From the last receipt and the times of all steps."""
        assert receipt is not None
        return Wire(receipt.received_bytes, receipt.sent_bytes, statistics.median(seconds))

    def texts(self, exact: Wire) -> list[str]:
        return [
            f"{self.up:,}",
            f"{self.down:,}",
            f"{(self.up + self.down) / (exact.up + exact.down):.3f}",
            f"{three_digits(1e3 * self.seconds)} ms",
        ]


WIRE_COLUMNS = ("bytes up", "bytes down", "x float32", "median step")


# --- the digits ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """One network, trained: on the training pictures, and on those that it has not seen."""

    loss: float
    accuracy: float
    wire: Wire


def train_digits(server: Server, pair: tuple[str, str], seed: int, steps: int) -> Trained:
    """A perceptron of 64, 32 and 10 units on scikit-learn's digits; the seed draws its start and the batches."""
    bunch: Any = load_digits()
    images, labels = torch.from_numpy(bunch.data.astype(np.float32) / 16), torch.from_numpy(bunch.target)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    seen, unseen = order[:1400], order[1400:]
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    parameters = dict(model.named_parameters())
    random = np.random.default_rng(seed)
    seconds = []
    with _run(server, f"digits-{'-'.join(pair)}-{seed}", _arrays(parameters), pair, lr=3e-3) as run:
        for _ in range(steps):
            chosen = seen[torch.from_numpy(random.integers(0, len(seen), 128))]
            model.zero_grad()
            torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            gradients = {name: parameter.grad for name, parameter in parameters.items()}
            start = time.perf_counter()
            run.step(gradients)
            seconds.append(time.perf_counter() - start)
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(torch.from_numpy(run.params[name]))
        wire = Wire.of(run.last_receipt, seconds)
        _load(parameters, run.read())  # the server's, which is what training has made
    server.delete_run(run.name)
    with torch.no_grad():
        loss = float(torch.nn.functional.cross_entropy(model(images[seen]), labels[seen]))
        accuracy = float((model(images[unseen]).argmax(1) == labels[unseen]).double().mean())
    return Trained(loss, accuracy, wire)


def _arrays(parameters: dict[str, torch.nn.Parameter]) -> dict[str, Any]:
    return {name: parameter.detach().numpy() for name, parameter in parameters.items()}


def _load(parameters: dict[str, torch.nn.Parameter], values: dict[str, Any]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(values[name]))


def digits_report(results: dict[tuple[str, str], list[Trained]]) -> tuple[str, dict[str, Any]]:
    exact = results[EXACT]
    rows, report = [], {}
    for pair, trained in results.items():
        losses = [one.loss for one in trained]
        apart = [one.loss / theirs.loss - 1 for one, theirs in zip(trained, exact, strict=True)]
        accuracies = [one.accuracy for one in trained]
        rows.append(
            [
                _name(pair),
                *trained[0].wire.texts(exact[0].wire)[:3],
                f"{statistics.mean(losses):.4f} [{min(losses):.4f} .. {max(losses):.4f}]",
                f"{100 * statistics.mean(apart):+.2f}% [{100 * min(apart):+.2f} .. {100 * max(apart):+.2f}]",
                f"{100 * statistics.mean(accuracies):.2f}%",
            ]
        )
        report[_name(pair)] = {
            "losses": losses,
            "accuracies": accuracies,
            "bytes_up": trained[0].wire.up,
            "bytes_down": trained[0].wire.down,
        }
    columns = ("gradients / parameters", *WIRE_COLUMNS[:3], "loss [range]", "to float32's of the same seed", "accuracy")
    return table(columns, rows), report


# --- a ResNet-sized vector -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Descended:
    """How far a run has come down the bowl."""

    loss: float
    params: dict[str, Any]
    copy_error: float
    """Distance of the worker's copy from the server's parameters, in units of the last step's length."""
    wire: Wire


def descend(server: Server, problem: NoisyBowl, pair: tuple[str, str], steps: int) -> Descended:
    seconds, before = [], problem.start()
    with _run(server, f"bowl-{'-'.join(pair)}", before, pair, lr=2e-2) as run:
        for step in range(steps):
            gradients = problem.gradients(run.params, step)
            if step == steps - 1:
                before = run.read()
            start = time.perf_counter()
            run.step(gradients)
            seconds.append(time.perf_counter() - start)
        params = run.read()
        copy_error = _distance(run.params, params) / _distance(params, before)
        wire = Wire.of(run.last_receipt, seconds)
    server.delete_run(run.name)
    return Descended(problem.loss(params), params, copy_error, wire)


def bowl_row(pair: tuple[str, str], found: Descended, exact: Descended, start: dict[str, Any]) -> list[str]:
    return [
        _name(pair),
        *found.wire.texts(exact.wire),
        f"{found.loss:.5f}",
        f"{100 * (found.loss / exact.loss - 1):+.3f}%",
        f"{_distance(found.params, exact.params) / _distance(exact.params, start):.2e}",
        f"{found.copy_error:.2e}",
    ]


BOWL_COLUMNS = (
    "gradients / parameters",
    *WIRE_COLUMNS,
    "loss",
    "to float32",
    "away from float32, of the way gone",
    "copy's error, of a step",
)


def _distance(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    return float(np.sqrt(sum(float(np.square(ours[name] - theirs[name]).sum(dtype=np.float64)) for name in ours)))


# --- both ------------------------------------------------------------------------------------------------------------


def _run(server: Server, name: str, params: dict[str, Any], pair: tuple[str, str], lr: float) -> Run:
    return server.create_run(
        name, params, TorchAdam(lr=lr, amsgrad=True), gradient_encoding=pair[0], parameter_encoding=pair[1]
    )


def _name(pair: tuple[str, str]) -> str:
    return pair[0] if pair[0] == pair[1] else f"{pair[0]} / {pair[1]}"


def main() -> int:
    options = _options()
    about = machine()
    print(describe(about), end="\n\n")
    shapes = dict(list(resnet50().items())[: options.tensors])
    problem = NoisyBowl(shapes)
    with connect("embedded") as server:
        digits = {
            pair: [train_digits(server, pair, seed, options.digits_steps) for seed in range(options.seeds)]
            for pair in PAIRS
        }
        text, digits_figures = digits_report(digits)
        print(
            f"digits: a perceptron, {options.digits_steps} AMSGrad steps, {options.seeds} seeds\n\n{text}\n", flush=True
        )
        start = problem.start()
        exact, rows, bowl_figures = None, [], {}
        for pair in PAIRS:
            found = descend(server, problem, pair, options.steps)
            exact = exact or found
            rows.append(bowl_row(pair, found, exact, start))
            bowl_figures[_name(pair)] = {
                "loss": found.loss,
                "copy_error": found.copy_error,
                "bytes_up": found.wire.up,
                "bytes_down": found.wire.down,
                "median_step_seconds": found.wire.seconds,
            }
    first = problem.loss(start)
    print(
        f"ResNet-50's {len(shapes)} tensors, {problem.elements:,} elements, random problem, {options.steps} steps, "
        f"loss {first:.5f} at the start\n\n{table(BOWL_COLUMNS, rows)}\n"
    )
    report = {"benchmark": "encodings", "machine": about, "digits": digits_figures, "bowl": bowl_figures}
    save(options.out, report)
    learned = min(one.accuracy for trained in digits.values() for one in trained) > 0.9 or options.quick
    came_down = all(figures["loss"] < 0.9 * first for figures in bowl_figures.values())
    print("all of them learn" if learned and came_down else "ONE OF THEM DOES NOT LEARN")
    return 0 if learned and came_down else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, help="of the digits (default: 5)")
    parser.add_argument("--steps", type=int, help="of the long vector (default: 20)")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, measures nothing")
    parser.add_argument("--out", type=Path, help="write all figures to this file, as JSON")
    options = parser.parse_args()
    seeds, steps, options.digits_steps, options.tensors = (1, 8, 40, 30) if options.quick else (5, 20, 600, None)
    options.seeds = options.seeds or seeds
    options.steps = options.steps or steps
    return options


if __name__ == "__main__":
    sys.exit(main())
