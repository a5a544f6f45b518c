"""A client that asks again for what has been applied, and is refused: the block is still applied, and it knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest

from gradwire.client import ConnectionLost, RetryPolicy
from gradwire.client.options import RunOptions
from gradwire.client.run import Run
from gradwire.client.transport.link import Link
from gradwire.v1 import run_pb2, service_pb2, service_pb2_grpc, train_pb2
from gradwire.wire.errors import (
    STATUS_DETAILS_KEY,
    Draining,
    Fenced,
    GradwireError,
    NonFiniteGradient,
    RunBusy,
    RunNotFound,
    to_status,
)
from tests.faults.bare import spec_of

Script = list[Callable[[Iterator[Any], Any], Iterator[train_pb2.TrainResponse]]]


class Scripted(service_pb2_grpc.OptimizerServiceServicer):
    """Answers each Train call as the next entry of a script says."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.blocks = 0
        """How often gradients have arrived, and not only a question."""
        self.unreadable: GradwireError | None = None
        """What those are refused with who read the parameters."""

    def Train(self, requests: Iterator[Any], context: Any) -> Iterator[train_pb2.TrainResponse]:
        next(requests)
        yield from self.script.pop(0)(self._noted(requests), context)

    def ReadParameters(self, request: Any, context: Any) -> Iterator[service_pb2.ReadParametersResponse]:
        if self.unreadable is not None:
            refuse(context, self.unreadable)
        yield service_pb2.ReadParametersResponse(header=service_pb2.ReadParametersHeader(step=1))
        yield service_pb2.ReadParametersResponse(slice=run_pb2.Slice(data=np.zeros(2, np.float32).tobytes()))

    def _noted(self, requests: Iterator[Any]) -> Iterator[Any]:
        for request in requests:
            self.blocks += bool(request.gradients.data)
            yield request


def attached(last: int, epoch: int) -> train_pb2.TrainResponse:
    return train_pb2.TrainResponse(
        attached=train_pb2.Attached(step=last, last_sequence=last, epoch=epoch, supports=[train_pb2.FEATURE_SERIES])
    )


def ends_in_order(requests: Iterator[Any], context: Any) -> Iterator[train_pb2.TrainResponse]:
    """Whoever attaches is about to close."""
    yield attached(0, 1)
    for _ in requests:
        pass


def refuse(context: Any, error: GradwireError) -> None:
    status = to_status(error)
    context.set_trailing_metadata(((STATUS_DETAILS_KEY, status.SerializeToString()),))
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    context.abort(code, status.message)


def loses_the_answer(requests: Iterator[Any], context: Any) -> Iterator[train_pb2.TrainResponse]:
    """Applies the block, and is cut before it answers."""
    yield attached(0, 1)
    next(requests)
    context.abort(grpc.StatusCode.UNAVAILABLE, "cut")


def refuses_the_repeat(error: GradwireError) -> Any:
    def call(requests: Iterator[Any], context: Any) -> Iterator[train_pb2.TrainResponse]:
        yield attached(1, 2)
        next(requests)
        refuse(context, error)

    return call


def repeats(requests: Iterator[Any], context: Any) -> Iterator[train_pb2.TrainResponse]:
    yield attached(1, 3)
    next(requests)
    receipt = train_pb2.Receipt(step=1, learning_rates=[0.1], repeated=True)
    values = np.full(2, 7.0, np.float32).tobytes()
    yield train_pb2.TrainResponse(parameters=train_pb2.Parameters(sequence=1, steps=1, data=values, receipt=receipt))


@pytest.fixture
def serve() -> Iterator[Callable[[Script], tuple[Run, Scripted]]]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    channels: list[grpc.Channel] = []

    def start(script: Script) -> tuple[Run, Scripted]:
        servicer = Scripted(script)  # type: ignore[abstract]  # the generated types want every method
        service_pb2_grpc.add_OptimizerServiceServicer_to_server(servicer, server)
        target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        channel = grpc.insecure_channel(target)
        channels.append(channel)
        options = RunOptions(retry=RetryPolicy(deadline_seconds=20, initial_backoff_seconds=0.01))
        message = run_pb2.Run(spec=spec_of("x", 2), epoch=0)
        message.spec.dtype = run_pb2.DTYPE_FLOAT32
        params = np.zeros(2, np.float32)
        return Run(Link(target, channel), message, options, set(), params), servicer

    yield start
    for channel in channels:
        channel.close()
    server.stop(0).wait()


def test_a_refused_question_does_not_make_an_applied_block_unapplied(
    serve: Callable[[Script], tuple[Run, Scripted]],
) -> None:
    draining = Draining("the server is about to stop; this block was not applied")
    run, servicer = serve([loses_the_answer, refuses_the_repeat(draining), repeats])
    assert run.step({"w": np.ones(2)}).step == 1
    assert servicer.blocks == 1, "the gradients were sent once"
    assert run.params["w"].tolist() == [7.0, 7.0]


def test_a_client_that_gives_up_on_an_applied_block_says_so(serve: Callable[[Script], tuple[Run, Scripted]]) -> None:
    run, _ = serve([loses_the_answer, refuses_the_repeat(Fenced("somebody else has attached")), repeats])
    with pytest.raises((Fenced, ConnectionLost)) as caught:
        run.step({"w": np.ones(2)})
    assert caught.value.applied is True


