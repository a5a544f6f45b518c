"""The command line: ``gradwire serve``, ``gradwire health``."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point; says what to install where only the client is installed."""
    try:
        from gradwire.server.cli import cli
    except ModuleNotFoundError as error:
        sys.exit(f"gradwire: {error.name} is not installed; the server needs: pip install 'gradwire[server]'")
    cli(auto_envvar_prefix=None)


if __name__ == "__main__":
    main()
