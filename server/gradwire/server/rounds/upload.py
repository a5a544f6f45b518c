"""One contribution after another as it arrives on a stream, until it is whole."""

from __future__ import annotations

from concurrent.futures import Executor

import numpy as np

from gradwire.server.devices.chunks import in_order
from gradwire.server.encodings.decoders import Decoder
from gradwire.server.encodings.encoders import Encoder
from gradwire.server.engine.block import BlockHeader, GradientSlice, Returns
from gradwire.server.engine.block_plan import check_header, check_kind, check_steps
from gradwire.server.engine.clipping import clip
from gradwire.server.engine.gradients import first_non_finite, non_finite_text
from gradwire.server.engine.spec import NonFinitePolicy
from gradwire.server.engine.threads import unless_short, updates
from gradwire.server.engine.workers import Holder
from gradwire.server.failpoints import failpoint
from gradwire.server.memory.shared_memory import SharedMemory
from gradwire.server.rounds.lying import LyingGradient
from gradwire.server.rounds.rounds import Rounds
from gradwire.server.rounds.staged import StagedContribution, Staging
from gradwire.server.training.incoming_block import ArrivedSlice, Here, IncomingBlock
from gradwire.server.training.lying_gradients import LyingGradients
from gradwire.wire.errors import LeaderBusy, ProtocolViolation, SequenceMismatch
from gradwire.wire.layout import Range


