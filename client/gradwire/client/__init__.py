"""The gradwire client: stream gradients, get parameters back. Needs neither torch nor any part of the server."""

from gradwire.client.calls.catalog import RunSummary
from gradwire.client.calls.parameters import RunParams
from gradwire.client.calls.series import Series
from gradwire.client.calls.series_watch import SeriesUpdate
from gradwire.client.calls.server_info import Quota, Recovery, ServerStatus, WhoAmI
from gradwire.client.calls.snapshots import SnapshotInfo
from gradwire.client.calls.waits import Wait
from gradwire.client.calls.workers import Worker, Workers
from gradwire.client.connection import Server, connect
from gradwire.client.errors import (
    ConnectionClosed,
    ConnectionLost,
    EmbeddedServerError,
    ForkedProcess,
    LayoutMismatch,
    RunRolledBack,
    ServerTooOld,
    WorkerConflict,
    WorkerForgotten,
)
from gradwire.client.optimizers.adagrad import Adagrad
from gradwire.client.optimizers.adam import Adam, AMSGrad, TorchAdam, TorchAdamW, WeightDecay
from gradwire.client.optimizers.federated import FedAdagrad, FedAdam, FedAMSGrad, FedYogi
from gradwire.client.optimizers.optimizer import Optimizer
from gradwire.client.optimizers.param_group import ParamGroup
from gradwire.client.optimizers.sgd import SGD
from gradwire.client.optimizers.yogi import Yogi
from gradwire.client.options import Receipt, RunOptions
from gradwire.client.run import Run
from gradwire.client.transport.retry import RetryPolicy
from gradwire.client.workers.shared import Shared
from gradwire.wire.errors import (
    ClientTooOld,
    Draining,
    Fenced,
    GradwireError,
    IncompleteValues,
    InternalError,
    InvalidHyperparameter,
    InvalidSlice,
    InvalidSpec,
    LeaderBusy,
    MemoryLimitExceeded,
    NonFiniteGradient,
    PermissionDenied,
    PermissionRevoked,
    ProtocolViolation,
    QuotaExceeded,
    ResultTooLarge,
    RunAlreadyExists,
    RunBusy,
    RunDamaged,
    RunNotFound,
    SequenceMismatch,
    SnapshotNotFound,
    Stalled,
    Starting,
    StorageFailed,
    StorageFull,
    TooManyParameters,
    Unauthenticated,
)
from gradwire.wire.tls import TLS

__all__ = [
    "SGD",
    "TLS",
    "AMSGrad",
    "Adagrad",
    "Adam",
    "ClientTooOld",
    "ConnectionClosed",
    "ConnectionLost",
    "Draining",
    "EmbeddedServerError",
    "FedAMSGrad",
    "FedAdagrad",
    "FedAdam",
    "FedYogi",
    "Fenced",
    "ForkedProcess",
    "GradwireError",
    "IncompleteValues",
    "InternalError",
    "InvalidHyperparameter",
    "InvalidSlice",
    "InvalidSpec",
    "LayoutMismatch",
    "LeaderBusy",
    "MemoryLimitExceeded",
    "NonFiniteGradient",
    "Optimizer",
    "ParamGroup",
    "PermissionDenied",
    "PermissionRevoked",
    "ProtocolViolation",
    "Quota",
    "QuotaExceeded",
    "Receipt",
    "Recovery",
    "ResultTooLarge",
    "RetryPolicy",
    "Run",
    "RunAlreadyExists",
    "RunBusy",
    "RunDamaged",
    "RunNotFound",
    "RunOptions",
    "RunParams",
    "RunRolledBack",
    "RunSummary",
    "SequenceMismatch",
    "Series",
    "SeriesUpdate",
    "Server",
    "ServerStatus",
    "ServerTooOld",
    "Shared",
    "SnapshotInfo",
    "SnapshotNotFound",
    "Stalled",
    "Starting",
    "StorageFailed",
    "StorageFull",
    "TooManyParameters",
    "TorchAdam",
    "TorchAdamW",
    "Unauthenticated",
    "Wait",
    "WeightDecay",
    "WhoAmI",
    "Worker",
    "WorkerConflict",
    "WorkerForgotten",
    "Workers",
    "Yogi",
    "connect",
]
