"""A step over a real link: two network namespaces, joined by virtual devices that let 1 Gbit/s through each way.

python benchmarks/link.py [--quick] [--out FILE]

Needs Linux, root, and ``ip`` and ``tc`` (iproute2); without them it says so and does nothing. The server runs in one
namespace, the client in the other; both are removed at the end.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.child import SERVE, Child, same_threads
from benchmarks.contenders.problem import Problem
from benchmarks.floors import RawTcp
from benchmarks.measure import Contender, Timing, describe, interleave, machine, save, table, timed
from gradwire.client import TorchAdam, connect
from gradwire.client.options import ENCODINGS

DUPLEX, HALF = "raw TCP, both directions at once", "raw TCP, send all, then receive all"
EXACT = "float32"
TARGETS = {"bfloat16": 0.55, "int8": 0.32}
"""Encoding -> at most so much of the step in float32."""
TARGET = 1.1
"""A step in float32, at most so many times raw TCP both ways."""
HEADER = (
    "one step",
    "median [middle half]",
    "MB sent",
    "Mbit/s sent",
    "x raw TCP",
    "x send, then receive",
    "x our float32",
)

SERVER, CLIENT = f"benchmark-server-{os.getpid()}", f"benchmark-client-{os.getpid()}"
SERVER_DEVICE, CLIENT_DEVICE = "bench0", "bench1"
SERVER_HOST, CLIENT_HOST = "10.213.77.1", "10.213.77.2"


def inside(namespace: str) -> tuple[str, ...]:
    """Command prefix that runs what follows in ``namespace``."""
    return ("ip", "netns", "exec", namespace)


def unavailable() -> str | None:
    """Why this cannot run here; None: it can."""
    if missing := [tool for tool in ("ip", "tc") if shutil.which(tool) is None]:
        return f"no {' and no '.join(missing)} here (Debian: apt-get install iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = subprocess.run(["ip", "netns", "add", SERVER], capture_output=True, text=True, check=False)
    if probe.returncode:
        return f"network namespaces are not allowed here: {probe.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", SERVER], check=True)
    return None


@contextmanager
def link(rate: str) -> Iterator[None]:
    """The two namespaces with the link between them, for as long as the block lasts.

    A token bucket of 128 KiB is more than a tick of the kernel's timer lets through at this rate, and little beside a
    step. What waits behind it may wait for 20 ms: enough that TCP keeps the link full, and no deep queue.
    """
    devices = {SERVER: (SERVER_DEVICE, SERVER_HOST), CLIENT: (CLIENT_DEVICE, CLIENT_HOST)}
    try:
        for namespace in devices:
            _ip("netns", "add", namespace)
        peer = ("peer", "name", CLIENT_DEVICE, "netns", CLIENT)
        _ip("-netns", SERVER, "link", "add", SERVER_DEVICE, "type", "veth", *peer)
        for namespace, (device, host) in devices.items():
            _ip("-netns", namespace, "address", "add", f"{host}/30", "dev", device)
            for name in ("lo", device):
                _ip("-netns", namespace, "link", "set", name, "up")
            shape = ["root", "tbf", "rate", rate, "burst", "128kb", "latency", "20ms"]
            subprocess.run([*inside(namespace), "tc", "qdisc", "add", "dev", device, *shape], check=True)
        yield
    finally:
        for namespace in devices:
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def enter(namespace: str) -> None:
    """This thread, and those that it starts from now on, see the network of ``namespace`` only."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as file:
        if libc.setns(file.fileno(), 0):
            raise OSError(ctypes.get_errno(), f"setns to {namespace} failed")


def bytes_sent() -> int:
    """By this end of the link, headers and acknowledgements included."""
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == CLIENT_DEVICE:
            return int(counters.split()[8])
    raise RuntimeError(f"there is no {CLIENT_DEVICE} here")


