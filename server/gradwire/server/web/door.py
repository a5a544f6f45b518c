"""Listens for HTTP, and holds no more than a few connections, each for a short time: strangers get no further."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from gradwire.server.config import ConfigError

if TYPE_CHECKING:  # needs a library that a server without TLS does without
    from gradwire.server.web.encrypted import Contexts

log = logging.getLogger(__name__)

noise = logging.getLogger(f"{__name__}.noise")
noise.setLevel(logging.CRITICAL)
"""What aiohttp says of requests that are none: a page of the log for each, which strangers could make endless."""

MAX_CONNECTIONS = 64
"""At a time; the next one waits in the system's queue until there is room."""

CONNECTION_SECONDS = 30.0
"""What a connection gets for its handshake, its one request, and its answer."""

_HANDSHAKE_SECONDS = 10.0
_AGAIN_SECONDS = 0.5
_LAST_WORDS_SECONDS = 1.0

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_deadlines: dict[RequestHandler, asyncio.Timeout] = {}
"""Of the connections that are open."""


def without_end(request: web.BaseRequest) -> None:
    """Whoever answers ``request`` sees to it that its connection ends."""
    _deadlines[request.protocol].reschedule(None)


class _Server(web.Server):
    """Says when a connection is over."""

    def __init__(self, handler: Handler) -> None:
        super().__init__(handler, access_log=None, logger=noise, lingering_time=0.0)
        self.over: dict[RequestHandler, asyncio.Event] = {}

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        if handler in self.over:
            self.over[handler].set()


class Door:
    """One address, from `open` to `close`.

    Args:
        address: ``HOST:PORT``; port 0 takes any free one.
        handler: answers requests.
        contexts: of TLS; None: nothing is encrypted.
    """

    def __init__(self, address: str, handler: Handler, contexts: Contexts | None = None) -> None:
        self._address = address
        self._handler = handler
        self._contexts = contexts
        self._places = asyncio.Semaphore(MAX_CONNECTIONS)
        self._renewing = asyncio.Lock()
        self._listeners: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._server: _Server | None = None

    async def open(self) -> str:
        """Listens; returns the address with the port that was really taken. Raises ConfigError."""
        self._server = _Server(self._handler)
        host, _, port = self._address.rpartition(":")
        self._listeners, taken = await asyncio.to_thread(_listeners, host.strip("[]"), int(port), self._address)
        loop = asyncio.get_running_loop()
        self._accepting = [loop.create_task(self._accept(listener, self._server)) for listener in self._listeners]
        return f"{host}:{taken}"

    async def close(self) -> None:
        """Ends all connections; answers under way get a second."""
        for task in self._accepting:
            task.cancel()
        for listener in self._listeners:
            listener.close()
        if self._server is not None:
            await self._server.shutdown(_LAST_WORDS_SECONDS)
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._accepting, *self._connections, return_exceptions=True)

    async def _accept(self, listener: socket.socket, server: _Server) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._places.acquire()
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # above all: too many files are open
                self._places.release()
                log.warning("a connection to %s could not be taken: %s", self._address, error)
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            except asyncio.CancelledError:
                self._places.release()
                raise
            task = loop.create_task(self._serve(connection, server))
            self._connections.add(task)  # the event loop itself keeps only weak references
            task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._places.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a connection to %s failed", self._address, exc_info=error)

    async def _serve(self, connection: socket.socket, server: _Server) -> None:
        """One connection, until it is over or has had its time."""
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        made = server()
        server.over[made] = over
        transport: asyncio.BaseTransport | None = None
        ours = True
        try:
            with suppress(OSError, TimeoutError):  # a handshake that failed, or whoever was too slow
                async with asyncio.timeout(CONNECTION_SECONDS) as _deadlines[made]:
                    context = await self._context()
                    seconds = None if context is None else _HANDSHAKE_SECONDS
                    ours = False  # from here on asyncio closes it, also where the handshake fails
                    transport, _ = await loop.connect_accepted_socket(
                        lambda: made, connection, ssl=context, ssl_handshake_timeout=seconds
                    )
                    await over.wait()
        finally:
            _deadlines.pop(made, None)
            del server.over[made]
            if isinstance(transport, asyncio.Transport):
                transport.abort()
            if ours:
                connection.close()

    async def _context(self) -> ssl.SSLContext | None:
        if self._contexts is None:
            return None
        async with self._renewing:
            return await asyncio.to_thread(self._contexts.now)


def _listeners(host: str, port: int, address: str) -> tuple[list[socket.socket], int]:
    """Sockets on all addresses of a host that this machine has, and their port. Raises ConfigError."""
    made: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, place in dict.fromkeys((family, str(place[0])) for family, _, _, _, place in found):
            both = place == "::" and socket.has_dualstack_ipv6()
            listener = socket.create_server((place, port), family=family, backlog=MAX_CONNECTIONS, dualstack_ipv6=both)
            listener.setblocking(False)
            made.append(listener)
            port = int(listener.getsockname()[1])
    except OSError as error:
        for listener in made:
            listener.close()
        raise ConfigError(f"cannot listen on {address}: {error.strerror or error}") from None
    return made, port
