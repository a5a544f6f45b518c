"""What the bits of a step depend on, besides its numbers: the kernels, and what compiles them."""

from __future__ import annotations

import functools
import hashlib
import inspect
import platform
import sys

import llvmlite
import numba
import numpy as np

from gradwire.server.devices import base, driver
from gradwire.server.devices.base import Device
from gradwire.server.engine import clipping
from gradwire.server.optimizers import adam, schedules

_MOVED = (
    (
        "from gradwire.server.engine.spec import RunSpec\nfrom gradwire.server.optimizers.base import Floats\n",
        "from gradwire.server.optimizers.base import Floats\nfrom gradwire.server.spec import RunSpec\n",
    ),
    ("from gradwire.server.optimizers.schedules import", "from gradwire.server.schedules import"),
    ("``tests/server/devices``", "``tests/devices``"),
)
"""Names as they are, and as they were when the first journals were written: where a module lies changes no bit."""


def computing_sources() -> str:
    """What the bits depend on of this build's own sources; a new text refuses every journal that is not yet saved."""
    text = "\n".join(inspect.getsource(module) for module in (adam, schedules, clipping, driver, base))
    for now, then in _MOVED:
        text = text.replace(now, then)
    return text


@functools.cache
def _of_this_build() -> bytes:
    parts = [computing_sources()]
    parts += [numba.__version__, llvmlite.__version__, np.__version__, platform.machine(), "".join(platform.libc_ver())]
    return hashlib.sha256("\n".join(parts).encode()).digest()


def fingerprint(device: Device) -> str:
    """16 hexadecimal digits: the same for two servers that compute the same bits of the same journal.

    It does not see everything: two processors of one architecture count as the same.
    """
    own = inspect.getsource(sys.modules[type(device).__module__])
    return hashlib.sha256(_of_this_build() + own.encode() + device.name.split(":")[0].encode()).hexdigest()[:16]
