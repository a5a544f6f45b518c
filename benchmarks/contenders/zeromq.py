"""ZeroMQ by hand: a pair of sockets over loopback TCP, one frame a tensor, frames sent without a copy."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import zmq

from benchmarks.child import Child, leave_with_parent, ready
from benchmarks.contenders.problem import Array, Contender, Problem
from benchmarks.contenders.torch_server import TorchServer, as_tensor


class ZeroMq(Contender):
    def __init__(self, problem: Problem) -> None:
        self._child = Child(["-m", __spec__.name, problem.to_text()], threads=problem.threads)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.connect(f"tcp://127.0.0.1:{self._child.said}")

    def step(self, gradients: Sequence[Array]) -> Sequence[Array]:
        self._socket.send_multipart(gradients, copy=False)
        return [np.frombuffer(frame.buffer, np.float32) for frame in self._socket.recv_multipart(copy=False)]

    def close(self) -> None:
        self._context.destroy(linger=0)
        self._child.close()


def _serve(problem: Problem) -> None:
    optimizer = TorchServer(problem)
    socket = zmq.Context().socket(zmq.PAIR)
    leave_with_parent()
    ready(socket.bind_to_random_port("tcp://127.0.0.1"))
    while True:
        frames = [np.frombuffer(frame.buffer, np.float32) for frame in socket.recv_multipart(copy=False)]
        values = optimizer.step([as_tensor(frame) for frame in frames])
        # The parameters change with the next step only, which comes when the client has these.
        socket.send_multipart([value.numpy() for value in values], copy=False)


if __name__ == "__main__":
    _serve(Problem.from_text(sys.argv[1]))
