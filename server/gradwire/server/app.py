"""The server process: gRPC, health, reflection, drain."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gradwire.server.access.identity import DEFAULT_TENANT, tenant_of
from gradwire.server.config import ConfigError, ServerConfig
from gradwire.server.devices.base import Device
from gradwire.server.devices.select import open_device
from gradwire.server.optimizers.adam import AdamHyperparameters, EpsilonPlacement
from gradwire.server.rpc.admission import audit_log_of, certificates_of, gate_of
from gradwire.server.rpc.credentials import server_credentials
from gradwire.server.rpc.health import Health
from gradwire.server.rpc.listening import listen
from gradwire.server.rpc.methods import add_to_server
from gradwire.server.rpc.service import OptimizerServicer
from gradwire.server.runs.expiry import Expiry
from gradwire.server.runs.registry import Registry
from gradwire.server.runs.stalls import Stalls
from gradwire.server.store.base import Store, StoreError
from gradwire.server.web.watched import Watched
from gradwire.wire.service import MESSAGE_OPTIONS, SERVICE_NAME

if TYPE_CHECKING:  # needs libraries that a server that nobody watches does without
    from gradwire.server.web.door import Door

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
"""For which a connection may take until it says what gRPC, or TLS, begins with; then it is closed."""

_LAST_WORDS_SECONDS = 1.0
"""What gRPC gets at the end of a drain to deliver the last statuses; a peer that does not read would take for ever."""


class Server:
    """One gradwire server. `start`, then `drain`; ``addresses`` holds what it really listens on.

    Raises ConfigError when the data directory cannot be used, or another server uses it.
    """

    def __init__(self, config: ServerConfig, device: Device | None = None) -> None:
        self.config = config
        self.device = device or open_device(config.device, config.threads or None)
        certificates = certificates_of(config)
        gate = gate_of(config)
        self.registry = Registry(config, self.device, open_store(config), gate)
        self._expiry = Expiry(self.registry)
        self.servicer = OptimizerServicer(self.registry, gate, audit_log_of(config), certificates)
        begun = self.servicer.handshakes.begun
        self._credentials = None if certificates is None else partial(server_credentials, certificates, begun)
        self.addresses: list[str] = []
        self.http_address = ""
        """Where it can be watched; empty: nowhere."""
        self._health = Health(self.servicer.handshakes, self.registry.counters.calls, strangers=gate is not None)
        self._stopped = asyncio.Event()
        self._draining = False
        self._serving = False
        self._prepared = asyncio.Event()
        self._prepared.set()
        self._tasks: list[asyncio.Task[None]] = []
        self._door: Door | None = None
        keepalive_ms = int(config.keepalive_seconds * 1000)
        self._grpc = grpc.aio.server(
            options=[
                *MESSAGE_OPTIONS,
                ("grpc.so_reuseport", 0),  # a second server on the same port is an error, not a coin toss
                ("grpc.keepalive_time_ms", keepalive_ms),
                ("grpc.keepalive_timeout_ms", keepalive_ms),
                # What really ends a dead connection; a minute by default, whatever keepalive_timeout says. An answer
                # may queue behind data on a slow link: it gets what is left of the 30 s in which a dead peer must go.
                ("grpc.http2.ping_timeout_ms", 2 * keepalive_ms),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_pings_without_data", 0),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5000),
                ("grpc.http2.max_ping_strikes", 0),  # a client that probes often is no reason to end its steps
                # What strangers can hold. A client that is sent away for idling connects again by itself.
                ("grpc.max_allowed_incoming_connections", config.max_connections),
                ("grpc.server_handshake_timeout_ms", int(1000 * HANDSHAKE_SECONDS)),
                ("grpc.max_connection_idle_ms", 300_000),
                ("grpc.max_concurrent_streams", 1000),  # a client's further streams would wait, without a word
            ]
        )

    async def start(self) -> None:
        """Listens at once; turns SERVING when the kernels of the common optimizers are ready.

        Raises ConfigError when an address cannot be listened on.
        """
        # glibc hands memory back after every large buffer and faults it in again for the next: a third of the time of a
        # step of 25M parameters. Freeing one block of this size once teaches it to keep what messages will need again.
        bytearray(31 * 2**20)
        add_to_server(self.servicer, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        if self.config.reflection:
            from grpc_reflection.v1alpha import reflection

            names = (SERVICE_NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._grpc)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self.addresses += [listen(self._grpc, address, self._credentials) for address in self.config.listen]
        self._open_lanes()
        await self._grpc.start()
        await self._open_door()
        loop = asyncio.get_running_loop()
        servicer = self.servicer
        stalls = Stalls(self.registry.living)
        watches = (servicer.loop_lag.watch, servicer.watch_access, servicer.handshakes.watch, stalls.watch)
        self._tasks = [loop.create_task(watch()) for watch in watches]
        self._prepared.clear()
        stored = self.registry.stored_runs
        telling = None if stored is None else loop.create_task(stored.recovery.tell())
        try:
            for prepare in (self._warm_up, self.registry.recover):
                if not self._draining:
                    await loop.run_in_executor(self.registry.executor, prepare)
        finally:
            if telling is not None:
                telling.cancel()
            self._prepared.set()
        if self._draining:
            return
        self._require_tenants_asked()
        if stored is not None:
            self._tasks.append(loop.create_task(stored.snapshotter.watch()))
        self._tasks.append(loop.create_task(self._expiry.watch()))
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        self._serving = True

    @property
    def draining(self) -> bool:
        """Whether the server has been told to stop."""
        return self._draining

    def _open_lanes(self) -> None:
        """For clients of this host, where memory is shared with them too."""
        config = self.config
        if config.shared_memory:
            # Where clients are not trusted, only those of a unix socket are certainly of this host.
            self.servicer.lanes.open(self.addresses, loopback=not (config.tls_cert or config.access))

    async def _open_door(self) -> None:
        """Lets those in who watch, where that is wanted. Raises ConfigError."""
        if not self.config.http:
            return
        try:
            from gradwire.server.web.opening import door_of
        except ModuleNotFoundError as error:
            raise ConfigError(f"--http needs {error.name}; pip install 'gradwire[server]'") from None
        servicer = self.servicer
        watched = Watched(
            self.registry,
            loop_lag_seconds=lambda: servicer.loop_lag.longest_seconds,
            unused_handshakes=lambda: servicer.handshakes.unused,
            unready=self._unready,
            gate=servicer.gate,
            audit=servicer.audit,
            certificates=servicer.certificates,
        )
        self._door = door_of(watched)
        self.http_address = await self._door.open()

    def _unready(self) -> str:
        """Why it serves nobody now; empty: it does."""
        if self._draining:
            return "draining"
        return "" if self._serving else "starting"

    def _require_tenants_asked(self) -> None:
        """Raises ConfigError where nobody is asked who they are, and the runs are not all anybody's."""
        others = sorted({tenant_of(name) for name in self.registry.names()} - {DEFAULT_TENANT})
        if others and self.servicer.gate is None:
            raise ConfigError(
                f"{self.config.data_dir} has runs of {', '.join(others[:5])}: without an access file they would be "
                "nobody's. Pass --access"
            )

    def _warm_up(self) -> None:
        dtype = np.dtype(np.float32)
        groups = [
            AdamHyperparameters(amsgrad=amsgrad, epsilon_placement=placement)
            for placement in EpsilonPlacement
            for amsgrad in (False, True)
        ]
        self.device.warm_up([(group.kernel, dtype) for group in groups])
        groups[0].varying(1, 1, 1, dtype)

    async def drain(self) -> None:
        """Health turns NOT_SERVING, steps that have arrived whole finish, then the server stops.

        It stops listening only then: until the end whoever comes is told that it is draining.
        """
        if self._draining:
            return
        self._draining = True
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._prepared.wait()  # what has begun to come back from the disk comes back whole first
        await self.servicer.drain(self.config.drain_timeout_seconds)
        for task in self._tasks:
            task.cancel()
        if self.registry.stored_runs is not None:
            await self._expiry.note_all()
            await self.registry.stored_runs.snapshotter.save_last()
        self.servicer.lanes.close()
        await self._grpc.stop(_LAST_WORDS_SECONDS)
        if self._door is not None:
            await self._door.close()
        await asyncio.get_running_loop().run_in_executor(None, self._close)
        self._stopped.set()

    async def abandon(self) -> None:
        """Ends a server that could not be started."""
        for task in self._tasks:
            task.cancel()
        self.servicer.lanes.close()
        await self._grpc.stop(None)
        if self._door is not None:
            await self._door.close()
        self._close()

    def _close(self) -> None:
        self.registry.close()
        if self.servicer.audit is not None:
            self.servicer.audit.close()

    async def wait_stopped(self) -> None:
        await self._stopped.wait()

    async def _set_health(self, status: int) -> None:
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)


