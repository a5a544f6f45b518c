"""Connections that break at a moment of the server's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.gated import GatedDevice
from tests.faults.hosted import HostedServer, InBackground
from tests.faults.proxy import Proxy


@contextmanager
def cut_during(operation: str, hosted: HostedServer, device: GatedDevice, proxy: Proxy) -> Iterator[None]:
    """While the device is in the middle of ``operation``, which goes on when the server knows."""
    with device.hold(operation) as gate:

        def cut() -> None:
            gate.wait_entered()
            proxy.cut()
            hosted.wait_cancelled()
            gate.release()

        with InBackground(cut):
            yield
