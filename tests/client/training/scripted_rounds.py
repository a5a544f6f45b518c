"""A server of one shared run of two elements ``w``, each of whose Train calls does what the next entry of a script
says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np

from gradwire.client import RetryPolicy
from gradwire.client.options import RunOptions
from gradwire.client.run import Run
from gradwire.client.transport.link import Link
from gradwire.v1 import run_pb2, service_pb2, service_pb2_grpc, train_pb2
from gradwire.wire.errors import STATUS_DETAILS_KEY, GradwireError, to_status
from tests.faults.bare import spec_of

Kind = train_pb2.Outcome
Call = Callable[["Requests"], Iterator[train_pb2.TrainResponse]]


class Requests:
    """What arrives on one stream."""

    def __init__(self, attach: train_pb2.Attach, rest: Iterator[Any], context: Any, seen: list[Any]) -> None:
        self.attach = attach
        self._rest = rest
        self._context = context
        self._seen = seen

    def block(self) -> train_pb2.Gradients:
        """The next block, which is one message."""
        request = next(self._rest)
        self._seen.append(request.gradients)
        found: train_pb2.Gradients = request.gradients
        return found

    def cut(self) -> None:
        """The connection breaks."""
        self._context.abort(grpc.StatusCode.UNAVAILABLE, "cut")

    def refuse(self, error: GradwireError) -> None:
        status = to_status(error)
        self._context.set_trailing_metadata(((STATUS_DETAILS_KEY, status.SerializeToString()),))
        code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
        self._context.abort(code, status.message)

    def until_it_ends(self) -> None:
        """Everything else that comes."""
        self._seen.extend(request for request in self._rest if not request.HasField("gradients"))


def attached(**fields: Any) -> train_pb2.TrainResponse:
    return train_pb2.TrainResponse(attached=train_pb2.Attached(**{"epoch": 1, "leads": True, **fields}))


def answer(
    sequence: int, value: float, kind: int = Kind.KIND_ACCEPTED, *, step: int = 1, **fields: Any
) -> train_pb2.TrainResponse:
    """Both elements are ``value``. ``fields``: of the outcome, and ``skipped_steps``."""
    receipt = train_pb2.Receipt(step=step, learning_rates=[0.1], skipped_steps=fields.pop("skipped_steps", ()))
    outcome = train_pb2.Outcome(**{"round": 1, "contributors": 2, "total_weight": 3.0, "epoch": 1, **fields})
    outcome.kind = kind  # type: ignore[assignment]  # also one that there is none of
    receipt.contribution.CopyFrom(outcome)
    values = np.full(2, value, np.float32).tobytes()
    return train_pb2.TrainResponse(
        parameters=train_pb2.Parameters(sequence=sequence, steps=1, data=values, receipt=receipt)
    )


def waits(since_seconds: float, reason: str = "1 of 2; waits for rank-1") -> train_pb2.TrainResponse:
    return train_pb2.TrainResponse(waiting=train_pb2.Waiting(reason=reason, since_seconds=since_seconds))


class ScriptedRounds:
    """A context manager.

    Args:
        script: one entry for each Train call.
        newest: (value, step, epoch) that ReadParameters answers.
    """

    def __init__(self, *script: Call, newest: tuple[float, int, int] = (0.0, 0, 1)) -> None:
        self.script = list(script)
        self.newest = newest
        self.attaches: list[train_pb2.Attach] = []
        self.seen: list[Any] = []
        self.reads = 0
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        servicer = _Servicer()  # type: ignore[abstract]  # the generated types want every method
        servicer.rounds = self
        service_pb2_grpc.add_OptimizerServiceServicer_to_server(servicer, self._server)
        self._target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        self._channel = grpc.insecure_channel(self._target)

    @property
    def blocks(self) -> list[train_pb2.Gradients]:
        """All that have arrived, with data or as a question."""
        return [seen for seen in self.seen if isinstance(seen, train_pb2.Gradients)]

    def attach(self, *, params: bool = True, **options: Any) -> Run:
        """``params``: it begins with zeros of step 0; else it reads them."""
        retry = RetryPolicy(deadline_seconds=20, initial_backoff_seconds=0.01)
        message = run_pb2.Run(spec=spec_of("x", 2), epoch=1)
        message.spec.dtype = run_pb2.DTYPE_FLOAT32
        message.spec.shared.CopyFrom(run_pb2.SharedRun(quorum=2))
        made = RunOptions(**{"worker_id": "rank-0", "retry": retry, **options})
        values = np.zeros(2, np.float32) if params else None
        return Run(Link(self._target, self._channel), message, made, set(), values, created=True)

    def __enter__(self) -> ScriptedRounds:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._server.stop(0).wait()


class _Servicer(service_pb2_grpc.OptimizerServiceServicer):
    rounds: ScriptedRounds

    def Train(self, requests: Iterator[Any], context: Any) -> Iterator[train_pb2.TrainResponse]:
        attach = next(requests).attach
        self.rounds.attaches.append(attach)
        yield from self.rounds.script.pop(0)(Requests(attach, requests, context, self.rounds.seen))

    def ReadParameters(self, request: Any, context: Any) -> Iterator[service_pb2.ReadParametersResponse]:
        self.rounds.reads += 1
        value, step, epoch = self.rounds.newest
        yield service_pb2.ReadParametersResponse(header=service_pb2.ReadParametersHeader(step=step, epoch=epoch))
        yield service_pb2.ReadParametersResponse(slice=run_pb2.Slice(data=np.full(2, value, np.float32).tobytes()))
