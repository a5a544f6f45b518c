"""What `footprint.py` runs in processes of their own: a client, or the local optimizer that it replaces.

python benchmarks/footprint_client.py remote TARGET ELEMENTS ENCODING WAY | local ELEMENTS

WAY: grpc, shared or in-place. Prints JSON, in bytes. Imports nothing of the benchmarks: the interpreter may be that of
a base install.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

STEPS = 5


def memory() -> dict[str, int]:
    """Bytes that are resident now, and the most that were since `forget_peak`."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: 1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM")}


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def remote(target: str, elements: int, encoding: str, way: str) -> dict[str, int]:
    import numpy as np

    from gradwire.client import TorchAdam, connect

    bare = memory()["VmRSS"]
    with connect(target) as server:
        run = server.create_run(
            f"footprint-{encoding}-{way}",
            {"x": np.ones(elements, np.float32)},  # let go of when the run has its own
            TorchAdam(amsgrad=True),
            gradient_encoding=encoding,
            parameter_encoding=encoding,
            shared_memory=way != "grpc",
            shared_params=way == "in-place",
        )
        created = memory()["VmHWM"]
        gradient = np.full(elements, 0.5, np.float32)
        forget_peak()
        for _ in range(STEPS):
            run.step({"x": gradient})
        after = memory()
        run.close()
    return {"bare": bare, "creation_peak": created, "resident": after["VmRSS"], "peak": after["VmHWM"]}


def local(elements: int) -> dict[str, int]:
    import torch

    bare = memory()["VmRSS"]
    param = torch.nn.Parameter(torch.ones(elements))
    optimizer = torch.optim.Adam([param], amsgrad=True, fused=True)
    param.grad = torch.full((elements,), 0.5)
    created = memory()["VmHWM"]
    forget_peak()
    for _ in range(STEPS):
        optimizer.step()
    after = memory()
    return {"bare": bare, "creation_peak": created, "resident": after["VmRSS"], "peak": after["VmHWM"]}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["remote", target, elements, encoding, way]:
            print(json.dumps(remote(target, int(elements), encoding, way)))
        case ["local", elements]:
            print(json.dumps(local(int(elements))))
        case _:
            sys.exit(__doc__)
