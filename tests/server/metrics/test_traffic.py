"""Bytes are counted once, in their stream, and are in all totals from then on."""

from __future__ import annotations

from gradwire.server.metrics.traffic import CALL, LANE, RECEIVED, SENT, SHARED, STREAM, StreamTotals, Traffic


def test_totals_are_of_open_streams_and_of_those_that_have_been() -> None:
    traffic, one, other = Traffic(), StreamTotals(), StreamTotals()
    traffic.uploads.bytes += 5
    with traffic.stream("int8", "float32", one) as long:
        long.received.bytes += 1
        with traffic.stream("int8", "float32", other) as short:
            short.by_lane.received.bytes += 10
            short.sent_shared.bytes += 100
        assert other.counts()[RECEIVED, "int8", LANE] == 10, "it has ended"
        long.received.bytes += 1000
        assert one.counts()[RECEIVED, "int8", STREAM] == 1001, "it is open"
        for _ in range(2):
            found = {way: count for way, count in traffic.counts().items() if count}
            assert found == {
                (RECEIVED, "message", CALL): 5,
                (RECEIVED, "int8", STREAM): 1001,
                (RECEIVED, "int8", LANE): 10,
                (SENT, "float32", SHARED): 100,
            }
    assert sum(one.counts().values()) == 1001
    assert sum(other.counts().values()) == 110


def test_each_way_that_a_stream_could_take_is_there_from_its_beginning() -> None:
    traffic, run = Traffic(), StreamTotals()
    with traffic.stream("int8", "float32", run):
        ways = {(RECEIVED, "int8", path) for path in (STREAM, LANE, SHARED)}
        ways |= {(SENT, "float32", path) for path in (STREAM, LANE, SHARED)}
        assert set(run.counts()) == ways
