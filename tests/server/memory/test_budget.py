"""The one bound for everything that clients can make the server hold."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from gradwire.server.memory.budget import MemoryBudget, Reservation
from gradwire.wire.errors import MemoryLimitExceeded


def test_reservations_add_up_to_the_limit_and_not_beyond() -> None:
    budget = MemoryBudget(100)
    budget.reserve(60, "a run")
    budget.reserve(40, "another")
    budget.reserve(0, "nothing at all")
    with pytest.raises(MemoryLimitExceeded, match="a copy needs 1 bytes, and 0 of the server's 100 are free"):
        budget.reserve(1, "a copy")
    assert budget.used_bytes == 100


def test_a_refused_reservation_has_set_nothing_aside() -> None:
    budget = MemoryBudget(100)
    with pytest.raises(MemoryLimitExceeded) as caught:
        budget.reserve(2**70, "a run")
    assert caught.value.metadata == {"needed_bytes": str(2**70), "free_bytes": "100"}
    assert budget.used_bytes == 0


def test_release_gives_back_once_however_often_it_is_called() -> None:
    budget = MemoryBudget(100)
    kept = budget.reserve(30, "kept")
    released = budget.reserve(50, "released")
    released.release()
    released.release()
    assert budget.used_bytes == 30
    budget.reserve(70, "the rest")
    kept.release()
    assert budget.used_bytes == 70


def test_threads_never_get_more_than_there_is() -> None:
    budget = MemoryBudget(1000)

    def take(_: int) -> list[Reservation]:
        taken = []
        for _ in range(50):
            try:
                taken.append(budget.reserve(7, "some"))
            except MemoryLimitExceeded:
                break
        return taken

    with ThreadPoolExecutor(8) as pool:
        reservations = [reservation for taken in pool.map(take, range(8)) for reservation in taken]
    assert len(reservations) == 1000 // 7
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(Reservation.release, reservations))
    assert budget.used_bytes == 0
