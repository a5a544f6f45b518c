"""Finding a server and asking it for runs."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any

from gradwire.client.calls.catalog import RunSummary, delete_run, get_run, list_runs
from gradwire.client.calls.creation import NewRun, RunRules
from gradwire.client.calls.files import import_run
from gradwire.client.calls.parameters import RunParams, read_params
from gradwire.client.calls.series_watch import SeriesUpdate, watch_series
from gradwire.client.calls.server_info import ServerStatus, WhoAmI, server_status, who_am_i
from gradwire.client.errors import ConnectionLost
from gradwire.client.optimizers.optimizer import Optimizer
from gradwire.client.optimizers.param_group import ParamGroup
from gradwire.client.options import RunOptions, shares_memory
from gradwire.client.run import Run
from gradwire.client.training.attachment import Attachment
from gradwire.client.transport.channels import CONNECT_TIMEOUT_SECONDS
from gradwire.client.transport.discovery import find_server, named_target
from gradwire.client.transport.embedded_server import EmbeddedServer
from gradwire.client.transport.link import Link
from gradwire.client.transport.retry import RetryPolicy, retrying
from gradwire.client.workers.shared import Shared
from gradwire.v1 import run_pb2
from gradwire.wire.errors import RunAlreadyExists, RunNotFound
from gradwire.wire.tls import TLS
from gradwire.wire.tokens import TokenSource, token_variable, tokens_to

log = logging.getLogger(__name__)

CLOSED_AT_A_TIME = 64
"""Runs of one connection."""


def connect(
    target: str | None = None,
    *,
    timeout_seconds: float = CONNECT_TIMEOUT_SECONDS,
    shared_memory: bool | None = None,
    data_dir: str | Path | None = None,
    tls: TLS | None = None,
    token: str | None = None,
) -> Server:
    """Connects to a gradwire server.

    Args:
        target: ``host:port``, ``unix:PATH``, or ``"embedded"`` for a server in a child process that ends with this one.
            None: ``$GRADWIRE_TARGET``, else ``localhost:50051`` if a gradwire server answers there, else embedded.
        timeout_seconds: how long to wait until a server is SERVING there; nobody need listen there yet, nor need its
            name be known. ``math.inf``: for ever.
        shared_memory: False: never share memory with a server on this host. None: `$GRADWIRE_SHARED_MEMORY`, else True.
        data_dir: where an embedded server keeps its runs; None: in memory only. It obeys none of the ``GRADWIRE_*``
            settings that are meant for other servers, but ``GRADWIRE_CACHE_DIR``.
        tls: speak TLS, with these files. None: as ``GRADWIRE_TLS_CA``, ``_CERT``, ``_KEY`` and ``_SERVER_NAME`` say;
            without them ``TLS()`` where there is a token and ``target`` is another host, else nothing is encrypted.
            Over a unix socket, and to an embedded server, nothing needs to be.
        token: the secret by which the server knows this client; for a target that is named, here or by
            ``GRADWIRE_TARGET``. None: ``$GRADWIRE_TOKEN``, else the content of the file ``$GRADWIRE_TOKEN_FILE``, else
            what ``~/.config/gradwire/tokens.toml`` has for the target: a table ``[targets]`` with lines such as
            ``"host:50051" = "TOKEN"``. Files are read again when they change: from the next call or attachment on
            their new token counts, and a call or stream that is refused with the old one is tried again with it at
            once. It goes through TLS, a unix socket or loopback, and nowhere else.

    Raises ConnectionLost when nothing serves there, and at once when TLS stands in between (one side speaks it and the
    other does not, a certificate is not accepted); EmbeddedServerError when the embedded server does not start;
    ValueError or TypeError for malformed arguments, OSError and ValueError for the files of ``tls`` and of the token.
    What is wrong with the token itself the first call says, by Unauthenticated.
    """
    timeout_seconds = _checked_timeout(timeout_seconds)
    if not (tls is None or isinstance(tls, TLS)):
        raise TypeError(f"tls is {tls!r}; expected TLS(ca=...)")
    if tls is None and target != "embedded":
        tls = TLS.from_environment()
    named = named_target(target)
    tokens, spoken = _tokens_to(named, tls, token)
    found = find_server(target, data_dir, spoken)
    if named is None and found.embedded is None and (variable := token_variable()) is not None:
        log.warning("%s is not sent: nobody has named %s, where anybody may listen", variable, found.target)
    try:
        return Server(
            found.target,
            found.origin,
            embedded=found.embedded,
            timeout_seconds=timeout_seconds,
            shared_memory=shared_memory,
            tls=spoken if found.embedded is None else None,
            tokens=tokens,
        )
    except BaseException as error:
        if found.embedded is not None:
            found.embedded.close()
        if isinstance(error, ConnectionLost) and spoken is not tls:
            error.within("TLS is spoken because there is a token")
        raise


def _tokens_to(named: str | None, tls: TLS | None, token: str | None) -> tuple[TokenSource | None, TLS | None]:
    """See `tokens_to`; an embedded server, and one that nobody has ``named``, gets no token. Raises ValueError,
    TypeError, OSError."""
    if not (token is None or isinstance(token, str)):
        raise TypeError(f"token is of type {type(token).__name__}; expected a string")
    if named is not None and named != "embedded":
        return tokens_to(named, tls, token)
    if token is not None:
        raise ValueError(
            "a token needs a target that is named, by target= or GRADWIRE_TARGET: an embedded server takes none, and "
            "at localhost anybody may listen"
        )
    return None, tls


def _checked_timeout(timeout_seconds: object) -> float:
    """Raises TypeError, ValueError."""
    if isinstance(timeout_seconds, bool) or not isinstance(timeout_seconds, Real):
        raise TypeError(
            f"timeout_seconds is {timeout_seconds!r}; expected a number of seconds, math.inf to wait for ever"
        )
    seconds = float(timeout_seconds)
    if not seconds >= 0:
        raise ValueError(
            f"timeout_seconds is {timeout_seconds!r}; expected 0 or more seconds, math.inf to wait for ever"
        )
    return seconds


class Server:
    """A connection; a context manager. ``origin`` says in words which server it is and why.

    It belongs to the process that made it: in a forked one all calls raise ForkedProcess. Once it is closed all calls,
    and those of its runs, raise ConnectionClosed.
    """

    def __init__(
        self,
        target: str,
        origin: str,
        *,
        embedded: EmbeddedServer | None = None,
        timeout_seconds: float = CONNECT_TIMEOUT_SECONDS,
        shared_memory: bool | None = None,
        tls: TLS | None = None,
        tokens: TokenSource | None = None,
    ) -> None:
        self.target = target
        self._shares_memory = shares_memory(shared_memory)
        self.origin = origin
        self.embedded = embedded
        self._link = Link.to(target, tls, _checked_timeout(timeout_seconds), tokens)
        self._attached: set[Attachment] = set()

    def create_run(
        self,
        name: str,
        params: Mapping[str, Any] | Sequence[ParamGroup],
        optimizer: Optimizer,
        *,
        on_existing: str = "error",
        dtype: str | None = None,
        non_finite: str = "reject",
        clip_norm: float | None = None,
        clip_value: float | None = None,
        durability: str | None = None,
        ttl_seconds: float | None = None,
        state: Mapping[str, Any] | None = None,
        workers: Shared | None = None,
        retry: RetryPolicy | None = None,
        **options: Any,
    ) -> Run:
        """Creates a run and attaches to it.

        Args:
            name: 1 to 128 of ``A-Z a-z 0-9 . _ -``.
            params: name -> initial array, or a list of `ParamGroup`. They are copied; the run's own are ``run.params``.
            optimizer: a preset such as ``AMSGrad(lr=1e-2)``; a `ParamGroup` may have one of its own.
            on_existing: ``"error"``; ``"resume"``: attach to the run of this name, keeping its values, if its tensors
                are the same; ``"replace"``: put the new run in its place once it is whole.
            dtype: ``"float32"`` or ``"float64"``; None: float64 if all arrays are, else float32.
            non_finite: what the server does with gradients that are not finite: ``"reject"`` the block, ``"skip"`` the
                step, ``"allow"`` them.
            clip_norm: before each step the gradient is multiplied by ``min(1, clip_norm / (norm + 1e-6))``, norm being
                the L2 norm over all present tensors (``torch.nn.utils.clip_grad_norm_``). None: it is not. A resumed
                run keeps its own, as it keeps its optimizer.
            clip_value: before that every element is clamped to ``[-clip_value, clip_value]``
                (``torch.nn.utils.clip_grad_value_``). `Receipt.gradient_norm` is the norm before either.
            durability: ``"JOURNAL"``: a receipt means that the step is on disk; ``"SNAPSHOT"``: after a crash of the
                server the run is as it was at its last snapshot, and the next step raises `RunRolledBack`;
                ``"MEMORY"``: the run ends with the server. None: the server decides. Fixed from now on.
            ttl_seconds: the server deletes the run when nobody has used it for so long. None: never. A resumed run
                keeps its own.
            state: begin with this optimizer state, as `Run.state_dict` gives it; a resumed run keeps its own.
            workers: how many workers train the run together. None: one at a time does. A resumed run keeps its own
                numbers, but must be for many where this says so, and for one where it does not.
            retry: see `RetryPolicy`.
            options: see `RunOptions`.

        Raises ValueError or TypeError for malformed arguments, LayoutMismatch, GradwireError as the error table says.
        """
        if on_existing not in ("error", "resume", "replace"):
            raise ValueError(f"on_existing is {on_existing!r}; expected 'error', 'resume' or 'replace'")
        rules = RunRules(non_finite, clip_norm, clip_value, durability, ttl_seconds, workers)
        run_options = self._run_options(retry, options)
        new = NewRun.of(name, params, optimizer, dtype, rules)
        if on_existing == "resume":
            with suppress(RunNotFound):
                return self._resume(name, new, run_options)
        upload = new.upload(state)
        replaces = on_existing == "replace"
        try:
            response = retrying(
                lambda: self._link.stub.CreateRun(upload.requests(replace=replaces)), run_options.retry, self._link
            )
        except RunAlreadyExists:
            if on_existing != "resume":
                raise
            return self._resume(name, new, run_options)  # somebody else was faster
        new.check_made(response.run.spec)
        return Run(self._link, response.run, run_options, self._attached, upload.values, created=True)

    def attach(self, name: str, *, retry: RetryPolicy | None = None, **options: Any) -> Run:
        """Attaches to a run, to a shared one beside others, and reads its parameters. Raises RunNotFound, RunBusy."""
        run_options = self._run_options(retry, options)
        return self._run(get_run(self._link, run_options.retry, name), run_options)

    def import_run(
        self,
        name: str,
        path: str | Path,
        *,
        weights_only: Optimizer | None = None,
        durability: str | None = None,
        on_existing: str = "error",
        retry: RetryPolicy | None = None,
        **options: Any,
    ) -> Run:
        """Creates a run from a safetensors file and attaches to it.

        Args:
            path: what `Run.export` has written; with ``weights_only``, any file of float32 or float64 tensors.
            weights_only: take the tensors alone, as one group with this optimizer, at step 0.
            durability: as in `create_run`.
            on_existing: ``"error"`` or ``"replace"``.
            retry: see `RetryPolicy`.
            options: see `RunOptions`.

        Raises InvalidSpec for a file that is none of a run, OSError where it cannot be read.
        """
        if on_existing not in ("error", "replace"):
            raise ValueError(f"on_existing is {on_existing!r}; expected 'error' or 'replace'")
        run_options = self._run_options(retry, options)
        message = import_run(
            self._link,
            run_options.retry,
            name,
            Path(path),
            weights_only=weights_only,
            durability=durability,
            replace=on_existing == "replace",
        )
        return Run(self._link, message, run_options, self._attached, created=True)

    def list_runs(self) -> list[RunSummary]:
        """All runs of the server, ordered by name."""
        return list_runs(self._link)

    def read_params(self, name: str, *, retry: RetryPolicy | None = None) -> RunParams:
        """The parameters of a run as its last step, or round, has left them, without being attached to it: no worker
        is fenced, and none waits for this reader. For evaluators. Raises RunNotFound, ConnectionLost.
        """
        return read_params(self._link, retry or RetryPolicy(), name)

    def watch_series(
        self,
        name: str,
        series: str | Sequence[str] = (),
        *,
        from_step: int = 0,
        resolution: int = 0,
        interval_seconds: float = 1.0,
        retry: RetryPolicy | None = None,
    ) -> Generator[SeriesUpdate, None, None]:
        """Follows what is logged of a run, without being attached to it: at first what there is, then what changes.

        It goes on over broken connections and restarts of the server, and ends when the run does: when that has been
        deleted, replaced, or is not there after a restart. Whoever has seen enough leaves the loop.

        Args:
            name: of the run.
            series: which ones, see `Run.series`; none: all, those that are still to come too.
            from_step: only buckets that end there or later.
            resolution: at most so many buckets of each, made of neighbours; 0: as they are kept, at most 2,048.
            interval_seconds: between two updates at least; 0.1 or more. Where nothing changes, none comes.
            retry: see `RetryPolicy`; each update ends what has failed before it.

        Raises RunNotFound where there is no such run, ProtocolViolation, ServerTooOld, ConnectionLost.
        """
        names = (series,) if isinstance(series, str) else series
        return watch_series(self._link, retry or RetryPolicy(), name, names, from_step, resolution, interval_seconds)

    def delete_run(self, name: str) -> int:
        """Deletes a run and returns the step it had reached. Raises RunNotFound."""
        return delete_run(self._link, name)

    def who_am_i(self) -> WhoAmI:
        """For whom the server takes this client, and what that one may do. Raises Unauthenticated."""
        return who_am_i(self._link)

    def status(self) -> ServerStatus:
        """How the server is. Raises PermissionDenied for those who are no administrators of it."""
        return server_status(self._link)

    def close(self) -> None:
        """Closes all runs of this connection, the channel, and the embedded server where there is one.

        Does nothing in a forked process, to which none of them belongs.
        """
        if not self._link.here:
            return
        attached = list(self._attached)
        if len(attached) > 1:  # one that waits for a round takes a while to end
            with ThreadPoolExecutor(min(len(attached), CLOSED_AT_A_TIME)) as pool:
                list(pool.map(Attachment.close, attached))
        elif attached:
            attached[0].close()
        self._link.close(server_too=self.embedded is not None)
        if self.embedded is not None:
            self.embedded.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run_options(self, retry: RetryPolicy | None, options: dict[str, Any]) -> RunOptions:
        made = RunOptions(retry=retry or RetryPolicy(), **options)
        return made if made.shared_memory is not None else replace(made, shared_memory=self._shares_memory)

    def _resume(self, name: str, new: NewRun, options: RunOptions) -> Run:
        """Attaches to the run of this name. Raises RunNotFound, LayoutMismatch."""
        message = get_run(self._link, options.retry, name)
        new.check_same(name, message.spec)
        return self._run(message, options)

    def _run(self, message: run_pb2.Run, options: RunOptions) -> Run:
        return Run(self._link, message, options, self._attached)
