"""A small network learns scikit-learn's digits twice, side by side: with torch's optimizer here, and with a remote one.

Same weights at the start, same batches, and one line differs: the one that makes the optimizer (``make_optimizers``).
The losses are then the same to rounding; the exit code is 1 if they are not.
"""

from __future__ import annotations

import argparse
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import numpy.typing as npt
from example_arguments import parser_of, positive, with_room

try:
    import torch
    from digits import LR, TRAINING_PICTURES, Digits, make_model

    from gradwire.client.torch import RemoteOptimizer
except ImportError as missing:
    sys.exit(f"error: {missing}; pip install 'gradwire[examples]' brings what this example needs")
from torch import nn

from gradwire.client import GradwireError, Server, TorchAdam, connect

ROUNDINGS = 16
"""Losses may differ by so many roundings. torch's own kernels, fused or not, differ by 2 over 500 steps of this."""

LOCAL_LINE = f"torch.optim.Adam(model.parameters(), lr={LR}, amsgrad=True)"
REMOTE_LINE = f"RemoteOptimizer(model.parameters(), TorchAdam(lr={LR}, amsgrad=True), ...)"

Losses = dict[str, list[float]]


def make_optimizers(
    local: nn.Module, remote: nn.Module, server: Server, run: str, overlap: bool
) -> dict[str, torch.optim.Optimizer]:
    """The line that a user changes."""
    return {
        "local": torch.optim.Adam(local.parameters(), lr=LR, amsgrad=True),
        "remote": RemoteOptimizer(
            remote.parameters(), TorchAdam(lr=LR, amsgrad=True), target=server, run=run, overlap=overlap
        ),
    }


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor) -> float:
    """As in any training script. Returns the loss before the step."""
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


def train(server: Server, options: argparse.Namespace) -> tuple[Losses, dict[str, float]]:
    """Trains both; their losses, one a step, and their accuracies at the end."""
    digits = Digits(options.seed)
    models = {"local": make_model(options.seed), "remote": make_model(options.seed)}
    run = f"digits-{uuid.uuid4().hex[:12]}"
    optimizers = make_optimizers(models["local"], models["remote"], server, run, options.overlap)
    losses: Losses = {"local": [], "remote": []}
    seconds = {"local": 0.0, "remote": 0.0}
    print(f"local:  {LOCAL_LINE}\nremote: {REMOTE_LINE}\n")
    print("epoch  loss, local  loss, remote  largest difference")
    try:
        for epoch in range(1, options.epochs + 1):
            first = len(losses["local"])
            for images, labels in digits.batches():
                for which, model in models.items():
                    started = time.perf_counter()
                    losses[which].append(train_step(model, optimizers[which], images, labels))
                    seconds[which] += time.perf_counter() - started
            local, remote = (np.array(losses[which][first:]) for which in ("local", "remote"))
            print(f"{epoch:>5} {local.mean():>12.6f} {remote.mean():>13.6f} {np.abs(remote - local).max():>19.1e}")
    finally:
        server.delete_run(run)
    for which, each in losses.items():
        print(f"{which + ':':<7} {len(each) / seconds[which]:,.0f} steps/s")
    return losses, {which: digits.accuracy(model) for which, model in models.items()}


def differences(losses: Losses) -> npt.NDArray[np.float64]:
    """Remote minus local, in units of one rounding of the loss (of 1, where it is below 1)."""
    local, remote = np.array(losses["local"]), np.array(losses["remote"])
    difference: npt.NDArray[np.float64] = (remote - local) / (np.finfo(np.float32).eps * np.maximum(local, 1))
    return difference


def draw(losses: Losses, accuracies: dict[str, float], path: Path) -> None:
    """The two curves, and their difference below. Raises ImportError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    steps = np.arange(1, len(losses["local"]) + 1)
    styles = {
        "local": {"color": "#edae49", "linewidth": 5, "label": LOCAL_LINE},
        "remote": {"color": "#00798c", "linewidth": 1.2, "label": REMOTE_LINE},
    }
    for which, style in styles.items():
        style["label"] = f"{which}: {style['label']}\ntest accuracy {accuracies[which]:.2%}"
        above.plot(steps, losses[which], **style)
    above.set_yscale("log")
    above.set_title("training loss of each step", loc="left", fontsize=11)
    above.set_ylim(top=2.5 * max(losses["local"]))  # room for the legend, where a falling loss leaves more of it
    above.legend(frameon=False, fontsize=9, loc="upper right")
    below.plot(steps, differences(losses), color="#d1495b", linewidth=1)
    below.set_title("remote - local, in roundings of float32 (1.2e-7)", loc="left", fontsize=11)
    below.set_xlabel("step")
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main() -> None:
    options = parse_arguments()
    try:
        with connect(options.target) as server:
            print(f"optimizer server: {server.origin}", file=sys.stderr)
            losses, accuracies = train(server, options)
    except (GradwireError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(", ".join(f"test accuracy, {which}: {accuracy:.2%}" for which, accuracy in accuracies.items()))
    try:
        draw(losses, accuracies, options.plot)
        print(f"wrote {options.plot}")
    except ImportError:
        print("no picture: matplotlib is not installed (pip install 'gradwire[plot]')", file=sys.stderr)
    largest = np.abs(differences(losses)).max()
    if not largest <= ROUNDINGS:  # NaN is no equality either
        sys.exit(f"error: the losses differ by {largest:.0f} roundings; expected at most {ROUNDINGS}")
    print(f"the losses are the same: they differ by {largest:.1f} roundings of float32 at most")


def parse_arguments() -> argparse.Namespace:
    parser = parser_of(
        "The same network on scikit-learn's digits, with a local and a remote optimizer.", "out/digits.png"
    )
    parser.add_argument("--epochs", type=positive, default=20, help=f"of {TRAINING_PICTURES} pictures")
    parser.add_argument("--overlap", action="store_true", help="send gradients while the backward pass goes on")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the batches")
    return with_room(parser, parser.parse_args())


if __name__ == "__main__":
    main()
