"""``gradwire doctor``: what a server and the way to it can do, and which encoding and block suit a model."""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from gradwire.client.connection import connect
from gradwire.client.doctor.measurement import ENCODINGS, measure_link, measure_steps
from gradwire.client.doctor.report import report, show
from gradwire.wire.errors import GradwireError
from gradwire.wire.printable import printable
from gradwire.wire.tls import TLS, tls_of

_ABOUT = """
Measures round trip, throughput each way and the update of a gradwire server, and says which encoding and block would
give what step time.
"""
_HOW = """
How it is measured. round trip: one step of a run of one element. up: steps of a long vector that are answered with a
receipt alone; down: reading it; round trip and update subtracted. update: all slices of a gradient but a small last one
are sent and given time to arrive; then the time from the last one to the receipt, without the round trip, is what the
server needs for the gradient's norm and the update of the whole vector. step times: medians of real blocks in both
directions with the encoding, after two that do not count; where a block would take longer than --seconds, a shorter
vector is measured and what it takes beyond the round trip is scaled up; those times are marked ~. Other work on either
machine makes all of it worse, and the order of close ones meaningless.

float32 is exact. The others round: bfloat16 and float16 each value, int8 in blocks of 256, with what was lost added to
the next. A block of K steps can only hold gradients that were made without the parameters that its earlier steps give.
"""


@dataclass(frozen=True)
class Plan:
    """What is to be measured."""

    parameters: list[int]
    """Sizes of the model."""
    blocks: list[int]
    """Steps of a block."""
    encodings: list[str]
    seconds: float
    """For each measurement."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; exits with 0, 1 where there is no server to measure, 2 for bad options, 130 after Ctrl-C."""
    command()(arguments, prog_name="gradwire doctor")


def command() -> click.Command:
    """The command of click's."""

    @click.command(
        help=_ABOUT,
        epilog=_HOW,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    @click.option(
        "--target",
        metavar="TARGET",
        help="host:port, unix:PATH or embedded (default: as gradwire.client.connect finds it)",
    )
    @click.option("--tls-ca", metavar="FILE", help="PEM file of the authorities that may vouch for the server")
    @click.option("--tls-cert", metavar="FILE", help="PEM file of this client's certificate")
    @click.option("--tls-key", metavar="FILE", help="PEM file of its private key")
    @click.option("--tls-server-name", metavar="NAME", help="that the server's certificate must have")
    @click.option(
        "--parameters", default="10000,1000000,25000000", show_default=True, metavar="N[,N...]",
        callback=_parsed_by(_counts), help="sizes of the model",
    )  # fmt: skip
    @click.option(
        "--blocks", default="1,8,64", show_default=True, metavar="K[,K...]",
        callback=_parsed_by(_counts), help="steps of a block",
    )  # fmt: skip
    @click.option(
        "--encodings", default=",".join(ENCODINGS), show_default=True, metavar="NAME[,NAME...]",
        callback=_parsed_by(_encodings),
    )  # fmt: skip
    @click.option(
        "--seconds", default="0.3", show_default=True, metavar="SECONDS",
        callback=_parsed_by(_seconds), help="for each measurement",
    )  # fmt: skip
    @click.option("--json", "as_json", is_flag=True, help="print everything as JSON")
    def doctor(
        target: str | None,
        tls_ca: str | None,
        tls_cert: str | None,
        tls_key: str | None,
        tls_server_name: str | None,
        as_json: bool,
        **plan: Any,
    ) -> None:
        try:
            tls = tls_of(tls_ca, tls_cert, tls_key, tls_server_name)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        sys.exit(examine(target, Plan(**plan), as_json=as_json, tls=tls))

    return doctor


def examine(target: str | None, plan: Plan, *, as_json: bool, tls: TLS | None = None) -> int:
    """Measures and prints; returns the exit code."""
    before = signal.signal(signal.SIGTERM, _interrupt)  # so that the temporary run is deleted then, too
    try:
        with connect(target, tls=tls) as server:
            link = measure_link(server, plan.seconds)
            cells = [
                cell
                for parameters in plan.parameters
                for cell in measure_steps(server, link, parameters, plan.encodings, plan.blocks, plan.seconds)
            ]
            origin = server.origin
    except KeyboardInterrupt:
        print("gradwire doctor: interrupted; its temporary run has been deleted", file=sys.stderr)
        return 130
    except (GradwireError, ValueError, OSError) as error:
        print(f"gradwire doctor: {printable(str(error))}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    if as_json:
        print(json.dumps(report(origin, link, cells), indent=2))
    else:
        show(origin, link, cells, plan.encodings, plan.blocks)
    return 0


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _parsed_by(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str], Any]:
    """A callback of click's that refuses what ``parse`` raises ValueError for."""

    def callback(context: click.Context, parameter: click.Parameter, text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


def _counts(text: str) -> list[int]:
    try:
        counts = [int(float(part)) for part in text.split(",")]
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no list of numbers") from None
    if not all(count >= 1 for count in counts):
        raise ValueError(f"{text!r} holds a number below 1")
    return counts


def _encodings(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in ENCODINGS]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(ENCODINGS)}")
    return names


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"{text!r} is no positive number of seconds")
    return seconds
