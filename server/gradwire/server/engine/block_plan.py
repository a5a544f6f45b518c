"""From a block's header to what the block will be applied with: everything is checked, and only then set aside."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradwire.server.engine.block import BlockHeader, Returns
from gradwire.server.engine.run import Run
from gradwire.server.engine.spec import NonFinitePolicy, RunSpec
from gradwire.server.engine.staged_block import SKIPPED_BYTES, StagedBlock, override_groups, scalar_bytes, segments_of
from gradwire.server.engine.threads import pieces, updates
from gradwire.server.optimizers.base import Hyperparameters
from gradwire.server.series.scalars import check_scalars
from gradwire.server.store.base import MAX_ENTRY_BYTES
from gradwire.wire.encoding import MAX_ROW_BYTES
from gradwire.wire.errors import ProtocolViolation, ResultTooLarge

_COUNTED_SKIPS = 1024
_COUNTED_SCALARS = 65_536
"""Steps times tensors from which the scalars of a block are counted in the memory limit."""


def check_steps(spec: RunSpec, steps: int, wire_bytes: int) -> None:
    """Raises ProtocolViolation unless one element of ``steps`` steps fits a message, both ways.

    Args:
        wire_bytes: size of one row of the shortest slice that every part of the run can be sent in.
    """
    widest = max(spec.dtype.itemsize, wire_bytes)
    most = MAX_ROW_BYTES // widest
    if not 1 <= steps <= most:
        raise ProtocolViolation(
            f"a block of {steps} steps; expected 1 to {most} at {widest} bytes a step of the shortest slice",
            max_steps=most,
        )


def check_kind(run: Run, header: BlockHeader) -> None:
    """Raises ProtocolViolation for a block of one worker in a shared run, or for a contribution in any other."""
    if run.spec.shared is None and header.contribution is not None:
        raise ProtocolViolation(
            f"{run.spec.name} has one worker at a time, whose blocks are no contributions; expected none"
        )
    if run.spec.shared is not None and header.contribution is None:
        raise ProtocolViolation(f"{run.spec.name} is shared by many workers; expected a header with a contribution")


def check_header(run: Run, header: BlockHeader, max_result_bytes: int) -> tuple[Hyperparameters, ...]:
    """The groups with the block's overrides.

    Raises ProtocolViolation, InvalidHyperparameter, and ResultTooLarge for a trajectory beyond ``max_result_bytes``.
    """
    tensors = len(run.spec.layout.names)
    if header.absent_tensors and max(header.absent_tensors) >= tensors:
        index = max(header.absent_tensors)
        raise ProtocolViolation(f"absent tensor {index} is not there; this run has tensors 0 to {tensors - 1}")
    if header.scalars:
        check_scalars(header.scalars, header.steps)
    groups = override_groups(run.groups, header.overrides)
    block_bytes = run.spec.vector_bytes * header.steps
    if run.storage is not None and run.storage.journals and block_bytes > MAX_ENTRY_BYTES:
        raise ProtocolViolation(
            f"the gradients of {header.steps} steps have {block_bytes} bytes; the journal takes {MAX_ENTRY_BYTES} a "
            "block. Send smaller blocks",
            max_steps=MAX_ENTRY_BYTES // run.spec.vector_bytes,
        )
    if header.returns is Returns.TRAJECTORY and block_bytes > max_result_bytes:
        raise ResultTooLarge(
            f"the trajectory of {header.steps} steps has {block_bytes} bytes; this server remembers at most "
            f"{max_result_bytes}. Send smaller blocks or ask for the last parameters only",
            max_bytes=max_result_bytes,
        )
    return groups


def planning_work(run: Run, header: BlockHeader) -> int:
    """The work of `plan_block`, and no less than that of what it plans beside its updates."""
    steps = run.tensor_steps
    apart = int(np.count_nonzero(steps[1:] != steps[:-1])) if len(steps) > 1 else 0
    segments = len(run.groups) + len(header.absent_tensors) + apart
    return updates(len(steps), header.steps) + pieces(segments)


def plan_block(run: Run, sequence: int, header: BlockHeader, groups: tuple[Hyperparameters, ...]) -> StagedBlock:
    """What the gradients of a block will be applied as, once they are whole, from the run as it is now.

    Args:
        groups: what `check_header` returned.

    Raises MemoryLimitExceeded, ProtocolViolation for one series too many, and then has set nothing aside but room for
    series, which stays with the run.
    """
    if header.scalars:
        run.series.claim(header.scalars)
    spec, layout = run.spec, run.spec.layout
    tensors = len(layout.names)
    present: Any = slice(None)
    if header.absent_tensors:
        present = np.flatnonzero(layout.present(header.absent_tensors))
    trajectory, result_memory = None, None
    # The scalars of a few steps are too small to count, those of a million steps outweigh a small gradient.
    scalars = scalar_bytes(spec, run.tensor_steps, header) if header.steps * tensors >= _COUNTED_SCALARS else 0
    purpose = f"the scalars of {header.steps} steps of {spec.name}"
    scalar_memory = run.budget.reserve(scalars, purpose) if scalars else None
    # Of a few steps the receipt is small, a million may all be skipped.
    may_skip = spec.non_finite_policy is NonFinitePolicy.SKIP and header.steps >= _COUNTED_SKIPS
    skipped_bytes = SKIPPED_BYTES * header.steps if may_skip else 0
    wants_trajectory = header.returns is Returns.TRAJECTORY
    try:
        if wants_trajectory or skipped_bytes:
            result_bytes = spec.vector_bytes * header.steps if wants_trajectory else 0
            what = "a trajectory" if wants_trajectory else f"the receipt of {header.steps} steps"
            result_memory = run.budget.reserve(result_bytes + skipped_bytes, f"{what} of {spec.name}")
        if wants_trajectory:
            trajectory = run.device.allocate(header.steps, layout.elements, spec.dtype)
        return StagedBlock(
            sequence=sequence,
            header=header,
            version=run.version,
            state=run.state,
            groups=groups,
            ranges=layout.present_ranges(header.absent_tensors),
            present=present,
            segments=segments_of(spec, run.step, run.tensor_steps, header, groups),
            checks_finite=spec.non_finite_policy is not NonFinitePolicy.ALLOW,
            first_summed_row=header.steps - 1 if spec.sums_last_row_only else 0,
            scalar_memory=scalar_memory,
            trajectory=trajectory,
            result_memory=result_memory,
            skipped_bytes=skipped_bytes,
        )
    except BaseException:
        if scalar_memory is not None:
            scalar_memory.release()
        if result_memory is not None:
            result_memory.release()
        raise
