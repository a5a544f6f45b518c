"""How long and how often a client tries again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc

from gradwire.client.errors import ConnectionClosed, ConnectionLost, is_transient, translate
from gradwire.client.transport.call_threads import in_own_thread
from gradwire.client.transport.link import Link
from gradwire.wire.errors import Draining, GradwireError, PermissionRevoked, Starting, Unauthenticated

T = TypeVar("T")

_SHORTEST_ATTEMPT_SECONDS = 0.5


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter."""

    deadline_seconds: float = 60.0
    """From the first failure on; then the exception goes to the caller. 0: never try again."""
    initial_backoff_seconds: float = 0.1
    max_backoff_seconds: float = 3.0


def may_pass(error: grpc.RpcError, failure: GradwireError) -> bool:
    """Whether trying again can help after ``error``, which means ``failure``."""
    return isinstance(failure, (Draining, Starting)) or (isinstance(failure, ConnectionLost) and is_transient(error))


class Attempts:
    """The failures of one operation so far.

    Args:
        policy: None: it cannot be done twice, whatever has happened.
        link: whose calls they are.
    """

    def __init__(self, policy: RetryPolicy | None, link: Link) -> None:
        self._repeatable = policy is not None
        self._policy = policy or RetryPolicy(deadline_seconds=0)
        self._link = link
        self._give_up_at: float | None = None
        self._backoff_seconds = self._policy.initial_backoff_seconds
        self.failed_internally = False

    @property
    def seconds_left(self) -> float | None:
        """How long the next attempt may take; None before the first failure."""
        if self._give_up_at is None:
            return None
        return max(self._give_up_at - time.monotonic(), _SHORTEST_ATTEMPT_SECONDS)

    def begin_anew(self) -> None:
        """What was tried has come so far that earlier failures are over: the next one is the first."""
        self._give_up_at = None
        self._backoff_seconds = self._policy.initial_backoff_seconds
        self.failed_internally = False

    def until_done(self, call: Callable[[], T]) -> T:
        """Result of an idempotent ``call()``. Raises the refusal, or ConnectionLost when the deadline is over."""
        unknown = False
        while True:
            try:
                token = self._link.token
                return in_own_thread(call)
            except (ConnectionClosed, ValueError):  # the latter is gRPC's, of a channel that was closed meanwhile
                self._link.check(applied=None if unknown else False)
                raise
            except grpc.RpcError as error:
                failure = translate(error, self._link.target)
                if failure.applied is not False:
                    unknown = True
                elif unknown:
                    failure.applied = None  # the refusal speaks of the last attempt alone
                self.pause_for(failure, transient=may_pass(error, failure), token=token)

    def pause_for(self, failure: GradwireError, *, transient: bool, token: int) -> None:
        """Sleeps before the next attempt, or raises ``failure`` where no further one is due.

        ``token``: `Link.token` before the call that has failed began. Who is refused with it, and has another one by
        now, tries that at once, whatever the policy says: this is no failure that is waited out.
        """
        if isinstance(failure, ConnectionLost):  # it was closed here, perhaps, and that is why
            self._link.check(applied=failure.applied)
        refused = isinstance(failure, (Unauthenticated, PermissionRevoked))
        if refused and self._repeatable and self._link.has_another_token_than(token):
            return
        now = time.monotonic()
        if self._give_up_at is None:
            self._give_up_at = now + self._policy.deadline_seconds
        sleep_seconds = self._backoff_seconds * random.uniform(0.5, 1.0)
        if not transient or now + sleep_seconds > self._give_up_at:
            raise failure from None
        time.sleep(sleep_seconds)
        self._backoff_seconds = min(self._backoff_seconds * 2, self._policy.max_backoff_seconds)


def retrying(call: Callable[[], T], policy: RetryPolicy | None, link: Link) -> T:
    """Result of an idempotent ``call()`` through ``link``; with no policy it need not be: it is called once. Raises the
    refusal, or ConnectionLost when the policy's deadline is over."""
    return Attempts(policy, link).until_done(call)
