"""A shared run of the harness: what it is, and what its workers send. All of it follows from seeds."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.v1 import run_pb2

Floats = npt.NDArray[np.float32]

LR = 0.05
"""Learning rate that a run begins with."""

HUGE = np.float32(2.0**40)
"""Size of the large gradients: beside them the others are lost in a float64, unless two have cancelled before."""


NEARLY_TOO_LARGE = np.float32(3e38)


@dataclass(frozen=True)
class Setting:
    """A run with two tensors. Times are in seconds, and short: much is to happen."""

    name: str
    durability: str
    seed: int
    size: int = 40
    bias: int = 3
    workers: int = 3
    quorum: int = 0
    """0: all who are leased."""
    max_staleness: int = 0
    rejects: bool = False
    """Else it paces."""
    sums: bool = False
    fails: bool = False
    """What a deadline without a quorum does; else it applies."""
    at_least: int = 1
    start_with: int = 1
    grace: float = 0.0
    deadline: float = 0.4
    lease: float = 0.2
    skips: bool = False
    """What is not finite is skipped; else it is refused."""
    cancels: bool = False
    """Of each three workers the first and the second send large gradients that cancel each other."""
    overflows: bool = False
    """Some gradients are so large that a sum of two is no number of float32 any more."""
    quorum_weight: float = 0.0
    """0: any."""
    clip_value: float = 0.0
    """0: none."""
    clip_norm: float = 0.0
    clips_rounds: bool = False
    """What is clipped; else each contribution."""
    leads: bool = False
    """The first worker leads, and changes the learning rate now and then."""
    gradients: str = "FLOAT32"
    """Their encoding."""
    answers: str = "FLOAT32"
    shares_memory: bool = False
    """Workers ask for memory that they have in common with the server."""
    near: int = 0
    """So many workers, the first ones, have no proxy before them, and a lane."""

    @property
    def elements(self) -> int:
        return self.size + self.bias

    @property
    def worker_ids(self) -> tuple[str, ...]:
        return tuple(f"rank-{rank}" for rank in range(self.workers))

    def is_near(self, rank: int) -> bool:
        """See ``near``."""
        return rank < self.near

    def initial(self) -> Floats:
        return np.random.default_rng(self.seed).standard_normal(self.elements).astype(np.float32)

    def group(self, lr: float = LR) -> run_pb2.Group:
        """One group. The optimizers are those of `model.Shape`; bounds let no large gradient take what follows away."""
        tensors = [run_pb2.Tensor(name="w", shape=[self.size]), run_pb2.Tensor(name="b", shape=[self.bias])]
        if self.cancels or self.overflows:
            return run_pb2.Group(tensors=tensors, sgd=run_pb2.Sgd(lr=lr, low=-8.0, high=8.0))
        made: list[dict[str, Any]] = [
            {"adam": run_pb2.Adam(lr=lr, amsgrad=True, weight_decay=0.01)},
            {"sgd": run_pb2.Sgd(lr=lr, momentum=0.9)},
            {"yogi": run_pb2.Yogi(lr=lr)},
        ]
        return run_pb2.Group(tensors=tensors, **made[self.seed % len(made)])

    def spec(self) -> run_pb2.RunSpec:
        shared = run_pb2.SharedRun
        skip, reject = run_pb2.NON_FINITE_POLICY_SKIP, run_pb2.NON_FINITE_POLICY_REJECT
        return run_pb2.RunSpec(
            name=f"runs/{self.name}",
            groups=[self.group()],
            durability=run_pb2.Durability.Value(f"DURABILITY_{self.durability}"),
            non_finite_policy=skip if self.skips else reject,
            clip_value=self.clip_value or None,
            clip_norm=self.clip_norm or None,
            shared=shared(
                quorum=self.quorum,
                quorum_weight=self.quorum_weight or None,
                clip=shared.CLIP_ROUND if self.clips_rounds else shared.CLIP_CONTRIBUTION,
                max_staleness=self.max_staleness,
                stale=shared.STALE_REJECT if self.rejects else shared.STALE_PACE,
                combine=shared.COMBINE_SUM if self.sums else shared.COMBINE_MEAN,
                on_deadline=shared.ON_DEADLINE_FAIL if self.fails else shared.ON_DEADLINE_APPLY,
                at_least=self.at_least,
                start_with=self.start_with,
                grace_seconds=self.grace,
                deadline_seconds=self.deadline,
                lease_seconds=self.lease,
            ),
        )


def any_setting(name: str, durability: str, seed: int, size: int = 40) -> Setting:
    """One of many. A quorum is of one, of some, or of all."""
    chance = random.Random(f"{name} {seed}")
    workers = chance.choice((2, 3, 3, 4))
    sums, cancels = chance.random() < 0.4, chance.random() < 0.3
    clips_rounds = chance.random() < 0.5
    clips = clips_rounds or not cancels  # what cancels must be large when it is added
    return Setting(
        name,
        durability,
        seed,
        size=size,
        workers=workers,
        quorum_weight=chance.choice((0.0, 0.0, 0.0, chance.uniform(0.5, 0.7 * workers))),
        clip_value=chance.choice((0.0, 0.0, chance.uniform(0.1, 2.0))) if clips else 0.0,
        clip_norm=chance.choice((0.0, 0.0, chance.uniform(0.1, 20.0))) if clips else 0.0,
        clips_rounds=clips_rounds,
        overflows=sums and not cancels and chance.random() < 0.5,
        leads=chance.random() < 0.5,
        gradients=chance.choice(("FLOAT32", "FLOAT32", "BFLOAT16", "INT8")),
        answers=chance.choice(("FLOAT32", "FLOAT32", "BFLOAT16", "INT8")),
        shares_memory=chance.random() < 0.5,
        sums=sums,
        cancels=cancels,
        quorum=chance.choice((0, 0, 1, 2, workers)),
        max_staleness=chance.choice((0, 0, 1, 2, 3)),
        rejects=chance.random() < 0.5,
        fails=chance.random() < 0.4,
        at_least=chance.choice((1, 1, 2)),
        start_with=chance.choice((1, 1, workers)),
        grace=chance.choice((0.0, 0.0, 0.01)),
        deadline=chance.uniform(0.1, 0.4),
        lease=chance.uniform(0.1, 0.3),
        skips=chance.random() < 0.5,
        near=chance.choice((0, 1, workers, workers - 1)),
    )


def any_settings(seed: int) -> list[Setting]:
    """One run of each durability. Of each two seeds one has a run whose work leaves the event loop."""
    return [
        any_setting("shared-journal", "JOURNAL", seed, size=80_000 if seed % 2 else 40),
        any_setting("shared-snapshot", "SNAPSHOT", seed + 1),
        any_setting("shared-memory", "MEMORY", seed + 2),
    ]


@dataclass(frozen=True)
class Sent:
    """A contribution, as its worker has noted it before it was sent. ``key`` tells it from all others of the worker."""

    key: int
    sequence: int
    seed: int
    kind: str
    """``plain``, ``plus`` and ``minus`` (large), ``huge`` (nearly too large), ``nan``, ``pass`` (no gradient)."""
    weight: float
    has_bias: bool
    """Otherwise the second tensor has no gradient."""
    base_step: int
    base_epoch: int
    lr: float = 0.0
    """The learning rate from now on, if it is above 0."""

    def passes(self, setting: Setting) -> bool:
        """Whether it adds nothing."""
        return self.kind == "pass" or (self.kind == "nan" and setting.skips)

    def absent(self) -> list[int]:
        """Indices of the tensors without a gradient."""
        return [0, 1] if self.kind == "pass" else [] if self.has_bias else [1]


def gradient_of(setting: Setting, sent: Sent) -> Floats:
    """Of the present tensors, one after the other, before it is encoded."""
    elements = 0 if sent.kind == "pass" else setting.elements if sent.has_bias else setting.size
    if sent.kind in ("plus", "minus"):
        values = np.random.default_rng(setting.seed + 1).standard_normal(setting.elements).astype(np.float32)[:elements]
        return values * (HUGE if sent.kind == "plus" else -HUGE)
    values = np.random.default_rng(sent.seed).standard_normal(elements, np.float32)
    if sent.kind == "huge":
        return np.where(values < 0, -NEARLY_TOO_LARGE, NEARLY_TOO_LARGE)
    if sent.kind == "nan":
        values[sent.seed % elements] = np.nan
    return values


def any_contribution(
    setting: Setting, rank: int, chance: random.Random, key: int, sequence: int, base: tuple[int, int]
) -> Sent:
    """Mostly a plain one."""
    kind, weight = "plain", chance.choice((1.0, 1.0, chance.uniform(0.5, 3.0)))
    if setting.cancels:
        kind, weight = ("plus", "minus", "plain")[rank % 3], 1.0
    if setting.overflows and chance.random() < 0.1:
        kind, weight = "huge", 1.0
    if chance.random() < 0.06:
        kind = chance.choice(("nan", "pass", "pass"))
    lr = chance.uniform(0.01, 0.1) if setting.leads and rank == 0 and chance.random() < 0.2 else 0.0
    return Sent(key, sequence, chance.getrandbits(48), kind, weight, chance.random() < 0.85, *base, lr=lr)
