"""What no client of gRPC would send: the server serves those whom it knows meanwhile, and is left as it was."""

from __future__ import annotations

import struct
import tomllib
import zlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from gradwire.v1 import service_pb2, train_pb2
from tests.contract.bare import BareClient, BareStream, Refusal, group
from tests.faults.hosted import HostedServer, eventually
from tests.faults.hpack import encode
from tests.faults.outcomes import FOR_EVER_SECONDS, Bystander
from tests.faults.raw_http2 import (
    CANCEL,
    CONTINUATION,
    END_HEADERS,
    HEADERS,
    MAX_FRAME_BYTES,
    PING,
    RST_STREAM,
    SETTINGS,
    RawConnection,
    frame,
)
from tests.integration.access import AccessFile, secret_of
from tests.serving import ServerProcess

METHODS = [method.name for method in service_pb2.DESCRIPTOR.services_by_name["OptimizerService"].methods]
BOMB_MEBIBYTES = 1000
STREAMS = 2000
UNAUTHENTICATED, RESOURCE_EXHAUSTED = b"16", b"8"


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> AccessFile:
    file = AccessFile(tmp_path_factory.mktemp("wire") / "access.toml")
    file.add("owner", "lab", "train")
    return file


@pytest.fixture(scope="module")
def hosted(access: AccessFile) -> Iterator[HostedServer]:
    with HostedServer(access=str(access.path)) as server:
        yield server


@pytest.fixture(scope="module")
def owner(hosted: HostedServer) -> Iterator[BareClient]:
    with BareClient(hosted.target, secret_of("owner")) as client:
        client.create("x", [group(w=[2])], [0.0, 0.0])
        client.create("y", [group(w=[2])], [0.0, 0.0])
        yield client


@pytest.fixture(scope="module")
def bystander(owner: BareClient) -> Iterator[Bystander]:
    attach = train_pb2.Attach(run="runs/x", worker_id="bystander")
    with BareStream(owner.stub, attach, owner.metadata, FOR_EVER_SECONDS) as stream:
        yield Bystander(stream)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("method", ["Train", "CreateRun", "GetRun"])
