"""The token by which a server knows a client: where it comes from, and to whom it may be sent.

The first of these that says something counts: what the caller gives, ``GRADWIRE_TOKEN``, ``GRADWIRE_TOKEN_FILE``, and
``gradwire/tokens.toml`` in the user's folder of configurations, which knows one token for each target, and none for
all: a token that is sent to another server is that server's.

A secret appears in no message, here and with whoever uses it. Nor does what stands in ``GRADWIRE_TOKEN_FILE``: some day
it will be the token itself.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from pathlib import Path

from gradwire.wire.hosts import host_and_port, is_loopback, is_unix
from gradwire.wire.tls import TLS, stamp_of, tls_to

MAX_SECRET_CHARACTERS = 4096
"""Headers share the 8 KiB that HTTP/2 peers accept by default."""

_MAX_FILE_BYTES = 2**20
_VARIABLE, _FILE_VARIABLE = "GRADWIRE_TOKEN", "GRADWIRE_TOKEN_FILE"
_SECRET = re.compile(r"[!-~]+")


class TokenSource:
    """The secret for one target. It is looked for again whenever it is asked for: files may be renewed while a training
    runs. Once there has been one it stays until there is another: a file is often written in place, or not at once.

    Args:
        target: whom it is for.
        token: what the caller has given; None: the environment and the user's file are asked.

    Raises ValueError for what is no secret, OSError for files that cannot be read.
    """

    def __init__(self, target: str, token: str | None = None) -> None:
        self._target = target
        self._given = None if token is None else _checked(token, "token")
        self._lock = threading.Lock()
        self._stamp = self._current_stamp()  # before the secret: what changes in between is read again
        self._secret = self._found()
        self._generation = 0

    def __repr__(self) -> str:
        return f"TokenSource({self._target!r}, {'no token' if self._secret is None else 'a token'})"

    @property
    def secret(self) -> str | None:
        """As it is now; None: there has not been any."""
        with self._lock:
            self._renew()
            return self._secret

    @property
    def generation(self) -> int:
        """How often it has become another one so far."""
        with self._lock:
            self._renew()
            return self._generation

    def is_newer_than(self, generation: int) -> bool:
        """Whether it has become another one since. Looks for it again even where no file seems to have changed: two
        writes may come within one tick of the file system's clock."""
        with self._lock:
            self._renew(always=True)
            return self._generation > generation

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Of a call that carries it."""
        secret = self.secret
        return () if secret is None else (("authorization", f"Bearer {secret}"),)

    def _renew(self, *, always: bool = False) -> None:
        if self._given is not None:
            return
        stamp = self._current_stamp()
        if stamp == self._stamp and not always:
            return
        try:
            secret = self._found(again=True)
        except (OSError, ValueError):
            return  # half written, perhaps; it is looked at with the next call
        if secret is not None and secret != self._secret:
            self._generation += 1  # first: after Ctrl-C in between it is found to be another one again
            self._secret = secret
        self._stamp = stamp

    def _current_stamp(self) -> tuple[object, ...]:
        """Another one whenever the secret may be another."""
        file = os.environ.get(_FILE_VARIABLE)
        return os.environ.get(_VARIABLE), file, *stamp_of(file or None, _user_file())

    def _found(self, *, again: bool = False) -> str | None:
        if self._given is not None:
            return self._given
        if variable := os.environ.get(_VARIABLE):
            return _checked(variable.strip(), _VARIABLE)
        if file := os.environ.get(_FILE_VARIABLE):
            where = f"the file that {_FILE_VARIABLE} names"
            return _checked(_read(Path(file), where, again=again).decode("ascii", "replace").strip(), where)
        return _of_user(self._target, again=again)


def tokens_to(target: str, tls: TLS | None, token: str | None = None) -> tuple[TokenSource | None, TLS | None]:
    """Where the token comes from that a client sends to ``target``, and how it speaks to it. None: it never sends one.

    With a token TLS is spoken without being asked for, but where nobody listens in between: over loopback and unix
    sockets. Call it for a target that somebody has named, and for no other: on `localhost` anybody may listen. Raises
    as `TokenSource` does.
    """
    tokens = TokenSource(target, token)
    if tls_to(target, tls) is None and not is_loopback(target):
        return (None, None) if tokens.secret is None else (tokens, TLS())
    return tokens, tls


def token_variable() -> str | None:
    """The variable of the environment that says, or names, a token."""
    return next((name for name in (_VARIABLE, _FILE_VARIABLE) if os.environ.get(name)), None)


def _checked(secret: str, where: str) -> str:
    """Raises ValueError."""
    if not secret:
        raise ValueError(f"{where} is empty; expected a token")
    if len(secret) > MAX_SECRET_CHARACTERS:
        raise ValueError(f"{where} has {len(secret)} characters; expected a token of at most {MAX_SECRET_CHARACTERS}")
    if not _SECRET.fullmatch(secret):
        raise ValueError(f"{where} is no token; expected one line of visible ASCII characters, without spaces")
    return secret


def _read(file: Path, where: str, *, again: bool) -> bytes:
    """Raises OSError, ValueError. ``again``: a stream is not read, whose end has come: more would be waited for."""
    failure: tuple[int | None, str | None]
    try:
        if again and not stat.S_ISREG(file.stat().st_mode):
            raise ValueError(f"{where} is no file any more")
        with file.open("rb") as opened:
            content = opened.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        failure = error.errno, error.strerror
    else:
        if len(content) > _MAX_FILE_BYTES:
            raise ValueError(f"{where} is larger than {_MAX_FILE_BYTES} bytes")
        return content
    raise OSError(failure[0], f"{where} cannot be read: {failure[1]}")


def _user_file() -> Path | None:
    """None: this user has no folder for it."""
    folder = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        place = Path(folder) if os.path.isabs(folder) else Path.home() / ".config"
    except RuntimeError:
        return None
    return place / "gradwire" / "tokens.toml"


def _of_user(target: str, *, again: bool) -> str | None:
    """What the user's file says of ``target``. Raises OSError, ValueError."""
    file = _user_file()
    if file is None or stamp_of(file) == (None,):
        return None  # there is none, or it is somebody else's, whose folders cannot be entered
    content = _read(file, str(file), again=again)
    import tomllib  # not before: most clients have no such file

    fault = ""
    try:
        document = tomllib.loads(content.decode())
    except tomllib.TOMLDecodeError as error:
        # Its place and no more: its words may quote the line.
        fault = "".join(re.findall(r" \(at .*\)$", str(error)))
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        fault = (
            " (it is not UTF-8)" if isinstance(error, UnicodeDecodeError) else " (numbers too long, or lists too deep)"
        )
    else:
        return _of_document(target, document, str(file))
    raise ValueError(f"{file} is no TOML{fault}")


def _of_document(target: str, document: dict[str, object], file: str) -> str | None:
    targets = document.get("targets", {} if not document else None)
    if not isinstance(targets, dict):
        raise ValueError(f'{file} has no table [targets]; expected lines such as "host:50051" = "TOKEN" in it')
    wanted = _place(target)
    found = {key: secret for key, secret in targets.items() if _place(key) == wanted}
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(f"{file} names {target} {len(found)} times; expected one token for it")
    ((key, secret),) = found.items()
    where = f"what {file} has for {key!r}"
    if not isinstance(secret, str):
        raise ValueError(f"{where} is of type {type(secret).__name__}; expected a token in quotes")
    return _checked(secret, where)


def _place(target: str) -> tuple[str, str]:
    """The same for all spellings of a target."""
    if is_unix(target):
        scheme, _, path = target.partition(":")
        return scheme, path.removeprefix("//") if path.startswith("///") else path
    host, port = host_and_port(target)
    return host.casefold(), port
