"""A worker's Train stream: its messages by gRPC, or, of one that is near, by a lane."""

from __future__ import annotations

from gradwire.client.transport.lane import Lane
from gradwire.v1 import service_pb2_grpc, train_pb2
from tests.contract.bare import BareStream

TIMEOUT_SECONDS = 30.0


class WorkerStream(BareStream):
    """See `move`. The packets are the client's; what is in them is by the contract alone.

    Args:
        target: that ``stub`` calls.
    """

    lane: Lane | None = None
    """By which all messages go that follow the attachment; None: by gRPC."""

    def __init__(self, stub: service_pb2_grpc.OptimizerServiceStub, attach: train_pb2.Attach, target: str) -> None:
        super().__init__(stub, attach, timeout_seconds=TIMEOUT_SECONDS)
        self._target = target

    def connect_lane(self) -> Lane | None:
        """The lane that has been offered, which nothing goes by yet; None: there is none, or the server is dead."""
        if not self.attached.HasField("lane"):
            return None
        try:
            return Lane(self._target, self.attached.lane)
        except OSError:
            return None

    def move(self, lane: Lane) -> None:
        """Says that this was the last message by gRPC; the others go by the lane. It ends with the call."""
        self.send(train_pb2.TrainRequest(moved=train_pb2.Moved()))
        self.lane = lane
        if not self.call.add_callback(lane.shut):
            lane.shut()

    def send(self, *messages: train_pb2.TrainRequest | train_pb2.Gradients) -> None:
        lane = self.lane
        if lane is None:
            super().send(*messages)
            return
        for message in messages:
            if isinstance(message, train_pb2.Gradients):
                message = train_pb2.TrainRequest(gradients=message)
            lane.send(message.SerializeToString())

    def receive(self) -> train_pb2.TrainResponse:
        message = None if self.lane is None else self.lane.receive()
        if message is None:
            return super().receive()  # where there was a lane: the status, which says why it is over
        return train_pb2.TrainResponse.FromString(message)

    def close(self) -> None:
        if self.lane is not None:
            self.lane.finish()
            while self.lane.receive() is not None:
                pass
        super().close()

    def drop(self) -> None:
        """As if it had broken."""
        self.call.cancel()
        if self.lane is not None:
            self.lane.shut()