def open_store(config: ServerConfig) -> Store | None:
    """The store in the data directory; None where there is none. Raises ConfigError."""
    if not config.data_dir:
        return None
    from gradwire.server.store.disk import DiskStore  # needs safetensors, which a server in memory does without

    try:
        return DiskStore(Path(config.data_dir), config.snapshots_kept)
    except StoreError as error:
        raise ConfigError(str(error)) from error


async def serve(
    config: ServerConfig,
    ready: Callable[[Server], None],
    stop: asyncio.Event | None = None,
    signals: Sequence[signal.Signals] = (signal.SIGINT,),
) -> None:
    """Runs a server until SIGTERM, SIGHUP, one of ``signals`` or ``stop``; calls ``ready`` once it is SERVING.

    Raises ConfigError, and RuntimeError where something else keeps it from starting.
    """
    server = Server(config)
    loop = asyncio.get_running_loop()
    drains: set[asyncio.Task[None]] = set()

    def drain(reason: str) -> None:
        log.info("%s: draining", reason)
        drains.add(loop.create_task(server.drain()))

    for number in (signal.SIGTERM, signal.SIGHUP, *signals):
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` has seen to it that nobody hangs up
            loop.add_signal_handler(number, drain, number.name)
    try:
        await server.start()
    except BaseException as error:
        await server.abandon()
        if isinstance(error, ConfigError) or not isinstance(error, Exception):
            raise
        log.debug("the server cannot start", exc_info=True)
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise RuntimeError(f"the server cannot start: {what[:500]}") from error
    if not server.draining:
        ready(server)
    if stop is not None:
        stopper = loop.create_task(stop.wait())
        stopper.add_done_callback(lambda _: drain("parent has ended"))
    await server.wait_stopped()
    log.info("stopped")
