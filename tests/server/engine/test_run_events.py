"""What a run remembers of what has happened to it."""

from __future__ import annotations

from gradwire.server.engine.run_events import MAX_EVENTS, EventKind, RunEvents
from gradwire.server.engine.staged_block import override_text
from gradwire.server.optimizers.adam import AdamHyperparameters
from tests.server.clock import Clock


def seen(events: RunEvents, since: int = 0) -> list[tuple[int, str, str, int]]:
    return [(event.number, event.kind, event.text, event.count) for event in events.since(since)]


def test_each_has_a_number_and_who_has_seen_some_gets_the_others() -> None:
    events = RunEvents()
    assert (events.last_number, events.since()) == (0, [])
    events.note(EventKind.CREATED, "by a client", 0)
    events.note(EventKind.ATTACHED, "a", 0)
    assert seen(events) == [(1, "created", "by a client", 1), (2, "attached", "a", 1)]
    assert seen(events, 1) == [(2, "attached", "a", 1)]
    assert seen(events, events.last_number) == []


def test_what_recurs_is_counted_until_something_else_happens() -> None:
    clock = Clock()
    events = RunEvents(clock.monotonic)
    events.note(EventKind.HYPERPARAMETERS, "lr 1 to 0.9", 1)
    clock.now += 5
    events.note(EventKind.SNAPSHOT, "1", 1)
    clock.now += 5
    events.note(EventKind.HYPERPARAMETERS, "lr 0.9 to 0.8", 2)
    assert seen(events) == [(2, "snapshot", "1", 1), (3, "hyperparameters", "lr 0.9 to 0.8", 2)]
    newest = events.since()[-1]
    assert (newest.seconds - newest.since, newest.step) == (10, 2)
    events.note(EventKind.ATTACHED, "a", 2)
    events.note(EventKind.HYPERPARAMETERS, "lr 0.8 to 0.7", 3)
    assert seen(events)[-1] == (5, "hyperparameters", "lr 0.8 to 0.7", 1)


def test_the_oldest_go() -> None:
    events = RunEvents()
    for number in range(MAX_EVENTS + 10):
        events.note(EventKind.ATTACHED, f"{number}", 0)
    assert [event.number for event in events.since()] == list(range(11, MAX_EVENTS + 11))


def test_it_is_known_where_the_past_may_be_another_one() -> None:
    events = RunEvents()
    events.note(EventKind.ATTACHED, "a", 7)
    assert events.rewritten == 0
    events.note(EventKind.ROLLED_BACK, "from step 7 to snapshot 1", 3)
    assert events.rewritten == 2
    events.note(EventKind.SNAPSHOT, "2", 3)
    assert events.rewritten == 2


def test_changed_numbers_in_words() -> None:
    one = AdamHyperparameters(lr=0.1)
    other = one.replace({"lr": 0.05, "eps": 1e-6})
    assert override_text((one,), (other,)) == "lr 0.1 to 0.05, eps 1e-16 to 1e-06"
    assert override_text((one, one), (one, other)).startswith("group 1: lr 0.1 to 0.05")
    assert override_text((one, one, one), (one, other, other)).endswith(", and of 1 other groups")
