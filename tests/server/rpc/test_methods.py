"""Who calls is decided before anything is read; callers of unary methods notice nothing of it."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gradwire.server.access.identity import ANYBODY, Identity
from gradwire.server.rpc import methods
from gradwire.v1 import run_pb2, service_pb2, service_pb2_grpc, train_pb2
from gradwire.wire.errors import GradwireError
from gradwire.wire.service import MESSAGE_OPTIONS, SERVICE_NAME
from tests.contract.bare import Refusal, amsgrad, group
from tests.faults.hosted import HostedServer
from tests.faults.proxy import Direction, Proxy

SERVICE = service_pb2.DESCRIPTOR.services_by_name["OptimizerService"]
METHODS = {method.name: method for method in SERVICE.methods}
LARGE = 15 * 2**20
"""Bytes of a request that a server takes."""

LITTLE = LARGE // 2
"""More than what HTTP/2 lets through to a peer that reads nothing and has said so: its windows, of up to 4 MiB."""


class Stranger(GradwireError):
    """What a later version may say to one."""

    code, reason = code_pb2.UNAUTHENTICATED, "STRANGER"


@pytest.fixture(scope="module")
def hosted() -> Iterator[HostedServer]:
    with HostedServer() as server:
        yield server


@pytest.fixture
def asked(hosted: HostedServer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on everybody is a stranger who does not say ``name: friend``; the addresses of all who were asked."""
    peers: list[str] = []

    def identify(context: Any) -> Identity:
        peers.append(context.peer())
        if ("name", "friend") not in tuple(context.invocation_metadata()):
            raise Stranger(f"nobody knows {context.peer()}")
        return ANYBODY

    monkeypatch.setattr(hosted.server.servicer, "identify", identify)
    return peers


@pytest.fixture
def proxy(hosted: HostedServer) -> Iterator[Proxy]:
    with Proxy(hosted.target) as between:
        yield between


@pytest.fixture
def channel(proxy: Proxy) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(proxy.target, options=MESSAGE_OPTIONS) as opened:
        yield opened


def call(channel: grpc.Channel, name: str, requests: Any, **options: Any) -> list[bytes]:
    """All answers, as bytes; ``requests`` are sent as a stream, which looks as a unary call does. Raises Refusal."""
    method: Any = channel.stream_stream(f"/{SERVICE_NAME}/{name}")
    try:
        return list(method(iter(requests), timeout=30, **options))
    except grpc.RpcError as error:
        raise Refusal(error) from None


def test_all_methods_of_the_contract_are_streams_of_bytes(hosted: HostedServer) -> None:
    assert set(METHODS) > methods.BYTES
    for name, method in METHODS.items():
        handler = methods._handler(hosted.server.servicer, method)
        assert handler.request_streaming, name
        assert handler.request_deserializer is None, name
        assert handler.response_streaming == method.server_streaming, name


def test_a_stranger_is_refused_before_he_has_said_anything(
    hosted: HostedServer, channel: grpc.Channel, asked: list[str]
) -> None:
    """He sends nothing at all: who waited for his message would wait for ever."""
    for number, name in enumerate(METHODS, 1):
        unsent: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        with pytest.raises(Refusal) as caught:
            call(channel, name, iter(unsent.get, None))
        unsent.put(None)
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAUTHENTICATED, "STRANGER"), name
        assert caught.value.applied == "false"
        assert len(asked) == number
    assert hosted.handlers() == 0


def large_request(name: str) -> Iterator[bytes]:
    if METHODS[name].client_streaming and name != "Train":
        for offset in range(0, LARGE, 2**18):
            yield service_pb2.CreateRunRequest(
                slice=run_pb2.Slice(offset=offset, data=bytes(2**18))
            ).SerializeToString()
    else:
        yield run_pb2.Slice(data=bytes(LARGE)).SerializeToString()


@pytest.mark.parametrize("name", ["GetRun", "ReadState", "CreateRun", "Train"])
def test_a_strangers_message_is_not_read(proxy: Proxy, channel: grpc.Channel, asked: list[str], name: str) -> None:
    with pytest.raises(Refusal) as caught:
        call(channel, name, large_request(name))
    assert caught.value.reason == "STRANGER"
    assert proxy.passed[Direction.UP] < LITTLE


