"""The order in which the blocks of two workers were applied follows from what they were told."""

from __future__ import annotations

from tests.robustness.model import Block
from tests.robustness.rivals import Applied, _orders


def block(seed: int, steps: int) -> Block:
    return Block(seed, steps)


def seeds(first: list[Applied], second: list[Applied], steps: int) -> list[list[int]]:
    return sorted([one.seed for one in order] for order in _orders(first, second, steps))


def test_known_ends_leave_one_order() -> None:
    first = [Applied(block(1, 1), 1), Applied(block(2, 2), 7)]
    second = [Applied(block(3, 4), 5), Applied(block(4, 5), 12)]
    assert seeds(first, second, 12) == [[1, 3, 2, 4]]


def test_a_lost_answer_is_placed_where_there_is_room() -> None:
    first = [Applied(block(1, 1), 1), Applied(block(2, 2), None), Applied(block(5, 1), 8)]
    second = [Applied(block(3, 4), 5)]
    assert seeds(first, second, 8) == [[1, 3, 2, 5]]


def test_two_lost_answers_leave_both_orders() -> None:
    assert seeds([Applied(block(1, 1), None)], [Applied(block(2, 4), None)], 5) == [[1, 2], [2, 1]]


def test_a_block_that_was_applied_twice_fits_nowhere() -> None:
    assert seeds([Applied(block(1, 1), 2)], [], 2) == []
    assert seeds([Applied(block(1, 1), 1)], [Applied(block(2, 4), 5)], 9) == []
