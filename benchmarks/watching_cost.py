"""What the parts of watching cost, each by itself: the figures of docs/watching.md that metrics_cost.py does not take.

python benchmarks/watching_cost.py [--quick] [--out FILE]

Functions run in a hot loop; in the midst of a step, among all else, they take longer. So what a logged value costs the
server is taken from whole steps, without a network: of no value, of one and of three, in turn, chunk by chunk. All in
processor time, but for the experiment's blocks, which a client and an embedded server share.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.measure import Contender, describe, interleave, machine, save, table, timed
from benchmarks.metrics_cost import CHUNK, FLOAT32, LAYOUT, Callbacks, Stream
from gradwire.client import AMSGrad, connect
from gradwire.client.training.logged import scalar_messages, values_between_blocks, values_of_block
from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.encodings.decoders import DenseDecoder
from gradwire.server.encodings.encoders import DenseEncoder
from gradwire.server.engine.activity import Activity
from gradwire.server.engine.run import Run
from gradwire.server.engine.spec import RunSpec
from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.metrics.blocks import BlockCounters
from gradwire.server.optimizers.adam import AdamHyperparameters
from gradwire.server.rpc.series import decode_scalars
from gradwire.server.runs.stalls import Stalls
from gradwire.server.series.run_series import RunSeries
from gradwire.server.series.scalars import check_scalars
from gradwire.server.training.session import Session
from gradwire.v1 import train_pb2

NAMES = ("loss", "accuracy", "perplexity")
BLOCK_STEPS, EVERY = 200_000, 1000
"""Of the synthetic experiment: steps of a block, and of how many one is logged."""
WORKERS = 10_000


def hot(function: Callable[[], object], times: int = 1000, rounds: int = 30) -> float:
    """Microseconds of processor time of one call: the median of some rounds."""
    taken = []
    for _ in range(rounds):
        before = time.process_time()
        for _ in range(times):
            function()
        taken.append(1e6 / times * (time.process_time() - before))
    return statistics.median(taken)


# --- a step ---------------------------------------------------------------------------------------------------------


def of_own_series() -> float:
    """Microseconds of what a run notes of each block by itself."""
    series, step = RunSeries(MemoryBudget(2**30), "a run"), 0

    def note() -> None:
        nonlocal step
        step += 1
        series.note_block(step, 1.5, (1e-3,))

    return hot(note)


def of_activity() -> float:
    """Microseconds of what a run notes of each block to tell how fast it goes."""
    activity, now = Activity(), 0.0

    def note() -> None:
        nonlocal now
        now += 1e-4
        activity.applied(1, now)

    return hot(note)


def of_values_on_the_server(chunks: int) -> dict[int, float]:
    """Microseconds that steps with 1 and with 3 logged values take longer: medians of the differences of neighbours."""
    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(1) as executor:
        streams = {count: Stream(f"of-{count}", BlockCounters(), executor, NAMES[:count]) for count in (0, 1, 3)}
        for stream in streams.values():
            loop.run_until_complete(stream.open())

        def contender(stream: Stream) -> Contender:
            return lambda: loop.run_until_complete(_task(stream))

        timings = interleave({str(count): contender(stream) for count, stream in streams.items()}, chunks, warm_up=5)
    loop.close()
    return {
        count: 1e6 / CHUNK * statistics.median(np.subtract(timings[str(count)].seconds, timings["0"].seconds).tolist())
        for count in (1, 3)
    }


async def _task(stream: Stream) -> float:
    return await stream.steps()


def of_values_on_the_client() -> dict[int, float]:
    """Microseconds of what a client makes of 1 and of 3 values of a step, until they are bytes."""

    def contender(count: int) -> Callable[[], object]:
        log = dict.fromkeys(NAMES[:count], 0.3)

        def make() -> None:
            parts = values_of_block(log, 8, None)
            train_pb2.BlockHeader(steps=1, scalars=scalar_messages(parts, 7, 1)).SerializeToString()

        return make

    return {count: hot(contender(count)) for count in (1, 3)}


# --- a block --------------------------------------------------------------------------------------------------------


def of_a_block() -> tuple[float, float]:
    """Microseconds, of the server and of the client, of 200 values of each of three series with one block."""
    steps = np.arange(1, BLOCK_STEPS + 1, EVERY)
    values = dict.fromkeys(NAMES, np.linspace(0, 1, len(steps)))

    def make() -> list[train_pb2.Scalar]:
        return scalar_messages(values_between_blocks(values, steps, BLOCK_STEPS), 0, BLOCK_STEPS)

    serialized = train_pb2.BlockHeader(steps=BLOCK_STEPS, scalars=make()).SerializeToString()
    series, at = RunSeries(MemoryBudget(2**30), "a run"), 0

    def take() -> None:
        nonlocal at
        scalars = decode_scalars(train_pb2.BlockHeader.FromString(serialized).scalars)
        check_scalars(scalars, BLOCK_STEPS)
        series.add_scalars(scalars, at, at + BLOCK_STEPS)
        at += BLOCK_STEPS

    return hot(take, 20), hot(make, 20)


def of_the_experiment(rounds: int) -> tuple[float, float]:
    """Milliseconds of a block of the synthetic experiment with its series and without, as `client/synthetic.py` sends
    it, and the rest of that left out."""
    gradient = np.where(np.arange(BLOCK_STEPS) % 101 == 1, np.float32(1010), np.float32(-10))
    optimizer = AMSGrad(lr=0.01, betas=(0.9, 0.99), bounds=(-1, 1))
    steps = np.arange(1, BLOCK_STEPS + 1, EVERY)
    values = dict.fromkeys(NAMES, np.linspace(0, 1, len(steps)))
    with connect("embedded") as server:
        start = {"x": np.zeros((), np.float32)}
        logs, silent = (server.create_run(name, start, optimizer) for name in ("logs", "silent"))
        logs.step_many({"x": gradient})  # there are steps to log something of

        def block_with_values() -> None:
            logs.log(values, at=steps + (logs.step_count - BLOCK_STEPS))
            logs.step_many({"x": gradient}, returns="trajectory")

        timings = interleave(
            {
                "with": timed(block_with_values),
                "without": timed(lambda: silent.step_many({"x": gradient}, returns="trajectory")),
            },
            rounds,
        )
        return 1e3 * timings["with"].median, 1e3 * timings["without"].median


# --- all workers ----------------------------------------------------------------------------------------------------


async def of_stalls(looks: int) -> tuple[float, float]:
    """Milliseconds of processor time of a look at 10,000 attached workers for stalls, and of its longest callback."""
    device, budget, counters = CpuDevice(1), MemoryBudget(2**33), BlockCounters()
    coding: dict[str, Any] = {"decoder": DenseDecoder(FLOAT32), "encoder": DenseEncoder(FLOAT32)}
    with ThreadPoolExecutor(1) as executor:
        runs = []
        for number in range(WORKERS):
            spec = RunSpec(f"runs/run-{number:05d}", LAYOUT, FLOAT32, (AdamHyperparameters(amsgrad=True),))
            run = Run(spec, device, budget, executor)
            await Session.attach(
                run, "worker", False, lambda e: None, max_result_bytes=0, executor=executor, counters=counters, **coding
            )
            runs.append(run)
        stalls, taken = Stalls(lambda: runs), []
        with Callbacks() as callbacks:
            for _ in range(looks):
                await asyncio.sleep(0.1)
                before = time.process_time()
                await stalls.look()
                taken.append(1e3 * (time.process_time() - before))
    return statistics.median(taken), 1e3 * callbacks.longest_seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps and of the blocks")
    parser.add_argument("--out", type=Path, help="where to write all numbers, as JSON")
    options = parser.parse_args()
    about = machine()
    own, activity = of_own_series(), of_activity()
    server, client = of_values_on_the_server(60 if options.quick else 600), of_values_on_the_client()
    block_server, block_client = of_a_block()
    with_values, without = of_the_experiment(10 if options.quick else 100)
    look, longest = asyncio.run(of_stalls(3 if options.quick else 20))
    print(describe(about), end="\n\n")
    rows = [
        ["the server's own series, a block", f"{own:.2f} us", ""],
        ["what a run does now, a block", f"{activity:.2f} us", ""],
        *([f"logged values, {count} a step", f"{server[count]:.1f} us", f"{client[count]:.1f} us"] for count in (1, 3)),
        ["200 values each of three series, a block", f"{block_server:.0f} us", f"{block_client:.0f} us"],
        ["a look at 10,000 workers for stalls", f"{look:.1f} ms", ""],
        ["its longest callback", f"{longest:.2f} ms", ""],
    ]
    print(table(["processor time", "of the server", "of the client"], rows), end="\n\n")
    print(
        f"a block of {BLOCK_STEPS:,} steps of the synthetic experiment: {with_values:.2f} ms with its series, ", end=""
    )
    print(f"{without:.2f} ms without: {with_values / without:.2f} times")
    save(
        options.out,
        {
            "machine": about,
            "own_series_microseconds": own,
            "activity_microseconds": activity,
            "values_server_microseconds": server,
            "values_client_microseconds": client,
            "block_microseconds": {"server": block_server, "client": block_client},
            "experiment_milliseconds": {"with": with_values, "without": without},
            "stalls_milliseconds": {"look": look, "longest_callback": longest},
        },
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
