"""The zygote of servers that lose power and have bugs planted, and of their workers: see ``tests.zygote``."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Mapping
from typing import Any

from gradwire.server import failpoints
from gradwire.server.cli.commands import cli
from gradwire.server.durability import stored_runs
from gradwire.server.runs.registry import Registry
from gradwire.server.store import writer
from tests.robustness import faulty_server
from tests.robustness.servers import instance_of
from tests.robustness.shared.crew import become_crew
from tests.zygote import fork_servers, warm_up


def become(order: Mapping[str, Any]) -> None:
    """In the forked process: what the order is for."""
    if "rank" in order:
        become_crew(order)
    else:
        become_server(order)


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
    name_instance(order["life"])
    stored_runs.log.setLevel(logging.INFO)  # at which step each run is back
    cli(["serve", *order["flags"]], standalone_mode=False)


def name_instance(life: int) -> None:
    """Lets the server say which one it is, in place of a random number."""
    begin = Registry.__init__

    def named(self: Registry, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        self.server_instance = instance_of(life)

    Registry.__init__ = named  # type: ignore[method-assign]


if __name__ == "__main__":
    warm_up()
    fork_servers(become)
