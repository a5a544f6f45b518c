"""Which of many processes this one is, as whoever has started them says."""

from __future__ import annotations

import os
import uuid

RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
"""As torchrun, Open MPI, other MPIs and Slurm set them. The first one that holds a number counts."""


def rank() -> int | None:
    """0, 1, 2, ...; None: nobody has said."""
    for variable in RANK_VARIABLES:
        text = os.environ.get(variable, "").strip()
        if text.isascii() and text.isdigit():
            return int(text)
    return None


def default_worker_id(*, shared: bool) -> str:
    """A new one for each call; but for a shared run ``rank-N``, where the rank is known.

    Contributions are added in the order of worker ids: with random ones two trainings would round differently. And a
    process that is started anew as the same rank goes on as the same worker.
    """
    known = rank() if shared else None
    return f"worker-{uuid.uuid4().hex}" if known is None else f"rank-{known}"


def leads_by_default(*, created: bool, goes_on: bool) -> bool:
    """Whether this worker of a shared run is the one that changes hyperparameters, if nobody else is: rank 0 is, else
    who has ``created`` the run, and of one that ``goes_on`` whoever comes first."""
    known = rank()
    return created or goes_on if known is None else known == 0
