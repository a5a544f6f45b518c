"""``gradwire``: all its commands."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Sequence

import click

_PLACES = {
    "certs": "gradwire.server.cli.certs:certs_group",
    "health": "gradwire.server.cli.health:health_command",
    "runs": "gradwire.server.cli.runs:runs_group",
    "tokens": "gradwire.server.cli.tokens:tokens_group",
    "top": "gradwire.server.cli.top:top_command",
    "serve": "gradwire.server.cli.serve:serve_command",
    "status": "gradwire.server.cli.about:status_command",
    "whoami": "gradwire.server.cli.about:whoami_command",
}


class Commands(click.Group):
    """Imports a command when it is asked for: who asks for health every few seconds loads no numpy."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_PLACES})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _PLACES:
            return super().get_command(ctx, cmd_name)
        module, _, name = _PLACES[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="gradwire")
def cli() -> None:
    """gradwire: stream gradients, get parameters back."""


@cli.command("doctor", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def doctor_command(arguments: Sequence[str]) -> None:
    """Measure a server and the way to it: which encoding and block would give what step time."""
    sys.argv[1:] = arguments
    runpy.run_module("gradwire.client.doctor", run_name="__main__")  # the client's own program
