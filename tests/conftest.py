"""What every process that runs tests needs, before anything else happens in it."""

from __future__ import annotations

import signal

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Where the shell has made us ignore SIGINT (``pytest &``, ``nohup``), our children would ignore it as well.

    Tests interrupt themselves and the programs that they start, as users do from a terminal. What has a handler here
    has the system's default in a child.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
