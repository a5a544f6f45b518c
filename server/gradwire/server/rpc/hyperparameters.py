"""Hyperparameters in messages of ``gradwire.v1`` <-> the optimizers' classes, field by field under the same names."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from math import inf
from typing import Any

from google.protobuf.message import Message

from gradwire.server.optimizers.base import Hyperparameters, field_types
from gradwire.server.optimizers.known import OPTIMIZERS, name_of
from gradwire.v1 import run_pb2
from gradwire.wire.errors import GradwireError, InvalidHyperparameter, InvalidSpec, ProtocolViolation


def decode_group(index: int, message: run_pb2.Group) -> Hyperparameters:
    """Raises InvalidSpec or InvalidHyperparameter."""
    name = message.WhichOneof("optimizer")
    if name is None:
        raise InvalidSpec(
            f"group {index} names no optimizer that this server knows; expected one of {', '.join(OPTIMIZERS)}"
        )
    kind = OPTIMIZERS[name]
    try:
        found: Hyperparameters = kind(**_fields(kind, getattr(message, name)))
    except InvalidHyperparameter as error:
        raise error.within(f"group {index}") from None
    return found


def _fields(kind: Any, message: Message) -> dict[str, Any]:
    """What the message says; what it does not say is the class's default."""
    found: dict[str, Any] = {}
    for name, expected in field_types(kind).items():
        if issubclass(expected, IntEnum):
            found[name] = choice(expected, getattr(message, name), name)
        elif not message.DESCRIPTOR.fields_by_name[name].has_presence or message.HasField(name):
            found[name] = getattr(message, name)
    return found


def encode_group(group: Hyperparameters) -> run_pb2.Group:
    """A group without its tensors. Infinite numbers, which are bounds that are none, are left out."""
    values = {name: getattr(group, name) for name in field_types(type(group))}
    optimizer = type(getattr(run_pb2.Group(), name_of(group)))
    said = {name: value for name, value in values.items() if value not in (-inf, inf)}
    return run_pb2.Group(**{name_of(group): optimizer(**said)})


def decode_numbers(messages: Iterable[run_pb2.Override]) -> dict[int, dict[str, float]]:
    """Group -> numbers that change. Raises ProtocolViolation."""
    overrides: dict[int, dict[str, float]] = {}
    for override in messages:
        if override.group in overrides:
            raise ProtocolViolation(f"two overrides for group {override.group} in one block; expected at most one")
        numbers = {field.name: value for field, value in override.ListFields() if field.name != "group"}
        overrides[override.group] = numbers
    return overrides


def choice(enum: Any, value: int, field: str, error: type[GradwireError] = InvalidSpec) -> Any:
    """The member of ``enum``; 0 (unspecified) is its first one, which is the documented default."""
    try:
        return enum(value or 1)
    except ValueError:
        raise error(f"{field} is {value}; expected one of {', '.join(f'{m.value} ({m.name})' for m in enum)}") from None
