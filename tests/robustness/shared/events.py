"""What happens to a worker, noted in a file before it goes on: a worker that is killed knows the rest from there, and
the harness knows what it was told."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.robustness.shared.setting import Sent


@dataclass(frozen=True)
class Attached:
    """What the server said of the worker, see ``gradwire.v1.Attached``."""

    instance: str
    uid: str
    epoch: int
    step: int
    last: int
    accepted: int
    waiting: int
    shares_memory: bool = False
    has_lane: bool = False


@dataclass(frozen=True)
class Told:
    """An answer: what became of the contribution ``key``, and which parameters came with that."""

    key: int
    instance: str
    uid: str
    kind: str
    reason: str
    round: int
    share: float
    contributors: int
    total_weight: float
    staleness: int
    step: int
    epoch: int
    digest: str
    skipped: bool
    repeated: bool
    differs: bool = False
    """Whether the parameters came as differences; ``digest`` is of what the worker holds then."""
    by_lane: bool = False
    """Whether contribution and answer went by a lane."""


@dataclass(frozen=True)
class NotApplied:
    """A refusal has said that the contribution was not applied."""

    key: int
    reason: str


@dataclass(frozen=True)
class GivenUp:
    """An attachment has said that the contribution is not there, and it will not be sent again."""

    key: int


@dataclass(frozen=True)
class Failed:
    """A stream, or a call, has ended with a refusal."""

    reason: str
    message: str


@dataclass(frozen=True)
class Gone:
    """There is no such run any more."""

    uid: str


@dataclass(frozen=True)
class Wrong:
    """The worker itself has seen that a promise was broken."""

    what: str


@dataclass(frozen=True)
class Moment:
    """The worker is about to be killed, or to lose its stream, by itself."""

    name: str
    killed: bool


@dataclass(frozen=True)
class Idle:
    """It has come to rest: nothing of its is unknown any more."""

    order: int


Event = Attached | Sent | Told | NotApplied | GivenUp | Failed | Gone | Wrong | Moment | Idle

_KINDS = {
    kind.__name__: kind for kind in (Attached, Sent, Told, NotApplied, GivenUp, Failed, Gone, Wrong, Moment, Idle)
}


class Notes:
    """Writes events; each is in the file, whole, when `add` returns, whatever happens to the process then."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, event: Event) -> None:
        os.write(self._file, (json.dumps([type(event).__name__, asdict(event)]) + "\n").encode())


class Reader:
    """Reads the events of one worker, those that come later too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self.events: list[Event] = []

    def read(self) -> list[Event]:
        """Takes what is new into ``events``, and returns that."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        found: list[Event] = []
        for line in whole.splitlines():
            kind, fields = json.loads(line)
            found.append(_KINDS[kind](**fields))
        self.events += found
        return found
