"""Every public call of a connection and of a run, for what none of them may do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradwire.client import Adam, GradwireError, Run, Server

ONES = {"x": np.ones(3, np.float32)}

RUN: dict[str, Callable[[Run], object]] = {
    "step": lambda run: run.step(ONES),
    "step_many": lambda run: run.step_many({"x": np.ones((2, 3), np.float32)}),
    "send_ahead": lambda run: run.send_ahead({"x": lambda: np.ones((1, 3), np.float32)}),
    "hold": lambda run: run.hold(),
    "describe": lambda run: run.describe(),
    "read": lambda run: run.read(),
    "refresh": lambda run: run.refresh(),
    "write": lambda run: run.write(ONES),
    "state_dict": lambda run: run.state_dict(),
    "load_state_dict": lambda run: run.load_state_dict({}),
    "save_snapshot": lambda run: run.save_snapshot(),
    "list_snapshots": lambda run: run.list_snapshots(),
    "roll_back": lambda run: run.roll_back(1),
    "fork": lambda run: run.fork("forked"),
    "export": lambda run: run.export("/nonexistent/file"),
    "digest": lambda run: run.digest(),
    "contribute_delta": lambda run: run.contribute_delta(ONES),
    "workers": lambda run: run.workers(),
    "log": lambda run: run.log(loss=1.0),
    "series": lambda run: run.series("loss"),
    "series_names": lambda run: run.series_names(),
}
SERVER: dict[str, Callable[[Server], object]] = {
    "create_run": lambda server: server.create_run("another", ONES, Adam()),
    "attach": lambda server: server.attach("every-call"),
    "import_run": lambda server: server.import_run("another", __file__, weights_only=Adam()),
    "list_runs": lambda server: server.list_runs(),
    "read_params": lambda server: server.read_params("every-call"),
    "delete_run": lambda server: server.delete_run("every-call"),
    "watch_series": lambda server: next(server.watch_series("every-call")),
    "who_am_i": lambda server: server.who_am_i(),
    "status": lambda server: server.status(),
}
HARMLESS = {"close", "discard_ahead"}
"""They end things, and may do so anywhere."""


def outcomes(object_: Any, calls: dict[str, Callable[[Any], object]]) -> dict[str, str]:
    """Of each call, by name: what it raised."""
    said = {}
    for name, call in calls.items():
        try:
            said[name] = repr(call(object_))
        except (GradwireError, OSError, ValueError) as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said
