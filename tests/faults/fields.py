"""Every field of a request, by its path: what the contract gains is tried without being named."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

Path = tuple[FieldDescriptor, ...]

INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
FLOATS = (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE)


def paths(descriptor: Descriptor, wanted: Callable[[FieldDescriptor], bool], before: Path = ()) -> Iterator[Path]:
    """Those of the fields, at any depth, that are ``wanted``."""
    for field in descriptor.fields:
        if field.message_type is not None:
            yield from paths(field.message_type, wanted, (*before, field))
        elif wanted(field):
            yield (*before, field)


def with_value(messages: Sequence[Any], path: Path, value: object) -> list[Any]:
    """The stream with one field of one message changed: of that which has what the path begins with, else of a further
    one."""
    changed = copy.deepcopy(list(messages))
    kind = path[0].name
    at = (
        next((i for i, one in enumerate(changed) if one.WhichOneof("message") == kind), None)
        if ("message" in changed[0].DESCRIPTOR.oneofs_by_name)
        else 0
    )
    if at is None:
        at = len(changed)
        changed.append(type(changed[0])())
    found = changed[at]
    for field in path[:-1]:
        found = getattr(found, field.name)
        if field.is_repeated:
            found = found[0] if found else found.add()
    if path[-1].is_repeated:
        getattr(found, path[-1].name)[:] = [value]
    else:
        setattr(found, path[-1].name, value)
    return changed


def shown(path: Path) -> str:
    return ".".join(field.name for field in path)
