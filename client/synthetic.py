"""The experiment in which Adam converges to the wrong end and AMSGrad does not, with the optimizer on a server.

``f_t(x) = 1010 x`` when ``t % 101 == 1`` (stochastic variant: with probability 0.01), else ``-10 x``, for x in [-1, 1].
The optimum of the sum is x = -1; regret counts ``f_t(x_t) - f_t(-1)``. Source: Reddi, Kale and Kumar, "On the
Convergence of Adam and Beyond" (2018), section 3, as ``labml_nn.optimizers.amsgrad`` runs it: t from 0.

The gradient does not depend on x, so steps may travel in blocks without changing a bit of the result.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import numpy.typing as npt
from synthetic_progress import Interrupted, Notes
from synthetic_report import Progress, Result, Track, write_report

from gradwire.client import (
    SGD,
    Adagrad,
    Adam,
    AMSGrad,
    FedAdagrad,
    FedAdam,
    FedAMSGrad,
    FedYogi,
    GradwireError,
    Optimizer,
    RunNotFound,
    Server,
    Yogi,
    connect,
)

BOTH = ("adam", "amsgrad")
OPTIMIZERS: dict[str, Optimizer] = {
    "adam": Adam(betas=(0.9, 0.99)),
    "amsgrad": AMSGrad(betas=(0.9, 0.99)),
    "sgd": SGD(),
    "adagrad": Adagrad(),
    "yogi": Yogi(betas=(0.9, 0.99)),
    "fedadam": FedAdam(),
    "fedyogi": FedYogi(),
    "fedadagrad": FedAdagrad(),
    "fedamsgrad": FedAMSGrad(),
}
SERIES = ("x", "loss", "average_regret")
"""What is logged: the columns of `Track.rows`."""

SLOPES_AT_ONCE = 10_000
"""Are made where each goes alone."""

RATES = {"constant": 1e-2, "inverse-sqrt": 0.5}


def slopes(variant: str, seed: int, steps: int, block: int) -> Iterator[npt.NDArray[np.float32]]:
    """The gradients of f_0 .. f_(steps-1), ``block`` at a time; how they are cut does not change them."""
    random = np.random.default_rng(seed)
    for start in range(0, steps, block):
        count = min(block, steps - start)
        steep = random.random(count) < 0.01 if variant == "stochastic" else np.arange(start, start + count) % 101 == 1
        yield np.where(steep, np.float32(1010), np.float32(-10))


def experiment(
    server: Server, optimizer: str, schedule: str, options: argparse.Namespace, stop: Callable[[], bool]
) -> tuple[Result, Track]:
    """Runs one optimizer with one schedule until its steps are done or ``stop()``."""
    choice = OPTIMIZERS[optimizer].replace({"lr": RATES[schedule], "schedule": schedule, "bounds": (-1, 1)})
    track = Track(optimizer, schedule, options.steps)
    settings = {key: getattr(options, key) for key in ("steps", "block", "variant", "seed")}
    prefix = options.keep or f"synthetic-{uuid.uuid4().hex[:12]}"
    settings |= {"optimizer": optimizer, "schedule": schedule, "run": f"{prefix}-{optimizer}-{schedule}"}
    with Notes(options.out / f"progress-{optimizer}-{schedule}.jsonl", settings, track, resume=options.resume) as notes:
        seconds = notes.seconds
        if track.steps < options.steps:
            seconds += train(server, choice, notes, track, options, stop)
        if track.steps == options.steps and not options.keep:
            with contextlib.suppress(RunNotFound):  # an earlier process may have come so far
                server.delete_run(notes.settings["run"])
    return Result(optimizer, schedule, options.variant, track.steps, track.x, track.average_regret, seconds), track


def train(
    server: Server, choice: Optimizer, notes: Notes, track: Track, options: argparse.Namespace, stop: Callable[[], bool]
) -> float:
    """Takes the steps that are left, and returns how many seconds that took."""
    name = notes.settings["run"]
    if notes.resumed and track.steps:
        # The server may have applied one block more than we have noted. Its result is still there.
        run = server.attach(name, worker_id="synthetic", last_sequence=notes.last_sequence)
    else:
        run = server.create_run(
            name, {"x": np.zeros((), np.float32)}, choice, on_existing="replace", worker_id="synthetic"
        )
    started = time.perf_counter()
    alone = options.block == 1
    cut = slopes(options.variant, options.seed, options.steps, SLOPES_AT_ONCE if alone else options.block)
    blocks = itertools.chain.from_iterable(cut) if alone else cut
    with Progress(f"{track.optimizer}, {track.schedule}", options.steps) as progress:
        for gradient in itertools.islice(blocks, track.steps // options.block, None):
            if stop():
                break
            noted = len(track.rows)
            before = track.x  # the loss counts before the step
            if alone:
                run.step({"x": gradient})
                track.add_step(before, float(gradient), float(run.params["x"]))
            else:
                after = run.step_many({"x": gradient}, returns="trajectory")["x"]
                track.add(np.append(np.float32(before), after[:-1]), gradient, float(after[-1]))
            if len(track.rows) > noted:  # every 1,000th step: they go with the next block
                steps, *columns = np.array(track.rows[noted:]).T
                run.log(dict(zip(SERIES, columns, strict=True)), at=steps.astype(np.int64))
            notes.add(time.perf_counter() - started, run.last_sequence)
            progress.update(track.steps, track.x, track.average_regret)
    seconds = time.perf_counter() - started
    run.close()
    return seconds


def main() -> None:
    options = parse_arguments()
    stopped = False

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C does not wait

    signal.signal(signal.SIGINT, on_interrupt)
    choices = {"optimizer": list(BOTH), "schedule": list(RATES)}
    optimizers, schedules = (
        every if (one := getattr(options, key)) == "both" else [one] for key, every in choices.items()
    )
    done: list[tuple[Result, Track]] = []
    try:
        with connect(options.target) as server:
            print(f"optimizer server: {server.origin}", file=sys.stderr)
            for schedule, optimizer in itertools.product(schedules, optimizers):
                if not stopped:
                    result, track = experiment(server, optimizer, schedule, options, lambda: stopped)
                    if track.steps:
                        done.append((result, track))
    except (GradwireError, Interrupted, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
    if done:
        write_report(done, options.out)
    if stopped:
        what = "the results are those of the steps that were taken" if done else "before the first step"
        print(f"stopped early by Ctrl-C; {what}; --resume goes on where the server still has the run", file=sys.stderr)
    elif len(done) < len(optimizers) * len(schedules):
        sys.exit(1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Adam against AMSGrad on the synthetic problem of the AMSGrad paper, driven remotely.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--target",
        help="host:port, unix:PATH or 'embedded'; without it: $GRADWIRE_TARGET, else localhost:50051 if a gradwire "
        "server answers there, else embedded",
    )
    parser.add_argument("--steps", type=positive, default=10_000_000, help="steps of each run")
    parser.add_argument(
        "--optimizer", choices=[*OPTIMIZERS, "both"], default="both", help="what to run; both: Adam and AMSGrad"
    )
    parser.add_argument(
        "--schedule", choices=[*RATES, "both"], default="both", help="constant: lr 0.01; inverse-sqrt: lr 0.5/sqrt(t)"
    )
    parser.add_argument("--block", type=block_size, default=200_000, help="steps a message; 1: one round trip a step")
    parser.add_argument(
        "--variant", choices=["deterministic", "stochastic"], default="deterministic", help="when the slope is 1010"
    )
    parser.add_argument("--seed", type=natural, default=0, help="of the stochastic variant")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the interrupted experiment whose progress is in --out"
    )
    parser.add_argument(
        "--keep", metavar="NAME", help="leave the runs on the server, as NAME-OPTIMIZER-SCHEDULE, to be looked at there"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="directory for the results")
    options = parser.parse_args()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: {options.out} cannot be a directory for the results ({error.strerror})")
    return options


def natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value}: expected 0 or more")
    return value


def positive(text: str) -> int:
    value = int(text.replace("_", ""))
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected 1 or more")
    return value


def block_size(text: str) -> int:
    value = positive(text)
    if value > 2**20:
        raise argparse.ArgumentTypeError(f"{value}: expected at most {2**20}, so that a block fits one message")
    return value


if __name__ == "__main__":
    main()
