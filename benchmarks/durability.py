"""What it costs that steps outlive the server, and how long the server takes to bring them back.

python benchmarks/durability.py [--quick] [--out FILE]

- One client: a step of a run in MEMORY, of a SNAPSHOT run, of a JOURNAL run, beside one flushed SQLite insert of the
  same bytes into a database of the same settings. JOURNAL should take at most 1.3 times MEMORY and the insert together.
- 64 clients, each with a run of its own: steps a second, all together. They share flushes.
- Snapshots: how long steps wait for the copy, and how much processor time the writing takes, as the server itself
  measures it. At one snapshot every 30 s both together should be at most 3% of the time.
- Recovery: from the start of a killed server's successor to the run, over the length of its journal.
"""

from __future__ import annotations

import argparse
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.measure import Contender, Timing, describe, interleave, machine, save, table, three_digits, timed
from gradwire.client import AMSGrad, Run, connect

BOUND = 1.3
SNAPSHOT_BOUND = 0.03
NEVER = "1000000"


class Server:
    """A server process with a data directory; a context manager."""

    def __init__(self, directory: Path, *flags: str) -> None:
        self.target = f"unix:{directory}/socket"
        self._command = [sys.executable, "-m", "gradwire.server", "serve", "--listen", self.target, "--device", "cpu"]
        self._command += ["--data-dir", str(directory / "data"), *flags]
        self.start()

    def start(self) -> None:
        self.log: list[str] = []
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        while not any("serving on" in line for line in list(self.log)):
            if self._process.poll() is not None:
                raise RuntimeError("the server did not start: " + "".join(self.log))
            time.sleep(0.01)

    def _read(self) -> None:
        assert self._process.stderr is not None
        self.log.extend(self._process.stderr)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def find(self, pattern: str) -> list[tuple[float, ...]]:
        """The numbers that the groups of ``pattern`` match, in each line of the log that does."""
        found = (re.search(pattern, line) for line in list(self.log))
        return [tuple(float(group) for group in match.groups()) for match in found if match]

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


def insert_contender(path: Path, gradient: np.ndarray) -> Callable[[], object]:
    """One insert of a gradient's bytes, flushed, with the settings of the server's journal."""
    database = sqlite3.connect(path, isolation_level=None)
    for pragma in (
        "page_size=8192",
        "locking_mode=EXCLUSIVE",
        "journal_mode=WAL",
        "synchronous=FULL",
        "wal_autocheckpoint=0",
    ):
        database.execute(f"PRAGMA {pragma}")
    database.execute("CREATE TABLE t (key INTEGER PRIMARY KEY, data BLOB)")
    data = gradient.tobytes()
    written = 0

    def insert() -> None:
        nonlocal written
        database.execute("INSERT INTO t (data) VALUES (?)", (data,))
        written += len(data) + 8192
        if written > 16 * 2**20:  # as the server does
            written = 0
            database.execute("PRAGMA wal_checkpoint(PASSIVE)")

    return insert


def stepping(run: Run, gradient: np.ndarray) -> Contender:
    """One step."""
    return timed(lambda: run.step({"x": gradient}))


def one_client(sizes: list[int], rounds: int) -> list[dict[str, object]]:
    results: list[dict[str, object]] = []
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=".") as name, Server(Path(name), "--snapshot-interval", NEVER) as process:
            gradient = np.random.default_rng(1).standard_normal(size).astype(np.float32)
            with connect(process.target) as server:
                runs = {
                    durability: server.create_run(durability, {"x": gradient}, AMSGrad(), durability=durability)
                    for durability in ("MEMORY", "SNAPSHOT", "JOURNAL")
                }
                contenders = {name: stepping(run, gradient) for name, run in runs.items()}
                contenders["insert"] = timed(insert_contender(Path(name) / "floor.sqlite3", gradient))
                found = interleave(contenders, rounds, warm_up=10)
            floor = Timing(tuple(a + b for a, b in zip(found["MEMORY"].seconds, found["insert"].seconds, strict=True)))
            ratio = found["JOURNAL"].median / (found["MEMORY"].median + found["insert"].median)
            results.append(
                {
                    "elements": size,
                    "ratio": ratio,
                    "ratio_by_rounds": found["JOURNAL"].ratio(floor),
                    "timings": {name: timing.to_json() for name, timing in found.items()},
                    "row": [f"{size:,}", *(found[n].milliseconds() for n in contenders), f"{ratio:.2f}"],
                }
            )
    return results


