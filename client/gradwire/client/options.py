"""How a client works on a run, and what it is told about a block."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from typing import Any

from gradwire.client.transport.retry import RetryPolicy
from gradwire.v1 import run_pb2, train_pb2

SHARED_MEMORY_VARIABLE = "GRADWIRE_SHARED_MEMORY"

ENCODINGS = {
    "float32": run_pb2.ENCODING_FLOAT32,
    "float64": run_pb2.ENCODING_FLOAT64,
    "bfloat16": run_pb2.ENCODING_BFLOAT16,
    "float16": run_pb2.ENCODING_FLOAT16,
    "int8": run_pb2.ENCODING_INT8,
}

DURABILITIES = {
    "JOURNAL": run_pb2.DURABILITY_JOURNAL,
    "SNAPSHOT": run_pb2.DURABILITY_SNAPSHOT,
    "MEMORY": run_pb2.DURABILITY_MEMORY,
}


ACCEPTED, REFUSED = "accepted", "refused"

OUTCOMES = {
    train_pb2.Outcome.KIND_ACCEPTED: ACCEPTED,
    train_pb2.Outcome.KIND_STALE: "stale",
    train_pb2.Outcome.KIND_REFUSED: REFUSED,
    train_pb2.Outcome.KIND_DROPPED: "dropped",
}
"""What can become of a contribution to a shared run. See `Receipt.outcome`."""


@dataclass(frozen=True)
class Receipt:
    """What an answered block says of itself; in runs of one worker it has been applied."""

    step: int
    """Steps applied to the run after this block; in shared runs those of the parameters that came with it."""
    gradient_norm: float
    """L2 norm of the block's last gradient, over all tensors that had one, before any clipping; in shared runs that of
    the round's combined gradient, where it was accepted."""
    learning_rates: tuple[float, ...]
    """Of each group, at the block's last step."""
    skipped_steps: tuple[int, ...]
    """Indices of the block's steps that were left out because their gradient was not finite."""
    durability: str
    """What the receipt is worth when the server dies: ``"JOURNAL"``: the step is on disk; ``"SNAPSHOT"``: it is lost if
    it came after the last snapshot; ``"MEMORY"``: the run ends with the server."""
    received_bytes: int = field(default=0, compare=False)
    """Encoded gradients of the block that the server received on the stream on which it was applied."""
    sent_bytes: int = field(default=0, compare=False)
    """Encoded parameters of its answer. Receipts are equal where steps did the same, however they travelled."""
    paced_seconds: float = field(default=0.0, compare=False)
    """For so long the server let this block wait: this token's tenant had gone faster than its rates."""
    outcome: str = ACCEPTED
    """``"accepted"``; in shared runs a contribution can also be ``"stale"``: it was older than the run allows, or of
    another history; ``"refused"``: its gradient was not finite; ``"dropped"``: its round was not applied. The
    parameters that came with it are the newest in any case."""
    reason: str = ""
    """Why it was not accepted: ``"TOO_STALE"``, ``"HISTORY_CHANGED"``, ``"NON_FINITE_GRADIENT"``, ``"NO_QUORUM"``,
    ``"ROUND_NOT_FINITE"``. Of an accepted one: why its round closed."""
    message: str = ""
    """The same in words."""
    round: int = 0
    """Of a shared run: the round that it was part of, from 1 on; 0: of none."""
    share: float = 1.0
    """The part that this gradient had of the round's total weight; 0 for one of no tensor."""
    contributors: int = 1
    """Contributions of the round, this one included."""
    total_weight: float = 1.0
    """Sum of the weights of those that had a gradient."""
    staleness: int = 0
    """The run's step when the gradient arrived, less that of the parameters that it was computed from."""

    @property
    def applied(self) -> bool:
        """Whether the gradient was applied."""
        return self.outcome == ACCEPTED

    @property
    def skipped(self) -> bool:
        """Whether any step was left out."""
        return bool(self.skipped_steps)


