"""The tables of every call are whole."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from gradwire.client import Run, Server
from tests.client.transport.every_call import HARMLESS, RUN, SERVER


@pytest.mark.parametrize(("owner", "calls"), [(Run, RUN), (Server, SERVER)])
def test_every_call_is_tried(owner: type, calls: dict[str, Any]) -> None:
    methods = {name for name, _ in inspect.getmembers(owner, inspect.isfunction) if not name.startswith("_")}
    assert methods - HARMLESS == set(calls)
