"""Numbers that flags take, refused under the flag's own name."""

from __future__ import annotations

import click

from gradwire.server.config import MAX_SECONDS

SNAPSHOT_ID = click.IntRange(min=0, max=2**63 - 1)
"""protobuf refuses others in its own words."""


def seconds(text: str | float) -> float:
    """A finite number of seconds above 0, as gRPC and the system's timers take it."""
    try:
        found = float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no number of seconds") from None
    if not 0 < found <= MAX_SECONDS:
        raise click.BadParameter(f"{text} seconds; expected a finite number above 0, at most {MAX_SECONDS:.0f}")
    return found