def test_a_friends_message_is_read_and_then_looked_at(proxy: Proxy, channel: grpc.Channel, asked: list[str]) -> None:
    """As what the test above counts would be, were it read."""
    with pytest.raises(Refusal) as caught:
        call(channel, "GetRun", large_request("GetRun"), metadata=(("name", "friend"),))
    assert caught.value.reason == "RUN_NOT_FOUND"
    assert proxy.passed[Direction.UP] > LARGE
    assert len(asked) == 1


def test_a_stranger_is_not_told_that_the_server_starts(
    hosted: HostedServer, channel: grpc.Channel, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted.registry, "_ready", False)
    request = [service_pb2.GetRunRequest(name="runs/x").SerializeToString()]
    for metadata, reason in (((), "STRANGER"), ((("name", "friend"),), "STARTING")):
        with pytest.raises(Refusal) as caught:
            call(channel, "GetRun", request, metadata=metadata)
        assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("requests", "said"),
    [([], "the call ended before its request"), ([b"\xff\xff"], "a message that is no {name}Request")],
    ids=["none", "garbage"],
)
def test_a_call_without_its_request_is_refused(channel: grpc.Channel, requests: list[bytes], said: str) -> None:
    for name, method in METHODS.items():
        if not method.client_streaming:
            with pytest.raises(Refusal) as caught:
                call(channel, name, requests)
            assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PROTOCOL_VIOLATION")
            assert caught.value.status.message.startswith(said.format(name=name))


def test_garbage_in_an_upload_is_refused_and_leaves_nothing(hosted: HostedServer, channel: grpc.Channel) -> None:
    before = hosted.used_bytes
    spec = run_pb2.RunSpec(name="runs/x", groups=[group(amsgrad(), w=[2])])
    header = service_pb2.CreateRunHeader(spec=spec, request_id="one")
    first = service_pb2.CreateRunRequest(header=header).SerializeToString()
    with pytest.raises(Refusal) as caught:
        call(channel, "CreateRun", [first, b"\xff\xff"])
    assert caught.value.reason == "PROTOCOL_VIOLATION"
    assert caught.value.applied == "false"
    assert hosted.used_bytes == before


def test_health_and_unknown_methods_are_as_they_were(channel: grpc.Channel, asked: list[str]) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    answer = health.Check(health_pb2.HealthCheckRequest(service=SERVICE_NAME), timeout=30)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    unknown: Any = channel.unary_unary(f"/{SERVICE_NAME}/Guess")
    with pytest.raises(grpc.RpcError) as caught:
        unknown(b"", timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert asked == []


def test_the_hook_sees_metadata_and_peer_of_each_call_and_train_goes_on_under_it(
    channel: grpc.Channel, asked: list[str]
) -> None:
    friend = (("name", "friend"),)
    stub = service_pb2_grpc.OptimizerServiceStub(channel)
    spec = run_pb2.RunSpec(name="runs/seen", groups=[group(amsgrad(), w=[1])])
    header = service_pb2.CreateRunHeader(spec=spec, request_id="one")
    requests = [
        service_pb2.CreateRunRequest(header=header),
        service_pb2.CreateRunRequest(slice=run_pb2.Slice(data=bytes(4))),
    ]
    assert stub.CreateRun(iter(requests), metadata=friend, timeout=30).created
    assert stub.GetRun(service_pb2.GetRunRequest(name="runs/seen"), metadata=friend, timeout=30).run.elements == 1
    read = stub.ReadParameters(service_pb2.ReadParametersRequest(name="runs/seen"), metadata=friend, timeout=30)
    assert [part.WhichOneof("message") for part in read] == ["header", "slice"]
    gradients = train_pb2.Gradients(sequence=1, data=bytes(4), last=True, header=train_pb2.BlockHeader())
    messages = [
        train_pb2.TrainRequest(attach=train_pb2.Attach(run="runs/seen", worker_id="w")),
        train_pb2.TrainRequest(gradients=gradients),
    ]
    attached, answer = stub.Train(iter(messages), metadata=friend, timeout=30)
    assert (attached.attached.epoch, answer.parameters.receipt.step) == (1, 1)
    assert len(asked) == 4
    assert all(peer.startswith("ipv4:127.0.0.1:") for peer in asked)
