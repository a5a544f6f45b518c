"""The command line: ``gradwire serve``, ``gradwire health``, ``gradwire doctor``."""

from __future__ import annotations

import os
import runpy
import sys


def main() -> None:
    """Entry point; says what to install where only the client is installed."""
    # Before gRPC is imported: it prints a line for each handshake that fails, and anybody can make some fail.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if sys.argv[1:2] == ["doctor"]:  # the client's own program, which needs nothing of the server's
        del sys.argv[1]
        runpy.run_module("gradwire.client.doctor", run_name="__main__")
        return
    try:
        from gradwire.server.cli.commands import cli

        cli(auto_envvar_prefix=None)
    except ModuleNotFoundError as error:  # of a command that needs the server
        sys.exit(f"gradwire: {error.name} is not installed; the server needs: pip install 'gradwire[server]'")


def _leave_working_directory() -> None:
    """``python -m`` looks for modules in the working directory first: in ``/tmp`` anybody's ``click.py`` would be run.

    Whoever runs the sources from there keeps it.
    """
    found = sys.modules["gradwire"].__path__
    if not sys.flags.safe_path and os.path.join(sys.path[0], "gradwire") not in found:
        del sys.path[0]


if __name__ == "__main__":
    _leave_working_directory()
    main()
