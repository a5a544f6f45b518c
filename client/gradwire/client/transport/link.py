"""The way to one server: its channel, which is made anew when what it was made with has changed.

gRPC's channels connect again with the credentials that they were made with, whatever has become of the files since. So
whoever begins a call asks the link for its stub or method then, and a renewed file counts from the next call or
attachment on. A channel that is no more the link's stays until its last stream has ended. A token is no matter of the
channel: each call has the one that there is when it begins.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc

from gradwire.client.errors import ConnectionClosed
from gradwire.client.transport.channels import channel_to, serving_channel
from gradwire.client.transport.owner import Owner
from gradwire.v1 import service_pb2_grpc
from gradwire.wire.authorized_channel import AuthorizedChannel
from gradwire.wire.hosts import is_loopback
from gradwire.wire.service import SERVICE_NAME
from gradwire.wire.tls import TLS, tls_to
from gradwire.wire.tokens import TokenSource

Stub = service_pb2_grpc.OptimizerServiceStub


class Link:
    """Belongs to the process that made it: in a forked one all but `here` and `close` raise ForkedProcess. Once it is
    closed all but those raise ConnectionClosed.

    Args:
        channel: to ``target``, made with the files of ``tls`` as they were at ``stamp``.
        tokens: None: calls carry none.
    """

    def __init__(
        self,
        target: str,
        channel: grpc.Channel,
        tls: TLS | None = None,
        stamp: tuple[object, ...] = (),
        tokens: TokenSource | None = None,
    ) -> None:
        self.target = target
        self._tls = tls
        self._stamp = stamp
        self._tokens = tokens
        self._wire = _Wire(channel, tokens)
        self._lock = threading.Lock()
        self._owner = Owner("this connection")
        self._closed: str | None = None  # what is closed, once it is

    @classmethod
    def to(cls, target: str, tls: TLS | None, timeout_seconds: float, tokens: TokenSource | None = None) -> Link:
        """Waits for the server as `serving_channel` does, and raises what it raises; ValueError where a token would be
        sent in the clear to another host."""
        used = tls_to(target, tls)
        if tokens is not None and used is None and not is_loopback(target):
            raise ValueError(f"a token is not sent to {target} without TLS; expected tls=TLS(...)")
        stamp = () if used is None else used.stamp()
        return cls(target, serving_channel(target, timeout_seconds, used), used, stamp, tokens)

    @property
    def here(self) -> bool:
        """Whether this is the process that made it."""
        return self._owner.here

    @property
    def channel(self) -> grpc.Channel:
        """With the credentials that there are now. What is called through it itself carries no token."""
        return self._fresh().channel

    @property
    def token(self) -> int:
        """Tells the token that a call which begins now carries from those before it."""
        self.check()
        return 0 if self._tokens is None else self._tokens.generation

    def has_another_token_than(self, token: int) -> bool:
        """Whether what is refused with ``token``, see there, may be allowed now."""
        self._owner.check()
        return self._tokens is not None and self._tokens.is_newer_than(token)

    @property
    def stub(self) -> Stub:
        """For one call, however often that is tried."""
        return self._fresh().stub

    def train(self, requests: Iterator[bytes]) -> Any:
        """Begins a Train call whose messages are left as bytes."""
        self.check()
        with self._lock:
            wire = self._renewed()
            wire.streams += 1
        try:
            call = wire.train(requests)
        except BaseException:
            self._ended(wire)
            self.check()  # gRPC's own error for a channel that was closed meanwhile says little
            raise
        if not call.add_callback(lambda: self._ended(wire)):
            self._ended(wire)  # before the callback was there
        return call

    def check(self, *, applied: bool | None = False) -> None:
        """Raises ForkedProcess, and ConnectionClosed, which says ``applied``, where nothing can be asked any more."""
        self._owner.check()
        if self._closed is not None:
            raise ConnectionClosed(
                f"{self._closed}, so neither it nor its runs can ask anything; expected the call before close(), or "
                "inside the `with` block, or a new connection by gradwire.client.connect()",
                applied=applied,
            )

    def close(self, *, server_too: bool = False) -> None:
        """``server_too``: the server is embedded, and about to end."""
        self._closed = (
            "this connection is closed, and its embedded server has ended with it"
            if server_too
            else f"this connection to {self.target} is closed"
        )
        self._wire.channel.close()

    def _fresh(self) -> _Wire:
        self.check()
        if self._tls is None:
            return self._wire
        with self._lock:
            return self._renewed()

    def _renewed(self) -> _Wire:
        """The wire, in place of one whose files have changed. Where they do not fit together the old one stays: a new
        pair is often written file by file."""
        if self._tls is not None and (stamp := self._tls.stamp()) != self._stamp:
            try:
                renewed = _Wire(channel_to(self.target, self._tls), self._tokens)
            except (OSError, ValueError):
                return self._wire
            old, self._wire, self._stamp = self._wire, renewed, stamp
            old.outdated = True
            if not old.streams:
                old.channel.close()
        return self._wire

    def _ended(self, wire: _Wire) -> None:
        with self._lock:
            wire.streams -= 1
            over = wire.outdated and not wire.streams
        if over:
            wire.channel.close()


class _Wire:
    """A channel, and what is called through it."""

    def __init__(self, channel: grpc.Channel, tokens: TokenSource | None) -> None:
        self.channel = channel
        called: Any = channel if tokens is None else AuthorizedChannel(channel, tokens)
        self.stub = Stub(called)
        self.train: Any = called.stream_stream(f"/{SERVICE_NAME}/Train")
        """As the generated stub has it, but that its messages are left as bytes."""
        self.streams = 0
        self.outdated = False
