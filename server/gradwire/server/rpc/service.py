"""The gRPC servicer: decode, one domain call, encode. Nothing else."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from functools import partial
from typing import Any

import grpc

from gradwire.server.access.identity import tenant_of
from gradwire.server.durability.stored_runs import DamagedRun
from gradwire.server.encodings.decoders import Decoder
from gradwire.server.encodings.encoders import Encoder
from gradwire.server.engine.run import Run
from gradwire.server.engine.threads import in_thread, pieces, unless_short
from gradwire.server.rounds.report import wait_of
from gradwire.server.rounds.rounds import note_read
from gradwire.server.rounds.session import SharedSession
from gradwire.server.rpc.activity_message import encode_wait
from gradwire.server.rpc.call import Call
from gradwire.server.rpc.calls import first_of, open_stream, require
from gradwire.server.rpc.codec import (
    decode_features,
    decode_request,
    decode_spec,
    durability_of,
    encode_lane,
    encode_region,
    encoding_names,
    encodings_of,
    placements,
    spec_pieces,
)
from gradwire.server.rpc.lanes import Offer
from gradwire.server.rpc.series_calls import SeriesCalls
from gradwire.server.rpc.server_calls import ServerCalls
from gradwire.server.rpc.shared_run import decode_attach
from gradwire.server.rpc.snapshot_calls import SnapshotCalls
from gradwire.server.rpc.stream_guard import StreamGuard
from gradwire.server.rpc.train_stream import TrainStream
from gradwire.server.rpc.worker_calls import WorkerCalls
from gradwire.server.runs.transfer import (
    check_state,
    parameters_of,
    put_parameters,
    put_state,
    slots_of,
    snapshot,
    upload_parameters,
    upload_state,
)
from gradwire.server.training.session import Session
from gradwire.v1 import run_pb2, service_pb2, train_pb2
from gradwire.wire.encoding import dtype_of, encode, wire_dtype
from gradwire.wire.envelope import Opened
from gradwire.wire.errors import GradwireError
from gradwire.wire.hosts import is_local, is_unix

SUPPORTS = (train_pb2.FEATURE_SERIES,)
"""See ``gradwire.v1.Attached.supports``."""


SUMMARIES_AT_ONCE = 100
"""Of a page of a thousand, before others get to work: it takes 7 ms in all."""


class OptimizerServicer(SnapshotCalls, WorkerCalls, SeriesCalls, ServerCalls):
    """See ``gradwire/v1/service.proto``.

    Server streams are coroutines that write, which the generated types, made for generators, do not know.
    """

    async def CreateRun(self, requests: Any, call: Call) -> bytes:
        first = await first_of(requests)
        header: service_pb2.CreateRunHeader = first.header
        name = call.new_run(header.spec.name)
        decode = partial(decode_spec, header.spec, name)
        spec = await unless_short(self.registry.executor, decode, pieces(spec_pieces(header.spec)))
        existing = self.registry.existing(spec.name, header.request_id)
        if existing is not None:
            return await self.with_run(call, existing, service_pb2.CreateRunResponse(created=False))
        wire = wire_dtype(header.encoding, spec.dtype)
        creation = self.registry.begin_creation(spec, header.request_id, header.replace, wire)
        try:
            if header.HasField("state"):
                creation.begin_with(header.state.slots, header.state.step, header.state.tensor_steps)
            await self.registry.prepare(creation.run)
            async for request in requests:
                if request.WhichOneof("message") == "slot_slice":
                    part = request.slot_slice
                    creation.add_slot(part.slot, part.offset, part.data)
                    continue
                require(request, "slice")
                assert creation.upload is not None
                creation.upload.add(0, request.slice.offset, request.slice.data)
            run = await self.registry.finish_creation(creation)
        finally:
            creation.abandon()
        return await self.with_run(call, run, service_pb2.CreateRunResponse(created=run is creation.run))

    async def GetRun(self, request: service_pb2.GetRunRequest, call: Call) -> bytes:
        return await self.with_run(call, self.run_of(call, request.name), service_pb2.GetRunResponse())

    async def ListRuns(self, request: service_pb2.ListRunsRequest, call: Call) -> service_pb2.ListRunsResponse:
        # What is said outside is in the order of the names inside: the tenant's own names all have the same beginning.
        after = call.who.after(request.page_token) if request.page_token else ""
        if request.name:
            only = call.run(request.name)
            runs, token = self.registry.page("", 1, lambda name: name == only and call.who.sees(name))
        else:
            runs, token = self.registry.page(after, request.page_size, call.who.sees)
        summaries = []
        for number, run in enumerate(runs, 1):
            summaries.append(_summary(run, call.who.outside(_name_of(run))))
            if number % SUMMARIES_AT_ONCE == 0:
                await asyncio.sleep(0)
        return service_pb2.ListRunsResponse(runs=summaries, next_page_token=call.who.outside(token) if token else "")

    async def DeleteRun(self, request: service_pb2.DeleteRunRequest, call: Call) -> service_pb2.DeleteRunResponse:
        return service_pb2.DeleteRunResponse(step=await self.registry.delete(call.run(request.name)))

    async def Train(self, requests: Any, call: Call) -> None:
        """Reads and writes serialized messages; see `methods`."""
        await open_stream(call.context)
        with self.guarded(call) as guard, ExitStack() as streams:
            self.registry.require_open()
            first = await guard.request(call.context.read)
            attach = _train_request(first, "attach").message.attach
            call.who.require_worker(attach.worker_id)
            run = self.run_of(call, attach.run, attach.run_uid)
            decoder, encoder = await in_thread(self.registry.executor, lambda: encodings_of(attach, run))
            pace = self.pace_of(call)
            streams.enter_context(self.registry.ledger.stream(tenant_of(run.spec.name), run.spec.name))
            session = await self._attach(run, attach, guard, call, decoder, encoder)
            try:
                near = self._may_share_memory(call.peer)
                if attach.shared_memory and near:
                    await session.share_memory()
                # What waits from an earlier stream is answered before this one could move to a lane.
                by_lane = attach.lane and near and not session.waiting_sequence
                offer = self.lanes.offer(call.peer, partial(_file_of, session)) if by_lane else None
                self.note(call.context, call, "Train")
                call.action = "Detach"
                names = encoding_names(attach, run)
                traffic = streams.enter_context(self.registry.counters.traffic.stream(*names, run.traffic))
                stream = TrainStream(
                    guard, call.context, session.holder, session.memory, encoder, run.budget, pace, traffic, offer
                )
                streams.callback(stream.close)
                stream.at_once, stream.on_answered = session.receive_at_once, session.answered
                await guard.write(call.context.write, self._attached(session, offer))
                async for reply in session.resume():
                    await stream.send(reply)
                while (part := await stream.receive()) is not None:
                    only = await session.receive_whole(part)
                    if only is not None:
                        await stream.send(only)
                        session.answered()
                    else:
                        async for reply in session.receive(part):
                            await stream.send(reply)
                session.leave(said=stream.left)
            except GradwireError as error:
                session.complete(error)
                raise
            finally:
                await asyncio.shield(session.close())

    async def _attach(
        self, run: Run, attach: train_pb2.Attach, guard: StreamGuard, call: Call, decoder: Decoder, encoder: Encoder
    ) -> Session | SharedSession:
        understands = decode_features(attach.understands)
        admission = self.registry.ledger.stream_pace_of(call.who.tenant)
        if run.spec.shared is not None:
            return await SharedSession.attach(
                run,
                decode_attach(attach),
                guard.interrupt,
                understands,
                decoder=decoder,
                encoder=encoder,
                executor=self.registry.executor,
                listen=guard.read,
                admission=admission,
                counters=self.registry.counters,
            )
        return await Session.attach(
            run,
            attach.worker_id,
            attach.takeover,
            guard.interrupt,
            understands,
            decoder=decoder,
            encoder=encoder,
            max_result_bytes=self.registry.config.max_result,
            executor=self.registry.executor,
            local=is_local(call.peer),
            admission=admission,
            counters=self.registry.counters.blocks,
        )

    def _attached(self, session: Session | SharedSession, offer: Offer | None) -> bytes:
        response = train_pb2.TrainResponse(
            attached=train_pb2.Attached(
                step=session.holder.step,
                last_sequence=session.holder.record.last_sequence,
                epoch=session.holder.epoch,
                server_instance=self.registry.server_instance,
                placements=placements(session.run),
                run_uid=session.run.uid,
                perhaps_forgotten=session.holder.perhaps_forgotten,
                last_accepted_sequence=session.holder.record.last_accepted,
                waiting_sequence=session.waiting_sequence,
                leads=session.leads,
                supports=SUPPORTS,
                last_log=session.holder.record.last_log,
                region=None if session.memory is None else encode_region(session.memory),
                lane=None if offer is None else encode_lane(offer),
            )
        )
        return response.SerializeToString()

    def _may_share_memory(self, peer: str) -> bool:
        """Behind loopback may be somebody's proxy: where clients are not trusted, only a unix socket is this host."""
        config = self.registry.config
        trusted = is_unix(peer) if config.tls_cert or config.access else is_local(peer)
        return config.shared_memory and trusted

    async def ReadParameters(self, request: service_pb2.ReadParametersRequest, call: Call) -> None:
        await open_stream(call.context)
        run = self.run_of(call, request.name, request.run_uid)
        wire = wire_dtype(request.encoding, run.spec.dtype)
        with self.guarded(call) as guard:
            async with snapshot(run, parameters_of, 1) as copy:
                if request.worker_id:
                    call.who.require_worker(request.worker_id)
                    note_read(run, request.worker_id, copy.step)
                header = service_pb2.ReadParametersHeader(step=copy.step, epoch=copy.epoch)
                await self.write(call, guard, service_pb2.ReadParametersResponse(header=header))
                for _, offset, values in copy.slices(wire.itemsize):
                    part = run_pb2.Slice(offset=offset, data=encode(values, wire))
                    await self.write(call, guard, service_pb2.ReadParametersResponse(slice=part))

    async def ReadState(self, request: service_pb2.ReadStateRequest, call: Call) -> None:
        await open_stream(call.context)
        run = self.run_of(call, request.name, request.run_uid)
        with self.guarded(call) as guard:
            async with snapshot(run, slots_of, len(run.spec.slots)) as copy:
                header = service_pb2.StateHeader(step=copy.step, tensor_steps=copy.tensor_steps, slots=run.spec.slots)
                await self.write(call, guard, service_pb2.ReadStateResponse(header=header))
                for slot, offset, values in copy.slices(run.spec.dtype.itemsize):
                    part = service_pb2.SlotSlice(slot=slot, offset=offset, data=encode(values, run.spec.dtype))
                    await self.write(call, guard, service_pb2.ReadStateResponse(slice=part))

    async def WriteParameters(self, requests: Any, call: Call) -> service_pb2.WriteParametersResponse:
        self.registry.require_open()
        header: service_pb2.WriteParametersHeader = (await first_of(requests)).header
        run = self.run_of(call, header.name, header.run_uid)
        self.require_may_change(call, run, header.worker_id)
        with upload_parameters(run, wire_dtype(header.encoding, run.spec.dtype)) as upload:
            async for request in requests:
                require(request, "slice")
                upload.add(0, request.slice.offset, request.slice.data)
            step, epoch = await put_parameters(run, upload, partial=header.partial)
        return service_pb2.WriteParametersResponse(step=step, epoch=epoch)

    async def WriteState(self, requests: Any, call: Call) -> service_pb2.WriteStateResponse:
        self.registry.require_open()
        header: service_pb2.WriteStateHeader = (await first_of(requests)).header
        run = self.run_of(call, header.name, header.run_uid)
        self.require_may_change(call, run, header.worker_id)
        state = header.state
        tensor_steps = check_state(run, state.slots, state.step, state.tensor_steps)
        with upload_state(run) as upload:
            async for request in requests:
                require(request, "slice")
                upload.add(request.slice.slot, request.slice.offset, request.slice.data)
            step, epoch = await put_state(run, upload, state.slots, state.step, tensor_steps)
        return service_pb2.WriteStateResponse(step=step, epoch=epoch)


