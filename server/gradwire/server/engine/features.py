"""What a run may need its workers to understand: one that did not would take what it is told for something else."""

from __future__ import annotations

from collections.abc import Collection
from enum import IntEnum

from gradwire.wire.errors import ClientTooOld


class Feature(IntEnum):
    """See ``gradwire.v1.Feature``."""

    SHARED_RUN = 1
    PLACEMENTS = 2
    LANE = 3
    REASONED_WAIT = 4
    SERIES = 5


def require_understood(name: str, needs: Collection[Feature], understands: Collection[Feature]) -> None:
    """Raises ClientTooOld where a worker lacks something that the run ``name`` needs."""
    missing = ", ".join(feature.name for feature in sorted(needs) if feature not in understands)
    if missing:
        raise ClientTooOld(
            f"{name} needs clients that understand {missing}, and this one does not: use a newer one", feature=missing
        )
