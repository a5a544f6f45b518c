"""What belongs to one process, and is not to be used in another one that is forked from it."""

from __future__ import annotations

import os

from gradwire.client.errors import ForkedProcess

_here = 0
"""How often this process has come to be by a fork. (To ask for its number is a call of the system, at each step.)"""


def _forked() -> None:
    global _here
    _here += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Owner:
    """The process that has made something.

    gRPC's threads do not come along into a forked process, and locks that they held are never given back there: who
    used an inherited connection would wait for ever.

    Args:
        what: it is, for the message.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._process = os.getpid()
        self._at = _here

    @property
    def here(self) -> bool:
        """Whether this is that process."""
        return self._at == _here

    def check(self) -> None:
        """Raises ForkedProcess where it is not."""
        if self._at != _here:
            raise ForkedProcess(
                f"{self._what} belongs to process {self._process}, and this is process {os.getpid()}, forked from it: "
                "a connection does not outlive a fork. Call gradwire.client.connect() in the forked process",
                owner=self._process,
            )
