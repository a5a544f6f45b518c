"""The parameters of a run, for those who do not work on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from gradwire.client.calls.catalog import get_run
from gradwire.client.calls.remote_values import RemoteValues
from gradwire.client.encodings import flat_vector
from gradwire.client.transport.link import Link
from gradwire.client.transport.retry import RetryPolicy
from gradwire.wire.encoding import state_dtype
from gradwire.wire.layout_message import decode_layout


@dataclass(frozen=True)
class RunParams:
    """What `Server.read_params` answers."""

    params: dict[str, npt.NDArray[Any]]
    """By name, exact, of the run's dtype; the caller's own."""
    step: int
    """Of the run when it had them."""


def read_params(link: Link, retry: RetryPolicy, name: str) -> RunParams:
    """See `Server.read_params`."""
    run = get_run(link, retry, name)
    layout, dtype = decode_layout(run.spec.groups), state_dtype(run.spec.dtype)
    remote = RemoteValues(link, run.spec.name, run.uid, layout, dtype, tuple(run.slots), retry)
    values = remote.read(remote.attempts())
    return RunParams(flat_vector.views(layout, values.vector), values.step)
