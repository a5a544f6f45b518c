"""The series of one run: which names there may be, what is read of them, and what becomes of them with the run."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.series.buckets import BUCKET_BYTES, FIRST_BUCKETS
from gradwire.server.series.run_series import RunSeries
from gradwire.server.series.scalars import Scalar, check_scalars, combined, scalars_from_data, scalars_to_data
from gradwire.server.series.series_part import SeriesPart
from gradwire.wire.errors import MemoryLimitExceeded, ProtocolViolation
from gradwire.wire.series import MAX_BUCKETS, MAX_SERIES, OWN_SERIES, buckets_of

CLIENTS = MAX_SERIES - OWN_SERIES


def series_of(limit_bytes: int = 2**30) -> RunSeries:
    return RunSeries(MemoryBudget(limit_bytes), "runs/a")


def part(series: RunSeries, name: str = "loss", from_step: int = 0, resolution: int = 0) -> SeriesPart:
    found = series.read(name, from_step, resolution)
    assert found is not None
    return found


def block(values: list[float]) -> Scalar:
    return Scalar("loss", table=buckets_of(np.array(values), 0)[0])


def test_what_was_added_is_read() -> None:
    series = series_of()
    for step in range(1, 11):
        series.add(step, "loss", 1 / step)
    series.add(10, "accuracy", 0.5)
    found = part(series)
    assert series.names() == ["loss", "accuracy"]
    assert (found.steps, found.last_step) == (1, 10)
    np.testing.assert_array_equal(found.first_step, range(1, 11))
    np.testing.assert_array_equal(found.total / found.count, [1 / step for step in range(1, 11)])
    assert series.read("other") is None


def test_the_newest_step_is_one_of_the_newest_bucket() -> None:
    series = series_of()
    table = block([1.0, 2.0]).table
    assert table is not None
    table[0] = [-8, -4]
    series.add_scalars((Scalar("loss", table=table, width=2),), 20, 21)
    assert part(series).last_step == 17  # of the bucket 16 .. 17
    fork = series_of()
    fork.load(series.to_data(21))
    assert part(fork).last_step == 17


def test_a_part_is_read_from_a_step_on_and_no_finer_than_asked_for() -> None:
    series = series_of()
    series.add_scalars((block([float(n) for n in range(100)]),), 0, 100)
    found = part(series, from_step=49, resolution=8)
    assert found.steps == 8
    np.testing.assert_array_equal(found.first_step, [48, 56, 64, 72, 80, 88, 96][: len(found.first_step)])
    assert (found.count.sum(), found.last[-1], found.maximum.max()) == (52, 99.0, 99.0)
    np.testing.assert_array_equal(part(series, from_step=101).count, [])


def test_each_change_has_its_version() -> None:
    series = series_of()
    seen = [series.version]
    series.add(1, "loss", 1.0)
    seen.append(series.version)
    series.note_block(1, 2.0, (0.1,))
    seen.append(series.version)
    series.cut(0)
    seen.append(series.version)
    assert seen == sorted(set(seen))


def test_values_of_steps_that_were_skipped_stay_with_the_step_before() -> None:
    series = series_of()
    series.add_scalars((block([1.0, 2.0, 3.0, 4.0]),), 10, 12, np.array([True, False, False, True]))
    found = part(series)
    np.testing.assert_array_equal(found.first_step, [11, 12])
    np.testing.assert_array_equal(found.count, [3, 1])


def test_values_may_be_of_steps_before_the_block() -> None:
    series = series_of()
    scalar = Scalar("loss", table=block([1.0, 2.0, 3.0, 4.0]).table)
    assert scalar.table is not None
    scalar.table[0] = [-2, -1, 0, 2]
    series.add_scalars((scalar,), 10, 12, np.array([True, False, True]))
    np.testing.assert_array_equal(part(series).first_step, [9, 10, 11, 12])
    series.add_scalars((scalar,), 12, 15)  # what is before the newest counts with it
    np.testing.assert_array_equal(part(series).first_step, [9, 10, 11, 12, 13, 15])
    np.testing.assert_array_equal(part(series).count, [1, 1, 1, 3, 1, 1])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is no name of a series"),
        (" loss", "is no name of a series"),
        ("a\nb", "is no name of a series"),
        ("x" * 65, "is no name of a series"),
        ("gradient_norm", "is the server's own"),
        ("lr", "is the server's own"),
        ("lr/3", "is the server's own"),
        ("steps_per_second", "is the server's own"),
    ],
)
def test_a_name_that_is_none_is_refused(name: str, message: str) -> None:
    series = series_of()
    with pytest.raises(ProtocolViolation, match=message):
        series.add(1, name, 1.0)
    assert series.names() == []


def test_one_series_too_many_is_refused_and_the_servers_own_have_their_place() -> None:
    series = series_of()
    for number in range(CLIENTS):
        series.add(1, f"loss {number}", 1.0)
    with pytest.raises(ProtocolViolation, match="expected at most 64, of which 16 are kept"):
        series.claim([Scalar("loss 0"), Scalar("one more")])
    series.note_block(1, 1.0, (0.1,) * 30)
    assert len(series.names()) == MAX_SERIES - 1
    series.add(2, "loss 0", 1.0)


def test_memory_is_counted_and_given_back() -> None:
    budget = MemoryBudget(FIRST_BUCKETS * BUCKET_BYTES * 3 // 2)
    series = RunSeries(budget, "runs/a")
    for step in range(1000):
        series.add(step, "loss", 1.0)
    with pytest.raises(MemoryLimitExceeded, match="the series 'other' of runs/a needs"):
        series.claim([Scalar("other")])
    assert budget.used_bytes == series.size_bytes == FIRST_BUCKETS * BUCKET_BYTES
    assert part(series).count.sum() == 1000
    series.note_block(1, 1.0, (0.1,))  # finds too little room, and says nothing
    assert series.names() == ["loss"]
    series.release()
    assert budget.used_bytes == 0


def test_what_the_journal_brings_once_more_is_kept_though_there_is_no_room() -> None:
    """A server may have less memory than before, and the run is worth more than the count of 3.5 KiB."""
    series = series_of(limit_bytes=100)
    series.live = False
    series.claim([Scalar("loss")])
    series.add(1, "loss", 0.5)
    assert (part(series).last.tolist(), series.size_bytes) == ([0.5], 0)
    series.live = True
    with pytest.raises(MemoryLimitExceeded):
        series.add(2, "other", 0.5)


def test_the_servers_own_are_the_norm_and_rates_that_change(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    series = series_of()
    for step, rate in enumerate([0.1, 0.1, 0.2, 0.2], 1):
        series.note_block(step, float(step), (rate,))
        now[0] += 0.5
    np.testing.assert_array_equal(part(series, "gradient_norm").last, [1, 2, 3, 4])
    np.testing.assert_array_equal(part(series, "lr").first_step, [1, 3])
    np.testing.assert_array_equal(part(series, "lr").last, [0.1, 0.2])
    np.testing.assert_array_equal(part(series, "steps_per_second").last, [2.0])
    series.note_block(5, 1.0, (0.1, 0.2))
    assert {"lr/0", "lr/1"} <= set(series.names())


def test_a_rate_that_was_cut_is_noted_again() -> None:
    series = series_of()
    series.note_block(1, 1.0, (0.1,))
    series.cut(0)
    series.note_block(1, 1.0, (0.1,))
    np.testing.assert_array_equal(part(series, "lr").first_step, [1])


def test_steps_of_the_journal_have_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    series = series_of()
    series.live = False
    for step in range(1, 5):
        now[0] += 2.0
        series.note_block(step, 1.0, (0.1,))
    assert series.read("steps_per_second") is None


def test_data_brings_all_of_it_back() -> None:
    series, other, straight = series_of(), series_of(), series_of()
    for each in (series, straight):
        each.add_scalars((block([math.nan, math.inf, 1.0]),), 0, 3)
        each.note_block(3, 1.5, (0.1,))
    other.add(1, "gone", 1.0)
    other.load(json.loads(json.dumps(series.to_data(3))))
    assert other.names() == series.names()
    for each in (other, straight):
        each.add(4, "loss", 0.5)
        each.note_block(4, 1.25, (0.1,))
    assert json.dumps(other.to_data(4)) == json.dumps(straight.to_data(4))


def test_data_may_end_at_an_earlier_step() -> None:
    series = series_of()
    for step in range(1, 6):
        series.add(step, "loss", float(step))
    series.add(5, "late", 1.0)
    data = series.to_data(3)
    series.cut(3)
    assert data == series.to_data(5)
    assert list(data) == ["loss"]


def test_values_of_steps_beyond_those_that_can_be_told_apart_count_as_of_the_last_one() -> None:
    series, other = series_of(), series_of()
    before = 2**53 - 3
    for step in range(before + 1, before + 9):
        series.add(step, "loss", 1.0)
        series.note_block(step, 1.0, (0.1,))
    series.add_scalars((block([1.0, 2.0, 3.0]),), before + 8, before + 11)
    found = part(series)
    assert (found.first_step.tolist(), found.count.tolist()) == ([before + 1, before + 2], [1, 10])
    other.load(json.loads(json.dumps(series.to_data(before + 11))))
    assert part(other).count.tolist() == [1, 10]


def test_what_is_no_data_changes_nothing() -> None:
    series = series_of()
    series.add(1, "loss", 1.0)
    with pytest.raises(ValueError, match="reshape"):
        series.load({"loss": [1, 1, "AAAAAAAAAAA="]})
    assert series.names() == ["loss"]


def test_scalars_of_a_round_are_combined_by_weight() -> None:
    parts = [(1.0, (Scalar("loss", 1.0), Scalar("only a", 7.0))), (3.0, (Scalar("loss", 2.0),)), (5.0, ())]
    assert combined(parts) == (Scalar("loss", 1.75), Scalar("only a", 7.0))


def test_scalars_are_journaled_to_the_last_bit() -> None:
    table, width = buckets_of(np.random.default_rng(0).normal(size=5000), 0)
    scalars = (Scalar("a", 0.1), Scalar("b", math.nan), Scalar("c", table=table, width=width))
    again = scalars_from_data(json.loads(json.dumps(scalars_to_data(scalars))))
    assert [each.name for each in again] == ["a", "b", "c"]
    assert again[0].value == 0.1
    assert math.isnan(again[1].value)
    assert again[2].table is not None
    assert again[2].width == width == 4
    np.testing.assert_array_equal(again[2].table, table)


def wrong_tables() -> list[tuple[Scalar, str]]:
    table, _ = buckets_of(np.arange(10.0), 0)
    empty, backwards, late = table.copy(), table.copy(), table.copy()
    empty[6, 3], backwards[0, 5], late[0, -1] = 0, 0, 10
    return [
        (Scalar("a", table=table[:, :0]), "in 0 values or buckets"),
        (Scalar("a", table=np.repeat(table, 300, axis=1)), f"expected 1 to {MAX_BUCKETS}"),
        (Scalar("a", table=table, width=3), "expected a power of two"),
        (Scalar("a", table=backwards), "expected numbers that do not fall"),
        (Scalar("a", table=late), "expected numbers that do not fall, up to 9"),
        (Scalar("a", table=empty), "buckets without values"),
        (Scalar("lr"), "the server's own"),
    ]


@pytest.mark.parametrize(("scalar", "message"), wrong_tables())
def test_scalars_that_do_not_fit_their_block_are_refused(scalar: Scalar, message: str) -> None:
    with pytest.raises(ProtocolViolation, match=message):
        check_scalars((scalar,), 10)


def test_too_many_scalars_or_the_same_twice_are_refused() -> None:
    with pytest.raises(ProtocolViolation, match="twice"):
        check_scalars((Scalar("a"), Scalar("a")), 1)
    with pytest.raises(ProtocolViolation, match="expected at most 48"):
        check_scalars([Scalar(f"loss {number}") for number in range(CLIENTS + 1)], 1)
