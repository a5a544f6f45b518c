"""What users import, and how they call it. Whoever changes that changes ``public_names.txt`` too, and knows it.

To write the file anew: ``python -m tests.client.test_public_names > tests/client/public_names.txt``.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MODULES = ("gradwire.client", "gradwire.client.torch")
PINNED = Path(__file__).with_name("public_names.txt")


def public_names() -> Iterator[str]:
    """Every public name, the members of classes too, with signatures, one a line."""
    for module in MODULES:
        found = importlib.import_module(module)
        assert sorted(found.__all__) == sorted(set(found.__all__))
        for name in sorted(found.__all__):
            value = getattr(found, name)
            yield f"{module}.{name}{_signature(value)}"
            if inspect.isclass(value):
                yield from sorted(f"{module}.{name}.{line}" for line in _members(value))


def _members(cls: type) -> Iterator[str]:
    """Public members that a class of ours defines or inherits from one of ours."""
    seen: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] == "gradwire":
            for name in vars(base):
                if not name.startswith("_") and name not in seen:
                    seen.add(name)
                    yield name + _signature(inspect.getattr_static(cls, name))
            attributes = (set(getattr(base, "__annotations__", {})) | _assigned(base)) - seen
            seen |= attributes
            yield from (name for name in attributes if not name.startswith("_"))


def _assigned(cls: type) -> set[str]:
    """Attributes that methods of a class give to its instances."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    return {node.attr for node in found if isinstance(node.value, ast.Name) and node.value.id == "self"}


def _signature(value: Any) -> str:
    if isinstance(value, (classmethod, staticmethod)):
        value = value.__func__
    if not callable(value):
        return ""
    signature = inspect.signature(value)
    if inspect.isclass(value):
        signature = signature.replace(return_annotation=inspect.Signature.empty)
    return str(signature)


def test_public_names_and_signatures_are_those_that_were_promised() -> None:
    pytest.importorskip("torch")
    assert list(public_names()) == PINNED.read_text().splitlines()


def test_every_public_name_is_found_where_it_says_it_was_made() -> None:
    """Tracebacks, reprs and pickles name that module."""
    pytest.importorskip("torch")
    for module in MODULES:
        for name in importlib.import_module(module).__all__:
            value = getattr(importlib.import_module(module), name)
            assert getattr(importlib.import_module(value.__module__), value.__qualname__) is value
            assert value.__module__.startswith(("gradwire.client.", "gradwire.wire."))


if __name__ == "__main__":
    print(*public_names(), sep="\n")
