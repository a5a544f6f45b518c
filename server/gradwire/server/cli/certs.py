"""``gradwire certs``: certificates for a network of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click


@click.group("certs")
def certs_group() -> None:
    """Make certificates for trying TLS out."""


@certs_group.command("dev")
@click.argument("names", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder; it is made.")
@click.option("--days", default=365, show_default=True, type=click.IntRange(1, 3650), help="For which they are good.")
def dev_command(names: Sequence[str], out: Path, days: int) -> None:
    """Make an authority, and by it a server that is called NAMES (hosts, addresses), and a client.

    The folder then holds ca.pem, server.pem, client.pem and their keys. Whoever has ca.key can be anybody: for more
    than trying out, let an authority of your own do this.
    """
    try:
        from gradwire.server.access.authority import write_certificates
    except ModuleNotFoundError as error:
        raise click.ClickException(f"this needs {error.name}; pip install 'gradwire[server]'") from None
    try:
        paths = write_certificates(out, names, days)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    for path in paths:
        click.echo(path)
