"""What being watched costs: a step, in processor time; and everybody, while ten thousand runs are scraped.

python benchmarks/metrics_cost.py [--quick] [--out FILE]

The steps: those of a server's own stream (TrainStream and Session), of one element, from messages that lie ready to
answers that nobody takes, in one process and without a network, which would hide a microsecond. With and without
counters in turn, chunk by chunk. What both do, calls and sums that cannot be left out, is timed apart and added.

The scrape: the processor time of the longest callback of the event loop while another process scrapes its server, which
is what stands on the loop whatever else the machine does; and how late it came to what was due, every millisecond.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.measure import Contender, describe, interleave, machine, save, table
from gradwire.server.app import Server
from gradwire.server.cli.interpreter import spare_what_stays, switch_often
from gradwire.server.config import ServerConfig
from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.encodings.decoders import DenseDecoder
from gradwire.server.encodings.encoders import DenseEncoder
from gradwire.server.engine.run import Run
from gradwire.server.engine.spec import RunSpec
from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.metrics.blocks import BlockCounters, BlockWatch
from gradwire.server.metrics.traffic import stream_bytes
from gradwire.server.optimizers.adam import AdamHyperparameters
from gradwire.server.rpc.stream_guard import StreamGuard
from gradwire.server.rpc.train_stream import TrainStream
from gradwire.server.training.session import Session
from gradwire.v1 import train_pb2
from gradwire.wire.layout import Layout

TARGET_MICROSECONDS, TARGET_CALLBACK_SECONDS = 2.0, 0.005
CHUNK = 100
"""Steps that are measured at a time: a machine that is slower for a while is so for both."""

FLOAT32 = np.dtype(np.float32)
LAYOUT = Layout([[("w", (1,))]])
WITH, WITHOUT = "with counters", "without"


class Uncounted(BlockWatch):
    """Counts nothing."""

    def begin(self) -> None:
        pass

    def committed(self, steps: int, skipped: int, journal_seconds: float) -> float:
        return 0.0

    def answered(self) -> None:
        pass


class NoCounters(BlockCounters):
    """Of streams that count nothing."""

    def watch(self) -> BlockWatch:
        return Uncounted(self)


class Wire:
    """Stands for gRPC's context: one chunk of messages lies ready, answers go nowhere.

    Args:
        logged: names of what each step logs.
    """

    def __init__(self, logged: Sequence[str] = ()) -> None:
        self._logged = logged
        self._sequence = 0
        self._messages: Iterator[bytes] = iter(())

    def fill(self) -> None:
        """Makes the messages of a chunk."""
        data = np.ones(1, np.float32).tobytes()
        made = []
        for _ in range(CHUNK):
            self._sequence += 1
            scalars = [train_pb2.Scalar(name=name, values=[1 / self._sequence]) for name in self._logged]
            header = train_pb2.BlockHeader(steps=1, scalars=scalars)
            part = train_pb2.Gradients(sequence=self._sequence, data=data, last=True, header=header)
            made.append(train_pb2.TrainRequest(gradients=part).SerializeToString())
        self._messages = iter(made)

    async def read(self) -> bytes:
        return next(self._messages)

    async def write(self, message: object) -> None:
        pass


class Stream:
    """One run and its only worker, as `OptimizerServicer.Train` drives them."""

    def __init__(
        self, name: str, counters: BlockCounters, executor: ThreadPoolExecutor, logged: Sequence[str] = ()
    ) -> None:
        spec = RunSpec(f"runs/{name}", LAYOUT, FLOAT32, (AdamHyperparameters(amsgrad=True),))
        self._run = Run(spec, CpuDevice(1), MemoryBudget(2**30), executor)
        self._counters = counters
        self._executor = executor
        self._wire = Wire(logged)
        self._traffic = stream_bytes()

    async def open(self) -> None:
        encoder = DenseEncoder(FLOAT32)
        coding: dict[str, Any] = {"decoder": DenseDecoder(FLOAT32), "encoder": encoder}
        self._session = await Session.attach(
            self._run,
            "worker",
            False,
            lambda error: None,
            max_result_bytes=2**20,
            executor=self._executor,
            counters=self._counters,
            **coding,
        )
        guard, budget = StreamGuard(60.0), self._run.budget
        self._stream = TrainStream(guard, self._wire, self._session.holder, None, encoder, budget, None, self._traffic)

    async def steps(self) -> float:
        """A chunk of steps; returns the processor time that it took."""
        self._wire.fill()
        stream, session = self._stream, self._session
        before = time.process_time()
        for _ in range(CHUNK):
            part = await stream.receive()
            assert part is not None
            only = await session.receive_whole(part)
            assert only is not None
            await stream.send(only)
            session.answered()
        return time.process_time() - before


def of_steps(chunks: int) -> tuple[dict[str, float], float, float]:
    """Microseconds of processor time of a step, the median of the differences of neighbours, and the difference of the
    fastest tenths: those chunks during which others kept the machine least busy."""
    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(1) as executor:
        streams = {
            WITH: Stream("with", BlockCounters(), executor),
            WITHOUT: Stream("without", NoCounters(), executor),
        }
        for stream in streams.values():
            loop.run_until_complete(stream.open())

        def contender(stream: Stream) -> Contender:
            return lambda: loop.run_until_complete(_as_task(stream))

        timings = interleave({name: contender(stream) for name, stream in streams.items()}, chunks, warm_up=5)
    loop.close()
    each = 1e6 / CHUNK
    differences = [each * (a - b) for a, b in zip(timings[WITH].seconds, timings[WITHOUT].seconds, strict=True)]
    fastest = {name: float(np.percentile(timing.seconds, 10)) for name, timing in timings.items()}
    fast = each * (fastest[WITH] - fastest[WITHOUT])
    return {name: each * timing.median for name, timing in timings.items()}, statistics.median(differences), fast


async def _as_task(stream: Stream) -> float:
    return await stream.steps()


def of_what_both_do() -> float:
    """Microseconds: three calls that do nothing, two sums of bytes, and the moment that the run notes."""
    watch, bytes_, note = NoCounters().watch(), stream_bytes(), BlockCounters()
    data, skipped = bytes(4), ()

    def once() -> None:
        watch.begin()
        note.at = watch.committed(1, len(skipped), 0.0)  # type: ignore[attr-defined]
        watch.answered()
        bytes_.received.bytes += len(data)
        bytes_.sent.bytes += len(data)

    rounds = []
    for _ in range(20):
        before = time.process_time()
        for _ in range(CHUNK):
            once()
        rounds.append(1e6 / CHUNK * (time.process_time() - before))
    return statistics.median(rounds)


# --- a scrape -------------------------------------------------------------------------------------------------------

SCRAPER = """
import sys, time, urllib.request
for _ in range(int(sys.argv[2])):
    began = time.perf_counter()
    with urllib.request.urlopen(sys.argv[1], timeout=60) as answer:
        size = len(answer.read())
    print(time.perf_counter() - began, size)
