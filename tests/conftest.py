"""What every process that runs tests needs, before anything else happens in it."""

from __future__ import annotations

import os
import signal

import pytest


def pytest_configure(config: pytest.Config) -> None:
    heed_interrupts()
    keep_kernels_apart(config)


def heed_interrupts() -> None:
    """Where the shell has made us ignore SIGINT (``pytest &``, ``nohup``), our children would ignore it as well.

    Tests interrupt themselves and the programs that they start, as users do from a terminal. What has a handler here
    has the system's default in a child.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def keep_kernels_apart(config: pytest.Config) -> None:
    """Gives each worker of pytest-xdist a directory of its own for compiled kernels, which later runs find again.

    numba numbers the files of one function's types after those that are there. Where two processes that began with an
    empty directory compile two types at once, both may take one number, and one type's code be run for the other's.
    """
    worker = getattr(config, "workerinput", {}).get("workerid")
    if worker is not None:
        os.environ["GRADWIRE_CACHE_DIR"] = str(config.rootpath / ".pytest_cache" / "kernels" / worker)
