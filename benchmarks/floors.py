"""The floors that everything is measured against. They are frozen: what a step does may change, these may not.

All move the same bytes both ways between this process and a child process, and do nothing with them. `RawTcp`: both
directions at once, a thread for each. `fastest_echo`: a bidi stream of raw bytes, without protobuf, over whichever of
sync and aio servers, sync and aio clients and several slice sizes is the fastest, which is tried out first. `copy`: the
same bytes within this process.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import queue
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import grpc
import numpy as np

from benchmarks.child import Child, leave_with_parent, ready
from benchmarks.measure import Contender, Timing, interleave, repeated

SLICE_BYTES = (256 * 2**10, 512 * 2**10, 2**20, 2 * 2**20, 4 * 2**20)
KINDS = ("sync", "aio")
LOOPBACK = "127.0.0.1:0"

METHOD = "/benchmarks.Echo/Stream"
"""Of the echo servers: a bidi stream of raw bytes."""
_OPTIONS = [
    ("grpc.max_receive_message_length", 32 * 2**20),
    ("grpc.max_send_message_length", 32 * 2**20),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


# --- raw TCP -----------------------------------------------------------------------------------------------------


class RawTcp:
    """``size_bytes`` each way over one connection, over and over.

    Args:
        duplex: False: the child answers only when all bytes have arrived, as every peer does that sends first and
            receives then.
        prefix: see `Child`; host: where the child listens.
    """

    def __init__(
        self, size_bytes: int, *, duplex: bool = True, host: str = "127.0.0.1", prefix: Sequence[str] = ()
    ) -> None:
        self._child = Child([__file__, "tcp", host, str(size_bytes), str(int(duplex))], prefix=prefix)
        self._socket = socket.create_connection((host, self._child.said))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._out, self._into = memoryview(bytes(size_bytes)), memoryview(bytearray(size_bytes))
        self._threaded = duplex and size_bytes > 64 * 2**10  # fewer bytes than a socket's buffer need no second thread
        self._pool = ThreadPoolExecutor(1)

    def exchange(self) -> float:
        """Seconds for one exchange."""
        start = time.perf_counter()
        if self._threaded:
            sending = self._pool.submit(self._socket.sendall, self._out)
            receive_all(self._socket, self._into)
            sending.result()
        else:
            self._socket.sendall(self._out)
            receive_all(self._socket, self._into)
        return time.perf_counter() - start

    def close(self) -> None:
        self._socket.close()
        self._pool.shutdown()
        self._child.close()


def receive_all(connection: socket.socket, into: memoryview) -> bool:
    """Fills ``into``; False when the peer has ended the connection."""
    at = 0
    while at < len(into):
        count = connection.recv_into(into[at:])
        if not count:
            return False
        at += count
    return True


def _serve_tcp(host: str, size_bytes: int, duplex: bool) -> None:
    listener = socket.create_server((host, 0))
    leave_with_parent()
    ready(listener.getsockname()[1])
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    out, into = memoryview(bytes(size_bytes)), memoryview(bytearray(size_bytes))
    threaded = duplex and size_bytes > 64 * 2**10
    pool = ThreadPoolExecutor(1)
    while receive_all(connection, into[:1]):  # an exchange has begun
        sending = pool.submit(connection.sendall, out) if threaded else None
        receive_all(connection, into[1:])
        if sending is not None:
            sending.result()
        else:
            connection.sendall(out)
    os._exit(0)


# --- raw gRPC ----------------------------------------------------------------------------------------------------


class GrpcEcho:
    """One stream to a child process that sends each message back.

    Args:
        server, client: one of KINDS.
        address: where the child listens: ``HOST:0`` or ``unix:PATH``.
        tls: folder with ``server.pem``, ``server.key`` and ``ca.pem``; None: nothing is encrypted.
    """

    def __init__(
        self,
        server: str,
        client: str,
        address: str = LOOPBACK,
        *,
        prefix: Sequence[str] = (),
        tls: Path | None = None,
    ) -> None:
        encrypted = [] if tls is None else [str(tls)]
        self._child = Child([__file__, f"grpc-{server}", address, *encrypted], prefix=prefix)
        clients: dict[str, Callable[[str, Path | None], _SyncClient | _AioClient]] = {
            "sync": _SyncClient,
            "aio": _AioClient,
        }
        self._client = clients[client](self._child.said, tls)
        self.exchange([b"x"])

    def exchange(self, messages: Sequence[bytes]) -> float:
        """Seconds for sending ``messages`` without waiting, while their answers are read."""
        return self._client.exchange(messages)

    def round_trips(self, messages: Sequence[bytes]) -> float:
        """Seconds for sending ``messages`` one after another, each after the answer to the one before."""
        return sum(self._client.exchange([message]) for message in messages)

    def close(self) -> None:
        self._client.close()
        self._child.close()


class _SyncClient:
    """gRPC takes the requests from a queue, in a thread of its own; answers are read by the caller."""

    def __init__(self, target: str, tls: Path | None) -> None:
        self._channel = _channel(grpc, target, tls)
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        method: Any = self._channel.stream_stream(METHOD)
        self._replies: Iterator[bytes] = method(iter(self._requests.get, None), wait_for_ready=True)

    def exchange(self, messages: Sequence[bytes]) -> float:
        start = time.perf_counter()
        for message in messages:
            self._requests.put(message)
        for _ in messages:
            next(self._replies)
        return time.perf_counter() - start

    def close(self) -> None:
        self._requests.put(None)
        self._channel.close()


def _channel(kind: Any, target: str, tls: Path | None) -> Any:
    """Of ``grpc`` or ``grpc.aio``."""
    if tls is None:
        return kind.insecure_channel(target, _OPTIONS)
    credentials = grpc.ssl_channel_credentials((tls / "ca.pem").read_bytes())
    return kind.secure_channel(target, credentials, _OPTIONS)


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()  # one for all: gRPC wakes every loop that it has ever seen


class _AioClient:
    """All in the caller's thread, which runs the event loop while it waits."""

    def __init__(self, target: str, tls: Path | None) -> None:
        _loop().run_until_complete(self._connect(target, tls))

    async def _connect(self, target: str, tls: Path | None) -> None:
        self._channel = _channel(grpc.aio, target, tls)
        method: Any = self._channel.stream_stream(METHOD)
        self._call = method(wait_for_ready=True)

    def exchange(self, messages: Sequence[bytes]) -> float:
        return _loop().run_until_complete(self._exchange(messages))

    async def _exchange(self, messages: Sequence[bytes]) -> float:
        start = time.perf_counter()
        if len(messages) == 1:
            await self._call.write(messages[0])
            await self._call.read()
        else:
            sending = asyncio.ensure_future(self._send(messages))
            for _ in messages:
                await self._call.read()
            await sending
        return time.perf_counter() - start

    async def _send(self, messages: Sequence[bytes]) -> None:
        for message in messages:
            await self._call.write(message)

    def close(self) -> None:
        async def finish() -> None:
            await self._call.done_writing()
            await self._call.read()  # until the end of the stream
            await self._call.code()
            await self._channel.close()

        _loop().run_until_complete(finish())


