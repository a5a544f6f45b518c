"""FedAMSGrad against FedAvg: fifty clients with two digits each train one model, and no picture leaves its client.

In each round ten of them, drawn at random, attach, train for some epochs on what they have and contribute what that has
changed (``take_part``); the server combines the ten and takes its step. The two differ in the optimizer on the server:
FedAvg is ``SGD(lr=1)`` (McMahan et al. 2017), FedAMSGrad AMSGrad with ``tau`` (Reddi et al. 2021; Wang, Lin and Chen
2022). No torch. Clients are threads here; they might as well be phones.
"""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from example_arguments import parser_of, positive, with_room

try:
    from federated_clients import Client, new_params, split
except ImportError as missing:
    sys.exit(f"error: {missing}; pip install 'gradwire[server,plot]' scikit-learn brings what this example needs")
from federated_report import Accuracies, draw, last_rounds, table

from gradwire.client import SGD, FedAMSGrad, GradwireError, Optimizer, Receipt, Server, Shared, connect

CLIENTS = 50
PARTICIPANTS = 10
TAU = 1e-3
"""As in the paper, whose experiments found it good almost everywhere. betas are the paper's, too: (0.9, 0.99)."""
LOCAL_RATES = (0.1, 0.3, 1.0, 3.0, 10.0)
SERVER_RATES = (0.1, 0.3, 1.0, 3.0)
TUNING_SEED = 1000
"""Learning rates are chosen on other splits than those that are drawn."""


@dataclass(frozen=True)
class Trial:
    """An optimizer on the server, and the learning rate of its clients."""

    name: str
    local_lr: float
    lr: float
    """The server's."""

    @property
    def optimizer(self) -> Optimizer:
        return SGD(lr=self.lr) if self.name == "FedAvg" else FedAMSGrad(lr=self.lr, tau=TAU)

    def __str__(self) -> str:
        fedavg, fedamsgrad = f"FedAvg, SGD(lr={self.lr:g})", f"FedAMSGrad(lr={self.lr:g}, tau={TAU:g})"
        return f"{fedavg if self.name == 'FedAvg' else fedamsgrad}, clients' lr {self.local_lr:g}"


TUNED = (Trial("FedAvg", 1.0, 1.0), Trial("FedAMSGrad", 0.3, 1.0))
"""The best of ``--tune --seeds 2``, which tries 5 pairs of rates for FedAvg and 20 for FedAMSGrad."""


def take_part(server: Server, run: str, client: Client, lr: float, seed: tuple[int, ...]) -> Receipt:
    """One client in one round. It leaves at the end, so that nobody waits for it in the rounds of others."""
    with server.attach(run, worker_id=client.name) as attached:
        local_params = client.train(attached.params, lr, seed)
        return attached.contribute_delta(local_params, weight=len(client.pictures))


def train(server: Server, trial: Trial, seed: int, rounds: int, *, validation: bool = False) -> list[float]:
    """Accuracy after each round. Raises ValueError where a contribution was not applied in its round."""
    clients, held_out = split(seed, CLIENTS, validation=validation)
    name = f"federated-{uuid.uuid4().hex[:12]}"
    run = server.create_run(name, new_params(), trial.optimizer, workers=Shared(quorum=PARTICIPANTS))
    run.close()  # who has made it takes no part; values can be read all the same
    random = np.random.default_rng(seed)
    accuracies = []
    try:
        with ThreadPoolExecutor(PARTICIPANTS) as pool:
            for number in range(1, rounds + 1):
                chosen = random.choice(CLIENTS, PARTICIPANTS, replace=False).tolist()
                parts = [
                    pool.submit(take_part, server, name, clients[n], trial.local_lr, (seed, number, n)) for n in chosen
                ]
                for part in parts:
                    check(part.result(), number)
                accuracies.append(held_out.accuracy(run.read()))
    finally:
        server.delete_run(name)
    return accuracies


def check(receipt: Receipt, number: int) -> None:
    """Raises ValueError."""
    found = (receipt.outcome, receipt.round, receipt.contributors)
    if found != ("accepted", number, PARTICIPANTS):
        raise ValueError(f"a contribution was {found[0]}, in round {found[1]} of {found[2]}; expected round {number}")


def several(server: Server, trial: Trial, options: argparse.Namespace, *, validation: bool = False) -> Accuracies:
    """Of several splits of the pictures."""
    first = TUNING_SEED if validation else 0
    seeds = range(first, first + options.seeds)
    return np.array([train(server, trial, seed, options.rounds, validation=validation) for seed in seeds])


def trials() -> Iterator[Trial]:
    """All that `--tune` tries."""
    for local_lr in LOCAL_RATES:
        yield Trial("FedAvg", local_lr, 1.0)
    for local_lr in LOCAL_RATES:
        for lr in SERVER_RATES:
            yield Trial("FedAMSGrad", local_lr, lr)


def tune(server: Server, options: argparse.Namespace) -> None:
    """Tries all learning rates on pictures that belong neither to the test nor to a client."""
    best: dict[str, tuple[float, Trial]] = {}
    for trial in trials():
        accuracy = last_rounds(several(server, trial, options, validation=True))
        print(f"{accuracy:.2%}  {trial}", flush=True)
        best[trial.name] = max(best.get(trial.name, (0.0, trial)), (accuracy, trial), key=lambda found: found[0])
    for accuracy, trial in best.values():
        print(f"best: {accuracy:.2%}  {trial}")


def compare(server: Server, options: argparse.Namespace) -> None:
    """Trains both, and shows what came of it."""
    found = {trial.name: several(server, trial, options) for trial in TUNED}
    print(table(found))
    labels = {trial.name: f"{trial}\nlast rounds {last_rounds(found[trial.name]):.1%}" for trial in TUNED}
    title = f"test accuracy; {PARTICIPANTS} of {CLIENTS} clients a round, two digits each"
    try:
        draw(found, labels, f"{title}; mean and range of {options.seeds} splits", options.plot)
        print(f"wrote {options.plot}")
    except ImportError:
        print("no picture: matplotlib is not installed (pip install 'gradwire[plot]')", file=sys.stderr)


def main() -> None:
    options = parse_arguments()
    try:
        with connect(options.target) as server:
            print(f"optimizer server: {server.origin}", file=sys.stderr)
            (tune if options.tune else compare)(server, options)
    except (GradwireError, ValueError) as error:
        sys.exit(f"error: {error}")


def parse_arguments() -> argparse.Namespace:
    parser = parser_of(
        "FedAMSGrad against FedAvg on scikit-learn's digits, over clients that have two digits each.",
        "out/federated.png",
    )
    parser.add_argument("--rounds", type=positive, default=100, help=f"of {PARTICIPANTS} clients each")
    parser.add_argument("--seeds", type=positive, default=3, help="splits of the pictures among clients and test")
    parser.add_argument("--tune", action="store_true", help="try learning rates, on other splits, without their test")
    return with_room(parser, parser.parse_args())


if __name__ == "__main__":
    main()
