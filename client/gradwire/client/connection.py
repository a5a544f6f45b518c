"""Finding a server and asking it for runs."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from gradwire.client.calls.creation import checked_groups, run_dtype, slots_of
from gradwire.client.calls.remote_values import pack_state
from gradwire.client.calls.snapshots import durability_of, import_requests, resource
from gradwire.client.encodings import flat_vector
from gradwire.client.errors import LayoutMismatch
from gradwire.client.optimizers import Adam, ParamGroup, number
from gradwire.client.options import RunOptions, shares_memory
from gradwire.client.run import Run
from gradwire.client.transport.channels import CONNECT_TIMEOUT_SECONDS, answers, channel_to, wait_serving
from gradwire.client.transport.embedded_server import EmbeddedServer
from gradwire.client.transport.retry import RetryPolicy, retrying
from gradwire.client.transport.stream import train_method
from gradwire.v1 import run_pb2, service_pb2, service_pb2_grpc
from gradwire.wire.encoding import dtype_of
from gradwire.wire.errors import RunAlreadyExists, RunNotFound
from gradwire.wire.layout import Layout

DEFAULT_TARGET = "localhost:50051"

_NON_FINITE = {
    "reject": run_pb2.NON_FINITE_POLICY_REJECT,
    "skip": run_pb2.NON_FINITE_POLICY_SKIP,
    "allow": run_pb2.NON_FINITE_POLICY_ALLOW,
}


@dataclass(frozen=True)
class RunSummary:
    """One line of `Server.list_runs`."""

    name: str
    step: int
    elements: int
    dtype: str
    attached_worker_id: str
    durability: str
    """See `Receipt.durability`."""
    damage: str
    """Why the run cannot be served; empty: it is well."""


def connect(
    target: str | None = None,
    *,
    timeout_seconds: float = CONNECT_TIMEOUT_SECONDS,
    shared_memory: bool | None = None,
) -> Server:
    """Connects to a gradwire server.

    Args:
        target: ``host:port``, ``unix:PATH``, or ``"embedded"`` for a server in a child process that ends with this one.
            None: ``$GRADWIRE_TARGET``, else ``localhost:50051`` if a gradwire server answers there, else embedded.
        timeout_seconds: how long a server that is starting may take to turn SERVING.
        shared_memory: False: never share memory with a server on this host. None: `$GRADWIRE_SHARED_MEMORY`, else True.

    Raises ConnectionLost when nothing serves there, EmbeddedServerError when the embedded server does not start.
    """
    options: dict[str, Any] = {"timeout_seconds": timeout_seconds, "shared_memory": shared_memory}
    if target is None:
        target = os.environ.get("GRADWIRE_TARGET")
        if target and target != "embedded":
            return Server(target, f"{target}, from GRADWIRE_TARGET", **options)
        if not target and answers(DEFAULT_TARGET):
            return Server(DEFAULT_TARGET, f"{DEFAULT_TARGET}, which answers", **options)
        target = "embedded"
    if target == "embedded":
        embedded = EmbeddedServer()
        try:
            return Server(
                embedded.target,
                f"an embedded server, process {embedded.pid}, which ends with this one",
                embedded=embedded,
                **options,
            )
        except BaseException:
            embedded.close()
            raise
    return Server(target, target, **options)


class Server:
    """A connection; a context manager. ``origin`` says in words which server it is and why."""

    def __init__(
        self,
        target: str,
        origin: str,
        *,
        embedded: EmbeddedServer | None = None,
        timeout_seconds: float = CONNECT_TIMEOUT_SECONDS,
        shared_memory: bool | None = None,
    ) -> None:
        self.target = target
        self._shares_memory = shares_memory(shared_memory)
        self.origin = origin
        self.embedded = embedded
        self._channel = channel_to(target)
        self._stub = service_pb2_grpc.OptimizerServiceStub(self._channel)
        self._train = train_method(self._channel)
        self._runs: set[Run] = set()  # those that hold a stream
        try:
            wait_serving(self._channel, target, timeout_seconds)
        except BaseException:
            self._channel.close()
            raise

    def create_run(
        self,
        name: str,
        params: Mapping[str, Any] | Sequence[ParamGroup],
        optimizer: Adam,
        *,
        on_existing: str = "error",
        dtype: str | None = None,
        non_finite: str = "reject",
        clip_norm: float | None = None,
        clip_value: float | None = None,
        durability: str | None = None,
        state: Mapping[str, Any] | None = None,
        retry: RetryPolicy | None = None,
        **options: Any,
    ) -> Run:
        """Creates a run and attaches to it.

        Args:
            name: 1 to 128 of ``A-Z a-z 0-9 . _ -``.
            params: name -> initial array, or a list of `ParamGroup`. They are copied; the run's own are ``run.params``.
            optimizer: a preset such as ``AMSGrad(lr=1e-2)``.
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
            state: begin with this optimizer state, as `Run.state_dict` gives it; a resumed run keeps its own.
            retry: see `RetryPolicy`.
            options: see `RunOptions`.

        Raises ValueError or TypeError for malformed arguments, LayoutMismatch, GradwireError as the error table says.
        """
        if on_existing not in ("error", "resume", "replace"):
            raise ValueError(f"on_existing is {on_existing!r}; expected 'error', 'resume' or 'replace'")
        if non_finite not in _NON_FINITE:
            raise ValueError(f"non_finite is {non_finite!r}; expected one of {', '.join(map(repr, _NON_FINITE))}")
        run_options = self._run_options(retry, options)
        if not isinstance(optimizer, Adam):
            raise TypeError(f"optimizer is {optimizer!r}; expected a preset such as AMSGrad(lr=1e-2)")
        groups = checked_groups(params)
        arrays = [{key: flat_vector.as_array(key, value) for key, value in group.params.items()} for group in groups]
        layout = Layout([[(key, array.shape) for key, array in group.items()] for group in arrays])
        numbers = run_dtype(dtype, groups)
        spec = run_pb2.RunSpec(name=resource(name), dtype=dtype_of(numbers), non_finite_policy=_NON_FINITE[non_finite])
        spec.durability = durability_of(durability)
        if clip_norm is not None:
            spec.clip_norm = number("clip_norm", clip_norm)
        if clip_value is not None:
            spec.clip_value = number("clip_value", clip_value)
        for group in groups:
            spec.groups.add(adam=optimizer.replace(group.hyperparameters).to_message())
        for tensor in layout.tensors:
            spec.groups[tensor.group].tensors.add(name=tensor.name, shape=tensor.shape)
        if on_existing == "resume":
            try:
                return self._resume(name, layout, numbers, run_options)
            except RunNotFound:
                pass
        merged = {key: array for group in arrays for key, array in group.items()}
        flat = flat_vector.flatten(layout, merged, numbers, "the parameters")
        upload = None if state is None else pack_state(layout, numbers, slots_of(spec), state)
        request_id = uuid.uuid4().hex

        def requests() -> Iterator[service_pb2.CreateRunRequest]:
            header = service_pb2.CreateRunHeader(spec=spec, request_id=request_id, replace=on_existing == "replace")
            if upload is not None:
                header.state.CopyFrom(upload.header)
            yield service_pb2.CreateRunRequest(header=header)
            for part in flat_vector.value_slices(flat, numbers):
                yield service_pb2.CreateRunRequest(slice=part)
            for slot_part in upload.slices() if upload is not None else ():
                yield service_pb2.CreateRunRequest(slot_slice=slot_part)

        try:
            response = retrying(lambda: self._stub.CreateRun(requests()), run_options.retry, self.target)
        except RunAlreadyExists:
            if on_existing != "resume":
                raise
            return self._resume(name, layout, numbers, run_options)  # somebody else was faster
        return Run(self._stub, self._train, self.target, response.run, run_options, self._runs, flat)

    def attach(self, name: str, *, retry: RetryPolicy | None = None, **options: Any) -> Run:
        """Attaches to an existing run and reads its parameters. Raises RunNotFound, RunBusy."""
        run_options = self._run_options(retry, options)
        return Run(self._stub, self._train, self.target, self._get(name, run_options.retry), run_options, self._runs)

    def import_run(
        self,
        name: str,
        path: str | Path,
        *,
        weights_only: Adam | None = None,
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
        header = service_pb2.ImportRunHeader(
            name=resource(name),
            request_id=uuid.uuid4().hex,
            replace=on_existing == "replace",
            weights_only=weights_only is not None,
            durability=durability_of(durability),
        )
        if weights_only is not None:
            header.groups.add(adam=weights_only.to_message())
        file = Path(path)
        file.open("rb").close()  # an error of the caller's, and not of a thread of gRPC's
        response = retrying(lambda: self._stub.ImportRun(import_requests(header, file)), run_options.retry, self.target)
        return Run(self._stub, self._train, self.target, response.run, run_options, self._runs)

    def list_runs(self) -> list[RunSummary]:
        """All runs of the server, ordered by name."""
        summaries: list[RunSummary] = []
        token = ""
        while True:
            request = service_pb2.ListRunsRequest(page_token=token)
            page = retrying(lambda request=request: self._stub.ListRuns(request), RetryPolicy(), self.target)  # type: ignore[misc]
            for run in page.runs:
                dtype = run_pb2.Dtype.Name(run.dtype).removeprefix("DTYPE_").lower()
                name = run.name.removeprefix("runs/")
                durability = run_pb2.Durability.Name(run.durability).removeprefix("DURABILITY_")
                summaries.append(
                    RunSummary(name, run.step, run.elements, dtype, run.attached_worker_id, durability, run.damage)
                )
            token = page.next_page_token
            if not token:
                return summaries

    def delete_run(self, name: str) -> int:
        """Deletes a run and returns the step it had reached. Raises RunNotFound."""
        request = service_pb2.DeleteRunRequest(name=resource(name))
        # Not tried again: after a lost answer the second attempt would find nothing.
        return retrying(lambda: self._stub.DeleteRun(request), RetryPolicy(deadline_seconds=0), self.target).step

    def close(self) -> None:
        """Closes all runs of this connection, the channel, and the embedded server where there is one."""
        for run in list(self._runs):
            run.close()
        self._channel.close()
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

    def _get(self, name: str, policy: RetryPolicy) -> run_pb2.Run:
        request = service_pb2.GetRunRequest(name=resource(name))
        return retrying(lambda: self._stub.GetRun(request), policy, self.target).run

    def _resume(self, name: str, layout: Layout, dtype: np.dtype[Any], options: RunOptions) -> Run:
        message = self._get(name, options.retry)
        spec = message.spec
        theirs = [[(t.name, tuple(t.shape)) for t in group.tensors] for group in spec.groups]
        ours = [[(t.name, t.shape) for t in layout.tensors if t.group == group] for group in range(layout.groups)]
        if theirs != ours or spec.dtype != dtype_of(dtype):
            raise LayoutMismatch(
                f"run {name!r} exists with other tensors, groups or dtype; it cannot be resumed with these"
            )
        return Run(self._stub, self._train, self.target, message, options, self._runs)
