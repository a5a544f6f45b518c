"""What belongs to one process, and is not to be used in another one that is forked from it."""

from __future__ import annotations

import os

from gradwire.client.errors import ForkedProcess


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

    @property
    def here(self) -> bool:
        """Whether this is that process."""
        return self._process == os.getpid()

    def check(self) -> None:
        """Raises ForkedProcess where it is not."""
        if not self.here:
            raise ForkedProcess(
                f"{self._what} belongs to process {self._process}, and this is process {os.getpid()}, forked from it: "
                "a connection does not outlive a fork. Call gradwire.client.connect() in the forked process",
                owner=self._process,
            )
