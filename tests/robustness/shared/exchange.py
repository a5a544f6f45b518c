"""An attached stream of a worker: contributions on their way to the server, and answers on their way back."""

from __future__ import annotations

import random
from contextlib import suppress

from gradwire.client.transport.shared_memory import NoRoom, SharedMemory
from gradwire.v1 import run_pb2, train_pb2
from tests.robustness.shared import events
from tests.robustness.shared.connection import digest_of
from tests.robustness.shared.encodings import INT8, Held, answer_bytes, number, slices
from tests.robustness.shared.moments import Moments
from tests.robustness.shared.setting import Sent, Setting, gradient_of
from tests.robustness.shared.worker_stream import WorkerStream


class NoAnswer(AssertionError):
    """Raised for messages that are no answer to what was sent; says why."""


class Exchange:
    """Its methods raise Refusal, Cut, NoAnswer."""

    def __init__(self, stream: WorkerStream, setting: Setting, moments: Moments) -> None:
        self.attached = stream.attached
        self._stream = stream
        self._setting = setting
        self._moments = moments
        self._held = Held(setting)
        self._memory: SharedMemory | None = None
        lane = stream.connect_lane()
        if self.attached.HasField("region"):
            mapped = train_pb2.Mapped()
            with suppress(OSError):  # the server is dead
                self._memory = SharedMemory(
                    self.attached.region, file_descriptor=-1 if lane is None else lane.take_file()
                )
                mapped.proof = self._memory.proof
            stream.send(train_pb2.TrainRequest(mapped=mapped))
        if lane is not None:
            stream.move(lane)

    @property
    def has_lane(self) -> bool:
        """Whether its messages go by one."""
        return self._stream.lane is not None

    @property
    def shares_memory(self) -> bool:
        """Whether the server and this worker do."""
        return self._memory is not None

    def upload(self, sent: Sent, chance: random.Random) -> None:
        """Sends a contribution, in one message or in several."""
        header = train_pb2.BlockHeader(
            absent_tensors=sent.absent(),
            contribution=train_pb2.Contribution(
                weight=sent.weight, base_step=sent.base_step, base_epoch=sent.base_epoch
            ),
            overrides=[run_pb2.Override(lr=sent.lr)] if sent.lr else [],
        )
        parts = slices(self._setting, gradient_of(self._setting, sent), chance.choice((1, 1, 2, 5)))
        for offset, data in parts:
            message = train_pb2.Gradients(sequence=sent.sequence, offset=offset, last=offset == parts[-1][0])
            if offset == 0:
                message.header.CopyFrom(header)
            self._put(message, data)
            self._stream.send(message)
            if not message.last:
                self._moments.pass_by("uploading")

    def ask_again(self, sequence: int) -> None:
        """For the answer to a contribution that has one."""
        self._stream.send(train_pb2.Gradients(sequence=sequence, last=True))

    def _put(self, message: train_pb2.Gradients, data: bytes) -> None:
        """Into the memory that is shared, where there is room."""
        found = NoRoom.EVER if self._memory is None else self._memory.place(len(data), last=message.last)
        if isinstance(found, NoRoom):
            message.data = data
        else:
            found.view[:] = memoryview(data)
            message.shared.CopyFrom(found.shared)

    def receive(self, sent: Sent) -> events.Told:
        """Waits for what became of a contribution."""
        covered, differs = 0, False
        size = answer_bytes(self._setting)
        found = bytearray(size)
        while True:
            response = self._stream.receive()
            if response.HasField("taken") and self._memory is not None:
                self._memory.taken(response.taken.slices)
            if not response.HasField("parameters"):
                continue
            part = response.parameters
            if part.sequence != sent.sequence:
                raise NoAnswer(f"contribution {sent.sequence} was answered as {part.sequence}")
            data = self._data_of(part)
            if self._setting.answers == INT8:
                covered += 4 * self._held.take(part.offset, data, part.encoding)
                differs = differs or part.encoding == number(INT8)
            else:
                place = part.offset * (size // self._setting.elements)
                found[place : place + len(data)] = data
                covered += len(data)
            if part.HasField("receipt"):
                break
            if covered < size:
                self._moments.pass_by("answered in part")
        if covered != size or len(found) != size:
            raise NoAnswer(f"an answer has {covered} bytes of parameters; expected {size}")
        if self._memory is not None:
            self._memory.all_taken()
        params = self._held.values.tobytes() if self._setting.answers == INT8 else bytes(found)
        return self._told(sent, part.receipt, params, differs)

    def _data_of(self, part: train_pb2.Parameters) -> bytes:
        memory = self._memory
        if memory is None or not part.HasField("shared"):
            return part.data
        data = memory.parameters(part.shared, part.offset).tobytes()
        if memory.received(part.shared) and (taken := memory.owed()) is not None:
            self._stream.send(train_pb2.TrainRequest(taken=taken))
        return data

    def _told(self, sent: Sent, receipt: train_pb2.Receipt, params: bytes, differs: bool) -> events.Told:
        outcome = receipt.contribution
        return events.Told(
            sent.key,
            self.attached.server_instance,
            self.attached.run_uid,
            train_pb2.Outcome.Kind.Name(outcome.kind).removeprefix("KIND_"),
            outcome.reason,
            outcome.round,
            outcome.share,
            outcome.contributors,
            outcome.total_weight,
            outcome.staleness,
            receipt.step,
            outcome.epoch,
            digest_of(params),
            bool(receipt.skipped_steps),
            receipt.repeated,
            differs,
            self.has_lane,
        )

    def leave(self) -> None:
        """Says so: nobody waits for the worker while it is away."""
        self._stream.send(train_pb2.TrainRequest(leave=train_pb2.Leave()))
        self._stream.close()

    def drop(self) -> None:
        """As if the stream had broken."""
        self._stream.drop()
        if self._memory is not None:
            self._memory.close()
