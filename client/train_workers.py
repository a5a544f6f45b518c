"""A small network learns scikit-learn's digits on 1, 2, 4 and 8 worker processes, which share one run.

Each process computes the gradients of its part of each batch; ``run.step(grads, weight=...)`` returns when the round
has closed that they all were part of. So the losses are the same, to rounding, however many there are; the exit code is
1 if they are not. A last training goes on while one worker is killed and another one joins. What a worker does stands
in ``workers_training.py``.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import uuid
from contextlib import suppress

import numpy as np
from example_arguments import parser_of, with_room
from workers_crew import Crew, Events, Training, WorkerFailed
from workers_plan import Plan
from workers_report import HEAD, differences, draw, row

from gradwire.client import GradwireError, RunNotFound, Server, connect

ROUNDINGS = 16
"""Losses may differ by so many roundings: torch adds up other numbers of pictures, and each step carries that on. They
differ by less than 2 over 230 rounds of this."""
LEAST_ROUNDS = 9
MOST_WORKERS = 16
"""Each has at least one picture of the smallest batch then."""


def train(server: Server, options: argparse.Namespace, workers: int, events: Events | None = None) -> Training:
    """One training, on a run of its own. Raises WorkerFailed, and ValueError for a round that somebody has missed."""
    plan = Plan(server.target, f"workers-{uuid.uuid4().hex[:12]}", workers, options.rounds, options.seed)
    try:
        with Crew(plan, events) as crew:
            training = crew.listen()
    finally:
        with suppress(RunNotFound):
            server.delete_run(plan.run)
    check(training)
    return training


def expected_contributors(training: Training) -> list[int]:
    """Of each round."""
    plan, events = training.plan, training.events
    if events is None:
        return [plan.workers] * plan.rounds
    without = range(events.killed_after, events.joins_after)
    return [plan.workers - (step in without) for step in range(plan.rounds)]


def check(training: Training) -> None:
    """Raises ValueError where somebody was missing, or was there in vain."""
    for each in training.contributions:
        if each.outcome != "accepted":
            raise ValueError(f"a contribution of {each.worker_id} was {each.outcome}; expected all to be accepted")
    found = training.contributors.tolist()
    for number, (there, expected) in enumerate(zip(found, expected_contributors(training), strict=True), 1):
        if there != expected:
            raise ValueError(f"round {number} of {training.plan.workers} workers had {there}; expected {expected}")


def run_all(server: Server, options: argparse.Namespace) -> tuple[list[Training], Training]:
    """All trainings, each told of when it is done: those in which nothing happens, and one in which something does."""
    print(HEAD)
    calm: list[Training] = []
    for workers in options.workers:
        calm.append(train(server, options, workers))
        print(row(calm[-1], calm[0]), flush=True)
    most, third = max(options.workers), options.rounds // 3
    events = Events(killed=max(most * 2 // 3, 1), killed_after=third, joins_after=2 * third)
    eventful = train(server, options, most, events)
    print(f"{row(eventful, calm[0])}  rank-{events.killed} killed, rank-{most} joins late")
    waited = max(each.seconds for each in eventful.contributions if each.round == third + 1)
    print(f"round {third + 1} waited {waited:.1f} s for rank-{events.killed}, which was dead, and closed without it")
    return calm, eventful


def main() -> None:
    options = parse_arguments()
    for module in ("torch", "sklearn"):  # for the workers; looked for here, so that this is said once
        if importlib.util.find_spec(module) is None:
            sys.exit(
                f"error: no module named {module!r}; pip install 'gradwire[examples]' brings what this example needs"
            )
    try:
        with connect(options.target) as server:
            print(f"optimizer server: {server.origin}", file=sys.stderr)
            calm, eventful = run_all(server, options)
    except (GradwireError, ValueError, WorkerFailed) as error:
        sys.exit(f"error: {error}")
    try:
        draw(calm, eventful, options.plot)
        print(f"wrote {options.plot}")
    except ImportError:
        print("no picture: matplotlib is not installed (pip install 'gradwire[plot]')", file=sys.stderr)
    largest = max(np.abs(differences(each.losses, calm[0].losses)).max() for each in calm)
    if not largest <= ROUNDINGS:  # NaN is no equality either
        sys.exit(f"error: the losses differ by {largest:.0f} roundings; expected at most {ROUNDINGS}")
    print(f"the losses are the same: they differ by {largest:.1f} roundings of float32 at most")


def parse_arguments() -> argparse.Namespace:
    parser = parser_of(
        "The same network on scikit-learn's digits, trained by several numbers of worker processes.", "out/workers.png"
    )
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8],
        help="numbers of processes; the largest dies and is replaced, too",
    )
    parser.add_argument("--rounds", type=int, default=230, help="of a batch each; 23 are an epoch")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the batches")
    options = parser.parse_args()
    if options.rounds < LEAST_ROUNDS:
        parser.error(f"argument --rounds: {options.rounds}: expected {LEAST_ROUNDS} or more")
    if min(options.workers) < 1 or not 2 <= max(options.workers) <= MOST_WORKERS:
        parser.error(f"argument --workers: expected numbers from 1 to {MOST_WORKERS}, one of them 2 or more")
    return with_room(parser, options)


if __name__ == "__main__":
    main()
