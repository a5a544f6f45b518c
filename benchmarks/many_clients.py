"""Many clients with small runs on one server: does it keep its rate, and is any of them starved?

python benchmarks/many_clients.py [--quick] [--profile] [--out FILE]

The server has one processor of its own, the load generators have the others, so Linux only. Every client is a
connection with one stream, and steps again as soon as its step is answered. Floor: the same with a server that sends
the same bytes back, on one processor too.
"""

from __future__ import annotations

import argparse
import os
import pstats
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import floors
from benchmarks.child import SERVE, Child, same_threads
from benchmarks.measure import describe, machine, save, table, three_digits

FEW = 8
RATE_TARGET, TAIL_TARGET, STREAM_TARGET_KIB = 0.9, 5.0, 100.0
OURS, ECHO = "gradwire", "raw gRPC echo"
HEADER = (
    "server",
    "clients",
    "steps/s",
    "median step",
    "p99 step",
    "p99 / median",
    "slowest / mean client",
    "server's processor",
)


@dataclass
class Windows:
    """What a number of clients did in all windows of time."""

    server: str
    clients: int
    rates: list[float] = field(default_factory=list)
    """Steps/s of all clients together, for each window."""
    step_seconds: list[float] = field(default_factory=list)
    """Of all steps."""
    client_steps: list[int] = field(default_factory=list)
    """Of each client, in all windows."""
    server_seconds: float = 0
    """Processor time of the server."""
    generator_seconds: float = 0
    wall_seconds: float = 0

    def add(self, taken: list[list[float]], wall: float, server: float, generators: float) -> None:
        """``taken``: for each client the seconds of its steps."""
        self.rates.append(sum(map(len, taken)) / wall)
        self.step_seconds.extend(value for steps in taken for value in steps)
        self.client_steps = [a + len(b) for a, b in zip(self.client_steps or [0] * len(taken), taken, strict=True)]
        self.server_seconds += server
        self.generator_seconds += generators
        self.wall_seconds += wall

    @property
    def median(self) -> float:
        return statistics.median(self.step_seconds)

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.step_seconds, n=100)[-1]

    @property
    def slowest_to_mean(self) -> float:
        """Steps of the client that had the fewest over the mean of all."""
        return min(self.client_steps) / statistics.mean(self.client_steps)

    @property
    def steps_per_processor_second(self) -> float:
        return len(self.step_seconds) / self.server_seconds

    def rate_ratio(self, other: Windows) -> float:
        """Median over the rounds of our steps/s over theirs."""
        return statistics.median(ours / theirs for ours, theirs in zip(self.rates, other.rates, strict=True))

    def row(self) -> list[str]:
        return [
            self.server,
            str(self.clients),
            three_digits(statistics.median(self.rates)),
            f"{1e3 * self.median:.2f} ms",
            f"{1e3 * self.p99:.2f} ms",
            f"{self.p99 / self.median:.2f}",
            f"{self.slowest_to_mean:.2f}",
            f"{self.server_seconds / self.wall_seconds:.0%}",
        ]

    def to_json(self) -> dict[str, object]:
        return {
            "server": self.server,
            "clients": self.clients,
            "steps_per_second": self.rates,
            "median_step_seconds": self.median,
            "p99_step_seconds": self.p99,
            "slowest_to_mean_client": self.slowest_to_mean,
            "server_processor_share": self.server_seconds / self.wall_seconds,
            "generator_processor_share": self.generator_seconds / self.wall_seconds,
            "steps_per_server_processor_second": self.steps_per_processor_second,
        }


