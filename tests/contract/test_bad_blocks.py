"""Blocks that the contract does not allow are refused by name, and leave everything as it was."""

from __future__ import annotations

import math
from typing import Any

import grpc
import pytest

from gradwire.v1 import run_pb2, train_pb2
from tests.contract.bare import BareClient, BareStream, Refusal, pack, refused, whole

NAN, INF = math.nan, math.inf
UNKNOWN: Any = 99  # an enum's number that no version has given a name


def piece(offset: int, *values: float, last: bool = False, sequence: int = 1, **header: Any) -> train_pb2.Gradients:
    message = train_pb2.Gradients(sequence=sequence, offset=offset, data=pack(values), last=last)
    if header:
        message.header.CopyFrom(train_pb2.BlockHeader(**header))
    return message


FULL = [1.0] * 7
BAD_BLOCKS: dict[str, tuple[str, list[train_pb2.Gradients | train_pb2.TrainRequest]]] = {
    # an empty header is written steps=1, so that it is there
    "no header": ("PROTOCOL_VIOLATION", [piece(0, *FULL, last=True)]),
    "header twice": ("PROTOCOL_VIOLATION", [piece(0, 1.0, steps=1), piece(1, *FULL[1:], last=True, steps=1)]),
    "two blocks at once": ("PROTOCOL_VIOLATION", [piece(0, 1.0, steps=1), piece(1, *FULL[1:], sequence=2)]),
    "sequence 0": ("SEQUENCE_MISMATCH", [whole(0, FULL)]),
    "sequence 2": ("SEQUENCE_MISMATCH", [whole(2, FULL)]),
    "attach twice": ("PROTOCOL_VIOLATION", [train_pb2.TrainRequest(attach=train_pb2.Attach(run="runs/x"))]),
    "empty message": ("PROTOCOL_VIOLATION", [train_pb2.TrainRequest()]),
    "too many steps": ("PROTOCOL_VIOLATION", [whole(1, FULL, steps=2**21 + 1)]),
    "2^32 - 1 steps": ("PROTOCOL_VIOLATION", [whole(1, FULL, steps=2**32 - 1)]),
    "unknown returns": ("PROTOCOL_VIOLATION", [whole(1, FULL, returns=UNKNOWN)]),
    "absent tensor that is not there": ("PROTOCOL_VIOLATION", [whole(1, FULL, absent_tensors=[3])]),
    "absent tensor 2^32 - 1": ("PROTOCOL_VIOLATION", [whole(1, FULL, absent_tensors=[2**32 - 1])]),
    "override of a missing group": (
        "PROTOCOL_VIOLATION",
        [whole(1, FULL, overrides=[run_pb2.Override(group=2, lr=1)])],
    ),
    "two overrides of a group": (
        "PROTOCOL_VIOLATION",
        [whole(1, FULL, overrides=[run_pb2.Override(lr=1), run_pb2.Override(lr=2)])],
    ),
    "past the end": ("INVALID_SLICE", [whole(1, [*FULL, 1.0])]),
    "far past the end": ("INVALID_SLICE", [whole(1, FULL, 2**64 - 1)]),
    "overlap": ("INVALID_SLICE", [piece(0, *FULL[:4], steps=1), piece(3, *FULL[3:], last=True)]),
    "the same slice twice": ("INVALID_SLICE", [piece(0, 1.0, steps=1), piece(0, 1.0)]),
    "absent element": ("INVALID_SLICE", [piece(0, *FULL[:2], absent_tensors=[1]), piece(5, 1.0, 1.0, last=True)]),
    "half an element": (
        "INVALID_SLICE",
        [train_pb2.Gradients(sequence=1, data=b"\0" * 27, last=True, header=train_pb2.BlockHeader())],
    ),
    "half a row": ("INVALID_SLICE", [whole(1, FULL, steps=2)]),
    "too few": ("INCOMPLETE_VALUES", [whole(1, FULL[:6])]),
    "too few rows of a tensor": ("INCOMPLETE_VALUES", [whole(1, FULL[:6], steps=2)]),
    "nothing": ("INCOMPLETE_VALUES", [whole(1, [])]),
    "not all that is present": ("INCOMPLETE_VALUES", [piece(0, *FULL[:2], last=True, absent_tensors=[1])]),
    **{
        f"override {field}={value}": (
            "INVALID_HYPERPARAMETER",
            [whole(1, FULL, overrides=[run_pb2.Override(group=1, **{field: value})])],
        )
        for field, value in (
            *((field, value) for field in ("lr", "beta1", "beta2", "eps", "weight_decay") for value in (NAN, INF, -1)),
            ("low", 2),
            ("high", -2),
            ("low", NAN),
            ("high", NAN),
        )
    },
}


