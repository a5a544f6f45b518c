"""What ``gradwire top`` sees of a server, look after look."""

from __future__ import annotations

import grpc

from gradwire.server.cli.calls import Stub
from gradwire.server.cli.run_rows import summaries
from gradwire.v1 import service_pb2
from gradwire.wire.errors import RunNotFound
from gradwire.wire.printable import printable


class Looks:
    """One look after another at the runs of a server.

    Args:
        name: resource name of the only run that is looked at; empty: all are.
        count: of looks; None: without end.
    """

    def __init__(self, stub: Stub, name: str, count: int | None) -> None:
        self.name = name
        self._stub = stub
        self._left = count
        self._answered = False
        self.runs: list[service_pb2.RunSummary] = []
        """The fastest first."""
        self.workers: list[service_pb2.Worker] = []
        """Of the only run."""
        self.error = ""
        """Why the last look was none: then ``runs`` are those of the one before."""

    def look(self) -> bool:
        """Looks, and returns whether there is more to come. A server that is away for a while is waited for, once it
        has answered. Raises grpc.RpcError, RunNotFound."""
        if self._left is not None:
            self._left -= 1
        try:
            found = list(summaries(self._stub, self.name))
            if self.name and not found:
                raise RunNotFound(f"there is no run {self.name!r} on this server", run=self.name)
            if self.name:
                self.workers = list(self._stub.ListWorkers(service_pb2.ListWorkersRequest(name=self.name)).workers)
        except grpc.RpcError as error:
            failed: grpc.Call = error  # type: ignore[assignment]
            if not self._answered or failed.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            self.error = printable(f"no answer: {failed.details()}")
        else:
            self.runs = sorted(found, key=lambda run: -run.steps_per_second)  # the others stay in the order of names
            self.error, self._answered = "", True
        return self._left != 0
