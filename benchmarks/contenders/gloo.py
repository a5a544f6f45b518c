"""gloo by hand: `torch.distributed.send` and `recv`, a tensor a message, all of a direction under way at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store, TCPStore

from benchmarks.child import Child, leave_with_parent, ready
from benchmarks.contenders.problem import Array, Contender, Problem
from benchmarks.contenders.torch_server import TorchServer

SERVER, CLIENT = 0, 1


class Gloo(Contender):
    def __init__(self, problem: Problem) -> None:
        self._child = Child(["-m", __spec__.name, problem.to_text()], threads=problem.threads)
        _join(CLIENT, TCPStore("127.0.0.1", self._child.said, 2))
        self._params = [torch.from_numpy(array) for array in problem.parameters()]

    def step(self, gradients: Sequence[Array]) -> Sequence[Array]:
        sending = [dist.isend(torch.from_numpy(array), SERVER, tag=tag) for tag, array in enumerate(gradients)]
        receiving = [dist.irecv(param, SERVER, tag=tag) for tag, param in enumerate(self._params)]
        _wait(sending)
        _wait(receiving)
        return [param.numpy() for param in self._params]

    def close(self) -> None:
        self._child.close()
        dist.destroy_process_group()


def _join(rank: int, store: Store) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)


def _wait(requests: Sequence[dist.Work | None]) -> None:
    for request in requests:
        assert request is not None
        request.wait()


def _serve(problem: Problem) -> None:
    optimizer = TorchServer(problem)
    gradients = [torch.empty(problem.size) for _ in range(problem.tensors)]
    store = TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    leave_with_parent()
    ready(store.port)
    _join(SERVER, store)
    while True:
        _wait([dist.irecv(gradient, CLIENT, tag=tag) for tag, gradient in enumerate(gradients)])
        _wait([dist.isend(value, CLIENT, tag=tag) for tag, value in enumerate(optimizer.step(gradients))])


if __name__ == "__main__":
    _serve(Problem.from_text(sys.argv[1]))
