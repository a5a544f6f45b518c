"""A run that is to be made: checked, compared with one that exists, and sent."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.client.calls.optimizer_state import StateUpload, pack_state
from gradwire.client.encodings import flat_vector
from gradwire.client.errors import LayoutMismatch
from gradwire.client.optimizers.numbers import number
from gradwire.client.optimizers.optimizer import Optimizer
from gradwire.client.optimizers.param_group import ParamGroup
from gradwire.client.options import durability_of
from gradwire.client.transport.progress_log import ProgressLog
from gradwire.client.workers.shared import Shared
from gradwire.v1 import run_pb2, service_pb2
from gradwire.wire.encoding import Array, dtype_of
from gradwire.wire.errors import GradwireError
from gradwire.wire.layout import Layout, run_resource

_NON_FINITE = {
    "reject": run_pb2.NON_FINITE_POLICY_REJECT,
    "skip": run_pb2.NON_FINITE_POLICY_SKIP,
    "allow": run_pb2.NON_FINITE_POLICY_ALLOW,
}


@dataclass(frozen=True)
class RunRules:
    """What holds for a run besides its optimizer; see `Server.create_run`. Raises ValueError, TypeError."""

    non_finite: str
    clip_norm: float | None
    clip_value: float | None
    durability: str | None
    ttl_seconds: float | None = None
    workers: Shared | None = None

    def __post_init__(self) -> None:
        if self.non_finite not in _NON_FINITE:
            raise ValueError(f"non_finite is {self.non_finite!r}; expected one of {', '.join(map(repr, _NON_FINITE))}")
        if not isinstance(self.workers, (Shared, NoneType)):
            raise TypeError(f"workers is {self.workers!r}; expected Shared(...), or None for one worker at a time")

    def spec(self, name: str, dtype: np.dtype[Any]) -> run_pb2.RunSpec:
        """A spec without groups. Raises InvalidSpec, ValueError or TypeError."""
        spec = run_pb2.RunSpec(
            name=run_resource(name), dtype=dtype_of(dtype), non_finite_policy=_NON_FINITE[self.non_finite]
        )
        spec.durability = durability_of(self.durability)
        if self.ttl_seconds is not None:
            spec.ttl_seconds = number("ttl_seconds", self.ttl_seconds)
        if self.clip_norm is not None:
            spec.clip_norm = number("clip_norm", self.clip_norm)
        if self.clip_value is not None:
            spec.clip_value = number("clip_value", self.clip_value)
        if self.workers is not None:
            spec.shared.CopyFrom(self.workers.to_message())
        return spec


@dataclass(frozen=True)
class NewRun:
    """What a run is made of."""

    spec: run_pb2.RunSpec
    layout: Layout
    dtype: np.dtype[Any]
    arrays: Mapping[str, Array]
    """Initial values."""
    slots: tuple[str, ...]
    """The state vectors that it will have."""

    @classmethod
    def of(
        cls,
        name: str,
        params: Mapping[str, Any] | Sequence[ParamGroup],
        optimizer: Optimizer,
        dtype: str | None,
        rules: RunRules,
    ) -> NewRun:
        """See `Server.create_run`. Raises ValueError or TypeError."""
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer is {optimizer!r}; expected a preset such as AMSGrad(lr=1e-2)")
        groups = checked_groups(params)
        arrays = [{key: flat_vector.as_array(key, value) for key, value in group.params.items()} for group in groups]
        layout = Layout([[(key, array.shape) for key, array in group.items()] for group in arrays])
        numbers = run_dtype(dtype, groups)
        spec = rules.spec(name, numbers)
        optimizers = [(group.optimizer or optimizer).replace(group.hyperparameters) for group in groups]
        spec.groups.extend(own.to_group() for own in optimizers)
        for tensor in layout.tensors:
            spec.groups[tensor.group].tensors.add(name=tensor.name, shape=tensor.shape)
        slots = tuple(dict.fromkeys(slot for own in optimizers for slot in own.slots))
        return cls(spec, layout, numbers, {key: array for group in arrays for key, array in group.items()}, slots)

    def check_same(self, name: str, found: run_pb2.RunSpec) -> None:
        """Raises LayoutMismatch where the run of this name has other tensors, groups or dtype, or is for many workers
        and this one is for one, or the other way round. How its workers work together may differ."""
        theirs, ours = ([_tensors(group) for group in spec.groups] for spec in (found, self.spec))
        if theirs != ours or found.dtype != self.spec.dtype:
            raise LayoutMismatch(
                f"run {name!r} exists with other tensors, groups or dtype; it cannot be resumed with these"
            )

        if found.HasField("shared") != self.spec.HasField("shared"):
            is_shared = found.HasField("shared")
            raise LayoutMismatch(
                f"run {name!r} exists as a run of {'many workers' if is_shared else 'one worker'}; it can only be "
                f"resumed {'with workers=Shared(...)' if is_shared else 'without workers='}"
            )

    def check_made(self, made: run_pb2.RunSpec) -> None:
        """Raises GradwireError where a server of before there were shared runs has made one of one worker instead."""
        if self.spec.HasField("shared") and not made.HasField("shared"):
            raise GradwireError(
                f"the server knows no shared runs: it has made {made.name} for one worker; expected a newer server",
                applied=True,
            )

    def upload(self, state: Mapping[str, Any] | None) -> RunUpload:
        """The run, with an optimizer state perhaps, to be sent. Raises ValueError or TypeError for a malformed one."""
        values = flat_vector.flatten(self.layout, self.arrays, self.dtype, "the parameters")
        packed = None if state is None else pack_state(self.layout, self.dtype, self.slots, state)
        return RunUpload(self.spec, values, packed)


@dataclass(frozen=True)
class RunUpload:
    """A run on its way to the server; sent twice it is made once."""

    spec: run_pb2.RunSpec
    values: npt.NDArray[Any]
    state: StateUpload | None
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def requests(self, *, replace: bool) -> Iterator[service_pb2.CreateRunRequest]:
        """``replace``: it takes the place of the run of this name."""
        header = service_pb2.CreateRunHeader(spec=self.spec, request_id=self.request_id, replace=replace)
        if self.state is not None:
            header.state.CopyFrom(self.state.header)
        yield service_pb2.CreateRunRequest(header=header)
        vectors = [self.values, *(self.state.vectors if self.state is not None else ())]
        sent = ProgressLog(f"creating {self.spec.name}", sum(vector.nbytes for vector in vectors))
        for part in flat_vector.value_slices(self.values, self.values.dtype):
            yield service_pb2.CreateRunRequest(slice=part)
            sent.add(len(part.data))
        for slot_part in self.state.slices() if self.state is not None else ():
            yield service_pb2.CreateRunRequest(slot_slice=slot_part)
            sent.add(len(slot_part.data))


def checked_groups(params: Mapping[str, Any] | Sequence[ParamGroup]) -> list[ParamGroup]:
    """The groups. Raises TypeError."""
    groups = [ParamGroup(params)] if isinstance(params, Mapping) else list(params)
    for group in groups:
        if not isinstance(group, ParamGroup):
            raise TypeError(f"params hold a {type(group).__name__}; expected a dict, or a list of ParamGroup")
        if not isinstance(group.optimizer, (Optimizer, NoneType)):
            raise TypeError(f"a group's optimizer is {group.optimizer!r}; expected a preset such as SGD(lr=0.1)")
        for key in group.params:
            if not isinstance(key, str):
                raise TypeError(f"a tensor is named {key!r}; expected a string")
    return groups


def run_dtype(dtype: str | None, groups: Sequence[ParamGroup]) -> np.dtype[Any]:
    """The dtype of a run: what is asked for, else what all arrays have. Raises ValueError."""
    if dtype is None:
        values = [(name, value) for group in groups for name, value in group.params.items()]
        found = {flat_vector.as_array(name, value).dtype for name, value in values if not flat_vector.is_plain(value)}
        return np.dtype(np.float64 if found == {np.dtype(np.float64)} else np.float32)
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype is {dtype!r}; expected 'float32' or 'float64'")
    return np.dtype(dtype)


def _tensors(group: run_pb2.Group) -> list[tuple[str, tuple[int, ...]]]:
    return [(tensor.name, tuple(tensor.shape)) for tensor in group.tensors]
