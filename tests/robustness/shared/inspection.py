"""A shared run, what its workers have noted of it, and what its server says: put together, and verified."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.contract.bare import Refusal
from tests.robustness.model import Violation
from tests.robustness.servers import life_of
from tests.robustness.shared import events
from tests.robustness.shared.account import Account, check_each
from tests.robustness.shared.connection import Connection
from tests.robustness.shared.crew import notes_of
from tests.robustness.shared.events import Reader
from tests.robustness.shared.past import Lives, Write
from tests.robustness.shared.replay import Kept
from tests.robustness.shared.setting import Setting
from tests.robustness.shared.verify import Found, Verification
from tests.robustness.trainer import World

SERVER_MARK = "--- server "
"""Stands in the log of an episode where a server begins, with its number."""


@dataclass
class Verdict:
    """What a verification has seen."""

    rounds: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    """Answers whose parameters were compared."""


class SharedRun:
    """One setting, with what its workers have noted in ``directory``."""

    def __init__(self, setting: Setting, directory: Path) -> None:
        self.setting = setting
        self.readers = {
            worker_id: Reader(notes_of(directory, setting, rank)) for rank, worker_id in enumerate(setting.worker_ids)
        }
        self._writes: list[Write] = []

    def verify(self, world: World, log: str) -> Verdict:
        """While no worker does anything. Raises Violation.

        Args:
            log: of all servers.
        """
        setting = self.setting
        histories = {worker_id: reader.events for worker_id, reader in self.readers.items()}
        check_each(setting, histories)
        uid, found = self._found(world)
        uids: dict[str, set[int]] = {}
        for history in histories.values():
            for event in history:
                if isinstance(event, events.Attached):
                    uids.setdefault(event.uid, set()).add(life_of(event.instance))
        if len(uids) > 1 and setting.durability != "MEMORY":
            raise Violation(f"{setting.name} was made anew: {uids}")
        verdict = Verdict()
        for each, seen in uids.items():
            account = Account(setting, each, histories, self._lives(world, log, seen), self._writes)
            verification = Verification(account, found if each == uid else None)
            verdict.rounds += len(account.rounds)
            verdict.outcomes.update(account.outcomes)
            verdict.compared += verification.compared
        return verdict

    def _found(self, world: World) -> tuple[str, Found]:
        """The run's uid, and all of it."""
        connection = Connection(world.target)
        try:
            about = connection.get(self.setting)
            step, _, params = connection.read(self.setting)
            tensor_steps, slots = connection.state(self.setting)
            kept = Kept(step, params, slots, tuple(tensor_steps), connection.lr(self.setting))
            return about.uid, Found(life_of(about.server_instance), kept, connection.accepted(self.setting))
        except Refusal as refusal:
            raise Violation(f"{self.setting.name} cannot be read: {refusal}") from refusal
        finally:
            connection.close()

    def _lives(self, world: World, log: str, seen: set[int]) -> Lives:
        """The servers of one uid, with the steps at which the run began on them, as they have said."""
        lives = Lives({min(seen): 0}, set(world.orderly))
        if self.setting.durability == "MEMORY":
            return lives
        for text in log.split(SERVER_MARK)[1:]:
            number = int(text.split(maxsplit=1)[0])
            back = re.search(rf"runs/{self.setting.name} is back at step (\d+),", text)
            if back:
                lives.bases[number] = int(back.group(1))
        return lives

    def write(self, world: World, seed: int) -> None:
        """Somebody writes other parameters while workers go on. It must be answered: nothing is done to the server."""
        data = np.random.default_rng(seed).standard_normal(self.setting.elements)
        params = data.astype(np.float32).tobytes()
        connection = Connection(world.target)
        try:
            answer = connection.write(self.setting, params)
        except Refusal as refusal:
            raise Violation(f"{self.setting.name} cannot be written to: {refusal}") from refusal
        finally:
            connection.close()
        self._writes.append(Write(world.lives, answer.step, answer.epoch, params))