def measure(elements: int, encodings: list[str], rounds: int) -> tuple[dict[str, Timing], dict[str, float]]:
    """The rounds of all contenders, and the bytes that each sends in one. This is the client's side; it starts its
    servers on the other."""
    problem = Problem(elements)
    serve = [*SERVE, "--insecure", "--listen", f"{SERVER_HOST}:0", "--threads", "1"]
    server_process = Child(serve, prefix=inside(SERVER))
    raw = {
        name: RawTcp(problem.size_bytes, duplex=name == DUPLEX, host=SERVER_HOST, prefix=inside(SERVER))
        for name in (DUPLEX, HALF)
    }
    params, gradient = problem.parameters()[0], problem.gradients()[0]
    sent: dict[str, list[int]] = {}

    def counted(name: str, contender: Contender) -> Contender:
        def count() -> float:
            before = bytes_sent()
            seconds = contender()
            sent.setdefault(name, []).append(bytes_sent() - before)
            return seconds

        return count

    with connect(server_process.said["addresses"][0]) as server:
        contenders = {name: counted(name, each.exchange) for name, each in raw.items()}
        for name in encodings:
            run = server.create_run(
                name, {"x": params}, TorchAdam(amsgrad=True), gradient_encoding=name, parameter_encoding=name
            )
            contenders[name] = counted(name, timed(functools.partial(run.step, {"x": gradient})))
        timings = interleave(contenders, rounds, warm_up=2)
    for each in raw.values():
        each.close()
    server_process.close()
    return timings, {name: statistics.median(counts) for name, counts in sent.items()}


def main() -> int:
    options = _options()
    same_threads(1)
    about = machine()
    print(describe(about), end="\n\n")
    if reason := unavailable():
        print(f"skipped: {reason}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # or the namespaces would stay
    with link(options.rate):
        enter(CLIENT)
        timings, sent = measure(options.elements, options.encodings, options.rounds)
    exact = timings[EXACT]
    rows = [
        [
            name,
            timing.milliseconds(),
            f"{sent[name] / 1e6:.1f}",
            f"{8 * sent[name] / timing.median / 1e6:.0f}",
            f"{timing.ratio(timings[DUPLEX]):.2f}",
            f"{timing.ratio(timings[HALF]):.2f}",
            f"{timing.ratio(exact):.2f}" if name in ENCODINGS else "",
        ]
        for name, timing in timings.items()
    ]
    print(f"AMSGrad, {options.elements:,} float32, {options.rate} each way, {options.rounds} interleaved rounds\n")
    print(table(HEADER, rows), end="\n\n")
    targets = [(EXACT, DUPLEX, TARGET), *((name, EXACT, target) for name, target in TARGETS.items() if name in timings)]
    for ours, theirs, target in targets:
        ratio = timings[ours].ratio(timings[theirs])
        print(f"- {ours} / {theirs}: {ratio:.2f} (target {target}: {'met' if ratio <= target else 'MISSED'})")
    report = {
        "benchmark": "link",
        "machine": about,
        "elements": options.elements,
        "rate": options.rate,
        "bytes_sent": sent,
        "timings": {name: timing.to_json() for name, timing in timings.items()},
    }
    save(options.out, report)
    return 0


def _options() -> argparse.Namespace:
    names = [name for name in ENCODINGS if name != "float64"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", default="1gbit", help="each way, as tc writes it (default: 1gbit)")
    parser.add_argument("--elements", type=int, help="(default: 25,000,000)")
    parser.add_argument("--encodings", nargs="+", choices=names, default=names, help="float32 is always among them")
    parser.add_argument("--rounds", type=int, help="(default: 9)")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, measures nothing")
    parser.add_argument("--out", type=Path, help="write all figures to this file, as JSON")
    options = parser.parse_args()
    elements, rounds = (1_000_000, 3) if options.quick else (25_000_000, 9)
    options.elements = options.elements or elements
    options.rounds = options.rounds or rounds
    options.encodings = [EXACT, *(name for name in options.encodings if name != EXACT)]
    return options


if __name__ == "__main__":
    sys.exit(main())