class Upload:
    """Takes the contributions of one hold on one run, slice by slice.

    Args:
        encoder: of the answers.
        executor: for what is no short work.
    """

    def __init__(self, rounds: Rounds, hold: Holder, decoder: Decoder, encoder: Encoder, executor: Executor) -> None:
        self.memory: SharedMemory | None = None
        """Shared with the client, or offered to it."""
        self._rounds = rounds
        self._run = rounds.run
        self._hold = hold
        self._decoder = decoder
        self._encoder = encoder
        self._executor = executor
        self._incoming: IncomingBlock | None = None
        self._header = BlockHeader()
        self._staging: Staging | None = None
        spec = self._run.spec
        self._lying = LyingGradients(self._run, decoder, clips=spec.clips and not spec.clips_steps)

    @property
    def idle(self) -> bool:
        """Whether nothing is arriving."""
        return self._incoming is None

    @property
    def here(self) -> Here | None:
        """How much of a contribution is; None: none is arriving."""
        return None if self._incoming is None else self._incoming.here(self._decoder)

    async def take(self, part: GradientSlice) -> StagedContribution | None:
        """Checks and keeps a slice; the contribution when that was the last one of it. Raises what the error table
        says, and then nothing of it is left."""
        incoming = self._incoming_of(part)
        place = incoming.add(part, self._decoder)
        arrived = ArrivedSlice(self._decoder, place, part.data, 1, alone=False)
        failpoint("stage.before")
        if place.stop > place.start:
            await self._keep(arrived, last=part.last)
        failpoint("stage.after")
        if not part.last:
            return None
        ranges = self._run.spec.layout.present_ranges(self._header.absent_tensors)
        incoming.coverage.require_complete(f"contribution {part.sequence}", ranges)
        return await self._whole(part.sequence, incoming.received_bytes, ranges)

    async def _keep(self, arrived: ArrivedSlice, *, last: bool) -> None:
        """Copies a slice, unless it may stay where it lies."""
        memory, place = self.memory, arrived.place
        if not self._lying.take(arrived):
            for each in (*self._lying.give_up(), arrived):
                await self._copy(each)
        elif memory is not None and self._checks and not last:  # those that are left are summed where it is settled
            work = updates(place.stop - place.start, 1)
            await unless_short(self._executor, lambda: self._lying.sums.add(memory), work)

    async def _copy(self, arrived: ArrivedSlice) -> None:
        array, device, place = self._kept.array, self._run.device, arrived.place
        work = updates(place.stop - place.start, 1)
        await unless_short(self._executor, lambda: device.write(array, place.start, arrived.to_be_copied()), work)

    async def _whole(self, sequence: int, received_bytes: int, ranges: tuple[Range, ...]) -> StagedContribution:
        self._incoming = None
        if not ranges:
            return StagedContribution(self._hold, sequence, self._header, None, received_bytes)
        lies, memory = self._lying.give_up(), self.memory
        staging = LyingGradient(memory, self._run.spec) if lies and memory is not None else self._kept
        work = updates(self._run.spec.layout.elements, 1)
        try:
            wrong = await unless_short(self._executor, lambda: self._settle(staging, ranges), work)
        except BaseException:
            if staging is not self._staging:
                self._rounds.stagings.give(staging)
            raise
        skips = self._run.spec.non_finite_policy is NonFinitePolicy.SKIP
        contribution = StagedContribution(
            self._hold,
            sequence,
            self._header,
            None if wrong and skips else staging,
            received_bytes,
            skipped=bool(wrong) and skips,
            refusal="" if skips else wrong,
        )
        if contribution.staging is self._staging:
            self._staging = None  # it belongs to the contribution now
        return contribution

    def _settle(self, staging: Staging | LyingGradient, ranges: tuple[Range, ...]) -> str:
        """Clips a gradient where each contribution is clipped; what is wrong with one that is not finite, in words,
        where that matters. Bulk work."""
        spec, device, array = self._run.spec, self._run.device, staging.array
        memory = self.memory if isinstance(staging, LyingGradient) else None
        clips = spec.clips and not spec.clips_steps
        if not (self._checks or clips):
            return ""
        sums = device.square_sums(array, 0, ranges) if memory is None else in_order(self._lying.sums.whole(memory))
        if self._checks and not np.isfinite(sums).all():
            found = first_non_finite(device, array, ranges)
            if found is not None:
                what = non_finite_text(spec.layout, *found)
                return f"{what}; expected finite numbers. It is no part of any round"
        if clips:
            clip(spec, device, array, ranges, sums)
        return ""

    @property
    def _checks(self) -> bool:
        return self._run.spec.non_finite_policy is not NonFinitePolicy.ALLOW

    # --- headers -----------------------------------------------------------------------------------------------------

    def _incoming_of(self, part: GradientSlice) -> IncomingBlock:
        """What ``part`` belongs to, begun as its header says."""
        incoming, header = self._incoming, part.header
        if incoming is not None:
            incoming.check_next(part)
            if header is None:
                return incoming
        else:
            self._check_sequence(part.sequence)
            if header is None:
                raise ProtocolViolation(f"the first message of contribution {part.sequence} has no header")
        if header.steps != 1:
            raise ProtocolViolation(f"a contribution of {header.steps} steps; expected 1 in a shared run")
        if incoming is None or not (part.last and header.deferred):
            check_steps(self._run.spec, header.steps, max(self._decoder.least_row_bytes, self._encoder.least_row_bytes))
            incoming = self._incoming = IncomingBlock.begun(part.sequence, header, self._run.spec.layout)
            self._lying.begin(possible=not (header.deferred or header.absent_tensors))
        if part.last or not header.deferred:
            self._check(header)
            self._header = header
        return incoming

    def _check_sequence(self, sequence: int) -> None:
        last = self._hold.record.last_sequence
        if sequence <= last:
            raise SequenceMismatch(
                f"contribution {sequence} is not above the last one that was answered, {last}",
                applied=None,  # nobody remembers what became of it
                expected_sequence=last + 1,
            )

    def _check(self, header: BlockHeader) -> None:
        """Raises ProtocolViolation, InvalidHyperparameter, LeaderBusy, MemoryLimitExceeded."""
        check_kind(self._run, header)
        if header.returns is not Returns.LAST:
            raise ProtocolViolation(f"returns {header.returns.name}; expected LAST in a shared run")
        check_header(self._run, header, max_result_bytes=0)
        self._run.series.claim(header.scalars)
        if header.overrides and self._rounds.leases.leader != self._hold.worker_id:
            leader = self._rounds.leases.leader
            raise LeaderBusy(
                f"worker {self._hold.worker_id!r} changes hyperparameters of {self._run.spec.name}, and does not lead; "
                f"expected them from {repr(leader) if leader else 'a worker that attaches to lead'}",
                leader=leader,
            )
        self._encoder.check(header)

    # --- room --------------------------------------------------------------------------------------------------------

    @property
    def _kept(self) -> Staging:
        if self._staging is None:
            self._staging = self._rounds.stagings.take()
        return self._staging

    def release(self) -> None:
        """Frees what is set aside for this stream."""
        self._incoming = None
        self._rounds.stagings.give(self._staging)
        self._staging = None
