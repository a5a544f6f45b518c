"""The gradwire client: stream gradients, get parameters back. Needs neither torch nor any part of the server."""

from gradwire.client.connection import RunSummary, Server, connect
from gradwire.client.errors import (
    ConnectionLost,
    EmbeddedServerError,
    LayoutMismatch,
    RunRolledBack,
    WorkerConflict,
)
from gradwire.client.optimizers import Adam, AMSGrad, ParamGroup, TorchAdam, TorchAdamW, WeightDecay
from gradwire.client.options import Receipt, RunOptions
from gradwire.client.retry import RetryPolicy
from gradwire.client.run import Run
from gradwire.wire.errors import (
    Draining,
    Fenced,
    GradwireError,
    IncompleteValues,
    InternalError,
    InvalidHyperparameter,
    InvalidSlice,
    InvalidSpec,
    MemoryLimitExceeded,
    NonFiniteGradient,
    ProtocolViolation,
    ResultTooLarge,
    RunAlreadyExists,
    RunBusy,
    RunNotFound,
    SequenceMismatch,
    Stalled,
    TooManyParameters,
)

__all__ = [
    "AMSGrad",
    "Adam",
    "ConnectionLost",
    "Draining",
    "EmbeddedServerError",
    "Fenced",
    "GradwireError",
    "IncompleteValues",
    "InternalError",
    "InvalidHyperparameter",
    "InvalidSlice",
    "InvalidSpec",
    "LayoutMismatch",
    "MemoryLimitExceeded",
    "NonFiniteGradient",
    "ParamGroup",
    "ProtocolViolation",
    "Receipt",
    "ResultTooLarge",
    "RetryPolicy",
    "Run",
    "RunAlreadyExists",
    "RunBusy",
    "RunNotFound",
    "RunOptions",
    "RunRolledBack",
    "RunSummary",
    "SequenceMismatch",
    "Server",
    "Stalled",
    "TooManyParameters",
    "TorchAdam",
    "TorchAdamW",
    "WeightDecay",
    "WorkerConflict",
    "connect",
]
