"""Runs as text: what a store keeps beside the values, and does not look inside. Numbers survive to the last bit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from enum import IntEnum
from itertools import chain, islice
from typing import Any

import numpy as np

from gradwire.server.engine.applied_round import AppliedRound, Contributed
from gradwire.server.engine.block import BlockHeader, Kind, Outcome, Receipt, Returns
from gradwire.server.engine.shared import Clip, Combine, OnDeadline, SharedRun, Stale
from gradwire.server.engine.spec import Durability, NonFinitePolicy, RunSpec
from gradwire.server.optimizers.base import Hyperparameters, field_types
from gradwire.server.optimizers.known import OPTIMIZERS, name_of
from gradwire.server.series.scalars import Scalar, scalars_from_data, scalars_to_data
from gradwire.server.store.json_text import joined, list_text
from gradwire.wire.layout import Layout

FIRST_VERSION = 1
"""Of texts that do not say which one they have."""

SHARED_VERSION = 2
"""Of texts of shared runs: a server from before them would take a round for a block of one worker."""

LOG_VERSION = 3
"""Of records of what was logged beside blocks: a server from before them would take one for a block."""

VERSION = 3
"""The newest version of these texts that this server knows."""


class NewerRecord(ValueError):
    """Raised for a text that a newer server has written, and that this one would misunderstand."""


def read_record(text: str, what: str) -> dict[str, Any]:
    """What a text of the store says. Raises NewerRecord, ValueError where it is none.

    Args:
        what: is told of it in errors.
    """
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError(f"{what} is no JSON object")
    version = data.get("version", FIRST_VERSION)
    if version not in range(1, VERSION + 1):
        raise NewerRecord(f"{what} needs a server that knows version {version}; this one knows {VERSION}")
    return data


_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "float64": np.dtype(np.float64)}


def spec_to_text(spec: RunSpec) -> str:
    """The run's spec, from which `spec_from_text` makes an equal one. Not for the event loop: there may be many tensors
    and groups."""
    layout = spec.layout
    sizes = np.diff([*layout.first_tensors, len(layout.names)]).tolist()
    tensors = zip(layout.names, layout.shapes, strict=True)
    parts = {
        "name": json.dumps(spec.name),
        "dtype": json.dumps(spec.dtype.name),
        "tensors": joined("[]", (list_text(islice(tensors, size)) for size in sizes)),
        "groups": list_text(groups_to_data(spec.groups)),
        "non_finite_policy": json.dumps(spec.non_finite_policy.name),
        "clip_value": json.dumps(spec.clip_value),
        "clip_norm": json.dumps(spec.clip_norm),
        "durability": json.dumps(None if spec.durability is None else spec.durability.name),
    }
    if spec.ttl_seconds is not None:  # texts of runs without it are as they always were
        parts["ttl_seconds"] = json.dumps(spec.ttl_seconds)
    if spec.shared is not None:
        parts["version"] = json.dumps(SHARED_VERSION)
        parts["shared"] = json.dumps(shared_to_data(spec.shared))
    return joined("{}", (f"{json.dumps(key)}: {part}" for key, part in parts.items()))


def spec_from_text(text: str) -> RunSpec:
    """Raises ValueError, KeyError or GradwireError for what `spec_to_text` would not have written."""
    data = read_record(text, "its spec")
    if len(data["groups"]) != len(data["tensors"]):
        raise ValueError(f"{len(data['groups'])} groups have hyperparameters, {len(data['tensors'])} have tensors")
    return RunSpec(
        name=data["name"],
        layout=Layout([_tensors(group) for group in data["tensors"]]),
        dtype=_DTYPES[data["dtype"]],
        groups=groups_from_data(data["groups"]),
        non_finite_policy=NonFinitePolicy[data["non_finite_policy"]],
        clip_value=data["clip_value"],
        clip_norm=data["clip_norm"],
        durability=None if data["durability"] is None else Durability[data["durability"]],
        ttl_seconds=data.get("ttl_seconds"),
        shared=shared_from_data(data["shared"]) if "shared" in data else None,
    )


def shared_to_data(shared: SharedRun) -> dict[str, Any]:
    """How the workers of a run work together, as JSON has it."""
    values = {field.name: getattr(shared, field.name) for field in dataclasses.fields(shared)}
    return {name: value.name if isinstance(value, IntEnum) else value for name, value in values.items()}


def shared_from_data(data: dict[str, Any]) -> SharedRun:
    kinds: dict[str, type[IntEnum]] = {"on_deadline": OnDeadline, "stale": Stale, "combine": Combine, "clip": Clip}
    values: dict[str, Any] = {k: kinds[k][value] if k in kinds else value for k, value in data.items()}
    return SharedRun(**values)


def _tensors(group: Sequence[Any]) -> list[tuple[str, tuple[int, ...]]]:
    shapes = [tuple(shape) for _, shape in group]
    if not {*map(type, chain.from_iterable(shapes))} <= {int}:  # True and 1.0 are equal to numbers
        wrong = next(shape for _, shape in group if {*map(type, shape)} - {int})
        raise ValueError(f"{wrong} is no shape")
    return [(str(name), shape) for (name, _), shape in zip(group, shapes, strict=True)]


def groups_to_data(groups: Sequence[Hyperparameters]) -> list[dict[str, Any]]:
    """Hyperparameters as JSON has them; infinities become ``Infinity``, which Python reads again."""
    data = []
    for group in groups:
        values = {name: getattr(group, name) for name in field_types(type(group))}
        data.append(
            {"optimizer": name_of(group)} | {k: v.name if isinstance(v, IntEnum) else v for k, v in values.items()}
        )
    return data


def groups_from_data(data: Sequence[dict[str, Any]]) -> tuple[Hyperparameters, ...]:
    groups = []
    for fields in data:
        kind = OPTIMIZERS.get(fields["optimizer"])
        if kind is None:
            raise ValueError(f"a group has the optimizer {fields['optimizer']}, which this server does not know")
        types = field_types(kind)
        values = {name: value for name, value in fields.items() if name != "optimizer"}
        groups.append(
            kind(**{k: types[k][v] if issubclass(types[k], IntEnum) else _number(v) for k, v in values.items()})
        )
    return tuple(groups)


def _number(value: Any) -> Any:
    """JSON of others may have an integer where we write a float, and one that no kernel takes. Raises OverflowError."""
    return float(value) if type(value) is int else value


def receipt_to_data(receipt: Receipt) -> dict[str, Any]:
    """Without ``repeated`` and ``durability``, which are not the block's own."""
    data = {
        "step": receipt.step,
        "gradient_norm": receipt.gradient_norm,
        "learning_rates": list(receipt.learning_rates),
        "skipped_steps": list(receipt.skipped_steps),
        "received_bytes": receipt.received_bytes,
    }
    if receipt.contribution is not None:
        data["contribution"] = dataclasses.asdict(receipt.contribution) | {"kind": receipt.contribution.kind.name}
    return data


