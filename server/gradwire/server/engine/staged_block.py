"""A block before its commit: what its gradients will be applied with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.server.devices.base import DeviceArray, Segment, State
from gradwire.server.engine.applied_round import AppliedRound
from gradwire.server.engine.block import BlockHeader
from gradwire.server.engine.spec import RunSpec
from gradwire.server.engine.threads import pieces
from gradwire.server.memory.budget import Reservation
from gradwire.server.optimizers.base import Floats, Hyperparameters, numbers
from gradwire.wire.errors import InvalidHyperparameter, ProtocolViolation
from gradwire.wire.layout import Layout, Range

SKIPPED_BYTES = 40
"""What a skipped step takes in a receipt that is remembered."""


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
    skipped_bytes: int = 0
    """Of ``result_memory``, what is for a receipt that names every step as skipped."""
    received_bytes: int = 0
    """Size of its gradients as they arrived; known when it is whole."""
    locked: bool = False
    """Whether its commit has the run's lock."""
    journaling_at: float = 0.0
    """Since when its commit waits for the disk, by `time.perf_counter`; 0: it does not."""
    journal_seconds: float = 0.0
    """For which its commit waited for the disk."""
    round: AppliedRound | None = None
    """Of a shared run: what the block is made of."""

    def repeated(
        self, header: BlockHeader, sequence: int, version: int, state: State, segments: list[Segment]
    ) -> StagedBlock:
        """The same block once more, before its commit. Neither holds memory of its own.

        Args:
            header: as ours, but for what it logs.
        """
        again = object.__new__(StagedBlock)  # eighteen arguments, of which six are new
        vars(again).update(vars(self))
        again.header, again.sequence, again.version = header, sequence, version
        again.state, again.segments = state, segments
        again.locked = False
        again.journaling_at = again.journal_seconds = 0.0
        return again

    def covers(self, layout: Layout) -> bool:
        """Whether no element is absent."""
        return self.ranges == (Range(0, layout.elements),)

    @property
    def piece_work(self) -> int:
        """What its segments and ranges take beside the updates of their elements."""
        return pieces(len(self.segments) + len(self.ranges))

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


def override_text(before: tuple[Hyperparameters, ...], after: tuple[Hyperparameters, ...]) -> str:
    """What `override_groups` has changed, in words; of several groups, the first one."""
    changed = [index for index, (old, new) in enumerate(zip(before, after, strict=True)) if old is not new]
    if not changed:
        return "nothing"
    old, new = before[changed[0]], after[changed[0]]
    parts = [
        f"{name} {getattr(old, name):.6g} to {getattr(new, name):.6g}"
        for name in numbers(type(new))
        if getattr(old, name) != getattr(new, name)
    ]
    where = f"group {changed[0]}: " if len(before) > 1 else ""
    others = f", and of {len(changed) - 1} other groups" if len(changed) > 1 else ""
    return f"{where}{', '.join(parts) or 'the same numbers'}{others}"


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
    first = int(tensor_steps[0])
    if not header.absent_tensors and (
        len(tensor_steps) == 1 or (tensor_steps == first).all()
    ):  # the usual case: one segment a group
        scalars = _Scalars(spec.dtype, step, header.steps)
        return [scalars.segment(part, groups[group], first) for group, part in spec.group_ranges]
    starts, stops, owners, ts = _present(spec, tensor_steps, header.absent_tensors)
    if not starts.size:
        return []
    apart = (starts[1:] != stops[:-1]) | (owners[1:] != owners[:-1]) | (ts[1:] != ts[:-1])
    begin, end = np.append(True, apart), np.append(apart, True)
    scalars = _Scalars(spec.dtype, step, header.steps)
    return [
        scalars.segment(Range(start, stop), groups[group], t)
        for start, stop, group, t in zip(
            starts[begin].tolist(), stops[end].tolist(), owners[begin].tolist(), ts[begin].tolist(), strict=True
        )
    ]


def _present(
    spec: RunSpec, tensor_steps: npt.NDArray[np.int64], absent: frozenset[int]
) -> tuple[npt.NDArray[np.int64], ...]:
    """(start, stop, group, t) of each present tensor that has elements."""
    starts, stops, owners = spec.layout.columns
    kept = spec.layout.present(absent) & (starts < stops)
    return starts[kept], stops[kept], owners[kept], tensor_steps[kept]


class _Scalars:
    """Of one block: tensors of equal hyperparameters and t share them."""

    def __init__(self, dtype: np.dtype[Any], step: int, steps: int) -> None:
        self._dtype = dtype
        self._step = step
        self._steps = steps
        self._constants: dict[int, Floats] = {}
        self._varying: dict[tuple[int, int], Floats] = {}

    def segment(self, part: Range, group: Hyperparameters, t: int) -> Segment:
        """``t``: steps of its tensors before the block."""
        constants = self._constants.get(id(group))
        if constants is None:
            with np.errstate(over="ignore"):  # a bound beyond what a float32 holds is none
                constants = self._constants[id(group)] = np.array(group.constants(), self._dtype)
        varying = self._varying.get((id(group), t))
        if varying is None:
            varying = group.varying(self._step + 1, t + 1, self._steps, self._dtype)
            self._varying[id(group), t] = varying
        return Segment(part.start, part.stop, group.kernel, constants, varying)


def scalar_bytes(spec: RunSpec, tensor_steps: npt.NDArray[np.int64], header: BlockHeader) -> int:
    """Size of the scalars that `segments_of` computes, at most: one row a step, for each (group, t) that is present."""
    _, _, owners, ts = _present(spec, tensor_steps, header.absent_tensors)
    first = np.append(True, (owners[1:] != owners[:-1]) | (ts[1:] != ts[:-1]))[: len(ts)]
    keys = set(zip(owners[first].tolist(), ts[first].tolist(), strict=True))
    columns: int = sum(spec.groups[group].kernel.varying for group, _ in keys)
    return columns * header.steps * spec.dtype.itemsize


def clip_segments(segments: Sequence[Segment], part: Range) -> list[Segment]:
    """Those parts of ``segments`` that lie in ``part``."""
    return [
        segment._replace(start=max(segment.start, part.start), stop=min(segment.stop, part.stop))
        for segment in segments
        if segment.start < part.stop and segment.stop > part.start
    ]
