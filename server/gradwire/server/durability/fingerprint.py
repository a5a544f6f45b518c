"""What the bits of a step depend on, besides its numbers: the kernels, and what compiles them."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import platform
import sys
import threading
from collections.abc import Sequence
from types import ModuleType

import llvmlite
import numba
import numpy as np

from gradwire.server.devices import chunks, driver
from gradwire.server.devices.base import Device
from gradwire.server.engine import clipping
from gradwire.server.optimizers import adam, schedules
from gradwire.server.optimizers.base import Hyperparameters
from gradwire.server.optimizers.known import OPTIMIZERS

_parsing = threading.Lock()
"""`ast.parse` of Python 3.11 fails now and then where two threads call it at a time."""


def computing_text(*modules: ModuleType) -> str:
    """What the bits depend on of these modules' sources, which is not where they import something from. A new text
    refuses every journal that is not yet saved."""
    return "\n".join(map(_text_of, modules))


@functools.cache
def _text_of(module: ModuleType) -> str:
    source = inspect.getsource(module)
    with _parsing:
        body = ast.parse(source).body
    imports = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    left_out = {number for node in imports for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    return "\n".join(line for number, line in enumerate(source.splitlines(), 1) if number not in left_out)


@functools.cache
def _of_this_build() -> bytes:
    parts = [computing_text(adam, schedules, clipping, driver, chunks)]
    parts += [numba.__version__, llvmlite.__version__, np.__version__, platform.machine(), "".join(platform.libc_ver())]
    return hashlib.sha256("\n".join(parts).encode()).digest()


def fingerprint(device: Device, groups: Sequence[Hyperparameters]) -> str:
    """16 hexadecimal digits: the same for two servers that compute the same bits of the same journal.

    It does not see everything: two processors of one architecture count as the same. Adam's text is part of every
    fingerprint, that of another optimizer of those of the runs that have it.
    """
    own = computing_text(sys.modules[type(device).__module__], *device.kernel_modules)
    others = {group.kernel.update.__module__ for group in groups} - {adam.__name__}
    own += computing_text(*(sys.modules[name] for name in sorted(others)))
    return hashlib.sha256(_of_this_build() + own.encode() + device.name.split(":")[0].encode()).hexdigest()[:16]


def read_sources(device: Device) -> None:
    """Reads all that fingerprints are made of, before there are threads that parse something, too."""
    fingerprint(device, ())
    for kind in OPTIMIZERS.values():
        computing_text(sys.modules[kind.__module__])
