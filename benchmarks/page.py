"""The picture of the page in the README: Adam and AMSGrad on the synthetic experiment, while they train.

python benchmarks/page.py [--picture docs/page.png]

Needs Chromium and its driver (Debian: chromium, chromium-driver).
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.child import ROOT, SERVE, Child
from tests.web.browser import Browser, programs

STEPS, BLOCK = 10_000_000, 1000
OPTIMIZERS = ("amsgrad", "adam")
SIZE = 1360, 1000
SHOWN_FROM = 0.6
"""The share of the steps that must have been taken."""

WAIT_SECONDS = 300.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for_steps(address: str) -> None:
    """Returns when all runs have come far enough."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{address}/api/runs", timeout=10) as answer:
            steps = [run["step"] for run in json.load(answer)]
        if len(steps) == len(OPTIMIZERS) and min(steps) >= SHOWN_FROM * STEPS:
            return
        time.sleep(0.2)
    raise TimeoutError(f"the experiment has not come to step {SHOWN_FROM * STEPS:.0f} within {WAIT_SECONDS:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/page.png", help="where it goes")
    options = parser.parse_args()
    if programs() is None:
        print("error: there is no chromium with its chromedriver on PATH", file=sys.stderr)
        return 1
    address = f"http://127.0.0.1:{free_port()}"
    http = address.removeprefix("http://")
    server = Child((*SERVE, "--listen", "127.0.0.1:0", "--http", http))
    with tempfile.TemporaryDirectory() as folder, closing(server):
        target = server.said["addresses"][0]
        command = [sys.executable, str(ROOT / "client/synthetic.py"), "--target", target, "--keep", "paper"]
        command += ["--schedule", "constant", "--steps", str(STEPS), "--block", str(BLOCK)]
        trainers = [
            subprocess.Popen([*command, "--optimizer", optimizer, "--out", f"{folder}/{optimizer}"])
            for optimizer in OPTIMIZERS
        ]
        try:
            with Browser() as window:
                first, *others = [f"runs/paper-{optimizer}-constant" for optimizer in OPTIMIZERS]
                window.size(*SIZE)
                wait_for_steps(address)
                window.open(f"{address}/{first}?{'&'.join(f'with={name}' for name in others)}")
                window.until(lambda: window.count(".chart canvas") >= 3, "its curves are drawn")
                time.sleep(2.5)  # until it has been told a few times how things go
                window.picture(options.picture)
        finally:
            for trainer in trainers:
                trainer.terminate()
                trainer.wait()
    print(f"{options.picture}: {options.picture.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
