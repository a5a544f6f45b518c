"""Follows the series of a run while they grow."""

from __future__ import annotations

import queue
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc
import numpy as np

from gradwire.client.calls.catalog import get_run
from gradwire.client.calls.series import Series, decode_series
from gradwire.client.errors import ServerTooOld, translate
from gradwire.client.transport.call_threads import begin, in_own_thread, take
from gradwire.client.transport.link import Link
from gradwire.client.transport.retry import Attempts, RetryPolicy, may_pass
from gradwire.v1 import service_pb2
from gradwire.wire.errors import RunNotFound
from gradwire.wire.series import FIELDS


@dataclass(frozen=True, eq=False)
class SeriesUpdate:
    """What `Server.watch_series` yields."""

    step: int
    """Steps applied to the run."""
    series: dict[str, Series]
    """All that are watched and have been told so far, by name, as they are now. One that a roll-back has emptied has
    no buckets."""
    changed: tuple[str, ...]
    """Which of them are others than in the update before."""


def watch_series(
    link: Link,
    retry: RetryPolicy,
    name: str,
    series: Sequence[str],
    from_step: int,
    resolution: int,
    interval_seconds: float,
) -> Generator[SeriesUpdate, None, None]:
    """See `Server.watch_series`. Raises RunNotFound before it returns."""
    run = get_run(link, retry, name)
    request = service_pb2.StreamSeriesRequest(
        name=run.spec.name,
        run_uid=run.uid,
        series=series,
        from_step=from_step,
        resolution=resolution,
        interval_seconds=interval_seconds,
    )
    return _updates(link, retry, request)


def _updates(
    link: Link, retry: RetryPolicy, request: service_pb2.StreamSeriesRequest
) -> Generator[SeriesUpdate, None, None]:
    attempts = Attempts(retry, link)
    while True:
        known: dict[str, Series] = {}  # a new stream tells all of it anew
        token, call = link.token, None
        try:
            call = in_own_thread(lambda: link.stub.StreamSeries(request))
            while (response := _next(call)) is not None:
                attempts.begin_anew()
                for message in response.series:
                    known[message.name] = _joined(known.get(message.name), message)
                changed = tuple(message.name for message in response.series)
                yield SeriesUpdate(response.step, dict(known), changed)
            return
        except grpc.RpcError as error:
            failure = translate(error, link.target)
            if isinstance(failure, RunNotFound):
                return
            if _code(error) is grpc.StatusCode.UNIMPLEMENTED:
                raise ServerTooOld(f"the server at {link.target} has no StreamSeries; expected a newer one") from None
            attempts.pause_for(failure, transient=may_pass(error, failure), token=token)
        finally:
            if call is not None:
                in_own_thread(call.cancel)


def _code(error: Any) -> grpc.StatusCode:
    code: grpc.StatusCode = error.code()
    return code


def _next(call: Any) -> service_pb2.StreamSeriesResponse | None:
    """What comes next, whenever that is; None: the end. Ctrl-C ends the waiting at once: the call is to be cancelled
    then, which ends its thread."""
    found: queue.SimpleQueue[tuple[service_pb2.StreamSeriesResponse | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            found.put((next(call, None), None))
        except BaseException as error:
            found.put((None, error))

    begin(work)
    response, error = take(found)
    if error is not None:
        raise error
    return response


def _joined(old: Series | None, message: service_pb2.Series) -> Series:
    """A series as it is once the buckets of ``message`` have taken the place of those that they replace."""
    new = decode_series(message)
    if old is None or not message.replaces_from:
        return new
    kept = int(np.searchsorted(old.first_step, message.replaces_from))
    arrays: dict[str, Any] = {
        field: np.concatenate((getattr(old, field)[:kept], getattr(new, field))) for field in FIELDS
    }
    return replace(new, **arrays)
