"""What becomes of requests of any kind, and of somebody else meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2

from gradwire.wire.errors import STATUS_DETAILS_KEY, TABLE, GradwireError, from_status
from gradwire.wire.service import SERVICE_NAME
from tests.contract.bare import BareClient, BareStream
from tests.faults.hosted import WAIT_SECONDS

FOR_EVER_SECONDS = 1e5
"""For the stream of who trains through all tests of a file."""


ENDLESS = {"StreamSeries"}
"""Of these the first answer is enough."""


class Bystander:
    """Somebody who trains on. Raises AssertionError unless each step is the next one."""

    def __init__(self, stream: BareStream) -> None:
        self._stream = stream
        self._sequence = 0

    def steps(self) -> None:
        for _ in range(3):
            self._sequence += 1
            _, receipt = self._stream.step(self._sequence, [1.0, 1.0])
            assert receipt.step == self._sequence


def outcome(client: BareClient, method: str, messages: Sequence[Message]) -> GradwireError | None:
    """The refusal of a call, which must be one of the table and planned for; None: there was none."""
    path = f"/{SERVICE_NAME}/{method}"
    call: Any = client._channel.stream_stream(path, lambda message: message.SerializeToString(), lambda data: data)
    try:
        answers = call(iter(messages), metadata=client.metadata, timeout=WAIT_SECONDS)
        for _ in answers:
            if method in ENDLESS:
                answers.cancel()
                break
    except grpc.RpcError as error:
        failed: Any = error
        details = dict(failed.trailing_metadata() or ()).get(STATUS_DETAILS_KEY)
        refusal = None if details is None else from_status(status_pb2.Status.FromString(details))
        assert refusal is not None, (failed.code(), failed.details())
        assert refusal.reason in TABLE, refusal
        assert refusal.reason != "INTERNAL", refusal
        return refusal
    return None
