"""Who calls, and what that one may do: roles, tenants, and the names of runs inside the server and outside.

Tenant T's run ``runs/NAME`` is ``tenants/T/runs/NAME`` inside; that of the tenant ``default`` is ``runs/NAME`` there
too, as all runs are that were made before there were tenants.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from fnmatch import fnmatchcase

from gradwire.wire.errors import PermissionDenied, RunNotFound, shorten
from gradwire.wire.layout import TENANT_NAME, parse_run_name

DEFAULT_TENANT = "default"

_QUALIFIED = re.compile(rf"tenants/({TENANT_NAME})/(.*)", re.ASCII | re.DOTALL)


class Role(IntEnum):
    """Each may do what those before it may."""

    OBSERVE = 1
    READ = 2
    CONTRIBUTE = 3
    TRAIN = 4
    ADMIN = 5


NEEDS: Mapping[str, Role] = {
    "WhoAmI": Role.OBSERVE,
    "GetRun": Role.READ,
    "ListRuns": Role.READ,
    "ReadParameters": Role.READ,
    "ReadState": Role.READ,
    "ListSnapshots": Role.READ,
    "ExportRun": Role.READ,
    "DigestRun": Role.READ,
    "ListWorkers": Role.READ,
    "GetSeries": Role.READ,
    "StreamSeries": Role.READ,
    "Train": Role.CONTRIBUTE,
    "LogScalars": Role.CONTRIBUTE,
    "CreateRun": Role.TRAIN,
    "DeleteRun": Role.TRAIN,
    "WriteParameters": Role.TRAIN,
    "WriteState": Role.TRAIN,
    "SaveSnapshot": Role.TRAIN,
    "ForkRun": Role.TRAIN,
    "RollBack": Role.TRAIN,
    "ImportRun": Role.TRAIN,
    "GetServerStatus": Role.ADMIN,
}
"""The least role for each method of the contract. A method without a rule is one that nobody may call."""


@dataclass(frozen=True)
class Identity:
    """A caller, as a token, a certificate or the absence of an access file makes it."""

    tenant: str
    role: Role
    id: str = ""
    """As the access file calls the token or certificate; empty: nobody was asked."""
    expires: float | None = None
    """When the access file ends it, in seconds since 1970, UTC; None: never."""
    runs: tuple[str, ...] = ()
    """Patterns of NAME in ``runs/NAME``, of shell style; none: all."""
    workers: tuple[str, ...] = ()
    """Patterns of worker ids; none: all."""
    digest: str = field(default="", repr=False)
    """Of a token's secret: another secret under the same id is somebody else."""
    ends: float | None = None
    """When a certificate ends of itself."""

    @property
    def until(self) -> float | None:
        """When it is over, as far as is known now."""
        return min((end for end in (self.expires, self.ends) if end is not None), default=None)

    def require(self, method: str) -> None:
        """Raises PermissionDenied unless the role allows the method."""
        needed = NEEDS.get(method)
        if needed is None or self.role < needed:
            wanted = "somebody else" if needed is None else f"{needed.name.lower()} or more"
            raise PermissionDenied(
                f"{method} is for the role {wanted}; yours is {self.role.name.lower()}",
                role=self.role.name.lower(),
                needs="" if needed is None else needed.name.lower(),
            )

    def require_worker(self, worker_id: str) -> None:
        """Raises PermissionDenied for a worker id that this token is not for: who may name any of them can fence any
        worker of its tenant."""
        if not _matches(worker_id, self.workers):
            raise PermissionDenied(
                f"the worker id {shorten(worker_id)!r} is none of those that this token is for; expected "
                f"{' or '.join(self.workers)}"
            )

    @property
    def crosses(self) -> bool:
        """Whether it may name runs of other tenants: where nobody is asked there are none."""
        return self.role is Role.ADMIN and bool(self.id)

    def inside(self, name: str) -> str:
        """The name inside the server of the run that the caller calls ``name``, which may be any text. Raises
        RunNotFound for what is another tenant's, PermissionDenied for what the token is not for."""
        tenant, own = self._named(name)
        if not own.startswith("runs/"):
            raise RunNotFound(f"there is no run {shorten(name)!r} on this server", run=shorten(name))
        if not _matches(own.removeprefix("runs/"), self.runs):
            raise PermissionDenied(
                f"{shorten(own)!r} is none of the runs that this token is for; expected {' or '.join(self.runs)}"
            )
        return qualified(tenant, own)

    def after(self, token: str) -> str:
        """The place in the order of names inside that a list's page token, which may be any text, stands for."""
        return qualified(*self._named(token))

    def inside_new(self, name: str) -> str:
        """As `inside`, of a run that is to be created. Raises InvalidSpec unless it is a good name."""
        parse_run_name(self._named(name)[1])
        return self.inside(name)

    def _named(self, name: str) -> tuple[str, str]:
        """Whose run ``name`` is, and the rest of it: of who may name no other tenant all is its own."""
        found = _QUALIFIED.fullmatch(name) if self.crosses else None
        return (self.tenant, name) if found is None else (found[1], found[2])

    def outside(self, name: str) -> str:
        """What the caller calls the run of this name inside. No tenant stands in it unless it is another one's."""
        tenant, own = split(name)
        return own if tenant == self.tenant else f"tenants/{tenant}/{own}"

    def sees(self, name: str) -> bool:
        """Whether the run of this name inside is among those that a list shows."""
        tenant, own = split(name)
        return (tenant == self.tenant or self.crosses) and _matches(own.removeprefix("runs/"), self.runs)

    def text(self, text: str) -> str:
        """What is said to the caller of its own runs: their tenant is left out."""
        return text if self.tenant == DEFAULT_TENANT else text.replace(f"tenants/{self.tenant}/runs/", "runs/")


ANYBODY = Identity(DEFAULT_TENANT, Role.ADMIN)
"""Whoever calls a server that asks nobody."""


def qualified(tenant: str, name: str) -> str:
    """The name inside of a tenant's run."""
    return name if tenant == DEFAULT_TENANT else f"tenants/{tenant}/{name}"


def split(name: str) -> tuple[str, str]:
    """Tenant and own name of a run, from its name inside."""
    found = _QUALIFIED.fullmatch(name)
    return (DEFAULT_TENANT, name) if found is None else (found[1], found[2])


def tenant_of(name: str) -> str:
    """Whose run has this name inside."""
    return split(name)[0]


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
