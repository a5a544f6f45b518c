"""``gradwire whoami`` and ``gradwire status``: what a server says of its caller, and of itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import click

from gradwire.server.cli.calls import Stub, with_stub
from gradwire.v1 import service_pb2
from gradwire.wire.printable import printable


@click.command("whoami")
@with_stub
def whoami_command(stub: Stub) -> None:
    """For whom the server takes you: tenant, role, names that you may use, and until when.

    Your token is what GRADWIRE_TOKEN says, else the file that GRADWIRE_TOKEN_FILE names, else the line for TARGET in
    ~/.config/gradwire/tokens.toml.
    """
    answer = stub.WhoAmI(service_pb2.WhoAmIRequest())
    _say(
        ("tenant", answer.tenant),
        ("role", _role(answer.role)),
        ("id", answer.id or "(nobody was asked)"),
        ("expires", _time(answer.expires_seconds, "never")),
        ("runs", " ".join(answer.runs) or "(all)"),
        ("workers", " ".join(answer.workers) or "(all)"),
        *((f"quota {quota.name}", f"{quota.used} of {quota.limit}") for quota in answer.quotas),
    )


@click.command("status")
@with_stub
def status_command(stub: Stub) -> None:
    """How the server is: version, runs, memory, and what of its certificate and its access file is not well."""
    say_status(stub)


def say_status(stub: Stub) -> None:
    """What ``gradwire status`` says. Raises grpc.RpcError."""
    _say(*_facts(stub.GetServerStatus(service_pb2.GetServerStatusRequest())))


def _facts(answer: service_pb2.GetServerStatusResponse) -> Iterator[tuple[str, str]]:
    yield "version", answer.version
    yield "instance", answer.server_instance
    yield "uptime", f"{answer.uptime_seconds:.0f} s"
    recovered = "yes" if answer.recovered else "no"
    yield "recovered", f"{recovered}: {answer.recovery.text}" if answer.HasField("recovery") else recovered
    yield "runs", f"{answer.runs}"
    yield "damaged runs", f"{answer.damaged_runs}"
    yield "memory", f"{answer.memory_bytes} of {answer.memory_limit_bytes} bytes"
    yield "event loop lag", f"{1000 * answer.event_loop_lag_seconds:.1f} ms"
    yield "certificate", _time(answer.certificate_expires_seconds, "none", "until ")
    if answer.certificate_refusals:
        yield "TLS files refused", f"{answer.certificate_refusals}"
    if answer.certificate_error:
        yield "certificate error", answer.certificate_error
    if answer.access_error:
        yield "access file error", answer.access_error
    if answer.unused_handshakes:
        yield "unused handshakes", f"{answer.unused_handshakes}"
    if answer.audit_lines_lost:
        yield "audit lines lost", f"{answer.audit_lines_lost}"


def _say(*facts: tuple[str, str]) -> None:
    for name, value in facts:
        click.echo(printable(f"{name + ':':<18} {value}"))


def _role(role: service_pb2.Role.ValueType) -> str:
    """The number of one that a newer server has."""
    known = service_pb2.Role.DESCRIPTOR.values_by_number.get(role)
    return str(int(role)) if known is None else known.name.removeprefix("ROLE_").lower()


def _time(seconds: float, never: str, before: str = "") -> str:
    return before + datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else never
