"""What the flags of the examples have in common."""

from __future__ import annotations

import argparse
from pathlib import Path


def parser_of(description: str, plot: str) -> argparse.ArgumentParser:
    """With ``--target`` and ``--plot``, whose default is ``plot``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--target",
        help="host:port, unix:PATH or 'embedded'; without it: $GRADWIRE_TARGET, else localhost:50051 if a gradwire "
        "server answers there, else embedded",
    )
    parser.add_argument("--plot", type=Path, default=Path(plot), help="where the picture goes")
    return parser


def with_room(parser: argparse.ArgumentParser, options: argparse.Namespace) -> argparse.Namespace:
    """The options of the command line; there is a directory for the picture then."""
    try:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --plot: {options.plot.parent} cannot be a directory ({error.strerror})")
    return options


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected 1 or more")
    return value