@dataclass(frozen=True)
class FastestEcho:
    """The echo of one number of bytes, as fast as it goes here."""

    echo: GrpcEcho
    messages: tuple[bytes, ...]
    way: str
    tried: dict[str, Timing]
    """What every way took that was tried out."""

    def exchange(self) -> float:
        """Seconds for one exchange."""
        return self.echo.exchange(self.messages)

    def close(self) -> None:
        self.echo.close()


def fastest_echo(
    size_bytes: int,
    address: str = LOOPBACK,
    *,
    prefix: Sequence[str] = (),
    repeats: int = 1,
    rounds: int = 5,
    tls: Path | None = None,
) -> FastestEcho:
    """Tries all ways to echo ``size_bytes``, in ``rounds`` interleaved rounds of ``repeats`` exchanges each."""
    echoes: dict[tuple[str, str], GrpcEcho] = {}
    for pair in itertools.product(KINDS, KINDS):
        own = f"{address}-{'-'.join(pair)}" if address.startswith("unix:") else address
        echoes[pair] = GrpcEcho(*pair, own, prefix=prefix, tls=tls)
    ways: dict[str, tuple[tuple[str, str], tuple[bytes, ...]]] = {}
    for pair in echoes:
        for cut in [cut for cut in SLICE_BYTES if cut < size_bytes] or [size_bytes]:
            slices = f"slices of {cut // 1024} KiB" if cut < size_bytes else "one message"
            messages = tuple(bytes(min(cut, size_bytes - at)) for at in range(0, size_bytes, cut))
            ways[f"{pair[0]} server, {pair[1]} client, {slices}"] = pair, messages

    def contender(pair: tuple[str, str], messages: Sequence[bytes]) -> Contender:
        return repeated(lambda: echoes[pair].exchange(messages), repeats)

    tried = interleave({way: contender(*choice) for way, choice in ways.items()}, rounds)
    best = min(tried, key=lambda way: tried[way].median)
    chosen, messages = ways[best]
    for pair, echo in echoes.items():
        if pair != chosen:
            echo.close()
    return FastestEcho(echoes[chosen], messages, best, tried)


def _serve_grpc_sync(address: str, tls: Path | None) -> None:
    def echo(requests: Iterator[bytes], context: object) -> Iterator[bytes]:
        yield from requests

    server = grpc.server(ThreadPoolExecutor(4), options=_OPTIONS)
    ready(_start_listening(server, address, echo, tls))
    server.start()
    leave_with_parent()
    server.wait_for_termination()


async def _serve_grpc_aio(address: str, tls: Path | None) -> None:
    async def echo(requests: object, context: Any) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            await context.write(message)

    server = grpc.aio.server(options=_OPTIONS)
    target = _start_listening(server, address, echo, tls)
    await server.start()
    ready(target)
    leave_with_parent()
    await server.wait_for_termination()


def _start_listening(server: Any, address: str, echo: Callable[..., object], tls: Path | None) -> str:
    method: Any = grpc.stream_stream_rpc_method_handler(echo)
    _, service, name = METHOD.split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: method}),))
    if tls is None:
        port: int = server.add_insecure_port(address)
    else:
        pair = ((tls / "server.key").read_bytes(), (tls / "server.pem").read_bytes())
        port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


# --- memory ------------------------------------------------------------------------------------------------------


def copy(size_bytes: int) -> Contender:
    """Copies ``size_bytes`` there and back, in this thread."""
    here, there = np.ones(size_bytes, np.uint8), np.ones(size_bytes, np.uint8)

    def contender() -> float:
        start = time.perf_counter()
        np.copyto(there, here)
        np.copyto(here, there)
        return time.perf_counter() - start

    return contender


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["tcp", host, size, duplex]:
            _serve_tcp(host, int(size), duplex == "1")
        case ["grpc-sync", where, *folder]:
            _serve_grpc_sync(where, Path(folder[0]) if folder else None)
        case ["grpc-aio", where, *folder]:
            asyncio.run(_serve_grpc_aio(where, Path(folder[0]) if folder else None))
        case _:
            sys.exit("this file is imported by the benchmarks; it starts itself for its servers")
