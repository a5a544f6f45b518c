"""Who comes to a lane's socket, and what is said there: for the stream's own client, once, and for nobody else."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradwire.client import AMSGrad, connect
from gradwire.client.transport import lane as client_lane
from gradwire.server.rpc import lanes
from gradwire.v1 import service_pb2_grpc, train_pb2
from gradwire.wire.errors import GradwireError, ProtocolViolation, Stalled
from gradwire.wire.lane import HANDSHAKE_SECONDS, PART_BYTES
from tests.faults.bare import BareStream, Stub, channel_to, create, fresh_name, spec_of
from tests.faults.hosted import HostedServer, eventually
from tests.lanes.conftest import has_lane
from tests.serving import ServerProcess

SIZE = 3
GRADIENT = np.ones(SIZE, np.float32)


@pytest.fixture
def stub(hosted: HostedServer) -> Iterator[Stub]:
    with channel_to(hosted.target) as channel:
        yield service_pb2_grpc.OptimizerServiceStub(channel)


class BareLane(BareStream):
    """A stream with a lane, with nothing of ``gradwire.client``."""

    def __init__(self, stub: Stub, *, moves: bool = True, size: int = SIZE, **attach: Any) -> None:
        name = fresh_name("bare")
        create(stub, spec_of(name, size), np.zeros(size, np.float32))
        super().__init__(stub, name, lane=True, **attach)
        self.offer = self.attached.lane
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(10)
        if moves:
            self.greet(self.offer.nonce)
            assert self.heard() == b"\0"
            self.move()

    def greet(self, nonce: bytes) -> None:
        self.socket.connect(self.offer.path)
        self.socket.send(nonce)

    def move(self) -> None:
        self._requests.put(train_pb2.TrainRequest(moved=train_pb2.Moved()))

    def heard(self) -> bytes:
        """The next packet; empty: there will be none."""
        try:
            return self.socket.recv(PART_BYTES + 1)
        except ConnectionResetError:
            return b""

    def block(self, sequence: int = 1, **fields: Any) -> bytes:
        gradients = train_pb2.Gradients(sequence=sequence, last=True, header=train_pb2.BlockHeader(steps=1))
        gradients.data = GRADIENT.tobytes()
        return train_pb2.TrainRequest(gradients=gradients).SerializeToString()

    def step(self, sequence: int, *arguments: Any, **header: Any) -> train_pb2.Receipt:
        self.socket.send(b"\0" + self.block(sequence))
        packet = self.heard()
        assert packet[:1] == b"\0"
        return train_pb2.TrainResponse.FromString(packet[1:]).parameters.receipt

    def finish(self) -> None:
        """In order; the server closes its end, and then the stream."""
        self.socket.shutdown(socket.SHUT_WR)
        assert self.heard() == b""
        assert list(self.call) == []
        self.cancel()
        self.socket.close()

    def why(self) -> GradwireError:
        """With what the server ends it: first the lane, then the stream."""
        while self.heard():
            pass
        refusal = self.refusal()
        self.socket.close()
        return refusal


def test_the_contract_alone(stub: Stub) -> None:
    stream = BareLane(stub)
    assert [stream.step(sequence).step for sequence in (1, 2, 3)] == [1, 2, 3]
    stream.finish()


def test_a_lane_that_is_offered_and_not_taken(stub: Stub, hosted: HostedServer) -> None:
    stream = BareLane(stub, moves=False)
    receipt = BareStream.step(stream, 1, GRADIENT, steps=1)
    assert receipt.step == 1
    stream.greet(stream.offer.nonce)  # and one that is taken, and not used
    assert stream.heard() == b"\0"
    assert BareStream.step(stream, 2, GRADIENT, steps=1).step == 2
    stream.cancel()
    assert stream.heard() == b""
    stream.socket.close()


def another(nonce: bytes) -> bytes:
    """Of the same offer, with another secret."""
    return nonce[:-1] + bytes([nonce[-1] ^ 1])


@pytest.mark.parametrize("change", [another, lambda nonce: nonce + b"x", lambda nonce: nonce[:8], lambda nonce: b"x"])
def test_a_wrong_nonce_is_shown_out(stub: Stub, change: Callable[[bytes], bytes]) -> None:
    stream = BareLane(stub, moves=False)
    stream.greet(change(stream.offer.nonce))
    assert stream.heard() == b""
    stream.socket.close()
    assert BareStream.step(stream, 1, GRADIENT, steps=1).step == 1
    stream.cancel()


def test_an_offer_is_taken_once(stub: Stub, hosted: HostedServer) -> None:
    stream = BareLane(stub)
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as second:
        second.settimeout(10)
        second.connect(stream.offer.path)
        second.send(stream.offer.nonce)
        assert second.recv(10) == b""
    assert stream.step(1).step == 1
    stream.finish()


def test_an_offer_ends_with_its_stream_and_after_ten_seconds(
    stub: Stub, hosted: HostedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert HANDSHAKE_SECONDS == 10
    offers = hosted.server.servicer.lanes._offers
    stream = BareLane(stub, moves=False)
    assert len(offers) == 1
    stream.cancel()
    stream.socket.close()
    eventually(lambda: not offers, "the offer has ended with its stream")
    monkeypatch.setattr(lanes, "HANDSHAKE_SECONDS", 0.05)
    stream = BareLane(stub, moves=False)
    eventually(lambda: not offers, "the offer is over")
    stream.greet(stream.offer.nonce)
    assert stream.heard() == b""
    stream.socket.close()
    stream.cancel()


def test_another_user_is_shown_out(stub: Stub, hosted: HostedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the system says of who has connected."""
    monkeypatch.setattr(lanes, "user_at", lambda connection: os.geteuid() + 1)
    stream = BareLane(stub, moves=False)
    stream.socket.connect(stream.offer.path)
    assert stream.heard() == b""
    stream.socket.close()
    stream.cancel()


