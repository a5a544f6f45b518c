"""A run as callers are told of it. Nearly all of that is its tensors, which never change: they are encoded once."""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

from gradwire.server.engine.run import Run
from gradwire.server.engine.threads import pieces
from gradwire.server.optimizers.base import Hyperparameters
from gradwire.server.rpc.codec import durability_of, placements
from gradwire.server.rpc.hyperparameters import encode_group
from gradwire.server.rpc.shared_run import encode_shared_run
from gradwire.v1 import run_pb2
from gradwire.wire.encoding import dtype_of
from gradwire.wire.envelope import field, length_delimited
from gradwire.wire.layout import Layout
from gradwire.wire.layout_message import encode_tensors

_SPEC = field(run_pb2.Run.SPEC_FIELD_NUMBER)
_GROUP = field(run_pb2.RunSpec.GROUPS_FIELD_NUMBER)

_tensors: WeakKeyDictionary[Layout, tuple[bytes, ...]] = WeakKeyDictionary()
"""What `encode_tensors` has made; forks of a run share its layout."""


class RunReport(NamedTuple):
    """What a run was at one moment."""

    run: run_pb2.Run
    """Without ``spec``."""
    spec: run_pb2.RunSpec
    """Without ``groups``."""
    layout: Layout
    groups: tuple[Hyperparameters, ...]

    @property
    def work(self) -> int:
        """Of `serialize`."""
        tensors = 0 if self.layout in _tensors else len(self.layout.names)
        return pieces(tensors + len(self.groups))

    def serialize(self) -> bytes:
        """A serialized ``Run``."""
        tensors = _tensors.get(self.layout)
        if tensors is None:
            tensors = _tensors[self.layout] = encode_tensors(self.layout)
        known = {id(group): encode_group(group).SerializeToString() for group in self.groups}
        groups = [
            length_delimited(_GROUP, members, known[id(group)])
            for members, group in zip(tensors, self.groups, strict=True)
        ]
        return self.run.SerializeToString() + length_delimited(_SPEC, self.spec.SerializeToString(), *groups)


def report(run: Run, name: str, server_instance: str) -> RunReport:
    """The run as it is; to be called under its lock, and short, however many tensors there are.

    Args:
        name: what the caller calls it.
    """
    spec = run.spec
    kept = durability_of(spec)
    return RunReport(
        run_pb2.Run(
            step=run.step,
            epoch=run.epoch,
            elements=spec.layout.elements,
            slots=spec.slots,
            placements=placements(run),
            durability=kept,
            server_instance=server_instance,
            attached_worker_id=run.holder.worker_id if run.holder else "",
            uid=run.uid,
            loss=run.storage.loss if run.storage else "",
        ),
        run_pb2.RunSpec(
            name=name,
            dtype=dtype_of(spec.dtype),
            non_finite_policy=int(spec.non_finite_policy),  # type: ignore[arg-type]
            clip_value=spec.clip_value,
            clip_norm=spec.clip_norm,
            durability=kept,
            ttl_seconds=spec.ttl_seconds or 0.0,
            shared=None if spec.shared is None else encode_shared_run(spec.shared),
        ),
        spec.layout,
        run.groups,
    )
