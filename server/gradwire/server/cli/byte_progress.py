"""How far a file is, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from gradwire.wire.sizes import amount


@contextmanager
def byte_progress(total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar beside standard output; it grows by the bytes that what it returns is called with.

    Args:
        total_bytes: 0: not known, so that there is no bar.
    """
    if not total_bytes or not sys.stderr.isatty():
        yield lambda size_bytes: None
        return
    with click.progressbar(length=total_bytes, label=amount(0, total_bytes), file=sys.stderr) as bar:

        def add(size_bytes: int) -> None:
            bar.label = amount(min(bar.pos + size_bytes, total_bytes), total_bytes)
            bar.update(size_bytes)

        yield add
