"""The floor of a round trip: a bidi stream of raw bytes to a child process that sends each message back.

gRPC and nothing else: no protobuf, no optimizer; the same transport (a unix socket), the same kind of server (aio) and
the same kind of client (sync, a thread for the requests) as gradwire's.
"""

from __future__ import annotations

import asyncio
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc

_SERVICE, _METHOD = "benchmarks.Echo", "Stream"
_LIMIT = ("grpc.max_receive_message_length", 32 * 2**20), ("grpc.max_send_message_length", 32 * 2**20)


class Echo:
    """The child process and one stream to it."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="echo-")
        address = f"unix:{self._directory.name}/socket"
        self._process = subprocess.Popen([sys.executable, __file__, address], stdin=subprocess.PIPE)
        self._channel = grpc.insecure_channel(address, [*_LIMIT])
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        grpc.channel_ready_future(self._channel).result(timeout=60)
        method: Any = self._channel.stream_stream(f"/{_SERVICE}/{_METHOD}")
        self._replies: Iterator[bytes] = method(self._outgoing())
        self.round_trips([b"x"])

    def _outgoing(self) -> Iterator[bytes]:
        while (message := self._requests.get()) is not None:
            yield message

    def round_trips(self, messages: Sequence[bytes]) -> float:
        """Seconds for sending ``messages`` one after another, each after the answer to the one before."""
        start = time.perf_counter()
        for message in messages:
            self._requests.put(message)
            next(self._replies)
        return time.perf_counter() - start

    def stream(self, messages: Sequence[bytes]) -> float:
        """Seconds for sending ``messages`` without waiting, while their answers are read."""
        start = time.perf_counter()
        for message in messages:
            self._requests.put(message)
        for _ in messages:
            next(self._replies)
        return time.perf_counter() - start

    def close(self) -> None:
        self._requests.put(None)
        self._channel.close()
        assert self._process.stdin is not None
        self._process.stdin.close()  # the child leaves at its end of file
        self._process.wait(10)
        self._directory.cleanup()


async def _serve(address: str) -> None:
    async def echo(requests: object, context: Any) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            await context.write(message)

    server = grpc.aio.server(options=[*_LIMIT])
    method: Any = grpc.stream_stream_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: method}),))
    server.add_insecure_port(address)
    await server.start()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
