"""One worker of a shared run, which goes on through whatever happens, and notes what it is told."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from gradwire.v1 import train_pb2
from tests.contract.bare import Refusal
from tests.robustness.shared import events
from tests.robustness.shared.connection import Connection
from tests.robustness.shared.encodings import number
from tests.robustness.shared.events import Event, Notes
from tests.robustness.shared.exchange import Exchange, NoAnswer
from tests.robustness.shared.moments import Cut, Moments, Orders, Recklessness
from tests.robustness.shared.past import lasting
from tests.robustness.shared.setting import Sent, Setting, any_contribution

UNDERSTANDS = [train_pb2.FEATURE_SHARED_RUN, train_pb2.FEATURE_REASONED_WAIT]


class Contributor:
    """See `turn`. What the worker knows begins with what an earlier process has noted."""

    def __init__(
        self,
        setting: Setting,
        rank: int,
        target: str,
        notes: Notes,
        past: Sequence[Event],
        orders: Orders,
        recklessness: Recklessness,
    ) -> None:
        self.setting = setting
        self.worker_id = setting.worker_ids[rank]
        self._rank = rank
        self._leads = setting.leads and rank == 0
        self._target = target
        self._notes = notes
        self._orders = orders
        self._chance = random.Random(f"{setting.seed} {rank} {len(past)}")
        self._moments = Moments(orders, recklessness, notes, self._chance)
        self._connection: Connection | None = None
        self._stream: Exchange | None = None
        self._attached = train_pb2.Attached()
        self._uid = ""
        self._pending: Sent | None = None
        self._not_applied = False
        """The server has said so of the pending one."""
        self._answered: Sent | None = None
        self._outcome: events.Told | None = None
        """Of ``_answered``."""
        self._keys = 0
        self._sequence = 0
        self._base: tuple[int, int] | None = None
        self._idle = 0
        self._remember(past)

    def _remember(self, past: Sequence[Event]) -> None:
        for event in past:
            if isinstance(event, Sent):
                self._pending, self._not_applied, self._keys = event, False, event.key
                self._sequence = max(self._sequence, event.sequence)
            elif isinstance(event, events.Attached):
                self._uid = event.uid
            elif isinstance(event, (events.Told, events.GivenUp)):
                self._pending = None
            elif isinstance(event, events.NotApplied):
                self._not_applied = True
            elif isinstance(event, events.Gone):
                self._forget()

    def _forget(self) -> None:
        self._uid, self._sequence, self._base, self._pending, self._answered = "", 0, None, None, None
        self._not_applied = False

    def turn(self) -> None:
        """The next thing."""
        try:
            if self._stream is None:
                self._attach()
            elif self._pending is not None:
                self._resolve(self._stream, self._pending)
            elif self._orders.settle:
                self._rest(self._orders.settle)
            elif self._chance.random() < 0.02:
                self._leave(self._stream)
            else:
                self._contribute(self._stream)
        except Refusal as refusal:
            self._failed(refusal)
        except Cut:
            self._drop()

    def _failed(self, refusal: Refusal) -> None:
        self._notes.add(events.Failed(refusal.reason, str(refusal)[:300]))
        if refusal.reason == "RUN_NOT_FOUND" and self._uid:
            self._notes.add(events.Gone(self._uid))
            self._forget()
        elif self._stream is not None and self._pending is not None and self._says_not_applied(refusal):
            self._not_applied = True
            self._notes.add(events.NotApplied(self._pending.key, refusal.reason))
        if refusal.reason == "PROTOCOL_VIOLATION":
            self._base = None
        attached = self._stream is not None
        self._drop()
        time.sleep(0.01 if attached else self._chance.uniform(0.02, 0.08))  # there are many, and few processors

    def _says_not_applied(self, refusal: Refusal) -> bool:
        """Of the pending contribution. Where the attachment has said that it has its outcome, only the request to hear
        that again was refused."""
        pending = self._pending
        known = pending is not None and self._attached.last_sequence >= pending.sequence
        return bool(refusal.reason) and refusal.applied == "false" and not known

    def _drop(self) -> None:
        """As if its connection had broken, or only its stream."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.drop()
            if self._chance.random() < 0.3:
                return
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _rest(self, order: int) -> None:
        if self._idle != order:
            self._idle = order
            self._notes.add(events.Idle(order))
        time.sleep(0.01)

    def _leave(self, stream: Exchange) -> None:
        """Says so: nobody waits for it while it is away."""
        stream.leave()
        self._notes.add(events.Moment("left", killed=False))
        self._drop()
        time.sleep(self._chance.uniform(0.0, 0.05))

    # --- attaching ---------------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        if self._connection is None:
            self._connection = Connection(self._target)
        pending = self._pending
        request = train_pb2.Attach(
            run=f"runs/{self.setting.name}",
            worker_id=self.worker_id,
            run_uid=self._uid,
            understands=UNDERSTANDS,
            resumes=pending.sequence if pending is not None and self._chance.random() < 0.7 else 0,
            base_step=None if self._base is None else self._base[0],
            leads=self._leads,
            gradient_encoding=number(self.setting.gradients),
            parameter_encoding=number(self.setting.answers),
            shared_memory=self.setting.shares_memory,
            lane=self.setting.is_near(self._rank),
        )
        try:
            stream = Exchange(self._connection.attach(request), self.setting, self._moments)
        except Refusal as refusal:
            if refusal.reason == "RUN_NOT_FOUND" and not self._uid:
                self._connection.create(self.setting)
                return
            raise
        self._stream, self._attached = stream, stream.attached
        about = self._attached
        self._notes.add(
            events.Attached(
                about.server_instance,
                about.run_uid,
                about.epoch,
                about.step,
                about.last_sequence,
                about.last_accepted_sequence,
                about.waiting_sequence,
                stream.shares_memory,
                stream.has_lane,
            )
        )
        if self._uid and about.run_uid != self._uid:
            self.wrong(f"asked for the run {self._uid} and got {about.run_uid}")
        if about.leads != self._leads:
            self.wrong(f"asked to lead: {self._leads}, and leads: {about.leads}")
        self._uid = about.run_uid
        if about.waiting_sequence and about.waiting_sequence != request.resumes:
            self.wrong(f"resumed {request.resumes}, and {about.waiting_sequence} is said to wait")
        self._moments.pass_by("attached")
        if self._base is None or (self._base[1] != about.epoch and self._chance.random() < 0.8):
            try:
                step, epoch, _ = self._connection.read(self.setting, self._uid)
            except Refusal as refusal:  # it says nothing of what is pending
                self._notes.add(events.Failed(refusal.reason, str(refusal)[:300]))
                self._drop()
                return
            self._base = step, epoch
        if pending is None and self._answered is not None and self._chance.random() < 0.3:
            self._ask_again(stream, self._answered)

    def _resolve(self, stream: Exchange, pending: Sent) -> None:
        """What became of a contribution that was not answered is known now, or will be answered on this stream."""
        about, sequence = self._attached, pending.sequence
        if self._not_applied and sequence in (about.waiting_sequence, about.last_accepted_sequence):
            self.wrong(f"contribution {sequence} was said not to be applied, and it is there: {_short(about)}")
        if about.last_sequence > sequence:
            self.wrong(f"the server knows contribution {about.last_sequence}; this worker has sent {sequence} last")
        if about.waiting_sequence == sequence:
            self._answer(stream, pending, repeated=False)
        elif about.last_sequence == sequence:
            if self._chance.random() < 0.5:
                stream.ask_again(sequence)
            else:
                stream.upload(pending, self._chance)
            self._answer(stream, pending, repeated=True)
        elif self._chance.random() < 0.6:
            self._not_applied = False
            self._notes.add(pending)  # from now on it may be there
            self._send(stream, pending)
        else:
            self._notes.add(events.GivenUp(pending.key))
            self._pending = None
            self._sequence = max(about.last_sequence, pending.sequence - self._chance.choice((0, 1)))

    # --- contributing ------------------------------------------------------------------------------------------------

    def _contribute(self, stream: Exchange) -> None:
        assert self._base is not None
        self._keys += 1
        self._sequence = max(self._sequence, self._attached.last_sequence) + 1
        sent = any_contribution(self.setting, self._rank, self._chance, self._keys, self._sequence, self._base)
        self._notes.add(sent)
        self._pending, self._not_applied = sent, False
        self._send(stream, sent)

    def _send(self, stream: Exchange, sent: Sent) -> None:
        stream.upload(sent, self._chance)
        self._moments.pass_by("sent")
        if self._chance.random() < 0.02:
            time.sleep(self._chance.uniform(0.0, 0.03))
            self._moments.pass_by("waiting", 10.0)
        self._answer(stream, sent, repeated=False)
        if self._chance.random() < 0.05:
            self._ask_again(stream, sent)

    def _answer(self, stream: Exchange, sent: Sent, *, repeated: bool) -> None:
        """Waits for the outcome, and notes it with the parameters that came with it."""
        try:
            told = stream.receive(sent)
        except NoAnswer as error:
            self.wrong(str(error))
            raise Cut from error
        self._moments.pass_by("answered and not noted")
        self._notes.add(told)
        if repeated and not told.repeated:
            self.wrong(f"the answer to contribution {sent.sequence} was asked for again, and it counted anew")
        self._pending, self._answered, self._outcome = None, sent, told
        self._base = told.step, told.epoch
        self._attached.last_sequence = max(self._attached.last_sequence, sent.sequence)
        self._moments.pass_by("answered")

    def _ask_again(self, stream: Exchange, sent: Sent) -> None:
        """The same contribution once more, which is no second one. A server that was started anew knows accepted ones
        only."""
        if self._attached.last_sequence != sent.sequence:
            return
        if self._chance.random() < 0.5:
            stream.upload(sent, self._chance)
        else:
            stream.ask_again(sent.sequence)
        before = self._outcome
        self._answer(stream, sent, repeated=True)
        after = self._outcome
        if before is not None and after is not None and lasting(before) != lasting(after):
            self.wrong(f"contribution {sent.sequence} was answered with {before}, and then with {after}")

    def wrong(self, what: str) -> None:
        """A promise was broken."""
        self._notes.add(events.Wrong(f"{self.setting.name}, {self.worker_id}: {what}"))


def _short(attached: train_pb2.Attached) -> str:
    return " ".join(str(attached).split())