def refuses_the_attachment(requests: Iterator[Any], context: Any) -> Iterator[train_pb2.TrainResponse]:
    refuse(context, RunBusy("somebody else is there"))
    yield attached(0, 1)


def refuses_the_block(error: GradwireError, epoch: int = 1) -> Any:
    def call(requests: Iterator[Any], context: Any) -> Iterator[train_pb2.TrainResponse]:
        yield attached(0, epoch)
        next(requests)
        refuse(context, error)

    return call


def breaks(requests: Iterator[Any], context: Any) -> Iterator[train_pb2.TrainResponse]:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "no more")  # which is not tried again
    yield attached(0, 1)


@pytest.mark.parametrize(
    ("script", "raised", "applied", "goes_on"),
    [
        ([ends_in_order, refuses_the_attachment], RunBusy, False, True),
        ([ends_in_order, breaks], ConnectionLost, False, True),
        ([refuses_the_block(NonFiniteGradient("NaN"))], NonFiniteGradient, False, False),
        ([refuses_the_block(Draining("later")), breaks], ConnectionLost, False, True),
        (
            [refuses_the_block(Draining("later")), refuses_the_block(NonFiniteGradient("NaN"), epoch=2)],
            GradwireError,
            False,
            False,
        ),
        ([loses_the_answer, breaks], ConnectionLost, None, False),
        ([loses_the_answer, refuses_the_repeat(Fenced("somebody else has attached"))], Fenced, True, False),
    ],
)
def test_values_go_on_to_another_block_unless_theirs_has_left_or_was_refused(
    serve: Callable[[Script], tuple[Run, Scripted]],
    script: Script,
    raised: type[GradwireError],
    applied: bool | None,
    goes_on: bool,
) -> None:
    attaches = script[0] is ends_in_order
    run, _ = serve([*script])
    if attaches:
        run.close()
    run.log(loss=1.0)
    with pytest.raises(raised) as caught:
        run.step({"w": np.ones(2)})
    assert caught.value.applied is applied
    assert run._attachment.logged.take() == ({"loss": [1.0]} if goes_on else {})


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread"), KeyboardInterrupt()])
@pytest.mark.parametrize("moment", ["open", "encode"])
def test_values_go_on_whatever_happens_before_their_block_has_left(
    serve: Callable[[Script], tuple[Run, Scripted]],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    moment: str,
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise error

    run, servicer = serve([ends_in_order])
    run.log(loss=1.0)
    attachment = run._attachment
    if moment == "open":
        monkeypatch.setattr(attachment, "open", fail)
    else:
        monkeypatch.setattr(attachment.encodings.gradients, "block", fail)
    with pytest.raises(type(error)):
        run.step({"w": np.ones(2)})
    assert servicer.blocks == 0
    assert attachment.logged.take() == {"loss": [1.0]}


def test_a_refusal_of_the_reading_before_a_block_says_nothing_of_another_one(
    serve: Callable[[Script], tuple[Run, Scripted]],
) -> None:
    """What was sent may have been applied; that the parameters cannot be read now does not make that a no."""
    run, servicer = serve([breaks_in_the_answer, attaches_elsewhere])
    servicer.unreadable = RunNotFound("it is no more")
    with pytest.raises(RunNotFound) as caught:
        run.step({"w": np.ones(2)})
    assert caught.value.applied is None


def breaks_in_the_answer(requests: Iterator[Any], context: Any) -> Iterator[train_pb2.TrainResponse]:
    yield attached(0, 1)
    next(requests)
    half = np.full(1, 7.0, np.float32).tobytes()
    yield train_pb2.TrainResponse(parameters=train_pb2.Parameters(sequence=1, steps=1, data=half))
    context.abort(grpc.StatusCode.UNAVAILABLE, "cut")


def attaches_elsewhere(requests: Iterator[Any], context: Any) -> Iterator[train_pb2.TrainResponse]:
    yield attached(0, 2)
    next(requests)


def waits_first(requests: Iterator[Any], context: Any) -> Iterator[train_pb2.TrainResponse]:
    yield attached(0, 1)
    next(requests)
    yield train_pb2.TrainResponse(
        waiting=train_pb2.Waiting(reason="its tenant is\nfaster than its rates", since_seconds=12)
    )
    values = np.full(2, 7.0, np.float32).tobytes()
    receipt = train_pb2.Receipt(step=1, learning_rates=[0.1])
    yield train_pb2.TrainResponse(parameters=train_pb2.Parameters(sequence=1, steps=1, data=values, receipt=receipt))


def test_what_a_block_waits_for_is_logged_in_one_line(
    serve: Callable[[Script], tuple[Run, Scripted]], caplog: pytest.LogCaptureFixture
) -> None:
    run, _ = serve([waits_first])
    assert run.step({"w": np.ones(2)}).applied
    assert [r.getMessage() for r in caplog.records if r.name.endswith("waiting_log")] == [
        "runs/x: no answer for 12 s: its tenant is\\nfaster than its rates"
    ]
