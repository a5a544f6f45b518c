"""How a client works on a run, and what it is told about a block."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Receipt:
    """What a committed block says of itself."""

    step: int
    """Steps applied to the run after this block."""
    gradient_norm: float
    """L2 norm of the block's last gradient, over all tensors that had one, before any clipping."""
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

    @property
    def skipped(self) -> bool:
        """Whether any step was left out."""
        return bool(self.skipped_steps)


@dataclass(frozen=True)
class RunOptions:
    """How a client works on a run."""

    worker_id: str | None = None
    """Identifies this worker to the server over restarts of its process. None: a new one for each `Run` object."""
    last_sequence: int | None = None
    """`Run.last_sequence` when this worker last had an answer, if its process has been restarted since. Where the
    server has applied one block more, the next step is taken for that block and gets its result. None: begin anew."""
    takeover: bool = False
    """Take the run from another worker that is attached."""
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
    return Receipt(
        step=message.step,
        gradient_norm=message.gradient_norm,
        learning_rates=tuple(message.learning_rates),
        skipped_steps=tuple(message.skipped_steps),
        durability=durability_name(message.durability),
        received_bytes=message.received_bytes,
        sent_bytes=message.sent_bytes,
        paced_seconds=message.paced_seconds,
    )


def encoding_of(name: str | None) -> run_pb2.Encoding.ValueType:
    """The contract's word for an encoding; None: the run's own. Raises ValueError."""
    if name is None:
        return run_pb2.ENCODING_UNSPECIFIED
    if name not in ENCODINGS:
        raise ValueError(f"encoding is {name!r}; expected one of {', '.join(map(repr, ENCODINGS))}")
    return ENCODINGS[name]


def durability_name(value: run_pb2.Durability.ValueType) -> str:
    """As users write it; ``"UNSPECIFIED"`` where the server did not say."""
    return run_pb2.Durability.Name(value).removeprefix("DURABILITY_")


def durability_of(name: str | None) -> run_pb2.Durability.ValueType:
    """The contract's word; None: the server decides. Raises ValueError."""
    if name is None:
        return run_pb2.DURABILITY_UNSPECIFIED
    if name not in DURABILITIES:
        raise ValueError(f"durability is {name!r}; expected one of {', '.join(map(repr, DURABILITIES))}")
    return DURABILITIES[name]
