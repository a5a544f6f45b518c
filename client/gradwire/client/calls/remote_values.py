"""Whole vectors of a run, out of the server and into it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradwire.client.calls.optimizer_state import StateUpload
from gradwire.client.encodings import flat_vector
from gradwire.client.transport.link import Link
from gradwire.client.transport.retry import Attempts, RetryPolicy, retrying
from gradwire.v1 import run_pb2, service_pb2
from gradwire.wire.errors import RunNotFound
from gradwire.wire.layout import Layout, Range


class Values(NamedTuple):
    """All parameters of a run, exact, as they were at one moment."""

    vector: npt.NDArray[Any]
    """``[elements]``, in the run's dtype."""
    step: int
    epoch: int


class Written(NamedTuple):
    """What a write answers."""

    step: int
    """Of the run."""
    epoch: int
    """The new one."""


@dataclass(frozen=True)
class RemoteValues:
    """The calls that move parameters and state of one run. They raise GradwireError as the error table says."""

    link: Link
    name: str
    uid: str
    layout: Layout
    dtype: np.dtype[Any]
    slots: tuple[str, ...]
    retry: RetryPolicy
    worker_id: str = ""
    """In whose name shared runs are changed. Empty: nobody's in particular."""

    def attempts(self) -> Attempts:
        """Those of one operation, none of which has failed yet."""
        return Attempts(self.retry, self.link)

    def describe(self) -> run_pb2.Run:
        """The run without its values."""
        request = service_pb2.GetRunRequest(name=self.name)
        run = retrying(lambda: self.link.stub.GetRun(request), self.retry, self.link).run
        if run.uid != self.uid:
            raise RunNotFound(
                f"{self.name} is another run now: the one that was meant has been replaced", run=self.name
            )
        return run

    def read(self, attempts: Attempts, *, to_go_on: bool = False) -> Values:
        """All parameters; ``to_go_on``: this worker computes with them from now on."""
        request = service_pb2.ReadParametersRequest(
            name=self.name, run_uid=self.uid, worker_id=self.worker_id if to_go_on else ""
        )

        def call() -> Values:
            values = np.empty(self.layout.elements, self.dtype)
            step = epoch = 0
            for response in self.link.stub.ReadParameters(request):
                if response.WhichOneof("message") == "header":
                    step, epoch = response.header.step, response.header.epoch
                else:
                    flat_vector.place(values, response.slice.offset, response.slice.data, self.dtype)
            return Values(values, step, epoch)

        return attempts.until_done(call)

    def write(self, values: npt.NDArray[Any], ranges: Sequence[Range] | None = None) -> Written:
        """Replaces all parameters, or those in ``ranges``."""

        def requests() -> Iterator[service_pb2.WriteParametersRequest]:
            header = service_pb2.WriteParametersHeader(
                name=self.name, run_uid=self.uid, partial=ranges is not None, worker_id=self.worker_id
            )
            yield service_pb2.WriteParametersRequest(header=header)
            for part in flat_vector.value_slices(values, self.dtype, ranges):
                yield service_pb2.WriteParametersRequest(slice=part)

        response = retrying(lambda: self.link.stub.WriteParameters(requests()), self.retry, self.link)
        return Written(response.step, response.epoch)

    def read_state(self) -> dict[str, Any]:
        """See `Run.state_dict`."""
        request = service_pb2.ReadStateRequest(name=self.name, run_uid=self.uid)

        def call() -> dict[str, Any]:
            header = service_pb2.StateHeader()
            slots: list[npt.NDArray[Any]] = []
            for response in self.link.stub.ReadState(request):
                if response.WhichOneof("message") == "header":
                    header = response.header
                    slots = [np.empty(self.layout.elements, self.dtype) for _ in header.slots]
                else:
                    part = response.slice
                    flat_vector.place(slots[part.slot], part.offset, part.data, self.dtype)
            by_name = {
                slot: flat_vector.views(self.layout, vector) for slot, vector in zip(header.slots, slots, strict=True)
            }
            tensors = {
                tensor.name: {"step": t, **{slot: parts[tensor.name] for slot, parts in by_name.items()}}
                for tensor, t in zip(self.layout.tensors, header.tensor_steps, strict=True)
            }
            return {"step": header.step, "tensors": tensors}

        return retrying(call, self.retry, self.link)

    def write_state(self, upload: StateUpload) -> Written:
        """Replaces the whole optimizer state."""

        def requests() -> Iterator[service_pb2.WriteStateRequest]:
            header = service_pb2.WriteStateHeader(
                name=self.name, run_uid=self.uid, state=upload.header, worker_id=self.worker_id
            )
            yield service_pb2.WriteStateRequest(header=header)
            for part in upload.slices():
                yield service_pb2.WriteStateRequest(slice=part)

        response = retrying(lambda: self.link.stub.WriteState(requests()), self.retry, self.link)
        return Written(response.step, response.epoch)
