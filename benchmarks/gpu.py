"""The server on a GPU: everything that only a real card can show, in one command and within minutes.

python benchmarks/gpu.py [--page FILE] [--parts N ...] [--simulate]

``make gpu`` calls it. It needs no network and installs nothing: what is missing is named and left out. The most
valuable part comes first, each has a time box, and the page is written anew after each, so that a run which is cut
short leaves what it had. ``--simulate`` shows the same on tiny sizes in numba's simulator, where there is no GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_page import Page, about_the_card
from benchmarks.gpu_parts import PARTS, Part, missing, python_environment

DEFAULT_PAGE = Path("docs/gpu.md")
SIMULATED_PAGE = Path("out/gpu-simulated.md")


def main() -> int:
    options = _options()
    if options.simulate:
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
    page = Page(options.page, simulated=options.simulate, command=" ".join(["python", *sys.orig_argv[1:]]))
    page.environment = about_the_card(options.simulate)
    page.write()
    deadline = time.monotonic() + options.seconds
    environment = python_environment(options.simulate)
    for number in options.parts:
        part = PARTS[number]
        print(f"{number}. {part.title} ...", flush=True)
        for command in part.commands(options.simulate):
            if absent := missing(command.needs):
                page.add(part, command.skipped(f"needs {', '.join(absent)}"))
            elif (left := deadline - time.monotonic()) < 1:
                page.add(part, command.skipped("no time was left"))
            else:
                page.add(part, command.run(left if options.simulate else min(left, command.seconds), environment))
            print(f"   {page.last}", flush=True)
            page.write()
    print(f"wrote {options.page}")
    return 1 if page.failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulate", action="store_true", help="no GPU: numba's simulator, tiny sizes, no figures")
    parser.add_argument("--page", type=Path, help=f"(default: {DEFAULT_PAGE}, simulated {SIMULATED_PAGE})")
    parser.add_argument("--parts", type=int, nargs="+", choices=PARTS, default=list(PARTS), help=_parts(PARTS))
    parser.add_argument("--seconds", type=float, default=360.0, help="for everything together (default: 360)")
    options = parser.parse_args()
    if options.simulate:
        options.seconds *= 10  # nothing depends on it, and the simulator is slow
    options.page = options.page or (SIMULATED_PAGE if options.simulate else DEFAULT_PAGE)
    options.page.parent.mkdir(parents=True, exist_ok=True)
    return options


def _parts(parts: dict[int, Part]) -> str:
    return "; ".join(f"{number}: {part.title}" for number, part in parts.items()) + " (default: all)"


if __name__ == "__main__":
    sys.exit(main())
