"""A block before its commit: what its gradients will be applied with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradwire.server.devices.base import DeviceArray, Segment, State
from gradwire.server.engine.block import BlockHeader
from gradwire.server.engine.spec import RunSpec
from gradwire.server.memory.budget import Reservation
from gradwire.server.optimizers.base import Floats, Hyperparameters, numbers
from gradwire.wire.errors import InvalidHyperparameter, ProtocolViolation
from gradwire.wire.layout import Layout, Range


@dataclass(eq=False)
class StagedBlock:
    """One sequence of one worker, from the header that holds to its commit. Dropping it leaves the run as it was."""

    sequence: int
    header: BlockHeader
    version: int
    state: State
    """The arrays that the run had when the block was planned; what is computed early is computed from them."""
    groups: tuple[Hyperparameters, ...]
    """With the block's overrides; they become the run's at commit."""
    ranges: tuple[Range, ...]
    """The present elements."""
    present: npt.NDArray[np.intp] | slice
    """The present tensors."""
    segments: list[Segment]
    checks_finite: bool
    """Whether gradients must be finite."""
    first_summed_row: int
    """The first row whose squares are summed. Where nothing else asks for them, the last: the receipt's norm."""
    scalar_memory: Reservation | None
    trajectory: DeviceArray | None
    result_memory: Reservation | None
    received_bytes: int = 0
    """Size of its gradients as they arrived; known when it is whole."""

    def covers(self, layout: Layout) -> bool:
        """Whether no element is absent."""
        return self.ranges == (Range(0, layout.elements),)

    def give_result_memory(self) -> Reservation | None:
        """Hands the trajectory's reservation to whoever remembers the trajectory."""
        reservation, self.result_memory = self.result_memory, None
        return reservation

    def drop(self) -> None:
        """Frees what the block alone holds."""
        if self.scalar_memory is not None:
            self.scalar_memory.release()
        if self.result_memory is not None:
            self.result_memory.release()
            self.result_memory = None


def override_groups(
    groups: tuple[Hyperparameters, ...], overrides: Mapping[int, Mapping[str, float]]
) -> tuple[Hyperparameters, ...]:
    """The groups with new numbers. Raises InvalidHyperparameter, ProtocolViolation for a group that is not there."""
    if not overrides:
        return groups
    changed = list(groups)
    for index, changes in overrides.items():
        if not 0 <= index < len(groups):
            raise ProtocolViolation(f"an override names group {index}; this run has groups 0 to {len(groups) - 1}")
        known = numbers(type(changed[index]))
        unknown = sorted(changes.keys() - set(known))
        if unknown:
            raise InvalidHyperparameter(
                f"override of group {index}: its optimizer has no {', '.join(unknown)}; expected some of "
                f"{', '.join(known)}",
                field=unknown[0],
            )
        try:
            changed[index] = changed[index].replace(changes)
        except InvalidHyperparameter as error:
            raise error.within(f"override of group {index}") from None
        if changed[index].kernel.used_slots != groups[index].kernel.used_slots:
            raise InvalidHyperparameter(f"override of group {index}: it would change the state that the group keeps")
    return tuple(changed)


def segments_of(
    spec: RunSpec,
    step: int,
    tensor_steps: npt.NDArray[np.int64],
    header: BlockHeader,
    groups: tuple[Hyperparameters, ...],
) -> list[Segment]:
    """Neighbouring present tensors of equal (group, t) as one segment each, with the scalars of all steps.

    ``step`` and ``tensor_steps`` are the run's and each tensor's before the block.
    """
    dtype = spec.dtype
    first = int(tensor_steps[0])
    if not header.absent_tensors and (
        len(tensor_steps) == 1 or (tensor_steps == first).all()
    ):  # the usual case: one segment a group
        return [
            _segment(part, groups[group], groups[group].varying(step + 1, first + 1, header.steps, dtype))
            for group, part in spec.group_ranges
        ]
    varying: dict[tuple[int, int], Floats] = {}
    segments: list[Segment] = []
    last_key: tuple[int, int] | None = None
    for index, tensor in enumerate(spec.layout.tensors):
        if tensor.size == 0:
            continue
        if index in header.absent_tensors:
            last_key = None
            continue
        key = (tensor.group, int(tensor_steps[index]))
        if key == last_key:
            segments[-1] = segments[-1]._replace(stop=tensor.stop)
            continue
        last_key = key
        group = groups[tensor.group]
        if key not in varying:
            varying[key] = group.varying(step + 1, key[1] + 1, header.steps, dtype)
        segments.append(_segment(Range(tensor.start, tensor.stop), group, varying[key]))
    return segments


def _segment(part: Range, group: Hyperparameters, varying: Floats) -> Segment:
    with np.errstate(over="ignore"):  # a bound beyond what a float32 holds is none
        constants = np.array(group.constants(), varying.dtype)
    return Segment(part.start, part.stop, group.kernel, constants, varying)


def scalar_bytes(spec: RunSpec, tensor_steps: npt.NDArray[np.int64], header: BlockHeader) -> int:
    """Size of the scalars that `segments_of` computes: one row a step, for each (group, t) that is present."""
    keys = {
        (tensor.group, int(tensor_steps[index]))
        for index, tensor in enumerate(spec.layout.tensors)
        if tensor.size and index not in header.absent_tensors
    }
    columns = sum(spec.groups[group].kernel.varying for group, _ in keys)
    return columns * header.steps * spec.dtype.itemsize


def clip_segments(segments: Sequence[Segment], part: Range) -> list[Segment]:
    """Those parts of ``segments`` that lie in ``part``."""
    return [
        segment._replace(start=max(segment.start, part.start), stop=min(segment.stop, part.stop))
        for segment in segments
        if segment.start < part.stop and segment.stop > part.start
    ]