def test_a_server_of_another_user_is_told_no_secret(
    hosted: HostedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client_lane, "user_at", lambda connection: os.geteuid() + 1)
    with connect(hosted.target) as server:
        run = server.create_run(fresh_name("other"), {"w": np.zeros(SIZE)}, AMSGrad())
        assert run.step({"w": np.ones(SIZE)}).step == 1
        assert not has_lane(run)
    assert any("another user" in record.getMessage() for record in caplog.records)


def test_who_says_nothing_is_shown_out(stub: Stub, hosted: HostedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not keep others from coming: not more than some at a time."""
    monkeypatch.setattr(lanes, "_MOST_GREETED", 4)
    stream = BareLane(stub, moves=False)
    silent = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(5)]
    for one in silent:
        one.settimeout(10)
        one.connect(stream.offer.path)
    assert silent[4].recv(1) == b""
    greeted = hosted.server.servicer.lanes._greeted
    assert len(greeted) == 4
    for one in silent:
        one.close()
    eventually(lambda: not greeted, "those who have left are forgotten")
    stream.greet(stream.offer.nonce)
    assert stream.heard() == b"\0"
    stream.move()
    assert stream.step(1).step == 1
    stream.finish()


@pytest.mark.parametrize(
    ("packets", "why"),
    [
        ([b"\2" + bytes(10)], "begins with b'\\\\x02'"),
        ([b"\0" + bytes(PART_BYTES + 1)], "at most 65536"),
        ([b"\1" + bytes(PART_BYTES)] * 258, "of a message of at most"),
        ([b"\0\xff\xff\xff"], "no TrainRequest"),
        ([b"\0" + train_pb2.TrainRequest(moved=train_pb2.Moved()).SerializeToString()], "expected 'gradients'"),
        ([b"\0" + train_pb2.TrainRequest(attach=train_pb2.Attach()).SerializeToString()], "expected 'gradients'"),
    ],
    ids=["another kind", "a packet too large", "a message too large", "no message", "moved again", "attach"],
)
def test_what_makes_no_sense_ends_the_stream(stub: Stub, packets: list[bytes], why: str) -> None:
    stream = BareLane(stub)
    for packet in packets:
        try:
            stream.socket.send(packet)
        except OSError:
            break  # it has had enough
    refusal = stream.why()
    assert isinstance(refusal, ProtocolViolation)
    assert refusal.applied is False
    assert why.replace("\\\\", "\\") in refusal.message


def test_who_says_moved_without_a_lane(stub: Stub) -> None:
    stream = BareLane(stub, moves=False)
    stream.move()
    refusal = stream.refusal()
    assert isinstance(refusal, ProtocolViolation)
    assert "has none" in refusal.message
    stream.socket.close()


def test_who_does_not_read_is_given_up(stub: Stub) -> None:
    """Answers wait for room, and not for ever; nobody else waits."""
    stream, other = BareLane(stub), BareLane(stub)
    for sequence in range(1, 100_000):
        try:
            stream.socket.settimeout(5)
            stream.socket.send(b"\0" + stream.block(sequence))
        except OSError:
            break
        if sequence == 1:
            assert other.step(1).step == 1
    assert other.step(2).step == 2
    refusal = stream.why()
    assert isinstance(refusal, Stalled)
    other.finish()


# --- sockets -------------------------------------------------------------------------------------------------------


def test_its_socket_is_for_this_user_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    beside = tmp_path / "socket.lane"
    abandoned = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    abandoned.bind(str(beside))  # as a server that was killed leaves it
    abandoned.close()
    with HostedServer(listen=(f"unix:{tmp_path}/socket", "127.0.0.1:0")) as hosted:
        own = hosted.server.servicer.lanes._directory
        assert own is not None
        directory = own.path
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        for path in (beside, directory / "socket"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for target in hosted.server.addresses:
            with connect(target) as server, server.create_run("x", {"w": np.zeros(SIZE)}, AMSGrad()) as run:
                run.step({"w": np.ones(SIZE)})
                assert has_lane(run)
                server.delete_run("x")
    assert not beside.exists()
    assert not directory.exists()


def test_a_system_without_lanes_offers_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """To a client that asks for one: messages go through gRPC."""
    monkeypatch.setattr(lanes, "AVAILABLE", False)
    with HostedServer() as hosted, connect(hosted.target) as server:
        run = server.create_run("x", {"w": np.zeros(SIZE)}, AMSGrad())
        assert run.step({"w": np.ones(SIZE)}).step == 1
        stream = run._attachment.stream
        assert stream is not None
        assert not stream.attached.HasField("lane")
        assert not hosted.server.servicer.lanes._listeners


def test_a_file_in_its_place_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    (tmp_path / "socket.lane").write_text("somebody's")
    with HostedServer(listen=(f"unix:{tmp_path}/socket",)) as hosted, connect(hosted.target) as server:
        run = server.create_run("x", {"w": np.zeros(SIZE)}, AMSGrad())
        assert run.step({"w": np.ones(SIZE)}).step == 1
        assert not has_lane(run)
    assert (tmp_path / "socket.lane").read_text() == "somebody's"
    assert any("no lanes" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("cause", ["a path that is too long", "no directory"])
def test_an_address_without_lanes_takes_no_others_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, cause: str
) -> None:
    caplog.set_level("INFO")
    temporary = tmp_path / ("long" * 30)
    if cause == "a path that is too long":
        temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with HostedServer(listen=(f"unix:{tmp_path}/socket", "127.0.0.1:0")) as hosted:
        for target, has in zip(hosted.server.addresses, (True, False), strict=True):
            with connect(target) as server, server.create_run("x", {"w": np.zeros(SIZE)}, AMSGrad()) as run:
                assert run.step({"w": np.ones(SIZE)}).step == 1
                assert has_lane(run) is has
                server.delete_run("x")
    assert any("no lanes for loopback" in record.getMessage() for record in caplog.records)
    assert not list(tmp_path.glob("long*/*"))


CLIENT = """
import os, sys
import numpy as np
from gradwire.client import AMSGrad, connect
with connect(sys.argv[1]) as server:
    run = server.create_run("x", {"w": np.zeros(70_000, np.float32)}, AMSGrad())
    run.step({"w": np.ones(70_000, np.float32)})
    child = os.fork()
    if not child:
        os.read(0, 1)  # holds whatever it has until its parent is through
        os._exit(0)
    print(run._attachment.stream.lane is not None, run.shares_memory, run.step({"w": np.ones(70_000, np.float32)}).step)
    run.close()
    print(server.list_runs()[0].attached_worker_id == "")
os.kill(child, 9)
os.waitpid(child, 0)
"""


def test_processes_of_their_own_and_one_that_is_forked(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with ServerProcess(listen=f"unix:{tmp_path}/socket") as process:
        result = subprocess.run(
            [sys.executable, "-c", CLIENT, process.target],
            stdin=subprocess.PIPE,
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["True", "True", "2", "True"]