def test_a_message_that_inflates_to_gigabytes_is_not_inflated(
    server: ServerProcess, method: str, encoding: str
) -> None:
    """A mebibyte that would become 1,000. What gRPC inflates is bounded by what a message may have, 16 MiB."""
    content = bomb(BOMB_MEBIBYTES) if encoding == "gzip" else zlib.compress(bytes(BOMB_MEBIBYTES // 10 * 2**20), 9)
    before = most_resident_mebibytes(server)
    with BareClient(server.target, secret_of("owner")) as owner:
        owner.create(f"{method}-{encoding}", [group(w=[2])], [0.0, 0.0])
        with owner.attach(f"{method}-{encoding}") as stream, RawConnection(server.target, secret_of("owner")) as raw:
            call = raw.open(method, [("grpc-encoding", encoding)])
            raw.message(call, content, compressed=True)
            assert raw.end_of(call)["grpc-status"] == RESOURCE_EXHAUSTED
            Bystander(stream).steps()
    assert most_resident_mebibytes(server) < before + 64


def test_a_server_is_not_installed_beside_a_grpc_that_inflates_them() -> None:
    """1.82.1 did: a mebibyte took a gigabyte of memory. Clients may be older."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert "grpcio>=1.82.3" in project["optional-dependencies"]["server"]


@pytest.fixture(scope="module")
def server(access: AccessFile) -> Iterator[ServerProcess]:
    with ServerProcess("--access", str(access.path)) as process:
        yield process


def bomb(size_mebibytes: int) -> bytes:
    """Gzip of so many MiB of zeros, a thousandth as long."""
    zeros = bytes(2**20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)  # leaves nothing behind: may be repeated
    checksum = 0
    for _ in range(size_mebibytes):
        checksum = zlib.crc32(zeros, checksum)
    size = size_mebibytes * 2**20 % 2**32
    return (
        b"\x1f\x8b\x08" + bytes(6) + b"\xff" + piece * size_mebibytes + b"\x03\0" + struct.pack("<II", checksum, size)
    )


def most_resident_mebibytes(server: ServerProcess) -> int:
    """The most that the process has ever had."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


@pytest.mark.parametrize("method", METHODS)
def test_headers_and_nothing_more(hosted: HostedServer, owner: BareClient, bystander: Bystander, method: str) -> None:
    """A stranger is refused before a message has come; who is known holds nothing with it, and a dead connection ends
    it."""
    used, tasks = hosted.used_bytes, hosted.handler_tasks()
    with RawConnection(hosted.target) as raw:
        assert raw.end_of(raw.open(method))["grpc-status"] == UNAUTHENTICATED
    with RawConnection(hosted.target, secret_of("owner")) as raw:
        for _ in range(20):
            raw.open(method)
        bystander.steps()
        assert hosted.used_bytes == used
    eventually(lambda: hosted.handler_tasks() <= tasks, "the handlers have ended")


@pytest.mark.parametrize("token", ["", secret_of("owner")], ids=["stranger", "owner"])
def test_thousands_of_streams_that_are_opened_and_reset(hosted: HostedServer, bystander: Bystander, token: str) -> None:
    """Rapid reset: a request costs the sender nothing. Connections that do it may be closed."""
    used, tasks = hosted.used_bytes, hosted.handler_tasks()
    reset = frame(RST_STREAM, 0, 0, CANCEL.to_bytes(4, "big"))
    with RawConnection(hosted.target, token) as raw:
        for number in range(STREAMS):
            try:
                call = raw.open("Train")
                raw.send(reset[:5] + call.to_bytes(4, "big") + reset[9:])
            except ConnectionError:
                break
            if number == STREAMS // 2:
                bystander.steps()
        bystander.steps()
    eventually(lambda: hosted.used_bytes == used and hosted.handler_tasks() <= tasks, "nothing is left of them")


def is_free(owner: BareClient, name: str) -> bool:
    """Where a thousand calls wait gRPC turns new ones away by chance, with CANCELLED, whoever makes them. Our client
    tries again then; this one says that it does not know."""
    try:
        return not owner.get(name).attached_worker_id
    except Refusal as refusal:
        if refusal.code is grpc.StatusCode.CANCELLED:
            return False
        raise


def test_a_stream_that_is_reset_behind_its_attachment_lets_the_run_go(
    hosted: HostedServer, owner: BareClient, bystander: Bystander
) -> None:
    used = hosted.used_bytes
    attach = train_pb2.Attach(run="runs/y", worker_id="w")
    message = train_pb2.TrainRequest(attach=attach).SerializeToString()
    with RawConnection(hosted.target, secret_of("owner")) as raw:
        for _ in range(200):
            call = raw.open("Train")
            raw.message(call, message)
            raw.send(frame(RST_STREAM, 0, call, CANCEL.to_bytes(4, "big")))
        bystander.steps()
        eventually(lambda: is_free(owner, "y"), "the run is free")
    eventually(lambda: hosted.used_bytes == used, "the memory is given back")


@pytest.mark.parametrize("flood", ["continuation", "ping", "settings"])
def test_frames_without_end(hosted: HostedServer, bystander: Bystander, flood: str) -> None:
    """Headers that never end are not kept; answers that nobody takes neither."""
    used = hosted.used_bytes
    more = {
        "continuation": frame(CONTINUATION, 0, 1, encode([("x", "y" * (MAX_FRAME_BYTES - 100))])),
        "ping": frame(PING, 0, 0, bytes(8)) * 100,
        "settings": frame(SETTINGS, 0, 0, b"\0\x04\0\0\xff\xff") * 100,
    }[flood]
    with RawConnection(hosted.target) as raw:
        raw.send(frame(HEADERS, 0 if flood == "continuation" else END_HEADERS, 1, encode([(":method", "POST")])))
        raw.settimeout(0.2)
        for _ in range(500):
            try:
                raw.send(more)
            except OSError:  # it was closed, or nothing more is taken
                break
        bystander.steps()
    assert hosted.used_bytes == used