def receipt_from_data(data: dict[str, Any], durability: Durability, repeated: bool) -> Receipt:
    return Receipt(
        step=data["step"],
        gradient_norm=data["gradient_norm"],
        learning_rates=tuple(data["learning_rates"]),
        skipped_steps=tuple(data["skipped_steps"]),
        received_bytes=data["received_bytes"],
        durability=durability,
        repeated=repeated,
        contribution=_outcome(data["contribution"]) if "contribution" in data else None,
    )


def _outcome(data: dict[str, Any]) -> Outcome:
    return Outcome(**(data | {"kind": Kind[data["kind"]]}))


def block_to_text(header: BlockHeader, receipt: Receipt, round: AppliedRound | None = None) -> str:
    """What is journaled of a block, or of a round, besides its gradients."""
    data: dict[str, Any] = {
        "steps": header.steps,
        "returns": header.returns.name,
        "absent": sorted(header.absent_tensors),
        "overrides": [[group, dict(changes)] for group, changes in header.overrides.items()],
        "receipt": receipt_to_data(receipt),
    }
    if round is not None:
        data |= {"version": SHARED_VERSION, "round": dataclasses.asdict(round)}
    if header.scalars:  # records of blocks without them are as they always were
        data["scalars"] = scalars_to_data(header.scalars)
    return json.dumps(data)


def block_from_text(text: str) -> tuple[BlockHeader, dict[str, Any], AppliedRound | None]:
    """The header, the receipt as `receipt_to_data` has it, and the round that it was, in a shared run."""
    data = read_record(text, "the record")
    header = BlockHeader(
        steps=data["steps"],
        returns=Returns[data["returns"]],
        absent_tensors=frozenset(data["absent"]),
        overrides=dict(data["overrides"]),
        scalars=scalars_from_data(data.get("scalars", ())),
    )
    return header, data["receipt"], _round(data["round"]) if "round" in data else None


def log_to_text(number: int, scalars: Sequence[Scalar]) -> str:
    """What is journaled of values that a worker logs beside its blocks."""
    return json.dumps({"version": LOG_VERSION, "log": number, "scalars": scalars_to_data(scalars)})


def log_from_text(text: str) -> tuple[int, tuple[Scalar, ...]] | None:
    """The number and the values; None: it is the record of a block."""
    data = read_record(text, "the record")
    return (data["log"], scalars_from_data(data["scalars"])) if "log" in data else None


def _round(data: dict[str, Any]) -> AppliedRound:
    contributions = tuple(Contributed(**part) for part in data["contributions"])
    return AppliedRound(data["number"], data["reason"], data["message"], contributions)
