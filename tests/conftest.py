"""What every process that runs tests needs, before anything else happens in it."""

from __future__ import annotations

import importlib.util
import signal

import pytest

if importlib.util.find_spec("hypothesis"):  # `make integrations` and `make gpu` do without
    from hypothesis import settings

    # An example may wait for a busy neighbour, or for what it compiles first; each test has a time-out.
    settings.register_profile("unhurried", deadline=None)
    settings.load_profile("unhurried")


def pytest_configure(config: pytest.Config) -> None:
    """Where the shell has made us ignore SIGINT (``pytest &``, ``nohup``), our children would ignore it as well.

    Tests interrupt themselves and the programs that they start, as users do from a terminal. What has a handler here
    has the system's default in a child.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
