"""A journal is replayed by another build only while the sources that compute the bits are the same, to the letter."""

from __future__ import annotations

import hashlib
import inspect

from gradwire.server.devices import cpu
from gradwire.server.durability.fingerprint import computing_sources

KNOWN = "946de7db39f6dc85"
"""As of the first version that journals."""


def test_sources_that_compute_are_those_of_the_journals_that_are_out_there() -> None:
    """A changed comment is enough: a run whose server was killed before the upgrade would be refused by the new build.

    Where that cannot be helped, the changelog says so, and the new value stands here.
    """
    text = computing_sources() + inspect.getsource(cpu)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == KNOWN
