"""Whether a shared run, and every answer that its workers have had, is what its rounds make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.robustness.servers import life_of
from tests.robustness.shared import events
from tests.robustness.shared.account import Account
from tests.robustness.shared.connection import digest_of
from tests.robustness.shared.encodings import INT8, Held
from tests.robustness.shared.events import Event
from tests.robustness.shared.replay import Kept, Replay
from tests.robustness.shared.setting import Floats


@dataclass(frozen=True)
class Found:
    """What the server holds, while nobody works."""

    life: int
    kept: Kept
    accepted: dict[str, int]
    """The last accepted sequence of each worker that it has seen."""


class Verification:
    """Replays all that was applied, server after server, and compares what was seen with it. Raises Violation."""

    def __init__(self, account: Account, found: Found | None) -> None:
        self._account = account
        self._found = found
        self._kept: dict[int, Kept] = {}
        """The run at those steps of its present history from which a server has gone on."""
        self._digests: dict[tuple[int, int], str] = {}
        """(step, epoch of the last write at that step, or 0) -> parameters."""
        self._answers: dict[int, list[events.Told]] = {}
        for contribution in account.contributions:
            for told in contribution.told:
                self._answers.setdefault(life_of(told.instance), []).append(told)
        self._vectors: dict[tuple[int, int], Floats] = {}
        """As `_digests`, where answers may be differences."""
        self.compared = 0
        """Answers whose parameters were compared."""
        bases = account.lives.bases
        for number, life in enumerate(sorted(bases)):
            later = [bases[each] for each in sorted(bases)[number + 1 :]]
            self._live(life, later)
        account.check_attachments()

    def _live(self, life: int, later: list[int]) -> None:
        account = self._account
        base = account.lives.bases[life]
        if base and base not in self._kept:
            self._missing(life, base)
        replay = Replay(account.setting, self._kept.get(base))
        self._kept = {step: kept for step, kept in self._kept.items() if step <= base}
        self._digests = {key: digest for key, digest in self._digests.items() if key[0] <= base}
        self._vectors = {key: vector for key, vector in self._vectors.items() if key[0] <= base}
        if (base, 0) not in self._digests:
            self._note(replay)
        while True:
            for write in account.writes:
                if (write.life, write.step) == (life, replay.step):
                    replay.write(write.params)
                    self._note(replay, write.epoch)
            if replay.step in later or (later and replay.step == base):
                self._kept[replay.step] = replay.keep()
            round = account.rounds.get((life, replay.step + 1))
            if round is None or not account.complete(round):
                break
            replay.apply([round[worker_id].sent for worker_id in sorted(round)])
            self._note(replay)
        for told in self._answers.get(life, []):
            if not told.differs:
                self._compare(told, replay.step)
        if account.setting.answers == INT8:
            for history in account.histories.values():
                self._compare_differences(life, history, replay.step)
        if self._found is not None and life == self._found.life:
            self._end(self._found, replay)

    def _note(self, replay: Replay, epoch: int = 0) -> None:
        """``epoch``: of the write that has just been."""
        self._digests[replay.step, epoch] = replay.digest
        if self._account.setting.answers == INT8:
            self._vectors[replay.step, epoch] = replay.params

    def _missing(self, life: int, step: int) -> None:
        """The run came back at a step that what was told does not lead to. Says which round is to blame."""
        account = self._account
        for number in range(1, step + 1):
            owner = account.lives.owner(life - 1, number)
            round = account.rounds.get((owner, number))
            if round is None:
                raise account.wrong(f"it was at step {step}, and nobody was told of round {number}")
            if not account.complete(round):
                one = next(iter(round.values())).accepted
                assert one is not None
                raise account.wrong(
                    f"round {number} has {one.contributors} contributors, and only {sorted(round)} know that they are"
                )
        raise account.wrong(f"it was at step {step}, which no server before had come to")

    def _moment(self, told: events.Told) -> tuple[int, int]:
        """Of which an answer has the parameters."""
        epochs = [0, *(write.epoch for write in self._account.writes if write.step == told.step)]
        return told.step, max(epoch for epoch in epochs if epoch <= told.epoch)

    def _compare(self, told: events.Told, reached: int) -> None:
        if told.step <= reached:  # else of a round that was lost before all could be told; if not, `_end` finds it
            self._require(told, self._digests.get(self._moment(told)))

    def _compare_differences(self, life: int, history: Sequence[Event], reached: int) -> None:
        """Of one worker: what each answer adds to what the worker held before."""
        held: Held | None = None
        for event in history:
            if isinstance(event, events.Attached):
                held = None
            if not isinstance(event, events.Told) or life_of(event.instance) != life or event.uid != self._account.uid:
                continue
            vector = None if event.step > reached else self._vectors.get(self._moment(event))
            if vector is None:
                held = None
            elif not event.differs:
                held = Held(self._account.setting)
                held.values[:] = vector
            elif held is not None:
                held.advance(vector)
                self._require(event, digest_of(held.values.tobytes()))

    def _require(self, told: events.Told, digest: str | None) -> None:
        self.compared += 1
        if told.digest != digest:
            raise self._account.wrong(
                f"an answer of step {told.step}, epoch {told.epoch}, has other parameters than the run had then: {told}"
            )

    def _end(self, found: Found, replay: Replay) -> None:
        account, kept = self._account, found.kept
        if kept.step > replay.step:
            account.lives.bases[found.life + 1] = kept.step
            self._missing(found.life + 1, kept.step)
        if kept.step < replay.step:
            raise account.wrong(f"it is at step {kept.step}; round {replay.step} was said to be applied")
        expected = replay.keep()
        for name in ("tensor_steps", "slots", "params", "lr"):
            is_, should = getattr(kept, name), getattr(expected, name)
            if is_ != should:
                raise account.wrong(
                    f"at step {kept.step} the server holds other {name} than its rounds make: {_short(is_)}"
                )
        for worker_id, accepted in found.accepted.items():
            own = [each for each in account.contributions if each.worker_id == worker_id]
            last = max((each.sent.sequence for each in own if account.in_history(found.life, each)), default=0)
            if accepted != last:
                raise account.wrong(f"the last accepted contribution of {worker_id} is {accepted}; expected {last}")


def _short(value: Any) -> str:
    return str(value)[:80]
