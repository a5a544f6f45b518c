"""The calls about the series of a run. Decode, one domain call, encode."""

from __future__ import annotations

import math
from functools import partial

from gradwire.server.durability.logged_scalars import log_scalars
from gradwire.server.engine.threads import in_thread
from gradwire.server.rpc.call import Call
from gradwire.server.rpc.calls import Calls, open_stream
from gradwire.server.rpc.series import decode_scalars, encode_series
from gradwire.server.series.watch import SeriesWatch
from gradwire.v1 import service_pb2
from gradwire.wire.errors import ProtocolViolation
from gradwire.wire.series import MAX_BUCKETS, MAX_SERIES

MOST_BUCKETS = 65_536
"""Of all series of an answer together, which stays below 4 MiB."""

SERIES_A_MESSAGE = 32
"""Of which each may have all its buckets."""

_USUAL_SECONDS = 1.0
_LEAST_SECONDS = 0.1


class SeriesCalls(Calls):
    """See ``gradwire/v1/service.proto``."""

    async def GetSeries(self, request: service_pb2.GetSeriesRequest, call: Call) -> bytes:
        run = self.run_of(call, request.name, request.run_uid)
        names, step = run.series.names(), run.step
        resolution = _resolution(len(request.series or names), request.resolution)
        watch = SeriesWatch(run.series, request.series, request.from_step, resolution)

        def encode() -> bytes:
            return service_pb2.GetSeriesResponse(series=_news(watch), names=names, step=step).SerializeToString()

        return await in_thread(self.registry.executor, encode)

    async def StreamSeries(self, request: service_pb2.StreamSeriesRequest, call: Call) -> None:
        await open_stream(call.context)
        run = self.run_of(call, request.name, request.run_uid)
        if not (request.interval_seconds == 0 or _LEAST_SECONDS <= request.interval_seconds < math.inf):
            raise ProtocolViolation(
                f"interval_seconds is {request.interval_seconds}; expected 0 or at least {_LEAST_SECONDS}"
            )
        resolution = _resolution(SERIES_A_MESSAGE, request.resolution)
        watch = SeriesWatch(run.series, request.series, request.from_step, resolution)
        with self.guarded(call) as guard:
            first = True
            while True:
                run.require_alive()
                series = await in_thread(self.registry.executor, partial(_news, watch)) if watch.has_news else []
                for at in range(0, len(series) or first, SERIES_A_MESSAGE):
                    part = series[at : at + SERIES_A_MESSAGE]
                    await self.write(call, guard, service_pb2.StreamSeriesResponse(series=part, step=run.step))
                first = False
                await guard.pause(request.interval_seconds or _USUAL_SECONDS)

    async def LogScalars(self, request: service_pb2.LogScalarsRequest, call: Call) -> service_pb2.LogScalarsResponse:
        call.who.require_worker(request.worker_id)
        run = self.run_of(call, request.name, request.run_uid)
        scalars = decode_scalars(request.scalars)
        step = await log_scalars(run, request.worker_id, request.number, request.epoch, scalars)
        return service_pb2.LogScalarsResponse(step=step)


def _news(watch: SeriesWatch) -> list[service_pb2.Series]:
    """Many series together take a while: not for the event loop."""
    return [encode_series(name, part, replaces_from) for name, replaces_from, part in watch.news()]


def _resolution(series: int, asked: int) -> int:
    """How many buckets of each there may be."""
    return min(asked or MAX_BUCKETS, MOST_BUCKETS // max(1, min(MAX_SERIES, series)))
