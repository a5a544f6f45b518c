"""One call: gRPC's context, and who makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gradwire.server.access.gate import Gate
from gradwire.server.access.identity import Identity, tenant_of
from gradwire.server.engine.run import Run
from gradwire.wire.errors import GradwireError


def action_of(method: str) -> str:
    """What a call of the method is in the audit log, from its beginning on."""
    return "Attach" if method == "Train" else method


@dataclass(eq=False)
class Call:
    """What each handler gets beside its request."""

    context: Any
    """``grpc.aio.ServicerContext``."""
    who: Identity
    action: str
    """What its end is in the audit log."""
    gate: Gate | None = None
    """Knows the tenants; None: nobody is asked for one."""
    resource: str = ""
    """The run that it is about, by its name inside, once that is known."""
    _using: Run | None = None

    def run(self, name: str) -> str:
        """The name inside of a run that is there. Raises RunNotFound, PermissionDenied."""
        self.resource = self.who.inside(name)
        return self.resource

    def new_run(self, name: str) -> str:
        """The name inside of a run that is to be made. Raises InvalidSpec, PermissionDenied."""
        self.resource = self.who.inside_new(name)
        if self.gate is not None:
            self.gate.require_tenant(tenant_of(self.resource))
        return self.resource

    def use(self, run: Run) -> None:
        """The call is about this run, until it has ended."""
        run.note_use()
        if self._using is None:
            self._using = run
            run.users += 1

    def end(self) -> None:
        """The call has ended."""
        if self._using is not None:
            self._using.users -= 1
            self._using.note_use()
            self._using = None

    @property
    def peer(self) -> str:
        """The caller's address, as gRPC writes it."""
        peer: str = self.context.peer()
        return peer

    def refusal(self, error: GradwireError) -> GradwireError:
        """``error`` as this caller is told it: by the names that it knows."""
        error.message = self.who.text(error.message)
        error.metadata = {key: self.who.text(value) for key, value in error.metadata.items()}
        return error
