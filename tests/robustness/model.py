"""What should be: the history of a run, and what a run has become to which it was applied, once, in order."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.client import SGD, AMSGrad, FedYogi, Optimizer, Run, Server

LOGGED = "seen"
"""The series that every block logs to."""


class Violation(AssertionError):
    """Raised when the server has broken a promise; the message says which, of which run."""


class TooLittleTraffic(AssertionError):
    """Raised when so little has happened that nothing has been shown. Such a round is invalid, not passed."""


@dataclass(frozen=True)
class Block:
    """K gradients; everything about them follows from these numbers."""

    seed: int
    steps: int
    with_bias: bool = True
    """Otherwise the second tensor has no gradient."""
    lr: float | None = None
    returns: str = "last"


@dataclass(frozen=True)
class Write:
    """Other values for the second tensor, or for all."""

    seed: int
    partial: bool

    @property
    def steps(self) -> int:
        return 0


Operation = Block | Write


@dataclass(frozen=True)
class Shape:
    """What a run is made of."""

    name: str
    durability: str
    seed: int
    size: int = 40
    bias: int = 3
    blocks: tuple[int, ...] = (1, 1, 1, 2, 3, 8)
    """K is one of these."""
    near: bool = False
    """Its client has no proxy before it, shares memory with the server, and has a lane."""
    whole: float = 0.8
    """Share of the blocks in which both tensors have gradients. Others are not computed before they are journaled."""

    def initial(self) -> dict[str, npt.NDArray[np.float32]]:
        return values_of(self, self.seed)

    def optimizer(self) -> Optimizer:
        """Of one kind for each seed: with three vectors, with one, and with some that do not begin with 0."""
        kinds = AMSGrad(lr=0.05, weight_decay=0.01), SGD(lr=0.05, momentum=0.9), FedYogi(lr=0.05)
        return kinds[self.seed % 3]


def values_of(shape: Shape, seed: int, rows: int | None = None) -> dict[str, npt.NDArray[np.float32]]:
    """Numbers for both tensors, ``[rows, size]`` where there are rows."""
    numbers = np.random.default_rng(seed)
    leading = () if rows is None else (rows,)
    return {
        name: numbers.standard_normal((*leading, size)).astype(np.float32)
        for name, size in (("w", shape.size), ("b", shape.bias))
    }


def gradients_of(shape: Shape, block: Block) -> dict[str, npt.NDArray[np.float32]]:
    """``[K, size]`` each."""
    values = values_of(shape, block.seed, block.steps)
    return values if block.with_bias else {"w": values["w"]}


def logged_by(block: Block) -> npt.NDArray[np.float64]:
    """``[K]`` whole numbers, whose sums are exact in any order."""
    return np.random.default_rng(block.seed).integers(0, 1000, block.steps).astype(np.float64)


def written_by(shape: Shape, write: Write) -> dict[str, npt.NDArray[np.float32]]:
    values = values_of(shape, write.seed)
    return {"b": values["b"]} if write.partial else values


def operations(shape: Shape) -> Iterator[Operation]:
    """What a client does to a run, without end: mostly single steps, blocks of several, now and then a write."""
    chance = random.Random(f"{shape.name} {shape.seed}")
    while True:
        seed = chance.getrandbits(48)
        if chance.random() < 0.03:
            yield Write(seed, chance.random() < 0.7)
            continue
        yield Block(
            seed,
            steps=chance.choice(shape.blocks),
            with_bias=chance.random() < shape.whole,
            lr=chance.choice((0.05, 0.02, 0.1)) if chance.random() < 0.1 else None,
            returns=chance.choice(("last", "last", "last", "trajectory", "none")),
        )


def apply(run: Run, shape: Shape, operation: Operation) -> int:
    """Does it with the public client; returns the run's step afterwards."""
    if isinstance(operation, Write):
        run.write(written_by(shape, operation), partial=operation.partial)
        return run.step_count
    gradients, logged = gradients_of(shape, operation), logged_by(operation)
    if operation.steps == 1 and operation.returns == "last":
        rows = {name: rows[0] for name, rows in gradients.items()}
        return run.step(rows, lr=operation.lr, log={LOGGED: logged[0]}).step
    run.step_many(gradients, returns=operation.returns, lr=operation.lr, log={LOGGED: logged})
    assert run.last_receipt is not None
    return run.last_receipt.step


@dataclass(frozen=True)
class Fingerprint:
    """All of a run in a few words."""

    step: int
    digest: str
    hyperparameters: bytes
    logged: tuple[bytes, ...]
    """The buckets of what was logged: each value once, at its step."""


def fingerprint(run: Run) -> Fingerprint:
    message = run.describe()
    groups = b"".join(group.SerializeToString(deterministic=True) for group in message.spec.groups)
    series = run.series(LOGGED) if LOGGED in run.series_names() else None
    logged = () if series is None else (series.first_step.tobytes(), series.total.tobytes(), series.count.tobytes())
    return Fingerprint(message.step, run.digest(), groups, logged)


class Reference:
    """Applies histories to runs on a server in memory that nothing happens to."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._runs: dict[str, _Replayed] = {}

    def after(self, shape: Shape, history: Sequence[Operation]) -> Fingerprint:
        """What a run is to which ``history`` was applied."""
        return fingerprint(self._replayed(shape, history).run)

    def params(self, shape: Shape, history: Sequence[Operation]) -> dict[str, bytes]:
        """The parameters of such a run."""
        return bytes_of(self._replayed(shape, history).run.read())

    def forget(self, shape: Shape) -> None:
        """Frees what is kept of a run."""
        replayed = self._runs.pop(shape.name, None)
        if replayed is not None:
            replayed.run.close()
            self._server.delete_run(shape.name)

    def _replayed(self, shape: Shape, history: Sequence[Operation]) -> _Replayed:
        replayed = self._runs.get(shape.name)
        done = [] if replayed is None else replayed.done
        if replayed is None or replayed.shape != shape or done != list(history[: len(done)]):
            if replayed is not None:
                replayed.run.close()
            run = self._server.create_run(shape.name, shape.initial(), shape.optimizer(), on_existing="replace")
            replayed = self._runs[shape.name] = _Replayed(shape, run)
        replayed.apply(history[len(replayed.done) :])
        return replayed


@dataclass
class _Replayed:
    shape: Shape
    run: Run
    done: list[Operation] = field(default_factory=list)

    def apply(self, more: Sequence[Operation]) -> None:
        """Neighbouring blocks go as one: K steps in one block are the same K steps."""

        def kind(operation: Operation) -> Any:
            plain = isinstance(operation, Block) and operation.lr is None
            return (operation.with_bias,) if isinstance(operation, Block) and plain else id(operation)

        for _, group in groupby(more, kind):
            found = list(group)
            if len(found) == 1:
                apply(self.run, self.shape, found[0])
            else:
                parts = [gradients_of(self.shape, block) for block in found if isinstance(block, Block)]
                rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
                logged = np.concatenate([logged_by(block) for block in found if isinstance(block, Block)])
                self.run.step_many(rows, returns="none", log={LOGGED: logged})
            self.done += found


def bytes_of(params: dict[str, npt.NDArray[Any]]) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in params.items()}
