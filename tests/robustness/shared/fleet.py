"""Processes of workers on shared runs: started, stopped and killed; and what all of them were told is checked."""

from __future__ import annotations

import dataclasses
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.robustness.model import Reference, Violation
from tests.robustness.servers import Forked, Zygote
from tests.robustness.shared import events
from tests.robustness.shared.inspection import SharedRun, Verdict
from tests.robustness.shared.moments import Recklessness
from tests.robustness.shared.setting import Setting
from tests.robustness.trainer import SETTLE_SECONDS, Counts, World


class Fleet:
    """As a `Trainer`, for all workers of some shared runs; a process has one worker of each.

    Args:
        reckless: how often workers are killed, or lose their streams, at moments of their own.
        harms: whether processes are killed and stopped besides.
    """

    def __init__(
        self,
        world: World,
        settings: Sequence[Setting],
        zygote: Zygote,
        directory: Path,
        seed: int,
        *,
        reckless: Recklessness | None = None,
        harms: bool = True,
    ) -> None:
        self.world = world
        self.counts = Counts()
        self.kinds: Counter[str] = Counter()
        """What has happened to workers."""
        self.verdicts: list[Verdict] = []
        """Of the last check, for each run."""
        self._zygote = zygote
        self._directory = directory
        self._reckless = reckless or Recklessness()
        self._harms = harms
        self._chance = random.Random(seed)
        self._runs = [SharedRun(setting, directory) for setting in settings]
        self._processes: dict[int, Forked] = {}
        self._stopped: dict[int, float] = {}
        self._next_harm = time.monotonic() + 0.3
        self._orders = 0
        self._settling = 0
        self._ended = False
        self._doomed = False

    @property
    def settings(self) -> list[Setting]:
        return [run.setting for run in self._runs]

    @property
    def story(self) -> str:
        """What has happened lately, in lines."""
        lines = []
        for run in self._runs:
            for worker_id, reader in run.readers.items():
                lines.append(f"--- {run.setting.name}, {worker_id}, of {run.setting}")
                lines += [str(event)[:300] for event in reader.events[-25:]]
        return "\n".join(lines)

    # --- what goes on ------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Raises Violation."""
        self._tend()
        if self._doomed:
            self._doomed = False
            self._kill(self._chance.choice(sorted(self._processes)))
        if self._harms and time.monotonic() > self._next_harm:
            self._next_harm = time.monotonic() + self._chance.uniform(0.1, 0.8)
            rank = self._chance.choice(sorted(self._processes))
            if self._chance.random() < 0.5:
                self._kill(rank)
            elif rank not in self._stopped:
                self.kinds["stopped"] += 1
                self._processes[rank].send(signal.SIGSTOP)
                longest = max(setting.deadline + setting.lease for setting in self.settings)
                self._stopped[rank] = time.monotonic() + self._chance.uniform(0.0, 1.5 * longest)
        time.sleep(0.01)

    def _tend(self) -> None:
        """Processes that have died are started again, those that were stopped go on; what they have noted is read."""
        now = time.monotonic()
        for rank in range(max(setting.workers for setting in self.settings)):
            process = self._processes.get(rank)
            if (process is None or process.dead) and not self._ended:
                self._stopped.pop(rank, None)
                self._processes[rank] = self._start(rank)
            elif process is not None and now > self._stopped.get(rank, now):
                del self._stopped[rank]
                process.send(signal.SIGCONT)
        for run in self._runs:
            for reader in run.readers.values():
                for event in reader.read():
                    self._count(event)

    def _count(self, event: events.Event) -> None:
        if isinstance(event, events.Told):
            self.counts.acknowledged += 1
            self.counts.by_lane += event.by_lane
            self.counts.unknown += event.repeated
        elif isinstance(event, events.Wrong):
            raise Violation(event.what)
        elif isinstance(event, events.Attached):
            self.kinds["attached with shared memory"] += event.shares_memory
            self.kinds["attached with a lane"] += event.has_lane
            self.kinds["attached with both"] += event.shares_memory and event.has_lane
        elif isinstance(event, events.Moment):
            name = event.name if event.name == "left" else f"{'killed' if event.killed else 'cut'} when {event.name}"
            self.kinds[name] += 1

    def _start(self, rank: int) -> Forked:
        order = {
            "rank": rank,
            "directory": str(self._directory),
            "target": self.world.target,
            "direct": self.world.direct,
            "settings": [dataclasses.asdict(setting) for setting in self.settings],
            "recklessness": dataclasses.astuple(self._reckless),
        }
        process = Forked(self._zygote, order, self._directory / "crew.log")
        if self._settling:
            process.say(f"{self._settling}\n")
        return process

    def _kill(self, rank: int) -> None:
        self.kinds["killed"] += 1
        self.counts.restarts += 1
        self._stopped.pop(rank, None)
        self._processes[rank].kill()

    def die(self) -> None:
        """One process is killed, in the middle of whatever it does; from any thread."""
        self._doomed = True  # processes are for the thread of `turn` alone, or of `check`

    # --- when nothing happens ----------------------------------------------------------------------------------------

    def check(self, reference: Reference) -> None:
        """Lets all workers come to rest, and verifies all that they know; then they go on. Raises Violation."""
        self._orders += 1
        self._say(self._orders)
        deadline = time.monotonic() + SETTLE_SECONDS
        while waiting := self._restless():
            if time.monotonic() > deadline:
                raise Violation(f"{waiting} do not come to rest although nothing is done to their server any more")
            self._tend()
            time.sleep(0.01)
        log = self.world.log.read_text(errors="replace")
        self.verdicts = [run.verify(self.world, log) for run in self._runs]
        self._say(0)
        for run in self._runs:
            if self._chance.random() < 0.5:
                time.sleep(self._chance.uniform(0.0, 0.05))
                run.write(self.world, self._chance.getrandbits(32))
                self.kinds["written to"] += 1

    def _say(self, order: int) -> None:
        self._settling = order
        for rank, process in self._processes.items():
            if self._stopped.pop(rank, None) is not None:
                process.send(signal.SIGCONT)
            process.say(f"{order}\n")

    def _restless(self) -> list[str]:
        """Who has not come to rest."""
        found = []
        for run in self._runs:
            for worker_id, reader in run.readers.items():
                if not any(event == events.Idle(self._orders) for event in reader.events[-3:]):
                    found.append(f"{run.setting.name}, {worker_id}")
        return found

    def settled(self) -> None:
        """What `Lives.orderly` says is enough."""

    def close(self) -> None:
        """Ends all processes."""
        self._drop()

    def _drop(self) -> None:
        self._ended = True
        for process in self._processes.values():
            if not process.dead:
                process.kill()
