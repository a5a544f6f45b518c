"""``gradwire serve``: flags and environment -> ServerConfig.

Flags win over ``GRADWIRE_*``, which win over the defaults.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwire.server.cli.interpreter import spare_what_stays, switch_often
from gradwire.server.cli.logs import set_up_logging
from gradwire.server.cli.numbers import seconds
from gradwire.server.config import SIZE_UNITS, ConfigError, ServerConfig
from gradwire.wire.printable import printable

if TYPE_CHECKING:
    from gradwire.server.app import Server

log = logging.getLogger("gradwire.server")

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(ServerConfig)}


def size(text: str | int) -> int:
    """A number of bytes: ``1000``, ``64KiB``, ``512MiB``, ``2GiB``."""
    stripped = str(text).strip()
    unit = next((unit for unit in SIZE_UNITS if stripped.endswith(unit)), "")
    try:
        return int(float(stripped.removesuffix(unit)) * SIZE_UNITS.get(unit, 1))
    except (ValueError, OverflowError):
        expected = "a number of bytes, or one with KiB, MiB, GiB or TiB"
        raise click.BadParameter(f"{text!r} is no size; expected {expected}") from None


def _option(
    name: str, help_text: str, kind: Any = None, default_text: str | None = None, **extra: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option whose default and environment variable follow from its name."""
    key = extra.pop("key", name.strip("-").replace("-", "_"))
    return click.option(
        name,
        key,
        type=kind,
        default=_DEFAULTS[key],
        envvar=extra.pop("envvar", f"GRADWIRE_{name.partition('/')[0].strip('-').replace('-', '_').upper()}"),
        show_envvar=True,
        show_default=default_text or True,
        help=help_text,
        **extra,
    )


@click.command("serve")
@_option("--listen", "HOST:PORT or unix:PATH; may be repeated.", multiple=True)
@_option("--insecure", "Listen beyond loopback without encryption or authentication.", is_flag=True)
@_option(
    "--tls-cert",
    "PEM file: its certificate, up to its authority.",
    default_text="none: nothing is encrypted",
    envvar="GRADWIRE_TLS_SERVER_CERT",
)
@_option("--tls-key", "PEM file: its private key.", default_text="none", envvar="GRADWIRE_TLS_SERVER_KEY")
@_option("--tls-client-ca", "PEM file: authorities, by one of which clients need a certificate.", default_text="none")
@_option("--access", "TOML file: tokens, certificates, tenants.", default_text="none: nobody is asked")
@_option("--audit-log", "File of JSON lines: who called what.", default_text="none")
@_option("--http", "HOST:PORT for those who watch: the page, /metrics, /healthz, /readyz.", default_text="none")
@_option("--http-name", "A further name by which that is called; may be repeated.", multiple=True)
@_option("--metrics-per-run", "Metrics of each run, too.", is_flag=True)
@_option("--max-connections", "Connections at a time; more are refused.", int)
@_option("--device", "auto, cpu, cuda or cuda:N.")
@_option("--threads", "Threads that share a large CPU update.", int, "one for each processor")
@_option("--worker-threads", "Threads that wait for bulk work.", int)
@_option("--max-parameters", "Elements that one run may have.", int)
@_option("--max-memory", "Bound of all runs, staging, results and copies.", size, "3/4 of the machine's memory")
@_option("--max-result", "Largest trajectory that a block may ask for.", size, "256MiB")
@_option("--data-dir", "Directory in which runs are kept.", default_text="none: runs live in memory only")
@_option("--snapshot-interval", "Seconds after which a changed run is saved.", seconds, key="snapshot_interval_seconds")
@_option("--snapshot-steps", "Steps after which a run is saved, however recently.", int, "none in particular")
@_option("--snapshots-kept", "Snapshots of each run that are kept.", int)
@_option("--stall-timeout", "Seconds a reply or a request may wait for its peer.", seconds, key="stall_timeout_seconds")
@_option("--keepalive", "Seconds between probes of an idle connection.", seconds, key="keepalive_seconds")
@_option("--drain-timeout", "Seconds that running steps get after SIGTERM.", seconds, key="drain_timeout_seconds")
@_option("--shared-memory/--no-shared-memory", "Share memory with clients on this host.", key="shared_memory")
@_option("--reflection", "Serve gRPC reflection.", is_flag=True)
@_option("--log-format", "text or json.", click.Choice(["text", "json"]))
@click.option("--embedded", is_flag=True, hidden=True, help="Announce the address; stop when stdin ends.")
@click.option("--announce-to", type=int, default=1, hidden=True, help="File descriptor for the address; else stdout.")
def serve_command(embedded: bool, announce_to: int, **settings: Any) -> None:
    """Serve runs until SIGTERM or SIGHUP."""
    try:
        config = ServerConfig(**settings)
    except ConfigError as error:
        raise click.ClickException(_by_flags(str(error))) from None
    set_up_logging(config.log_format, logging.WARNING if embedded else logging.INFO)
    log.info("effective configuration: %s", json.dumps(dataclasses.asdict(config)))
    try:
        asyncio.run(_serve(config, announce_to if embedded else None))
    except (ConfigError, ValueError, RuntimeError, OSError) as error:
        raise click.ClickException(printable(str(error))) from None


