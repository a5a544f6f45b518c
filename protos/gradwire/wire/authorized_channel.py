"""A channel whose calls carry a token.

As plain metadata of each call rather than as call credentials of gRPC's: those want a channel with credentials, and one
to a unix socket has none. And not by interceptors, for which this package would have to import gRPC.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradwire.wire.tokens import TokenSource


class AuthorizedChannel:
    """Makes callables as ``channel``, one of gRPC's, does; whoever has that one closes it.

    Args:
        tokens: asked at the beginning of each call.
    """

    def __init__(self, channel: Any, tokens: TokenSource) -> None:
        self._channel = channel
        self._tokens = tokens

    def unary_unary(self, *arguments: Any, **options: Any) -> AuthorizedMethod:
        return self._with_token(self._channel.unary_unary(*arguments, **options))

    def unary_stream(self, *arguments: Any, **options: Any) -> AuthorizedMethod:
        return self._with_token(self._channel.unary_stream(*arguments, **options))

    def stream_unary(self, *arguments: Any, **options: Any) -> AuthorizedMethod:
        return self._with_token(self._channel.stream_unary(*arguments, **options))

    def stream_stream(self, *arguments: Any, **options: Any) -> AuthorizedMethod:
        return self._with_token(self._channel.stream_stream(*arguments, **options))

    def _with_token(self, method: Callable[..., Any]) -> AuthorizedMethod:
        return AuthorizedMethod(method, self._tokens)


class AuthorizedMethod:
    """A method of the service, called as gRPC's own callables are."""

    def __init__(self, method: Any, tokens: TokenSource) -> None:
        self._method = method
        self._tokens = tokens

    def __call__(self, request: Any, timeout: float | None = None, metadata: Any = None, **options: Any) -> Any:
        return self._method(request, timeout=timeout, metadata=self._added_to(metadata), **options)

    def with_call(self, request: Any, timeout: float | None = None, metadata: Any = None, **options: Any) -> Any:
        return self._method.with_call(request, timeout=timeout, metadata=self._added_to(metadata), **options)

    def future(self, request: Any, timeout: float | None = None, metadata: Any = None, **options: Any) -> Any:
        return self._method.future(request, timeout=timeout, metadata=self._added_to(metadata), **options)

    def _added_to(self, metadata: Any) -> tuple[tuple[str, str | bytes], ...]:
        return (*(metadata or ()), *self._tokens.metadata())