"""


WATCHER = """
import sys, time, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=60) as answer:
    began = time.perf_counter()
    while time.perf_counter() - began < float(sys.argv[2]):
        answer.readline()
"""

MOVING = 200
"""Runs that take a step each second while the page is watched."""


class Callbacks:
    """While it is entered: the processor time of the longest callback of an event loop in this thread."""

    def __init__(self) -> None:
        self.longest_seconds = 0.0

    def __enter__(self) -> Callbacks:
        self._run = run = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            before = time.thread_time()
            run(handle)
            self.longest_seconds = max(self.longest_seconds, time.thread_time() - before)

        asyncio.Handle._run = timed  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *error: object) -> None:
        asyncio.Handle._run = self._run  # type: ignore[method-assign]


async def of_scrapes(runs: int, scrapes: int) -> dict[str, Any]:
    """How late a loop was beside nothing, beside scrapes of a server with so many runs, and beside the page with all of
    them; and the scrapes themselves."""
    switch_often()
    config = ServerConfig(listen=("127.0.0.1:0",), device="cpu", http="127.0.0.1:0", metrics_per_run=True)
    server = Server(config)
    await server.start()
    for task in server._tasks:  # its own rounds past all runs are another matter
        task.cancel()
    registry = server.registry
    for number in range(runs):
        spec = RunSpec(f"runs/run-{number:05d}", LAYOUT, FLOAT32, (AdamHyperparameters(amsgrad=True),))
        made = Run(spec, registry.device, registry.budget, registry.executor)
        made.activity.applied(1, time.perf_counter())
        registry._runs[spec.name] = made
    moving = registry.living()[:MOVING]  # to look for them among all takes milliseconds, which are none of the server's
    spare_what_stays()
    late: dict[str, list[float]] = {"beside nothing": [], "beside scrapes": [], "beside the page": []}
    longest: dict[str, float] = {}
    loop = asyncio.get_running_loop()
    noting = True

    async def note(where: list[float]) -> None:
        while noting:
            due = loop.time() + 0.001
            await asyncio.sleep(0.001)
            where.append(loop.time() - due)

    url = f"http://{server.http_address}/metrics"
    taken: list[tuple[float, int]] = []
    for name, where in late.items():
        noting = True
        task = loop.create_task(note(where))
        if name == "beside scrapes":
            command = [sys.executable, "-c", SCRAPER, url, str(scrapes)]
            scraper = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            with Callbacks() as callbacks:
                out, _ = await scraper.communicate()
            taken = [
                (float(seconds), int(size)) for seconds, size in (line.split() for line in out.decode().splitlines())
            ]
        elif name == "beside the page":
            seconds = max(4, scrapes // 2)
            command = [sys.executable, "-c", WATCHER, f"http://{server.http_address}/stream", str(seconds)]
            watcher = await asyncio.create_subprocess_exec(*command)
            with Callbacks() as callbacks:
                for _ in range(seconds):
                    await asyncio.sleep(1)
                    for run in moving:
                        run.step += 1
            await watcher.wait()
        else:
            with Callbacks() as callbacks:
                await asyncio.sleep(max(2.0, 0.5 * scrapes))
        longest[name] = callbacks.longest_seconds
        noting = False
        await task
    await server.drain()
    return {"late_seconds": late, "longest": longest, "scrapes": taken}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps and of the scrapes")
    parser.add_argument("--out", type=Path, help="where to write all numbers, as JSON")
    options = parser.parse_args()
    about = machine()
    each, difference, fast = of_steps(100 if options.quick else 1000)
    common = of_what_both_do()
    found = asyncio.run(of_scrapes(10_000, 2 if options.quick else 20))
    total = difference + common
    print(describe(about), end="\n\n")
    rows = [[name, f"{microseconds:.2f}"] for name, microseconds in each.items()]
    rows += [
        ["difference of neighbours", f"{difference:.2f}"],
        ["difference of the fastest tenths", f"{fast:.2f}"],
        ["what both do", f"{common:.2f}"],
    ]
    print(table(["a step of one element", "us of processor time"], rows), end="\n\n")
    lags = {
        name: {"median": statistics.median(late), "p99": float(np.percentile(late, 99)), "longest": max(late)}
        for name, late in found["late_seconds"].items()
    }
    longest = found["longest"]
    lag_rows = [
        [name, *(f"{1e3 * value:.2f} ms" for value in (longest[name], *lag.values()))] for name, lag in lags.items()
    ]
    header = ["the event loop", "longest callback", "late: median", "late: p99", "late: longest"]
    print(table(header, lag_rows), end="\n\n")
    seconds, sizes = zip(*found["scrapes"], strict=True)
    print(f"a scrape of 10,000 runs: {statistics.median(seconds):.2f} s, {statistics.median(sizes) / 2**20:.1f} MiB")
    step_ok = total <= TARGET_MICROSECONDS
    loop_ok = max(longest["beside scrapes"], longest["beside the page"]) <= TARGET_CALLBACK_SECONDS
    print(f"a step costs {total:.2f} us more (target {TARGET_MICROSECONDS:g}): {'ok' if step_ok else 'MISSED'}")
    print(f"longest callback (target {1e3 * TARGET_CALLBACK_SECONDS:g} ms): {'ok' if loop_ok else 'MISSED'}")
    save(
        options.out,
        {
            "machine": about,
            "microseconds": each,
            "difference": difference,
            "fast": fast,
            "common": common,
            "lag": lags,
            "longest": longest,
        },
    )
    return 0 if step_ok and loop_ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
