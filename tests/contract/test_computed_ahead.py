"""Deferred blocks are computed before their last message; where that one says something else, as they always are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from gradwire.server.devices.cpu import CpuDevice
from gradwire.v1 import run_pb2, train_pb2
from tests.contract.bare import BareClient, group
from tests.contract.deferred import FULL, INF, NAN, answered, headed, outcome, piece, plain, whole_state
from tests.faults.hosted import HostedServer

LR = run_pb2.Override(group=0, lr=0.5)
OTHER = run_pb2.Override(group=0, lr=0.25)


class CountingDevice(CpuDevice):
    """Counts the updates that go to another state, and those in place."""

    ahead = 0
    in_place = 0

    def update(self, *arguments: Any, **options: Any) -> None:
        super().update(*arguments, **options)
        if options.get("target") is None:
            self.in_place += 1
        else:
            self.ahead += 1


@pytest.fixture
def device() -> CountingDevice:
    return CountingDevice(threads=1)


@pytest.fixture
def hosted(device: CountingDevice) -> Iterator[HostedServer]:
    with HostedServer(device) as server:
        yield server


@pytest.fixture
def two(hosted: HostedServer) -> Iterator[BareClient]:
    """A client of a server with the runs ``x`` and ``twin``, which are alike."""
    with BareClient(hosted.target) as client:
        for name in ("x", "twin"):
            client.create(name, [group(a=[2], b=[2, 2]), group(c=[])], [0.5] * 7)
        yield client


def check(
    two: BareClient, device: CountingDevice, *messages: train_pb2.Gradients, guessed: bool, **header: Any
) -> None:
    """Sends a block to ``x``, a plain one of FULL with ``header`` to its twin, and compares all there is."""
    device.ahead = device.in_place = 0
    with two.attach("x") as stream:
        values, receipt, _ = answered(stream, *messages)
    assert device.ahead >= 1
    assert device.in_place == (0 if guessed else 1)
    expected = plain(two, "twin", FULL, **header)
    assert outcome(receipt) == outcome(expected)
    assert whole_state(two, "x") == whole_state(two, "twin")
    assert {start + i: v for start, part in values.items() for i, v in enumerate(part)}.items() <= dict(
        enumerate(two.read("x")[1])
    ).items()
    assert two.get("x").spec.groups == two.get("twin").spec.groups


@pytest.mark.parametrize(
    "pieces",
    [
        [headed(0, FULL)],
        [headed(3, FULL[3:]), piece(0, FULL[:3])],
        [headed(0, [9.0] * 7), piece(2, [NAN] * 3), piece(0, FULL)],
        [headed(0, [9.0] * 7), headed(5, FULL[5:]), piece(0, FULL[:5])],
    ],
    ids=["whole", "parts", "again", "begun anew"],
)
def test_nothing_is_left_to_compute(
    two: BareClient, device: CountingDevice, pieces: Sequence[train_pb2.Gradients]
) -> None:
    check(two, device, *pieces, headed(0, [], last=True), guessed=True)


def test_overrides_of_the_first_message_that_are_those_of_the_last(two: BareClient, device: CountingDevice) -> None:
    check(
        two,
        device,
        headed(0, FULL, overrides=[LR]),
        headed(0, [], last=True, overrides=[LR]),
        guessed=True,
        overrides=[LR],
    )


@pytest.mark.parametrize(
    ("first", "last"),
    [([], [LR]), ([LR], []), ([OTHER], [LR]), ([LR, OTHER], [LR])],
    ids=["only the last", "only the first", "others", "no valid ones"],
)
def test_overrides_of_the_last_message_decide(
    two: BareClient, device: CountingDevice, first: Sequence[run_pb2.Override], last: Sequence[run_pb2.Override]
) -> None:
    messages = headed(0, FULL, overrides=first), headed(0, [], last=True, overrides=last)
    check(two, device, *messages, guessed=False, overrides=last)


def test_absent_tensors_of_the_last_message_decide(two: BareClient, device: CountingDevice) -> None:
    device.in_place = 0
    with two.attach("x") as stream:
        receipt = answered(stream, headed(0, [*FULL[:6], NAN]), headed(0, [], last=True, absent_tensors=[2]))[1]
    with two.attach("twin") as stream:
        expected = stream.step(1, FULL[:6], absent_tensors=[2])[1]
    assert outcome(receipt) == outcome(expected)
    assert whole_state(two, "x") == whole_state(two, "twin")


def test_one_that_was_in_vain_is_not_tried_again_on_this_stream(two: BareClient, device: CountingDevice) -> None:
    counts = []
    with two.attach("x") as stream:
        for sequence in (1, 2, 3):
            device.ahead = 0
            message = headed(0, FULL, sequence=sequence)
            answered(
                stream, message, headed(0, [], sequence=sequence, last=True, overrides=[LR] if sequence == 1 else [])
            )
            counts.append(device.ahead)
    assert counts[0] >= 1
    assert counts[1:] == [0, 0]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_was_sent_last_must_be_finite(two: BareClient, device: CountingDevice, bad: float) -> None:
    before = whole_state(two, "x")
    with two.attach("x") as stream:
        stream.send(headed(0, FULL), piece(3, [bad]), headed(0, [], last=True))
        with pytest.raises(Exception, match=r"tensor 'b' of shape \(2, 2\) is .* at its element 1"):
            list(stream.answer())
    assert whole_state(two, "x") == before
    check(two, device, headed(0, FULL[:4]), piece(3, [bad]), piece(3, FULL[3:]), headed(0, [], last=True), guessed=True)


def test_an_abandoned_one_leaves_the_run_as_it_was(
    two: BareClient, device: CountingDevice, hosted: HostedServer
) -> None:
    before = whole_state(two, "x")
    with two.attach("x") as stream:
        stream.send(headed(0, FULL))
    assert whole_state(two, "x") == before
    with two.attach("x") as stream:
        stream.send(headed(0, [9.0] * 7))
        stream.step(1, FULL)  # a plain header begins the block anew
    plain(two, "twin", FULL)
    assert whole_state(two, "x") == whole_state(two, "twin")
