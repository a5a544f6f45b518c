"""The delivery of one block: sent exactly once, however often that has to be tried, and its answer taken."""

from __future__ import annotations

import grpc

from gradwire.client.encodings.block import BlockData
from gradwire.client.encodings.parameters import Data
from gradwire.client.errors import translate
from gradwire.client.training.attachment import Attachment
from gradwire.client.training.block import Block
from gradwire.client.training.block_messages import block_messages
from gradwire.client.transport.retry import Attempts, may_pass
from gradwire.client.transport.stream import TrainStream
from gradwire.client.transport.waiting_log import WaitingLog
from gradwire.v1 import train_pb2
from gradwire.wire.errors import Fenced, GradwireError, InternalError


class Delivery:
    """One block on its way, to a run of one worker.

    The order of the assignments matters: Ctrl-C may come between any two of them, and the next step must still do the
    right thing.
    """

    def __init__(self, block: Block, attachment: Attachment, attempts: Attempts) -> None:
        self._block = block
        self._attachment = attachment
        self._parameters = attachment.parameters
        self._encodings = attachment.encodings
        self._attempts = attempts
        self._rows = self._parameters.out_of_the_way(block.rows)
        self._sent = attachment.resumes  # whether it may have been
        self._left = False
        self._data: BlockData | None = None  # as it was sent last
        self._log: WaitingLog | None = None  # once there is something to say
        self._in_place = False  # whether the server writes the answer to where the parameters lie

    @property
    def left(self) -> bool:
        """Whether the server may have anything of the block from this process, or has refused it: then what was to go
        with it may go with no other one."""
        return self._left

    def complete(self) -> train_pb2.Receipt:
        """Tries until there is a receipt. Raises what is no use to try again."""
        attachment, parameters = self._attachment, self._parameters
        if attachment.unresolved:
            attachment.drop()  # a step was interrupted; what its stream still brings is not for this one
        if not self._block.answered:
            parameters.behind |= self._block.present
        while True:
            stream = attachment.open(self._attempts, resuming=self._sent)
            if self._block.header.scalars:
                attachment.require_series()
            self._prepare_for_the_answer(stream)
            assert attachment.sequence is not None
            sequence = attachment.sequence + 1
            try:
                attachment.unresolved = self._sent = True
                self._send(stream, sequence)
                receipt = stream.collect(sequence, self._accept, self._waiting)
                self._check(receipt)
                break
            except grpc.RpcError as error:
                attachment.drop()
                self._pause_after(error, sequence, stream.attached)
                self._left = self._left and self._sent  # it begins anew
            except BaseException:  # Ctrl-C, or an answer that makes no sense
                attachment.drop()
                parameters.stale = True
                parameters.mixed = parameters.mixed or self._in_place
                raise
        self._conclude(sequence, receipt)
        return receipt

    def _prepare_for_the_answer(self, stream: TrainStream) -> None:
        """Only once there is the stream, when no older one of ours can change anything any more."""
        block, parameters = self._block, self._parameters
        if parameters.stale or (block.answered and parameters.behind & block.absent):
            self._refresh()
        if block.trajectory is not None and block.absent:
            block.trajectory[:] = parameters.vector  # tensors without a gradient keep their values
        self._in_place = stream.memory is not None and stream.memory.in_place

    def _refresh(self) -> None:
        try:
            self._parameters.refresh(self._attempts)
        except GradwireError as error:
            error.applied = None if self._sent else False  # of the block; the server speaks of the reading
            raise

    def _send(self, stream: TrainStream, sequence: int) -> None:
        """The block, or what is missing of it; where it was applied before the connection broke, a question."""
        if stream.attached.last_sequence == sequence:
            again = train_pb2.Gradients(sequence=sequence, last=True)
            stream.send([train_pb2.TrainRequest(gradients=again).SerializeToString()], at_once=True)
            return
        block, header, early = self._block, self._block.header, self._attachment.early
        there = early.tensors and early.tensors & block.ahead & block.present  # none, where the stream is a new one
        header.deferred = bool(there)
        if not there:
            early.forget()
        missing = self._parameters.layout.present_ranges(block.absent | there) if there else block.ranges
        self._data = self._encodings.gradients.block(self._rows, missing, header.steps, self._data, stream.slice_bytes)
        messages = block_messages(sequence, header, self._data, begun=header.deferred, memory=stream.memory)
        self._left = True
        stream.send(messages, at_once=len(self._data.parts) <= 1)

    def _accept(self, reply: train_pb2.Parameters, data: Data) -> None:
        """Takes a part of the answer."""
        trajectory = self._block.trajectory
        self._parameters.stale = True  # until the receipt, the arrays mix old and new
        if trajectory is None and reply.HasField("shared") and self._in_place:
            return  # that is where they are
        self._parameters.mixed = trajectory is None and self._parameters.incoming is self._parameters.vector
        values = self._encodings.parameters.take(reply, data)
        columns = slice(reply.offset, reply.offset + values.shape[1])
        if trajectory is None:
            self._parameters.incoming[columns] = values[0]
        else:
            trajectory[reply.first_step : reply.first_step + reply.steps, columns] = values

    def _waiting(self, waiting: train_pb2.Waiting) -> None:
        """The server says why there is no answer yet."""
        self._attempts.begin_anew()  # a round may take longer than any patience with failures
        if self._log is None:
            self._log = WaitingLog(self._attachment.message.run)
        self._log.hear(waiting)

    def _check(self, receipt: train_pb2.Receipt) -> None:
        """Raises ProtocolViolation for one that no such run gives."""

    def _was_applied(self, attached: train_pb2.Attached) -> bool:
        """Of the last block that the server had answered when this stream began, which is this one."""
        return True

    def _pause_after(self, error: grpc.RpcError, sequence: int, attached: train_pb2.Attached) -> None:
        """Notes what is known of the block after ``error``, and waits. Raises the refusal where trying again is no use.

        ``attached``: what the stream had begun with.
        """
        attachment, parameters, attempts = self._attachment, self._parameters, self._attempts
        refusal = translate(error, attachment.link.target)
        if refusal.applied and refusal.metadata.get("sequence", str(sequence)) != str(sequence):
            refusal.applied = False  # it speaks of the block before, whose receipt has come
        asked = attached.last_sequence == sequence
        if asked:  # it was answered before; it is only the question about it that was refused
            refusal.applied = self._was_applied(attached)
        token = attachment.token
        if isinstance(refusal, InternalError):  # it may have been applied; the next attachment tells
            parameters.stale = True
            parameters.mixed = parameters.mixed or self._in_place
            attempts.pause_for(refusal, transient=not attempts.failed_internally, token=token)
            attempts.failed_internally = True
            return
        if refusal.applied is False and not asked and self._nothing_is_left(refusal, sequence):
            attachment.unresolved = attachment.resumes = self._sent = False
        if refusal.applied is not False or isinstance(refusal, Fenced) or self._in_place:
            parameters.stale = True
            parameters.mixed = parameters.mixed or self._in_place
        attempts.pause_for(refusal, transient=may_pass(error, refusal), token=token)

    def _nothing_is_left(self, refusal: GradwireError, sequence: int) -> bool:
        """Whether the server has forgotten a block that was not applied, so that its number is free."""
        return True

    def _conclude(self, sequence: int, receipt: train_pb2.Receipt) -> None:
        """The block has been answered, and all that it answers is here."""
        block, attachment, parameters = self._block, self._attachment, self._parameters
        attachment.sequence = sequence
        attachment.unresolved = attachment.resumes = False
        attachment.early.forget()
        if self._data is not None:
            self._encodings.gradients.commit(self._data, skipped=self._lost(receipt))
        if block.trajectory is not None:
            parameters.vector[:] = block.trajectory[-1]
        elif block.answered:
            parameters.take_incoming(block.answer_ranges)
        if block.answered:
            parameters.behind -= block.present
        parameters.stale = parameters.mixed = False
        parameters.step_count = receipt.step

    def _lost(self, receipt: train_pb2.Receipt) -> bool:
        """Whether not all of the block's gradients have been applied."""
        return bool(receipt.skipped_steps)
