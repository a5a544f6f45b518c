"""What a client costs where it runs: disk, time to import, memory. Against a local torch optimizer of the same model.

python benchmarks/footprint.py [--quick] [--out FILE]

Makes an environment with the base install and nothing else, in a temporary directory (``--environment DIR`` keeps one).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.child import ROOT, SERVE, Child, same_threads, thread_environment
from benchmarks.measure import describe, machine, save, table

WAYS = {"grpc": "gRPC", "shared": "shared memory", "in-place": "parameters in shared memory"}
CLIENT = Path(__file__).with_name("footprint_client.py")
IMPORT_TARGET_SECONDS = 0.3
SPARE_MIB = 32
"""What a client may hold beyond its parameters and gradients, and the bare import."""
VENV_BRINGS = ("pip", "setuptools")
MEMORY = ("bare import", "training, peak", "over the import", "beyond parameters + gradients", "peak of the creation")

SIZES = """
import importlib.metadata, json
found = {}
for package in importlib.metadata.distributions():
    paths = [package.locate_file(path) for path in package.files or ()]
    found[package.name] = sum(path.stat().st_size for path in paths if path.exists())
print(json.dumps(found))
"""
IMPORT = "import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"


def main() -> int:
    options = _options()
    same_threads(1)
    about = machine()
    print(describe(about), end="\n\n")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        python = base_install(options.environment or Path(directory) / "base")
        sizes: dict[str, int] = json.loads(alone(python, "-c", SIZES))
        for name in VENV_BRINGS:
            sizes.pop(name, None)
        imports = {
            module: [float(alone(python, "-c", IMPORT.format(module=module))) for _ in range(options.rounds)]
            for module in ("numpy", "grpc", "gradwire.client")
        }
        memory = measure_memory(python, options.elements)

    megabytes = sum(sizes.values()) / 2**20
    rows = [[name, f"{size / 2**20:.1f}"] for name, size in sorted(sizes.items(), key=lambda item: -item[1])]
    print(table(("base install", "MiB"), [*rows, ["all of it", f"{megabytes:.1f}"]]), end="\n\n")
    rows = [
        [f"`import {module}`", f"{statistics.median(times):.3f}", f"{min(times):.3f}", f"{max(times):.3f}"]
        for module, times in imports.items()
    ]
    print(table(("in a fresh process", "median s", "least", "most"), rows), end="\n\n")
    print(table((f"{options.elements:,} parameters, MiB", *MEMORY), memory_rows(memory, options.elements)), end="\n\n")
    seconds = statistics.median(imports["gradwire.client"])
    spare = max(beyond(found, options.elements) for name, found in memory.items() if "gRPC" in name)
    fast, small = seconds <= IMPORT_TARGET_SECONDS, spare <= SPARE_MIB
    print(f"- import: {seconds:.3f} s (target {IMPORT_TARGET_SECONDS}: {'met' if fast else 'MISSED'})")
    print(f"- memory: parameters + gradients + {spare:.0f} MiB (target {SPARE_MIB}: {'met' if small else 'MISSED'})")
    report = {
        "benchmark": "footprint",
        "machine": about,
        "elements": options.elements,
        "install_bytes": sizes,
        "import_seconds": imports,
        "memory_bytes": memory,
    }
    save(options.out, report)
    return 0


def memory_rows(memory: dict[str, dict[str, int]], elements: int) -> list[list[str]]:
    def mib(size_bytes: int) -> str:
        return f"{size_bytes / 2**20:.0f}"

    return [
        [
            name,
            mib(found["bare"]),
            mib(found["peak"]),
            mib(found["peak"] - found["bare"]),
            f"{beyond(found, elements):.0f}",
            mib(found["creation_peak"]),
        ]
        for name, found in memory.items()
    ]


def beyond(found: dict[str, int], elements: int) -> float:
    """MiB at the peak of training beyond the bare import, the parameters and the gradients."""
    return (found["peak"] - found["bare"] - 2 * 4 * elements) / 2**20


def base_install(environment: Path) -> Path:
    """The interpreter of an environment that holds the base install; it is made where there is none."""
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        constraints = ("--constraint", str(ROOT / "constraints.txt"))
        subprocess.run([python, "-m", "pip", "install", "--quiet", *constraints, str(ROOT)], check=True)
    alone(python, "-c", "import gradwire.client")  # compiles what pip has not
    return python


def alone(python: Path, *arguments: str) -> str:
    """What a program prints that sees its own environment and nothing of ours."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [str(python), "-I", *arguments]
    done = subprocess.run(
        command, env={**environment, **thread_environment(1)}, cwd="/", check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def measure_memory(python: Path, elements: int) -> dict[str, dict[str, int]]:
    """name -> what `footprint_client` says. The server is a process of its own, outside of the environment."""
    found: dict[str, dict[str, int]] = {}
    server = Child([*SERVE, "--listen", "127.0.0.1:0"])
    try:
        target: str = server.said["addresses"][0]
        for way, said in WAYS.items():
            for encoding in ("float32", "bfloat16") if way != "in-place" else ("float32",):
                arguments = ("remote", target, str(elements), encoding, way)
                found[f"client, {encoding}, {said}"] = json.loads(alone(python, str(CLIENT), *arguments))
    finally:
        server.close()
    if importlib.util.find_spec("torch") is None:
        print("torch is not installed: the local optimizer was not measured\n")
    else:
        found["local torch.optim.Adam(amsgrad=True)"] = json.loads(
            alone(Path(sys.executable), str(CLIENT), "local", str(elements))
        )
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, help="(default: 25,000,000)")
    parser.add_argument("--environment", type=Path, help="with the base install; made there if it does not exist")
    parser.add_argument("--rounds", type=int, help="imports (default: 21)")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, measures nothing")
    parser.add_argument("--out", type=Path, help="write all figures to this file, as JSON")
    options = parser.parse_args()
    elements, rounds = (100_000, 3) if options.quick else (25_000_000, 21)
    options.elements = options.elements or elements
    options.rounds = options.rounds or rounds
    return options


if __name__ == "__main__":
    sys.exit(main())
