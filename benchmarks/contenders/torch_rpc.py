"""A parameter server of `torch.distributed.rpc`: one remote call a step, gradients as its arguments, parameters as its
result."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence

import torch
from torch.distributed import rpc

from benchmarks.child import STOP_TIMEOUT_SECONDS, Child, leave_with_parent, ready
from benchmarks.contenders import torch_rpc
from benchmarks.contenders.problem import Array, Contender, Problem
from benchmarks.contenders.torch_server import TorchServer

SERVER, CLIENT = "server", "client"
_optimizer: TorchServer | None = None
"""In the server's process."""


def remote_step(gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    """Called in the server's process."""
    assert _optimizer is not None
    return _optimizer.step(gradients)


class TorchRpc(Contender):
    def __init__(self, problem: Problem) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="benchmark-")  # both use a file in it until both have left
        meeting = f"{self._directory.name}/meeting"
        self._child = Child(["-m", __spec__.name, problem.to_text(), meeting], threads=problem.threads)
        _join(CLIENT, 1, meeting)

    def step(self, gradients: Sequence[Array]) -> Sequence[Array]:
        # By the name that this module has in both processes.
        values = rpc.rpc_sync(SERVER, torch_rpc.remote_step, args=([torch.from_numpy(array) for array in gradients],))
        return [value.numpy() for value in values]

    def close(self) -> None:
        self._child.let_go()  # both sides wait for each other
        rpc.shutdown()
        self._child.close()
        self._directory.cleanup()


def _join(name: str, rank: int, meeting: str) -> None:
    os.environ.update(TP_SOCKET_IFNAME="lo", GLOO_SOCKET_IFNAME="lo")
    options = rpc.TensorPipeRpcBackendOptions(init_method=f"file://{meeting}", num_worker_threads=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own use of torch.distributed
        rpc.init_rpc(name, rank=rank, world_size=2, rpc_backend_options=options)


def _end(ended: threading.Event) -> None:
    """Lets the server end in order, which takes its client too; it may have none any more."""
    ended.set()
    time.sleep(STOP_TIMEOUT_SECONDS)
    os._exit(1)


def serve(problem: Problem, meeting: str) -> None:
    global _optimizer
    _optimizer = TorchServer(problem)
    ended = threading.Event()
    leave_with_parent(lambda: _end(ended))
    ready(None)
    _join(SERVER, 0, meeting)
    ended.wait()
    rpc.shutdown()


if __name__ == "__main__":
    torch_rpc.serve(Problem.from_text(sys.argv[1]), sys.argv[2])