def _by_flags(message: str) -> str:
    """A refusal of a setting, with the name of its flag."""
    for option in click.get_current_context().command.params:
        message = message.replace(f"{option.name} is ", f"{option.opts[0]} is ")
    return message


async def _serve(config: ServerConfig, announce_to: int | None) -> None:
    """``announce_to``: where an embedded server says its address; None: it is not embedded."""
    from gradwire.server.app import serve  # numba and all: a health check every few seconds does without

    switch_often()
    embedded = announce_to is not None
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def watch_parent() -> None:
        # The pipe from the parent ends with the parent, however it ends.
        while os.read(sys.stdin.fileno(), 4096):
            pass
        try:
            loop.call_soon_threadsafe(stop.set)
        except RuntimeError:
            return  # already stopped

    def ready(server: Server) -> None:
        spare_what_stays()
        where = f"are kept in {config.data_dir}" if config.data_dir else "live in memory only"
        log.info("serving on %s, device %s; runs %s", ", ".join(server.addresses), server.device.name, where)
        if server.http_address:
            log.info("watched on %s", server.http_address)
        if announce_to is not None:
            # A parent that has ended meanwhile is no error: `watch_parent` stops the server.
            with contextlib.suppress(BrokenPipeError), open(announce_to, "w", closefd=announce_to > 2) as parent:
                print(json.dumps({"addresses": server.addresses}), file=parent)

    if embedded:
        # Ctrl-C in a terminal, and its end, reach the whole process group, but the parent decides when a server ends.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        threading.Thread(target=watch_parent, name="gradwire-parent", daemon=True).start()
    try:
        await serve(config, ready, stop if embedded else None, () if embedded else (signal.SIGINT,))
        _ignore_further_signals()
    finally:
        if embedded:
            _remove_socket_directories(config.listen)


def _ignore_further_signals() -> None:
    """The loop takes its handlers with it, and one more SIGTERM would kill a process that has ended well."""
    numbers = {signal.SIGTERM, signal.SIGHUP, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for number in numbers:
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def _remove_socket_directories(addresses: Sequence[str]) -> None:
    """Removes what the parent made for an embedded server's socket; a parent that was killed could not."""
    for address in addresses:
        socket = Path(address.removeprefix("unix:"))
        if address.startswith("unix:") and socket.parent.name.startswith("gradwire-"):
            with contextlib.suppress(OSError):  # above all: the directory holds something else too
                socket.unlink(missing_ok=True)
                socket.parent.rmdir()