@dataclass(frozen=True)
class RunOptions:
    """How a client works on a run."""

    worker_id: str | None = None
    """Identifies this worker to the server over restarts of its process. None: a new one for each `Run` object; in
    shared runs ``rank-N`` where the rank N is known: from ``$RANK``, which torchrun sets, else
    ``$OMPI_COMM_WORLD_RANK``, ``$PMI_RANK`` or ``$SLURM_PROCID``. Several workers in one such process need ids of
    their own."""
    last_sequence: int | None = None
    """`Run.last_sequence` when this worker last had an answer, if its process has been restarted since. Where the
    server has applied one block more, the next step is taken for that block and gets its result. None: begin anew.

    In shared runs nothing is taken up: what an earlier process has sent and heard nothing of is withdrawn, or has had
    its outcome. There this only says from where on to number, if the server itself knows of no higher one."""
    leads: bool | None = None
    """Of a shared run: this worker changes hyperparameters, writes parameters and state and rolls back, and no other
    does. None: if nobody else does, rank 0, where a rank is known (see ``worker_id``), else who has created the run,
    and of one that goes on whoever comes first."""
    takeover: bool = False
    """Take the run from another worker that is attached. In shared runs: take the lead from the one that has it."""
    gradient_encoding: str | None = None
    """``"float32"``, ``"float64"``, ``"bfloat16"``, ``"float16"``, ``"int8"``; None: the run's own dtype, exact.

    ``"int8"`` shares a scale among 256 elements and adds what it lost of a gradient to the next one. It needs room here
    for one more float32 vector and for the encoded block.
    """
    parameter_encoding: str | None = None
    """As above, for the parameters that come back. ``"int8"``: as differences from those that came before, what they
    lost being part of the next; one more float32 vector here and on the server."""
    double_buffer: bool = False
    """Keep the old parameters whole until a step is committed, at the price of a second vector."""
    shared_memory: bool | None = None
    """Move values through memory that is shared with a server on this host, where that can be had. None: as `connect`
    was told."""
    shared_params: bool = False
    """Let `Run.params` lie in that memory, where the server writes them: a copy and a vector less. Up to 128 MiB, and
    until the first stream of the `Run` breaks, after which it goes on with copies; not with another
    ``parameter_encoding``, nor with ``double_buffer``. With the next step after a refused one they are read anew; while
    `Run.stale` is true, after Ctrl-C for example, the server may still be writing them, even after `Run.close`:
    `Run.read` returns what holds. In a forked process they change with the parent's."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    def __post_init__(self) -> None:
        encoding_of(self.gradient_encoding)
        encoding_of(self.parameter_encoding)
        if self.leads not in (None, True, False):
            raise TypeError(f"leads is {self.leads!r}; expected True, False or None")
        if self.last_sequence is not None and self.worker_id is None:
            raise ValueError("last_sequence is given without worker_id; it belongs to a worker")
        if self.worker_id is None:
            return
        if not isinstance(self.worker_id, str):
            raise TypeError(f"worker_id is {self.worker_id!r}; expected a string")
        if not 1 <= len(self.worker_id.encode()) <= 128:
            raise ValueError(f"worker_id has {len(self.worker_id.encode())} bytes; expected 1 to 128")


def shares_memory(choice: bool | None) -> bool:
    """``choice``, else what ``$GRADWIRE_SHARED_MEMORY`` says, else True. Raises ValueError when that says neither."""
    if choice is not None:
        return choice
    text = os.environ.get(SHARED_MEMORY_VARIABLE, "")
    if text.strip().lower() in ("", "1", "true", "yes", "on"):
        return True
    if text.strip().lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"{SHARED_MEMORY_VARIABLE} is {text!r}; expected 1 or 0")


def decode_receipt(message: train_pb2.Receipt) -> Receipt:
    """A receipt whose outcome, in shared runs, is one of `OUTCOMES`."""
    said: dict[str, Any] = {
        "step": message.step,
        "gradient_norm": message.gradient_norm,
        "learning_rates": tuple(message.learning_rates),
        "skipped_steps": tuple(message.skipped_steps),
        "durability": durability_name(message.durability),
        "received_bytes": message.received_bytes,
        "sent_bytes": message.sent_bytes,
        "paced_seconds": message.paced_seconds,
    }
    if message.HasField("contribution"):
        contribution = message.contribution
        said["outcome"] = OUTCOMES[contribution.kind]
        said |= {name: getattr(contribution, name) for name in _OF_A_CONTRIBUTION}
    # As Receipt(**said) in a quarter of its time: of fields that are not said the class has the values.
    receipt = object.__new__(Receipt)
    vars(receipt).update(said)
    return receipt


def encoding_of(name: str | None) -> run_pb2.Encoding.ValueType:
    """The contract's word for an encoding; None: the run's own. Raises ValueError."""
    if name is None:
        return run_pb2.ENCODING_UNSPECIFIED
    if name not in ENCODINGS:
        raise ValueError(f"encoding is {name!r}; expected one of {', '.join(map(repr, ENCODINGS))}")
    return ENCODINGS[name]


@functools.cache
def durability_name(value: run_pb2.Durability.ValueType) -> str:
    """As users write it; ``"UNSPECIFIED"`` where the server did not say."""
    return run_pb2.Durability.Name(value).removeprefix("DURABILITY_")


_OF_A_CONTRIBUTION = ("reason", "message", "round", "share", "contributors", "total_weight", "staleness")


def durability_of(name: str | None) -> run_pb2.Durability.ValueType:
    """The contract's word; None: the server decides. Raises ValueError."""
    if name is None:
        return run_pb2.DURABILITY_UNSPECIFIED
    if name not in DURABILITIES:
        raise ValueError(f"durability is {name!r}; expected one of {', '.join(map(repr, DURABILITIES))}")
    return DURABILITIES[name]