@pytest.mark.parametrize("case", BAD_BLOCKS)
def test_bad_block_is_refused_and_leaves_the_run(bare: BareClient, name: str, case: str) -> None:
    """All or nothing: parameters, hyperparameters, step and sequence are as before, and the right block still goes."""
    reason, messages = BAD_BLOCKS[case]
    before = bare.get(name)
    with bare.attach(name) as stream:
        stream.send(*messages)
        refused(reason, lambda: list(stream.answer()))
    after = bare.get(name)
    assert (after.spec, after.step, after.attached_worker_id) == (before.spec, 0, "")
    assert bare.read(name)[1] == [0.0] * 7
    with bare.attach(name) as stream:
        assert stream.attached.last_sequence == 0
        assert stream.step(1, FULL)[1].step == 1


@pytest.mark.parametrize("worker_id", ["", "w" * 129, "é" * 65], ids=["empty", "129 bytes", "130 bytes"])
def test_bad_worker_id_is_refused(bare: BareClient, name: str, worker_id: str) -> None:
    refused("PROTOCOL_VIOLATION", lambda: bare.attach(name, worker_id))


def test_the_first_message_of_train_is_an_attach(bare: BareClient) -> None:
    for first in (None, train_pb2.TrainRequest(), train_pb2.TrainRequest(gradients=whole(1, FULL))):
        stream = BareStream(bare.stub, None)
        stream.send(*([] if first is None else [first]))
        if first is None:
            stream._requests.put(None)
        refused("PROTOCOL_VIOLATION", stream.receive)


def test_a_step_count_of_0_is_one_step_and_absent_twice_is_absent(bare: BareClient, name: str) -> None:
    with bare.attach(name) as stream:
        assert stream.step(1, FULL, steps=0)[1].step == 1
        stream.send(piece(0, 1.0, 1.0, sequence=2, absent_tensors=[1, 1]), piece(6, 1.0, sequence=2, last=True))
        assert [one.offset for one in stream.answer()] == [0, 6]


def test_an_override_takes_effect_only_with_its_block(bare: BareClient, name: str) -> None:
    override = run_pb2.Override(group=0, lr=0.5)
    with bare.attach(name) as stream:
        refused("NON_FINITE_GRADIENT", lambda: stream.step(1, [NAN] * 7, overrides=[override]))
    assert [one.adam.lr for one in bare.get(name).spec.groups] == [1e-3, 1e-3]
    with bare.attach(name) as stream:
        assert list(stream.step(1, FULL, overrides=[override])[1].learning_rates) == [0.5, 1e-3]
        assert list(stream.step(2, FULL)[1].learning_rates) == [0.5, 1e-3]
    assert [one.adam.lr for one in bare.get(name).spec.groups] == [0.5, 1e-3]


def test_a_message_beyond_16_mib_is_refused_by_the_transport(bare: BareClient, name: str) -> None:
    """It carries no detail of ours: the message was never looked at. The server goes on."""
    with bare.attach(name) as stream:
        stream.send(
            train_pb2.Gradients(sequence=1, data=b"\0" * (17 * 2**20), last=True, header=train_pb2.BlockHeader())
        )
        with pytest.raises(Refusal) as caught:
            stream.receive()
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "")
    assert bare.get(name).step == 0
