"""The parts of `benchmarks/gpu.py`: which commands show what, in which time, and what they need."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVER: tuple[str, ...] = ("torch", "numba", "numba_cuda", "numpy", "ml_dtypes", "click", "safetensors", "xxhash")
SERVER += ("grpc", "google.protobuf", "grpc_health", "grpc_reflection", "google.rpc")
"""Modules without which a CUDA server does not start."""
TESTS = (*SERVER, "pytest", "pytest_timeout", "hypothesis")

PYTEST: tuple[str, ...] = ("-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", "-p", "no:benchmark")
PYTEST += ("-o", "filterwarnings=default", "--disable-warnings")
"""Other versions than those that are pinned may warn of what they like: here only results count."""
TAIL_LINES = 60
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class Outcome:
    """What became of one command."""

    name: str
    verdict: str
    seconds: float
    output: str
    failed: bool = False


@dataclass(frozen=True)
class Command:
    """A Python program of its own, ended with all its children when its time is over."""

    name: str
    arguments: tuple[str, ...]
    seconds: float
    """Time box."""
    needs: tuple[str, ...] = SERVER
    markdown: bool = True
    """The output is Markdown, as benchmarks print it; else its end is shown as it is."""

    def skipped(self, why: str) -> Outcome:
        return Outcome(self.name, f"not run: {why}", 0.0, "")

    def run(self, seconds: float, environment: Mapping[str, str]) -> Outcome:
        started = time.monotonic()
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                [sys.executable, *self.arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(process)
            output.seek(0)
            text = _ESCAPES.sub("", output.read().decode(errors="replace")).replace(f"{ROOT}/", "").strip()
        taken = time.monotonic() - started
        verdict = "passed" if code == 0 else f"FAILED, exit code {code}"
        if code is None:
            verdict = f"CUT SHORT after its {seconds:.0f} s"
        if not self.markdown or code:
            lines = text.splitlines()
            shown = "\n".join(lines[-1:] if code == 0 else lines[-TAIL_LINES:])
            text = f"```text\n{shown}\n```"
        return Outcome(self.name, verdict, taken, text, failed=code != 0)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Whatever is left of its process group, too."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


@dataclass(frozen=True)
class Part:
    title: str
    commands: Callable[[bool], Sequence[Command]]
    """Its commands; True: in the simulator, on sizes that it manages."""


def missing(modules: Sequence[str]) -> list[str]:
    """Those that are not installed."""

    def absent(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is None
        except ModuleNotFoundError:
            return True

    return [name for name in modules if absent(name)]


def python_environment(simulated: bool) -> dict[str, str]:
    """Of all commands: the sources as they are here, installed or not; servers of tests compute on the GPU."""
    paths = [*(str(ROOT / name) for name in ("", "protos", "server", "client")), os.environ.get("PYTHONPATH", "")]
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("GRADWIRE_")},
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "GRADWIRE_TEST_DEVICE": "cuda",
        **({"NUMBA_ENABLE_CUDASIM": "1"} if simulated else {}),
    }


def _workers() -> tuple[str, ...]:
    """Several tests at once, where pytest-xdist is there: most of a test's time here is compiling and starting."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if missing(["xdist"]) or processors < 4:
        return ()
    return ("-n", str(min(12, processors * 3 // 4)), "--dist", "worksteal")


def _conformance(simulated: bool) -> list[Command]:
    files = ["test_update.py", "test_memory.py", "test_host_memory.py", "test_square_sums.py", "test_clip.py"]
    files += ["test_parity.py"]
    chosen = "cuda and (block_of or copy)" if simulated else "cuda"
    tests = [f"tests/server/devices/{name}" for name in files]
    return [
        Command("pytest tests/server/devices", (*PYTEST, *_workers(), "-k", chosen, *tests), 110, TESTS, markdown=False)
    ]


def _server_tests(simulated: bool) -> list[Command]:
    if simulated:
        tests = ["tests/integration/test_blocks.py", "-k", "bad or refused"]
        return [Command("pytest with a CUDA server", (*PYTEST, *tests), 60, TESTS, markdown=False)]
    integration = ("parity", "torch_parity", "blocks", "clipping", "state_exchange")
    faults = ("exactly_once", "whole_steps", "non_finite", "sequences", "lost_servers")
    tests = ["tests/client/torch/test_cuda.py"]
    tests += [f"tests/integration/test_{name}.py" for name in integration]
    tests += [f"tests/faults/test_{name}.py" for name in faults]
    tests += ["tests/server/durability/test_acknowledged.py"]
    return [Command("pytest with a CUDA server", (*PYTEST, *_workers(), *tests), 100, TESTS, markdown=False)]


def _kernels(simulated: bool) -> list[Command]:
    sizes = ("40", "70") if simulated else ("25000000", "250000000")
    steps, rounds = ("20", "2") if simulated else ("1000000", "9")
    arguments = ("--device", "cuda", "--elements", *sizes, "--steps", steps, "--rounds", rounds)
    others = ("--device", "cuda", "--elements", sizes[0], "--rounds", rounds, "--only", "optimizers")
    return [
        Command("kernels.py", ("benchmarks/kernels.py", *arguments, "--only", "amsgrad"), 45),
        Command("kernels.py, other optimizers", ("benchmarks/kernels.py", *others), 30),
    ]


def _wire(simulated: bool) -> list[Command]:
    # Over TCP the large size alone: for each size the fastest echo is looked for first, which takes longest.
    rounds, repeats = ("2", "1") if simulated else ("5", "20")
    encoding = ("--encodings", "float32")
    common = ("benchmarks/wire.py", "--device", "cuda", "--rounds", rounds, "--repeats", repeats, *encoding)
    near, far = ("--transports", "shared memory"), ("--transports", "loopback TCP")
    if simulated:  # at once: most of the time goes by while servers start
        return [Command("wire.py", (*common, *near, far[1], "--elements", "70"), 60)]
    sizes = ("1", "25000000")
    return [
        Command("wire.py, shared memory", (*common, *near, "--elements", *sizes), 50),
        Command("wire.py, loopback TCP", (*common, *far, "--elements", sizes[-1]), 45),
    ]


def _training(simulated: bool) -> list[Command]:
    boxes = {"synthetic": 30, "card": 30, "digits": 40}
    learn = {"digits": (*SERVER, "sklearn")}
    program = "benchmarks/gpu_training.py"
    if simulated:  # with one server: most of the time goes by while it starts
        return [Command("gpu_training.py", (program, *boxes, "--quick"), 60, learn["digits"])]
    return [
        Command(f"gpu_training.py {what}", (program, what), seconds, learn.get(what, SERVER))
        for what, seconds in boxes.items()
    ]


PARTS = {
    2: Part("The device conformance suite on the card", _conformance),
    3: Part("Integration, fault and durability tests with a CUDA server", _server_tests),
    4: Part("Kernels against torch's fused ones and the card's copy bandwidth", _kernels),
    5: Part("The wire with a CUDA server: do wire, copies and kernel overlap?", _wire),
    6: Part("The synthetic experiment, digits, and parameters on the card", _training),
}
"""By their numbers; 1 is the environment, which is always written."""
