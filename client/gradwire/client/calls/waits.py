"""What a server says is waited for."""

from __future__ import annotations

from dataclasses import dataclass

from gradwire.v1 import service_pb2


@dataclass(frozen=True)
class Wait:
    """Why nothing moves at this moment, if it lasts."""

    kind: str
    """``"block"``: the worker's next one; ``"gradients"``: the rest of one; ``"pace"``: its tenant has used up a rate;
    ``"lock"``: other work on the run; ``"device"``, ``"disk"``; ``"reader"``: the worker does not take its answer;
    ``"round"``: that of a shared run. The number of one that a newer server has."""
    text: str
    """In words, which may follow "waits for"."""
    seconds: float
    """For how long."""


def decode_wait(message: service_pb2.Worker | service_pb2.RunSummary) -> Wait | None:
    """None: it has none."""
    if not message.HasField("wait"):
        return None
    wait = message.wait
    known = service_pb2.WaitsFor.DESCRIPTOR.values_by_number.get(wait.kind)
    kind = str(int(wait.kind)) if known is None else known.name.removeprefix("WAITS_FOR_").lower()
    return Wait(kind, wait.text, wait.seconds)


def idle_seconds(message: service_pb2.ListWorkersResponse | service_pb2.RunSummary) -> float | None:
    """None: it does not say."""
    return message.idle_seconds if message.HasField("idle_seconds") else None