class Site:
    """A server, OURS or ECHO, and load generators with an equal share of the clients each."""

    def __init__(self, name: str, clients: int, elements: int, generators: int, profile: Path | None = None) -> None:
        self.name = name
        mine = sorted(os.sched_getaffinity(0))
        here = Path(__file__).parent
        start = [str(here / "profiled_server.py"), str(profile), *SERVE[2:]] if profile else SERVE
        if name == OURS:
            self.server = Child([*start, "--listen", floors.LOOPBACK, "--threads", "1"])
            kind, target = "gradwire", self.server.said["addresses"][0]
        else:
            self.server = Child([str(here / "floors.py"), "grpc-aio", floors.LOOPBACK])
            kind, target = "echo", self.server.said
        self.server.pin(mine[:1])
        arguments = [str(here / "load.py"), kind, target]
        self._generators = [Child([*arguments, f"load{index}", str(elements)]) for index in range(generators)]
        for generator in self._generators:
            generator.pin(mine[1:] or mine)
        self._each = -(-clients // generators)
        for generator in self._generators:
            generator.ask({"create": self._each})

    def attach(self) -> None:
        for generator in self._generators:
            generator.ask({"attach": self._each})

    def window(self, windows: Windows, seconds: float) -> None:
        """Lets ``windows.clients`` clients step for so long."""
        generators = self._generators[: windows.clients]
        each = max(1, windows.clients // len(generators))
        server, generated = self.server.cpu_seconds(), sum(child.cpu_seconds() for child in generators)
        start = time.perf_counter()
        for generator in generators:
            generator.tell({"step": each, "seconds": seconds})
        taken = [steps for generator in generators for steps in generator.hear()]
        wall = time.perf_counter() - start
        generated = sum(child.cpu_seconds() for child in generators) - generated
        windows.add(taken, wall, self.server.cpu_seconds() - server, generated)

    def close(self) -> None:
        for generator in self._generators:
            generator.close()
        self.server.close()


def idle_bytes(streams: int) -> float:
    """Bytes of server memory that one attached stream costs, its connection included, its run not."""
    site = Site(OURS, streams, 1, 1)
    before = site.server.resident_bytes()
    site.attach()
    time.sleep(1)
    after = site.server.resident_bytes()
    site.close()
    return (after - before) / streams


def main() -> int:
    options = _options()
    if not hasattr(os, "sched_setaffinity"):
        print("skipped: this measures processors by /proc, so it needs Linux")
        return 0
    same_threads(1)
    about = machine()
    print(describe(about), end="\n\n")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        profile = Path(directory) / "profile" if options.profile else None
        arguments = (options.clients, options.elements, options.generators)
        sites = [Site(OURS, *arguments, profile), Site(ECHO, *arguments)]
        for site in sites:
            site.attach()
            for count in (FEW, options.clients):
                site.window(Windows(site.name, count), options.seconds)  # warm-up
        everything = [(site, Windows(site.name, count)) for site in sites for count in (FEW, options.clients)]
        for index in range(options.rounds):
            for site, windows in everything if index % 2 else reversed(everything):
                site.window(windows, options.seconds)
        threads = sites[0].server.cpu_seconds_by_thread()
        for site in sites:
            site.close()
        if profile:
            print(f"the event loop's thread, under cProfile, which slows it:\n{profile_text(profile)}")
    stream = idle_bytes(options.streams)

    print(
        f"AMSGrad, {options.elements:,} float32 a client, {options.rounds} interleaved windows of "
        f"{options.seconds:g} s, {options.generators} load generator(s)\n"
    )
    found = [windows for _, windows in everything]
    few, many, echo_few, echo_many = found
    print(table(HEADER, [windows.row() for windows in found]), end="\n\n")
    ratio, floor = many.rate_ratio(few), echo_many.rate_ratio(echo_few)
    tail = many.p99 / many.median
    for what, value, met in (
        (
            f"steps/s of {many.clients} clients / {FEW} clients: {ratio:.2f}, the echo's {floor:.2f}",
            RATE_TARGET,
            ratio >= RATE_TARGET,
        ),
        (f"p99 / median step time: {tail:.2f}", TAIL_TARGET, tail <= TAIL_TARGET),
        (
            f"server memory of an attached idle stream: {stream / 1024:.0f} KiB",
            STREAM_TARGET_KIB,
            stream / 1024 <= STREAM_TARGET_KIB,
        ),
    ):
        print(f"- {what} (target {value:g}: {'met' if met else 'MISSED'})")
    busy = many.server_seconds / many.wall_seconds
    generators = many.generator_seconds / many.wall_seconds / options.generators
    bound = "THE LOAD GENERATORS LIMIT" if generators > 0.85 else "the generators do not limit"
    print(
        f"- the server had {busy:.0%} of a processor, a generator {generators:.0%}: "
        f"{bound}; {many.steps_per_processor_second:,.0f} steps per second of the server's processor time"
    )
    print(f"- the server's processor time since its start, by threads: {shares(threads)}")
    report = {
        "benchmark": "many_clients",
        "machine": about,
        "elements": options.elements,
        "windows": [windows.to_json() for windows in found],
        "idle_streams": options.streams,
        "idle_stream_bytes": stream,
    }
    save(options.out, report)
    return 0


def shares(seconds: dict[str, float]) -> str:
    """Named parts of a whole, the largest first."""
    whole = sum(seconds.values())
    parts = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {value / whole:.0%}" for name, value in parts if value > 0.005 * whole)


def profile_text(path: Path, lines: int = 40) -> str:
    """The functions that took most of the time themselves."""
    with tempfile.TemporaryFile("w+") as file:
        pstats.Stats(str(path), stream=file).strip_dirs().sort_stats("tottime").print_stats(lines)
        file.seek(0)
        return file.read()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, help=f"(default: 256), compared with {FEW}")
    parser.add_argument("--elements", type=int, default=10_000, help="of each run (default: 10,000)")
    parser.add_argument("--streams", type=int, help="idle ones (default: 1,000)")
    parser.add_argument("--generators", type=int, help="processes (default: one less than processors)")
    parser.add_argument("--seconds", type=float, help="of one window (default: 3)")
    parser.add_argument("--rounds", type=int, help="(default: 7)")
    parser.add_argument("--profile", action="store_true", help="show where the server's event loop spends its time")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, measures nothing")
    parser.add_argument("--out", type=Path, help="write all figures to this file, as JSON")
    options = parser.parse_args()
    clients, streams, seconds, rounds = (16, 20, 0.2, 2) if options.quick else (256, 1000, 3.0, 7)
    options.clients = options.clients or clients
    options.streams = options.streams or streams
    options.seconds = options.seconds or seconds
    options.rounds = options.rounds or rounds
    options.generators = options.generators or max(1, min(FEW, len(os.sched_getaffinity(0)) - 1))
    return options


if __name__ == "__main__":
    sys.exit(main())
