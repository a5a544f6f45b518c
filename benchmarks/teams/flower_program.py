"""Flower's side of `flower_team`: its server or one of its clients. Runs where flwr is, and loads nothing of ours."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from typing import Any

import numpy as np
from flwr.client import NumPyClient, start_client
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerConfig, start_server
from flwr.server.strategy import FedAdam

from benchmarks.child import leave_with_parent
from benchmarks.teams.member import answers
from benchmarks.teams.task import BETAS, EPS, LR, TURNS, Array, Task


class PacedFedAdam(FedAdam):  # type: ignore[misc]
    """Begins a round when the parent has asked for it.

    FedAdam's correction of the bias takes the number of the round to be one more than it is: it is given one less, so
    that its steps are Adam's.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(
            fraction_evaluate=0.0,
            min_fit_clients=task.workers,
            min_available_clients=task.workers,
            initial_parameters=ndarrays_to_parameters([task.parameters()]),
            eta=LR,
            beta_1=BETAS[0],
            beta_2=BETAS[1],
            tau=EPS,
        )
        self._parent = answers()
        self._left = 0
        self._asked = False

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        client_manager.wait_for(self.min_available_clients)
        if self._asked and not self._left:
            self._answer()
        while not self._left:
            line = sys.stdin.readline()
            if not line:
                os._exit(0)  # the parent has ended
            request = json.loads(line)
            if "save" in request:
                np.save(request["save"], self.current_weights[0])
                self._answer()
            else:
                self._left, self._asked = request["rounds"], True
        self._left -= 1
        return super().configure_fit(server_round, parameters, client_manager)

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        if failures:
            logging.error("a client failed: %s", failures)
            os._exit(1)
        return super().aggregate_fit(server_round - 1, results, failures)

    def say_ready(self) -> None:
        """The parent may start clients."""
        self._answer()

    def _answer(self) -> None:
        print("null", file=self._parent, flush=True)


class Worker(NumPyClient):  # type: ignore[misc]
    """A step of the client's is to subtract a gradient, with a model of float32."""

    def __init__(self, task: Task, rank: int) -> None:
        self._gradients = task.gradients(rank)
        self._done = 0

    def fit(self, parameters: list[Array], config: Any) -> Any:
        gradient = self._gradients[self._done % TURNS]
        self._done += 1
        return [parameters[0].astype(np.float32, copy=False) - gradient], 1, {}


def main() -> None:
    task, address, role = Task.from_text(sys.argv[1]), sys.argv[2], sys.argv[3]
    logging.getLogger("flwr").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", DeprecationWarning)
    if role == "server":
        strategy = PacedFedAdam(task)
        strategy.say_ready()
        start_server(server_address=address, config=ServerConfig(num_rounds=10**9), strategy=strategy)
    else:
        parent = answers()
        leave_with_parent()
        worker = Worker(task, int(sys.argv[4]))
        print("null", file=parent, flush=True)
        start_client(server_address=address, client=worker.to_client())


if __name__ == "__main__":
    main()
