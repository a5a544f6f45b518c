"""No answer that can be cut is larger than gRPC takes by default: other languages' clients need not know of a limit."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from gradwire.client import AMSGrad, connect
from gradwire.server.rpc.codec import cut
from gradwire.v1 import run_pb2, service_pb2_grpc, train_pb2
from gradwire.wire.encoding import MAX_ANSWER_BYTES
from gradwire.wire.envelope import parameters_response
from tests.faults.hosted import HostedServer

STEPS = 2**20 + 3
"""One element of so many steps takes more than a message, as float32."""


@pytest.fixture(scope="module")
def hosted() -> Iterator[HostedServer]:
    with HostedServer(near=True) as server:
        yield server


@pytest.mark.parametrize("shape", [(1, 5 * 2**20), (2**20 + 7, 1), (2**21, 1), (3, 2**20), (5, 7)])
@pytest.mark.parametrize("groups", [0, 1, 2**16])
def test_pieces_are_the_message_and_none_is_too_large(shape: tuple[int, int], groups: int) -> None:
    data = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
    whole = train_pb2.Parameters(sequence=2**40, offset=11, steps=shape[0], encoding=run_pb2.ENCODING_FLOAT32)
    if groups:
        whole.receipt.step = 5
        whole.receipt.learning_rates.extend([0.1] * groups)
    found = np.full(shape, np.nan, np.float32)
    receipts = 0
    for index, (piece, values) in enumerate(cut(whole, data)):
        receipts += piece.HasField("receipt")
        assert piece.sequence == whole.sequence
        if values is None:
            size = train_pb2.TrainResponse(parameters=piece).ByteSize()
        else:
            columns = slice(piece.offset - 11, piece.offset - 11 + values.shape[1])
            found[piece.first_step : piece.first_step + piece.steps, columns] = values
            size = len(parameters_response(piece, values))
        assert size <= MAX_ANSWER_BYTES, index
    np.testing.assert_array_equal(found, data)
    assert receipts == bool(groups)


def test_long_trajectory_reaches_a_client_with_grpc_s_own_limits(hosted: HostedServer) -> None:
    """And our own client puts the same together."""
    gradients = np.linspace(-1, 1, STEPS, dtype=np.float32)
    with connect(hosted.target, shared_memory=False) as server:
        run = server.create_run("long", {"w": np.ones(1, np.float32)}, AMSGrad(lr=0.1))
        expected = run.step_many({"w": gradients[:, None]}, returns="trajectory")["w"][:, 0].copy()
        server.create_run("bare", {"w": np.ones(1, np.float32)}, AMSGrad(lr=0.1)).close()
    header = train_pb2.BlockHeader(steps=STEPS, returns=train_pb2.RETURNS_TRAJECTORY)
    messages = [
        train_pb2.TrainRequest(attach=train_pb2.Attach(run="runs/bare", worker_id="w")),
        train_pb2.TrainRequest(
            gradients=train_pb2.Gradients(sequence=1, data=gradients.tobytes(), last=True, header=header)
        ),
    ]
    found = np.full(STEPS, np.nan, np.float32)
    with grpc.insecure_channel(hosted.target) as channel:
        stub = service_pb2_grpc.OptimizerServiceStub(channel)
        answers = stub.Train(iter(messages), timeout=60)
        assert next(answers).WhichOneof("message") == "attached"
        for answer in answers:
            part = answer.parameters
            found[part.first_step : part.first_step + part.steps] = np.frombuffer(part.data, np.float32)
    np.testing.assert_array_equal(found, expected)
