"""Starts servers quickly: a process that has imported one already, and forks. Run as a module, this is that process.

Each server is a process of its own that runs the real command line; what it saves is the second of imports. It never
uses gRPC before it forks.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import traceback
from typing import Any

import numpy as np

from gradwire.server import failpoints
from gradwire.server.cli.commands import cli
from gradwire.server.devices.select import open_device
from gradwire.server.optimizers.adam import AdamHyperparameters, EpsilonPlacement
from gradwire.server.store import disk, writer  # noqa: F401  # so that no server has to import it
from tests.robustness import faulty_server


def warm_up() -> None:
    """Loads what every server would load; the kernels come from the cache on disk, or go into it."""
    import gradwire.server.app  # noqa: F401

    device = open_device("cpu", 1)
    groups = [
        AdamHyperparameters(amsgrad=amsgrad, epsilon_placement=placement)
        for placement in EpsilonPlacement
        for amsgrad in (False, True)
    ]
    device.warm_up([(group.kernel, np.dtype(np.float32)) for group in groups])
    groups[0].varying(1, 1, 1, np.dtype(np.float32))
    device.close()


def become_server(order: dict[str, Any], descriptors: list[int]) -> None:
    """In the forked process: runs the command line to its end."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if order["shadow"]:
        library = ctypes.CDLL(None)
        directories = [os.fsencode(path) for path in order["shadow"]]
        if library.gradwire_shadow_begin(*directories):
            raise RuntimeError(f"the preloaded library cannot use {order['shadow']}")
    writer.CHECKPOINT_BYTES = order["checkpoint_bytes"]
    failpoints.disarm()
    failpoints.arm_from(order["failpoints"])
    if order["bug"]:
        faulty_server.plant(order["bug"])
    cli(["serve", *order["flags"]], standalone_mode=False)


def main() -> None:
    warm_up()
    harness = socket.socket(fileno=int(sys.argv[1]))
    harness.sendall(b"ready\n")
    while True:
        message, descriptors, _, _ = socket.recv_fds(harness, 1 << 16, 3)
        if not message:
            return
        order = json.loads(message)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                code = 1
                try:
                    harness.close()
                    become_server(order, descriptors)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(code)
        for descriptor in descriptors:
            os.close(descriptor)
        harness.sendall(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
