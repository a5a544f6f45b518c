"""The zygote of servers that lose power and have bugs planted: see ``tests.zygote``."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Any

from gradwire.server import failpoints
from gradwire.server.cli.commands import cli
from gradwire.server.store import writer
from tests.robustness import faulty_server
from tests.zygote import fork_servers, warm_up


def become_server(order: Mapping[str, Any]) -> None:
    """In the forked process: runs the command line to its end."""
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


if __name__ == "__main__":
    warm_up()
    fork_servers(become_server)
