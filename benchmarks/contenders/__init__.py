"""Everybody who can take a step: this project, its peers, and local torch. One module each; see `problem.Contender`."""

from __future__ import annotations

import importlib

from benchmarks.contenders.problem import Contender, Problem, Unavailable

LOCAL = "local torch, fused"
BY_HAND = "shared memory by hand"
OURS = {
    "gradwire, loopback TCP": "gradwire_server:OverTcp",
    "gradwire, unix socket": "gradwire_server:OverUnix",
    "gradwire, lane and shared memory": "gradwire_server:OverSharedMemory",
    "gradwire, lane, parameters in shared memory": "gradwire_server:InSharedMemory",
}
PEERS = {
    "Ray actor": "ray_actor:RayActor",
    "gloo by hand": "gloo:Gloo",
    "zmq by hand": "zeromq:ZeroMq",
    "torch.distributed.rpc": "torch_rpc:TorchRpc",
    "naive unary gRPC": "unary_grpc:NaiveUnary",
    "local torch, default": "local_torch:Default",
    LOCAL: "local_torch:Fused",
}
FLOORS = {BY_HAND: "by_hand:SharedMemory"}


def start(name: str, problem: Problem) -> Contender:
    """The contender of that name, ready to step. Raises Unavailable."""
    module_name, _, kind = {**OURS, **PEERS, **FLOORS}[name].partition(":")
    try:
        module = importlib.import_module(f"benchmarks.contenders.{module_name}")
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed: pip install -e '.[peers]'") from None
    contender: Contender = getattr(module, kind)(problem)
    return contender