def many_clients(clients: int, steps: int, size: int) -> dict[str, float]:
    """Steps a second of 1 and of ``clients`` clients, which are threads of four processes."""
    rates: dict[str, float] = {}
    for durability in ("MEMORY", "JOURNAL"):
        for count in (1, clients):
            with tempfile.TemporaryDirectory(dir=".") as name, Server(Path(name)) as process:
                groups = [count // 4] * 4 if count >= 4 else [count]
                command = [sys.executable, __file__, "--as-clients", process.target, durability, str(steps), str(size)]
                children = [
                    subprocess.Popen([*command, str(group), str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                    for i, group in enumerate(groups)
                ]
                for child in children:
                    assert child.stdout is not None
                    child.stdout.readline()  # its runs are there
                started = time.perf_counter()
                for child in children:
                    child.communicate(b"go\n")
                rates[f"{durability}, {count}"] = count * steps / (time.perf_counter() - started)
    return rates


def as_clients(target: str, durability: str, steps: int, size: int, count: int, index: int) -> None:
    """The body of one of the processes of `many_clients`."""
    gradient = np.ones(size, np.float32)
    with connect(target) as server:
        runs = [
            server.create_run(f"r{index}-{i}", {"x": gradient}, AMSGrad(), durability=durability) for i in range(count)
        ]
        for run in runs:
            run.step({"x": gradient})
        print("ready", flush=True)
        sys.stdin.readline()

        def train(run: Run) -> None:
            for _ in range(steps):
                run.step({"x": gradient})

        with ThreadPoolExecutor(count) as pool:
            list(pool.map(train, runs))


def snapshots(size: int, interval_seconds: float, count: int) -> dict[str, float]:
    """Training goes on all the while; returns what one snapshot costs, on average over ``count`` of them.

    The first one comes on top and is told apart: it has to make room for the copy, which the others find.
    """
    flags = ("--snapshot-interval", str(interval_seconds))
    with tempfile.TemporaryDirectory(dir=".") as name, Server(Path(name), *flags) as process:
        gradient = np.random.default_rng(1).standard_normal(size).astype(np.float32)
        saved = r"saved at step \d+: (\d+) bytes in ([\d.]+) s, with ([\d.]+) s of processor time"
        with connect(process.target) as server:
            run = server.create_run("x", {"x": gradient}, AMSGrad(), durability="SNAPSHOT")
            while len(process.find(saved)) <= count:
                run.step({"x": gradient})
        waits = [wait for (wait,) in process.find(r"its steps waited ([\d.]+) ms")][1 : count + 1]
        first, *written = process.find(saved)[: count + 1]
    memcpy = copy_seconds(3 * gradient.nbytes + gradient.nbytes)
    pause, cpu = float(np.mean(waits)) / 1e3, float(np.mean([cpu for _, _, cpu in written]))
    return {
        "elements": size,
        "bytes": written[0][0],
        "pause_seconds": pause,
        "memcpy_seconds": memcpy,
        "write_seconds": float(np.mean([seconds for _, seconds, _ in written])),
        "cpu_seconds": cpu,
        "cpu_seconds_of_the_first": first[2],
        "share_at_30_s": (pause + cpu) / 30,
    }


def copy_seconds(size_bytes: int) -> float:
    """A plain copy of as many bytes into memory of its own."""
    source = np.ones(size_bytes, np.uint8)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        source.copy()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def recovery(size: int, lengths: list[int]) -> list[dict[str, float]]:
    results = []
    for length in lengths:
        with tempfile.TemporaryDirectory(dir=".") as name, Server(Path(name), "--snapshot-interval", NEVER) as process:
            gradient = np.ones(size, np.float32)
            with connect(process.target) as server:
                run = server.create_run("x", {"x": gradient}, AMSGrad(), durability="JOURNAL")
                for _ in range(length):
                    run.step({"x": gradient})
            process.kill()
            process.start()
            ((blocks, seconds),) = process.find(r"(\d+) blocks of its journal applied, in ([\d.]+) s")
            assert blocks == length
            results.append({"elements": size, "blocks": length, "seconds": seconds})
    return results


def main() -> int:
    options = _options()
    about = machine()
    print(describe(about), end="\n\n")
    quick = options.quick
    alone = one_client([1000] if quick else [1, 1000, 10_000, 100_000, 262_144, 1_000_000], 20 if quick else 200)
    print("One client, one step: median [middle half]; the insert is of the same bytes, flushed\n")
    header = ("elements", "MEMORY", "SNAPSHOT", "JOURNAL", "insert", "JOURNAL / (MEMORY + insert)")
    print(table(header, [result["row"] for result in alone]), end="\n\n")  # type: ignore[misc]
    clients = 8 if quick else 64
    rates = many_clients(clients, 10 if quick else 200, 1000)
    print("Steps/s of runs of 1,000 elements, all clients together\n")
    rows = []
    for name in ("MEMORY", "JOURNAL"):
        one, many = rates[f"{name}, 1"], rates[f"{name}, {clients}"]
        rows.append([name, three_digits(one), three_digits(many), f"{many / one:.2f}"])
    print(table(("", "1 client", f"{clients} clients", "ratio"), rows), end="\n\n")
    costs = [snapshots(100_000, 1.0, 2)] if quick else [snapshots(n, 30.0, 2) for n in (1_000_000, 25_000_000)]
    print("Snapshots of AMSGrad runs, measured inside the server\n")
    rows = []
    for cost in costs:
        times = [three_digits(1e3 * cost[f"{name}_seconds"]) for name in ("pause", "memcpy", "write", "cpu")]
        rows.append([f"{cost['elements']:,.0f}", *times, f"{100 * cost['share_at_30_s']:.2f}%"])
    header = ("elements", "steps wait, ms", "plain copy, ms", "writing, ms", "processor, ms", "share at one in 30 s")
    print(table(header, rows), end="\n\n")
    back = [*recovery(1000, [100] if quick else [100, 1000, 10_000]), *([] if quick else recovery(262_144, [100]))]
    print("Recovery\n")
    rows = []
    for one_back in back:
        elements, blocks, seconds = (one_back[name] for name in ("elements", "blocks", "seconds"))
        rows.append([f"{elements:,.0f}", f"{blocks:,.0f}", f"{seconds:.3f}", three_digits(blocks / seconds)])
    print(table(("elements", "blocks in the journal", "seconds", "blocks/s"), rows), end="\n\n")
    held = all(float(str(result["ratio"])) <= BOUND for result in alone)
    cheap = all(cost["share_at_30_s"] <= SNAPSHOT_BOUND for cost in costs)
    print(f"- JOURNAL at most {BOUND} of MEMORY and an insert: {'yes' if held else 'NO'}")
    print(f"- snapshots at most {100 * SNAPSHOT_BOUND:g}% at one in 30 s: {'yes' if cheap else 'NO'}")
    report = {
        "benchmark": "durability",
        "machine": about,
        "one_client": [{k: v for k, v in result.items() if k != "row"} for result in alone],
        "steps_per_second": rates,
        "snapshots": costs,
        "recovery": back,
    }
    save(options.out, report)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, measures nothing")
    parser.add_argument("--out", type=Path, help="write all figures to this file, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    if sys.argv[1:2] == ["--as-clients"]:
        as_clients(sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
    else:
        sys.exit(main())