def _file_of(session: Session | SharedSession) -> int:
    """The memory file that the client may still ask for; below 0: there is none."""
    return -1 if session.memory is None else session.memory.file_descriptor


def _name_of(run: Run | DamagedRun) -> str:
    return run.name if isinstance(run, DamagedRun) else run.spec.name


def _summary(run: Run | DamagedRun, name: str) -> service_pb2.RunSummary:
    if isinstance(run, DamagedRun):
        return service_pb2.RunSummary(name=name, damage=run.why)
    return service_pb2.RunSummary(
        name=name,
        step=run.step,
        elements=run.spec.layout.elements,
        dtype=dtype_of(run.spec.dtype),
        attached_worker_id=run.holder.worker_id if run.holder else "",
        attached_workers=run.attached_workers,
        durability=durability_of(run.spec),
        steps_per_second=run.activity.steps_per_second,
        idle_seconds=run.activity.idle_seconds,
        wait=encode_wait(wait_of(run)),
    )


def _train_request(serialized: Any, kind: str) -> Opened[train_pb2.TrainRequest]:
    """A message of a Train stream. Raises ProtocolViolation unless it is of this kind."""
    if serialized is grpc.aio.EOF:
        require(serialized, kind)
    opened = decode_request(serialized)
    require(opened.message, kind)
    return opened
