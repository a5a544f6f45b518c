"""The command line: ``gradwire serve``, ``gradwire health``, ``gradwire doctor``."""

from __future__ import annotations

import runpy
import sys


def main() -> None:
    """Entry point; says what to install where only the client is installed."""
    if sys.argv[1:2] == ["doctor"]:  # the client's own program, which needs nothing of the server's
        del sys.argv[1]
        runpy.run_module("gradwire.client.doctor", run_name="__main__")
        return
    try:
        from gradwire.server.cli.commands import cli
    except ModuleNotFoundError as error:
        sys.exit(f"gradwire: {error.name} is not installed; the server needs: pip install 'gradwire[server]'")
    cli(auto_envvar_prefix=None)


if __name__ == "__main__":
    main()
