"""What the synthetic experiment writes down as it goes, so that ``--resume`` can go on where it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from synthetic_report import Track


class Interrupted(Exception):
    """Raised when an experiment cannot be resumed; says why."""


class Notes:
    """One line of JSON for each block, after a first one that says what the experiment is.

    A line that was cut off when the process was killed does not count: the server has the result of its block still.
    """

    def __init__(self, path: Path, settings: dict[str, Any], track: Track, *, resume: bool) -> None:
        self._track = track
        self.seconds = 0.0
        self.last_sequence = 0
        self.resumed = resume and path.exists()
        self.settings = settings
        kept = self._read(path) if self.resumed else 0
        self._file = path.open("r+" if self.resumed else "w")
        self._file.truncate(kept)
        self._file.seek(kept)
        if not self.resumed:
            self._write(settings)

    def _read(self, path: Path) -> int:
        """Takes over what is noted; returns how many bytes of the file are whole lines."""
        data = path.read_bytes()
        kept = data.rfind(b"\n") + 1
        lines = data[:kept].decode().splitlines()
        if not lines:
            raise Interrupted(f"{path} is empty; start without --resume")
        found = json.loads(lines[0])
        for key in ("optimizer", "schedule", "steps", "block", "variant", "seed"):
            if found[key] != self.settings[key]:
                raise Interrupted(f"{path} is of an experiment with {key} = {found[key]}, not {self.settings[key]}")
        self.settings = found
        for line in lines[1:]:
            note = json.loads(line)
            self.seconds, self.last_sequence = note["seconds"], note["sequence"]
            self._track.restore(note["track"])
        return kept

    def add(self, seconds: float, sequence: int) -> None:
        """Notes the block that has just been counted."""
        self._write({"seconds": self.seconds + seconds, "sequence": sequence, "track": self._track.news()})

    def _write(self, note: dict[str, Any]) -> None:
        self._file.write(json.dumps(note) + "\n")
        self._file.flush()

    def __enter__(self) -> Notes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
