"""A gradwire server whose event loop's thread runs under cProfile.

python benchmarks/profiled_server.py FILE serve ... writes the profile to FILE when the server ends.
"""

from __future__ import annotations

import contextlib
import cProfile
import sys

from gradwire.server.cli.commands import cli

if __name__ == "__main__":
    profile = cProfile.Profile()
    with contextlib.suppress(SystemExit):
        profile.runcall(cli.main, args=sys.argv[2:])
    profile.dump_stats(sys.argv[1])
