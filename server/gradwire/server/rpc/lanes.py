"""Where lanes are asked for: sockets that the server's own user reaches, and the offers that wait to be taken there."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import secrets
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from gradwire.server.rpc.lane import Lane
from gradwire.server.rpc.lane_directory import LaneDirectory
from gradwire.wire.hosts import is_unix
from gradwire.wire.lane import AVAILABLE, HANDSHAKE_SECONDS, NONCE_BYTES, SUFFIX, WELCOME, user_at

log = logging.getLogger(__name__)

_NUMBER_BYTES = 8
"""Of a nonce: says which offer it is for, and is no secret."""

_MOST_GREETED = 64
"""Connections that have not said yet what they come for."""

_PAUSE_SECONDS = 1.0
"""Nobody is let in for so long where the process has no file descriptors left."""


class Offer:
    """A lane that a stream's client may take.

    Args:
        path: see ``gradwire.v1.Lane``.
        region: the memory file that goes with it; below 0: there is none.
        withdraw: so that nobody takes it any more.
    """

    def __init__(self, path: str, nonce: bytes, region: Callable[[], int], withdraw: Callable[[], object]) -> None:
        self.path = path
        self.nonce = nonce
        self.region = region
        self.lane: Lane | None = None
        """Once it has been taken."""
        self._withdraw = withdraw

    def close(self) -> None:
        """Ends the lane, or the offer."""
        self._withdraw()
        if self.lane is not None:
            self.lane.close()


class Lanes:
    """Of one server. Without `open` nothing is offered."""

    def __init__(self) -> None:
        self._offers: dict[bytes, Offer] = {}
        self._listeners: list[socket.socket] = []
        self._paths: list[Path] = []
        self._directory: LaneDirectory | None = None
        self._beside = False  # of unix sockets
        self._loopback = ""
        self._greeted: set[socket.socket] = set()

    def open(self, addresses: Sequence[str], *, loopback: bool) -> None:
        """Listens beside each unix socket of ``addresses``, and for the others, where ``loopback`` says so, in a
        directory of the server's own. A system without lanes, or an address whose path is too long, has none."""
        if not AVAILABLE:
            return
        for address in filter(is_unix, addresses):
            with _else_through_grpc(address):
                self._listen(Path(address.removeprefix("unix:") + SUFFIX))
                self._beside = True
        if loopback and not all(map(is_unix, addresses)):
            with _else_through_grpc("loopback"):
                self._directory = LaneDirectory()
                self._listen(self._directory.path / "socket")
                self._loopback = str(self._paths[-1].absolute())

    def offer(self, peer: str, region: Callable[[], int]) -> Offer | None:
        """A lane for the stream of ``peer``, an address as gRPC names it; None: there is none. See `Offer`."""
        beside = is_unix(peer)
        if not (self._beside if beside else self._loopback):
            return None
        nonce = secrets.token_bytes(NONCE_BYTES)
        number = nonce[:_NUMBER_BYTES]
        withdraw = partial(self._offers.pop, number, None)
        self._offers[number] = offer = Offer("" if beside else self._loopback, nonce, region, withdraw)
        _loop().call_later(HANDSHAKE_SECONDS, withdraw)
        return offer

    def close(self) -> None:
        """Lets nobody in any more; the lanes that there are stay. May be called more than once."""
        self._beside, self._loopback = False, ""
        self._offers.clear()
        for connection in [*self._listeners, *self._greeted]:
            _loop().remove_reader(connection)
            connection.close()
        self._listeners.clear()
        self._greeted.clear()
        with contextlib.suppress(OSError):  # above all: the directory is no more
            while self._paths:
                self._paths.pop().unlink(missing_ok=True)
        if self._directory is not None:
            self._directory.close()

    def _listen(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.lstat().st_mode):  # of a server that was killed: its address is ours now
                path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listeners.append(listener)
        listener.setblocking(False)
        listener.bind(os.fspath(path))
        self._paths.append(path)
        path.chmod(0o600)  # nobody can connect yet
        listener.listen(_MOST_GREETED)
        _loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            log.warning("no lane can be let in for %g s: %s", _PAUSE_SECONDS, error)
            _loop().remove_reader(listener)
            _loop().call_later(_PAUSE_SECONDS, self._accept_again, listener)
            return
        if user_at(connection) != os.geteuid() or len(self._greeted) >= _MOST_GREETED:
            connection.close()
            return
        connection.setblocking(False)
        self._greeted.add(connection)
        _loop().add_reader(connection, self._greet, connection)
        _loop().call_later(HANDSHAKE_SECONDS, self._send_away, connection)

    def _accept_again(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            _loop().add_reader(listener, self._accept, listener)

    def _greet(self, connection: socket.socket) -> None:
        """Whoever has just connected says for which offer: once, right or wrong."""
        try:
            nonce = connection.recv(NONCE_BYTES + 1)
            offer = self._offers.pop(nonce[:_NUMBER_BYTES], None)
            if offer is None or not hmac.compare_digest(nonce, offer.nonce):
                self._send_away(connection)
                return
            region = offer.region()
            if region < 0:
                connection.send(WELCOME)
            else:
                socket.send_fds(connection, [WELCOME], [region])
        except BlockingIOError:
            return
        except OSError:
            self._send_away(connection)
            return
        self._greeted.discard(connection)
        _loop().remove_reader(connection)
        offer.lane = Lane(connection)

    def _send_away(self, connection: socket.socket) -> None:
        if connection in self._greeted:
            self._greeted.discard(connection)
            _loop().remove_reader(connection)
            connection.close()


@contextlib.contextmanager
def _else_through_grpc(address: str) -> Iterator[None]:
    """Where there can be no lanes, the other addresses still have theirs."""
    try:
        yield
    except OSError as error:
        log.info("no lanes for %s, messages go through gRPC: %s", address, error)


def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()
