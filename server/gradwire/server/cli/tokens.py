"""``gradwire tokens``: edits of an access file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import click

from gradwire.server.access.identity import DEFAULT_TENANT, Role
from gradwire.wire.printable import printable

T = TypeVar("T")
_MAX_DAYS = 36_500


def _days(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0 < value <= _MAX_DAYS:  # not-a-number neither
        raise click.BadParameter(f"{value} is no number of days; expected more than 0, at most {_MAX_DAYS}")
    return value


_FILE = click.option(
    "--file",
    required=True,
    envvar="GRADWIRE_ACCESS",
    show_envvar=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The access file.",
)


@click.group("tokens")
def tokens_group() -> None:
    """Make, list and revoke the tokens of an access file. A running server takes it within 2 seconds."""


@tokens_group.command("create")
@click.argument("name")
@_FILE
@click.option("--tenant", default=DEFAULT_TENANT, show_default=True, help="Made, where the file does not have it yet.")
@click.option("--role", required=True, type=click.Choice([role.name.lower() for role in Role]), help="What it may do.")
@click.option("--days", callback=_days, type=float, help="For which it is good; else for ever.")
@click.option("--runs", multiple=True, help="Pattern of run names that it is for, as 'phone-*'; may be repeated.")
@click.option("--workers", multiple=True, help="Pattern of worker ids that it is for; may be repeated.")
def create_command(
    name: str, file: Path, tenant: str, role: str, days: float | None, runs: Sequence[str], workers: Sequence[str]
) -> None:
    """Make a token called NAME and print its secret, which is kept nowhere: this is the only time it is shown."""
    from gradwire.server.access.token_edits import add_token

    expires = None if days is None else (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)
    click.echo(
        _refusing(
            file,
            lambda: add_token(file, name, tenant, role, expires=expires, runs=tuple(runs), workers=tuple(workers)),
        )
    )


@tokens_group.command("list")
@_FILE
def list_command(file: Path) -> None:
    """Tokens and certificates, one a line. No secret is in the file, and so none is shown."""
    from gradwire.server.access.access_file import parse_access_list, read_access_file

    found = _refusing(file, lambda: parse_access_list(read_access_file(file)))
    rows = [("kind", "id", "tenant", "role", "expires", "runs", "workers")]
    for kind, entries in (("token", found.tokens), ("certificate", found.certificates)):
        for who in sorted(entries.values(), key=lambda who: (who.tenant, who.id)):
            expires = (
                "never" if who.expires is None else f"{datetime.fromtimestamp(who.expires, UTC):%Y-%m-%dT%H:%M:%SZ}"
            )
            patterns = (" ".join(who.runs) or "all", " ".join(who.workers) or "all")
            rows.append((kind, who.id, who.tenant, who.role.name.lower(), expires, *patterns))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo(printable("  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip()))


@tokens_group.command("revoke")
@click.argument("name")
@_FILE
def revoke_command(name: str, file: Path) -> None:
    """Remove the token called NAME. Its streams end within seconds: what has arrived whole is still answered."""
    from gradwire.server.access.token_edits import remove_token

    _refusing(file, lambda: remove_token(file, name))


def _refusing(file: Path, act: Callable[[], T]) -> T:
    from gradwire.server.access.access_file import BadAccessFile

    try:
        return act()
    except ModuleNotFoundError as error:
        raise click.ClickException(f"this needs {error.name}; pip install 'gradwire[server]'") from None
    except BadAccessFile as error:
        raise click.ClickException(printable(f"{file}: {error}")) from None
    except OSError as error:
        raise click.ClickException(printable(f"{file}: {error.strerror or error}")) from None
