"""Whole vectors of a run, out of the server and into it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.client.calls.optimizer_state import StateUpload
from gradwire.client.encodings import flat_vector
from gradwire.client.transport.link import Link
from gradwire.client.transport.retry import Attempts, RetryPolicy, retrying
from gradwire.v1 import run_pb2, service_pb2
from gradwire.wire.errors import RunNotFound
from gradwire.wire.layout import Layout, Range


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

    def read(self, attempts: Attempts) -> tuple[npt.NDArray[Any], int]:
        """All parameters, exact, and the step they are of."""
        request = service_pb2.ReadParametersRequest(name=self.name, run_uid=self.uid)

        def call() -> tuple[npt.NDArray[Any], int]:
            values = np.empty(self.layout.elements, self.dtype)
            step = 0
            for response in self.link.stub.ReadParameters(request):
                if response.WhichOneof("message") == "header":
                    step = response.header.step
                else:
                    flat_vector.place(values, response.slice.offset, response.slice.data, self.dtype)
            return values, step

        return attempts.until_done(call)

    def write(self, values: npt.NDArray[Any], ranges: Sequence[Range] | None = None) -> int:
        """Replaces all parameters, or those in ``ranges``, and returns the new epoch."""

        def requests() -> Iterator[service_pb2.WriteParametersRequest]:
            header = service_pb2.WriteParametersHeader(name=self.name, run_uid=self.uid, partial=ranges is not None)
            yield service_pb2.WriteParametersRequest(header=header)
            for part in flat_vector.value_slices(values, self.dtype, ranges):
                yield service_pb2.WriteParametersRequest(slice=part)

        return retrying(lambda: self.link.stub.WriteParameters(requests()), self.retry, self.link).epoch

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

    def write_state(self, upload: StateUpload) -> tuple[int, int]:
        """Replaces the whole optimizer state and returns the run's step and new epoch."""

        def requests() -> Iterator[service_pb2.WriteStateRequest]:
            header = service_pb2.WriteStateHeader(name=self.name, run_uid=self.uid, state=upload.header)
            yield service_pb2.WriteStateRequest(header=header)
            for part in upload.slices():
                yield service_pb2.WriteStateRequest(slice=part)

        response = retrying(lambda: self.link.stub.WriteState(requests()), self.retry, self.link)
        return response.step, response.epoch
