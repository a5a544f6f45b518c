"""Any order, any repeats, any restarts of a deferred block give bit for bit what one plain block gives."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradwire.v1 import service_pb2, train_pb2
from tests.contract.bare import BareClient, group, unpack
from tests.contract.deferred import INF, NAN, answered, headed, outcome, piece, whole_state

Columns = list[list[float]]
NUMBERS = st.floats(-1e6, 1e6, width=32)


@dataclass
class Case:
    """Two blocks on a run of a few tensors: what holds in the end, and a random way to say it."""

    sizes: list[int]
    steps: int
    absent: list[int]
    gradients: Columns  # [steps][elements]
    messages: list[train_pb2.Gradients] = field(default_factory=list)

    @property
    def elements(self) -> int:
        return sum(self.sizes)

    def is_absent(self, element: int) -> bool:
        stops = [sum(self.sizes[: i + 1]) for i in range(len(self.sizes))]
        return next(i for i, stop in enumerate(stops) if element < stop) in self.absent


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    steps, elements = draw(st.integers(1, 3)), sum(sizes)
    absent = sorted(draw(st.sets(st.integers(0, len(sizes) - 1), max_size=len(sizes) - 1)))
    gradients = [[draw(NUMBERS) for _ in range(elements)] for _ in range(steps)]
    case = Case(sizes, steps, absent, gradients)
    # Restarts: the right beginning of another block, with its own number of steps and numbers that must not matter.
    for _ in range(draw(st.integers(0, 2))):
        others = draw(st.integers(1, 3))
        case.messages.append(headed(0, [NAN] * others * elements, steps=others))
        case.messages.append(piece(0, [INF] * others))
    # Slices of noise anywhere, and after them, in any order, slices that cover all present elements.
    noise = draw(st.lists(st.tuples(st.integers(0, elements), st.integers(0, elements)), max_size=5))
    wrong = [piece(min(pair), [NAN] * (abs(pair[0] - pair[1]) * steps)) for pair in noise]
    present = [element for element in range(elements) if not case.is_absent(element)]
    starts = draw(st.permutations(present))
    right = []
    for start in starts:
        stop = draw(st.integers(start + 1, elements))
        right.append(piece(start, [value for row in gradients for value in row[start:stop]]))
    body = [piece(0, []), *wrong, *right][not case.messages :]
    body[0].header.CopyFrom(train_pb2.BlockHeader(steps=steps, deferred=True))
    body[-1].last = True
    body[-1].header.CopyFrom(train_pb2.BlockHeader(steps=steps, deferred=True, absent_tensors=absent))
    case.messages += body
    return case


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_way_to_send_a_block_gives_bit_for_bit_what_one_plain_block_gives(
    bare: BareClient, data: st.DataObject
) -> None:
    case = data.draw(cases())
    unique = uuid.uuid4().hex
    found, expected = f"deferred-{unique}", f"plain-{unique}"
    tensors = {f"t{index}": [size] for index, size in enumerate(case.sizes)}
    for name in (found, expected):
        bare.create(name, [group(**tensors)], [0.5] * case.elements)
    with bare.attach(found) as stream:
        values, receipt, _ = answered(stream, *case.messages)
    ranges: list[tuple[int, int]] = []
    for element in range(case.elements):
        if not case.is_absent(element):
            joins = bool(ranges) and ranges[-1][1] == element
            ranges[-1:] = [(ranges[-1][0], element + 1)] if joins else [*ranges[-1:], (element, element + 1)]
    with bare.attach(expected) as stream:
        for index, (start, stop) in enumerate(ranges):
            message = piece(start, [value for row in case.gradients for value in row[start:stop]])
            if index == 0:
                message.header.CopyFrom(train_pb2.BlockHeader(steps=case.steps, absent_tensors=case.absent))
            message.last = index == len(ranges) - 1
            stream.send(message)
        parts = list(stream.answer())
    assert outcome(receipt) == outcome(parts[-1].receipt)
    assert values == {part.offset: unpack(part.data) for part in parts if part.data}
    assert whole_state(bare, found) == whole_state(bare, expected)
    for name in (found, expected):
        bare.call("DeleteRun", service_pb2.DeleteRunRequest(name=f"runs/{name}"))


def test_a_large_block_in_random_slices_and_repeats_equals_the_plain_one(bare: BareClient) -> None:
    """Large enough that slices are staged in threads."""
    size, length = 300_000, 70_000
    numbers = random.Random(0)
    gradient = [numbers.gauss(0, 1) for _ in range(size)]
    read = []
    for name in ("deferred-large", "plain-large"):
        bare.create(name, [group(w=[size])], [0.0] * size)
        with bare.attach(name) as stream:
            if name == "plain-large":
                stream.step(1, gradient)
            else:
                starts = [numbers.randrange(size - length) for _ in range(8)]
                starts += numbers.sample(range(0, size, length), -(-size // length))
                stream.send(headed(0, [NAN] * length))
                stream.send(*(piece(start, gradient[start : start + length]) for start in starts))
                assert answered(stream, headed(0, [], last=True))[1].step == 1
        read.append(whole_state(bare, name))
        bare.call("DeleteRun", service_pb2.DeleteRunRequest(name=f"runs/{name}"))
    assert read[0] == read[1]
