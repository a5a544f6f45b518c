"""Who has shown a token once: a browser keeps a random word for it, which is good for nothing else."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from gradwire.server.access.access_file import digest_of
from gradwire.server.access.gate import Gate
from gradwire.server.access.identity import Identity

SESSION_SECONDS = 12 * 3600.0
"""For which a session holds, however often it is used."""

MAX_SESSIONS = 256
MAX_SESSIONS_OF_ONE = 16
"""Of one token; the oldest goes."""


@dataclass(frozen=True)
class _Session:
    identity: Identity
    ends: float


class Sessions:
    """Of one server, in its memory only: one that is started anew asks again.

    Args:
        gate: knows whether what a session was made for still holds.
        clock: monotonic, in seconds.
    """

    def __init__(self, gate: Gate, clock: Callable[[], float] = time.monotonic) -> None:
        self._gate = gate
        self._clock = clock
        self._sessions: dict[str, _Session] = {}
        """By the digest of the word: the words themselves are nowhere. The oldest first."""

    def begin(self, identity: Identity) -> str:
        """A word for who has shown a token."""
        self._drop_what_is_over()
        own = [digest for digest, session in self._sessions.items() if session.identity.id == identity.id]
        if len(own) >= MAX_SESSIONS_OF_ONE:
            del self._sessions[own[0]]
        elif len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        word = secrets.token_urlsafe(32)
        self._sessions[digest_of(word)] = _Session(identity, self._clock() + SESSION_SECONDS)
        return word

    def find(self, word: str) -> Identity | None:
        """Whose session it is; None: it is none, or is over."""
        digest = digest_of(word)
        session = self._sessions.get(digest)
        if session is None:
            return None
        if self._is_over(session):
            del self._sessions[digest]
            return None
        return session.identity

    def end(self, word: str) -> None:
        """Whoever had it is not known by it any more."""
        self._sessions.pop(digest_of(word), None)

    def __len__(self) -> int:
        return len(self._sessions)

    def _drop_what_is_over(self) -> None:
        for digest in [digest for digest, session in self._sessions.items() if self._is_over(session)]:
            del self._sessions[digest]

    def _is_over(self, session: _Session) -> bool:
        return session.ends <= self._clock() or bool(self._gate.over(session.identity))


def cookie_name(request: web.BaseRequest) -> str:
    """Browsers keep cookies by host, not by port: two servers of one host must not take each other's away."""
    port = request.headers.get("Host", "").rpartition(":")[2]
    suffix = f"-{port}" if port.isascii() and port.isdecimal() else ""
    return f"{'__Host-' if request.secure else ''}gradwire{suffix}"


def cookie(request: web.BaseRequest, word: str) -> str:
    """The value of the header ``Set-Cookie``: no script reads it, and no page from elsewhere makes a browser send it.
    Args: word: empty: it is to be forgotten."""
    secure = "; Secure" if request.secure else ""
    age = int(SESSION_SECONDS) if word else 0
    return f"{cookie_name(request)}={word}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age}{secure}"


def word_of(request: web.BaseRequest) -> str:
    """What the request's cookie says; empty: there is none."""
    return request.cookies.get(cookie_name(request), "")
