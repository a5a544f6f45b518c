"""Series of scalars by way of the client: what is logged is there once, with its block, whatever happens to it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from gradwire.client import (
    SGD,
    AMSGrad,
    Draining,
    Fenced,
    NonFiniteGradient,
    ProtocolViolation,
    RunNotFound,
    SequenceMismatch,
    Server,
    ServerTooOld,
    Shared,
    connect,
)
from gradwire.client.errors import translate
from gradwire.server.rpc import service
from gradwire.v1 import service_pb2, train_pb2
from gradwire.wire.series import MAX_BUCKETS, width_for
from tests.faults.bare import fresh_name
from tests.faults.hosted import HostedServer, InBackground, eventually
from tests.faults.proxy import Proxy


@pytest.fixture(scope="module")
def hosted() -> Iterator[HostedServer]:
    with HostedServer(near=True) as server:
        yield server


@pytest.fixture
def server(hosted: HostedServer) -> Iterator[Server]:
    with connect(hosted.target) as connection:
        yield connection


def grads(value: float = 1.0) -> dict[str, Any]:
    return {"w": np.full(4, value, np.float32)}


def many(steps: int, value: float = 1.0) -> dict[str, Any]:
    return {"w": np.full((steps, 4), value, np.float32)}


def a_run(server: Server, optimizer: Any = None, **options: Any) -> Any:
    return server.create_run(fresh_name("series"), grads(0), optimizer or AMSGrad(), **options)


def values_of(run: Any, name: str = "loss") -> dict[int, float]:
    """Step -> the only value of its bucket."""
    series = run.series(name)
    assert series.bucket_steps == 1
    assert (series.count == 1).all()
    for other in (series.minimum, series.maximum, series.last, series.mean):
        np.testing.assert_array_equal(series.first, other)
    return dict(zip(series.first_step.tolist(), series.first.tolist(), strict=True))


def refused(call: Any, request: Any) -> Exception:
    with pytest.raises(grpc.RpcError) as caught:
        call(request)
    return translate(caught.value, "here")


def test_what_is_logged_with_a_step_is_read(server: Server) -> None:
    run = a_run(server)
    run.step(grads(), log={"loss": 0.5})
    run.step(grads())
    run.log(loss=np.float32(0.25), accuracy=1)
    run.log({"val/loss": math.inf})
    run.step(grads(), log={"nothing": math.nan})
    assert values_of(run) == {1: 0.5, 3: 0.25}
    assert values_of(run, "accuracy") == {3: 1.0}
    assert values_of(run, "val/loss") == {3: math.inf}
    assert math.isnan(run.series("nothing").last[0])
    assert {"loss", "accuracy", "val/loss", "gradient_norm", "lr"} <= set(run.series_names())
    assert values_of(run, "gradient_norm") == {1: 2.0, 2: 2.0, 3: 2.0}
    assert values_of(run, "lr") == {1: 0.001}
    assert run.series("loss", from_step=4).count.tolist() == []
    assert run.series("gradient_norm", resolution=2).count.tolist() == [1, 2]
    with pytest.raises(ValueError, match="has no series 'los'; expected one of"):
        run.series("los")


def test_several_values_before_a_step_share_its_bucket(server: Server) -> None:
    run = a_run(server)
    for loss in (3.0, 1.0):
        run.log(loss=loss)
    run.step(grads(), log={"loss": 2.0})
    series = run.series("loss")
    found = [series.first, series.minimum, series.maximum, series.last, series.total, series.count, series.first_step]
    assert [each.tolist() for each in found] == [[3], [1], [3], [2], [6], [3], [1]]


def test_each_step_of_a_block_has_its_value_and_many_are_put_together(server: Server) -> None:
    run, single = a_run(server), a_run(server)
    loss = np.arange(5003.0)
    run.step(grads(), log={"loss": loss[0]})
    run.step_many(many(3), log={"loss": loss[1:4], "end": 7.0})
    run.step_many(many(4999), returns="none", log={"loss": loss[4:]})
    for at in range(0, 5003, 1000):
        part = loss[at : at + 1000]
        single.step_many(many(len(part)), returns="none", log={"loss": part})
    assert values_of(run, "end") == {4: 7.0}
    found, expected = run.series("loss"), single.series("loss")
    assert found.bucket_steps == width_for(1, 5003) == 4
    assert len(found.count) <= MAX_BUCKETS
    assert found.last_step == 5003
    for name in ("first_step", "first", "minimum", "maximum", "last", "total", "count"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.total.sum() == loss.sum()


def test_values_of_steps_that_were_taken_go_with_the_next_block(server: Server) -> None:
    run = a_run(server)
    run.step_many(many(5))
    run.log(loss=np.arange(5.0))
    run.log({"seldom": [1.0, 2.0]}, at=[2, 4])
    run.step(grads())
    assert values_of(run) == {step: step - 1.0 for step in range(1, 6)}
    assert values_of(run, "seldom") == {2: 1.0, 4: 2.0}


@pytest.mark.parametrize(
    ("log", "error"),
    [
        ({"lr": 1.0}, "the server's own"),
        ({"": 1.0}, "no name of a series"),
        ({"loss": [1.0, 2.0]}, "loss"),
        ({"loss": "low"}, "loss"),
        ({f"loss {number}": 1.0 for number in range(49)}, "49 series"),
    ],
)
def test_what_cannot_be_logged_is_refused_and_nothing_is_sent(server: Server, log: Any, error: str) -> None:
    run = a_run(server)
    with pytest.raises((ValueError, TypeError), match=error):
        run.step(grads(), log=log)
    assert run.step(grads()).step == 1


def test_what_run_log_cannot_take_is_refused(server: Server) -> None:
    run = a_run(server)
    run.step(grads())
    for values, at, error in (
        ([1.0, 2.0], None, "expected 1 to 1, of the last steps"),
        ([1.0], [2], "expected them not to fall, from 0 to 1"),
        ([1.0], [0.5], "whole numbers"),
        ([[1.0]], None, "expected a number, or one value a step"),
    ):
        with pytest.raises(ValueError, match=error):
            run.log({"loss": values}, at=at)
    run.step(grads())
    assert "loss" not in run.series_names()


@pytest.mark.parametrize("before", ["write", "load_state_dict", "close", "step"])
@pytest.mark.parametrize("workers", [None, Shared()])
def test_closing_the_connection_sends_what_waits_whatever_was_done_before(
    server: Server, hosted: HostedServer, before: str, workers: Shared | None
) -> None:
    with connect(hosted.target) as own:
        run = a_run(own, workers=workers)
        run.step(grads())
        {
            "write": lambda: run.write(grads()),
            "load_state_dict": lambda: run.load_state_dict(run.state_dict()),
            "close": run.close,
            "step": lambda: run.step(grads()),
        }[before]()
        run.log(loss=1.0)
        steps = run.step_count
    assert values_of(server.attach(run.name)) == {steps: 1.0}


def test_values_of_a_refused_block_go_with_it(server: Server) -> None:
    run = a_run(server)
    run.log(waiting=1.0)
    with pytest.raises(NonFiniteGradient):
        run.step(grads(math.nan), log={"loss": 1.0})
    with pytest.raises(ValueError, match="'w'"):
        run.step({"w": np.zeros(3, np.float32)}, log={"loss": 2.0})
    run.log(kept=1.0)
    with pytest.raises(ValueError, match="'w'"):
        run.step({"w": np.zeros(3, np.float32)})
    run.step(grads(), log={"loss": 3.0})
    assert values_of(run) == {1: 3.0}
    assert "waiting" not in run.series_names()
    assert values_of(run, "kept") == {1: 1.0}


@pytest.mark.parametrize("moment", ["open", "collect"])
def test_ctrl_c_loses_no_value_before_its_block_is_sent_and_doubles_none_after(
    server: Server, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    run = a_run(server)
    run.step(grads())
    run.log(loss=1.0)
    attachment = run._attachment

    def interrupted(*args: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(attachment if moment == "open" else attachment.stream, moment, interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.step(grads())
    assert bool(attachment.logged) is (moment == "open")
    receipt = run.step(grads(), log={"sure": 1.0})
    if moment == "open":
        assert values_of(run) == {receipt.step: 1.0}
    elif "loss" in run.series_names():  # the block has arrived, or not
        assert values_of(run) == {receipt.step - 1: 1.0}


def test_values_are_counted_once_over_cut_connections(hosted: HostedServer) -> None:
    with Proxy(hosted.target) as proxy, connect(proxy.target) as server:
        run = a_run(server)
        for step in range(1, 21):
            if step % 3 == 0:
                proxy.cut()
            run.step(grads(), log={"loss": float(step)})
        assert values_of(run) == {step: float(step) for step in range(1, 21)}


def test_what_is_left_is_sent_when_the_run_is_closed(server: Server) -> None:
    run = a_run(server)
    run.step(grads())
    for closed in (1.0, 2.0):
        run.log(loss=closed)
        run.close()
    run.log(late=np.array([5.0]))
    run.close()
    again = server.attach(run.name)
    series = again.series("loss")
    assert (series.count.tolist(), series.total.tolist(), series.first_step.tolist()) == ([2], [3.0], [1])
    assert values_of(again, "late") == {1: 5.0}


def test_closing_the_connection_sends_what_is_left(hosted: HostedServer) -> None:
    with connect(hosted.target) as server:
        run = a_run(server)
        run.log(loss=1.0)
    with connect(hosted.target) as server:
        assert values_of(server.attach(run.name)) == {0: 1.0}


def test_last_words_count_once_by_their_number(server: Server) -> None:
    run = a_run(server, worker_id="w")
    run.step(grads())
    stub, epoch = server._link.stub, run.describe().epoch

    def request(number: int, value: float, epoch: int = epoch, name: str = "loss") -> Any:
        scalars = [train_pb2.Scalar(name=name, values=[value])]
        return service_pb2.LogScalarsRequest(
            name=f"runs/{run.name}", worker_id="w", number=number, epoch=epoch, scalars=scalars
        )

    for _ in range(2):
        assert stub.LogScalars(request(1, 1.0)).step == 1
    assert stub.LogScalars(request(1, 1.0, epoch=epoch + 5)).step == 1  # it has counted, whatever came after
    assert isinstance(refused(stub.LogScalars, request(3, 1.0)), SequenceMismatch)
    assert isinstance(refused(stub.LogScalars, request(0, 1.0)), SequenceMismatch)
    assert isinstance(refused(stub.LogScalars, request(2, 1.0, epoch=epoch - 1)), Fenced)
    assert isinstance(refused(stub.LogScalars, request(2, 1.0, name="lr")), ProtocolViolation)
    assert values_of(run) == {1: 1.0}
    assert stub.LogScalars(request(2, 4.0)).step == 1
    assert run.series("loss").count.tolist() == [2]
    run.step(grads(), log={"loss": 1.0})  # the number is no block's
    assert run.last_receipt.step == 2


def test_series_go_with_forks_and_files_and_a_digest_does_not_know_them(server: Server, tmp_path: Path) -> None:
    run, silent = a_run(server), a_run(server)
    for step in (1.0, 2.0, 3.0):
        run.step(grads(), log={"loss": step})
        silent.step(grads())
    assert run.digest() == silent.digest()
    fork = run.fork(fresh_name("fork"))
    fork.step(grads(), log={"loss": 4.0})
    assert values_of(fork) == {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}
    assert values_of(run) == {1: 1.0, 2: 2.0, 3: 3.0}
    run.export(tmp_path / "run.safetensors")
    back = server.import_run(fresh_name("import"), tmp_path / "run.safetensors")
    assert values_of(back) == values_of(run)
    assert values_of(back, "gradient_norm") == {1: 2.0, 2: 2.0, 3: 2.0}


def test_a_roll_back_puts_the_series_back_too(server: Server) -> None:
    run = a_run(server)
    run.step(grads(), log={"loss": 1.0})
    snapshot = run.save_snapshot()
    run.step(grads(), log={"loss": 2.0, "later": 1.0})
    run.log(loss=99.0)
    run.roll_back(snapshot)
    assert values_of(run) == {1: 1.0}
    assert "later" not in run.series_names()
    run.step(grads(), log={"loss": 3.0})
    assert values_of(run) == {1: 1.0, 2: 3.0}
    assert values_of(run, "gradient_norm") == {1: 2.0, 2: 2.0}


def test_a_state_of_an_earlier_step_cuts_them(server: Server) -> None:
    run = a_run(server)
    state = run.state_dict()
    run.step(grads(), log={"loss": 1.0})
    run.load_state_dict(state)
    assert "loss" not in run.series_names()


def test_what_was_logged_of_steps_that_are_undone_keeps_no_step_from_being_taken(server: Server) -> None:
    run = a_run(server)
    run.step(grads())
    state = run.state_dict()
    run.step_many(many(3))
    run.log({"x": [1.0, 2.0, 3.0, 4.0]})
    run.log(loss=5.0)
    run.load_state_dict(state)
    run.step_many(many(3))
    assert (values_of(run, "x"), values_of(run)) == ({1: 1.0}, {4: 5.0})


def test_in_a_shared_run_the_round_has_the_weighted_mean_of_what_was_accepted(server: Server) -> None:
    a = a_run(server, SGD(lr=1.0), workers=Shared(quorum=2, deadline_seconds=20.0), worker_id="a")
    b = server.attach(a.name, worker_id="b")
    with pytest.raises(NonFiniteGradient):
        b.step(grads(math.inf), log={"loss": 1e6})
    with InBackground(lambda: a.step(grads(), weight=3.0, log={"loss": 1.0, "only a": 5.0})) as first:
        b.step(grads(), weight=1.0, log={"loss": 3.0})
        assert first.result().step == 1
    assert values_of(a) == {1: 1.5}
    assert values_of(a, "only a") == {1: 5.0}
    b.log(loss=7.0)
    b.close()
    assert a.series("loss").count.tolist() == [2]
    a.close()


def test_whoever_watches_is_told_what_changes_until_the_run_is_deleted(server: Server, hosted: HostedServer) -> None:
    run = a_run(server)
    run.step_many(many(MAX_BUCKETS), log={"loss": np.arange(float(MAX_BUCKETS))})
    request = service_pb2.StreamSeriesRequest(name=f"runs/{run.name}", series=["loss"], interval_seconds=0.1)
    stream = server._link.stub.StreamSeries(request)
    (first,) = next(stream).series
    assert (first.replaces_from, len(first.count), first.bucket_steps) == (0, MAX_BUCKETS, 1)
    run.step(grads(), log={"loss": 5.0})
    (wider,) = next(stream).series
    assert (wider.replaces_from, wider.bucket_steps, sum(wider.count)) == (0, 2, MAX_BUCKETS + 1)
    run.step(grads(), log={"loss": 6.0})
    (news,) = next(stream).series
    assert (news.replaces_from, list(news.first_step), list(news.count)) == (2048, [2048, 2050], [2, 1])
    hosted.delete(f"runs/{run.name}")
    with pytest.raises(grpc.RpcError) as caught:
        list(stream)
    assert isinstance(translate(caught.value, "here"), RunNotFound)
    wrong = service_pb2.StreamSeriesRequest(name=f"runs/{a_run(server).name}", interval_seconds=0.01)
    assert isinstance(refused(lambda request: list(server._link.stub.StreamSeries(request)), wrong), ProtocolViolation)


def test_a_client_follows_a_run_until_that_is_deleted(server: Server) -> None:
    run = a_run(server)
    run.step_many(many(MAX_BUCKETS), log={"loss": np.arange(float(MAX_BUCKETS)), "other": 1.0})
    updates = server.watch_series(run.name, "loss", interval_seconds=0.1)
    first = next(updates)
    assert (first.step, first.changed, list(first.series)) == (MAX_BUCKETS, ("loss",), ["loss"])
    assert len(first.series["loss"].count) == MAX_BUCKETS
    for value in (5.0, 6.0, 7.0):  # the first one makes all buckets wider, the others belong to the last one
        run.step(grads(), log={"loss": value})
        update = next(updates)
    assert update.step == MAX_BUCKETS + 3
    seen, kept = vars(update.series["loss"]), vars(run.series("loss"))
    assert len(seen["count"]) == MAX_BUCKETS // 2 + 2
    assert all(np.array_equal(seen[field], kept[field]) for field in kept)
    server.delete_run(run.name)
    assert list(updates) == []
    with pytest.raises(RunNotFound):
        server.watch_series(run.name)


def test_a_client_that_follows_a_run_learns_of_a_roll_back_and_of_new_series(server: Server) -> None:
    run = a_run(server)
    snapshot = run.save_snapshot()
    run.step(grads(), log={"loss": 1.0})
    updates = server.watch_series(run.name, ["loss", "late"], interval_seconds=0.1)
    assert next(updates).series["loss"].last.tolist() == [1.0]
    run.roll_back(snapshot)
    assert next(updates).series["loss"].last.tolist() == []
    run.step(grads(), log={"late": 2.0})
    update = next(updates)
    assert (update.changed, update.series["late"].last.tolist()) == (("late",), [2.0])
    updates.close()


def test_a_client_follows_a_run_over_a_restart_of_its_server(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"listen": (f"unix:{tmp_path}/socket",), "data_dir": str(tmp_path / "data")}
    with ExitStack() as opened:
        with HostedServer(**settings) as hosted, connect(hosted.target) as server:
            run = a_run(server, durability="JOURNAL")
            run.step(grads(), log={"loss": 1.0})
            updates = opened.enter_context(connect(hosted.target)).watch_series(run.name, "loss", interval_seconds=0.1)
            assert next(updates).series["loss"].last.tolist() == [1.0]
        with HostedServer(**settings) as again, connect(again.target) as server:
            server.attach(run.name).step(grads(), log={"loss": 2.0})
            while (update := next(updates)).step < 2:
                pass
            assert update.series["loss"].last.tolist() == [1.0, 2.0]
            updates.close()


def test_who_watches_learns_of_a_roll_back(server: Server) -> None:
    run = a_run(server)
    snapshot = run.save_snapshot()
    run.step(grads(), log={"loss": 1.0})
    request = service_pb2.StreamSeriesRequest(name=f"runs/{run.name}", series=["loss"], interval_seconds=0.1)
    stream = server._link.stub.StreamSeries(request)
    assert list(next(stream).series[0].first) == [1.0]
    run.roll_back(snapshot)
    (gone,) = next(stream).series
    assert (gone.name, gone.replaces_from, len(gone.count)) == ("loss", 0, 0)
    stream.cancel()


def test_who_watches_is_told_that_the_server_stops() -> None:
    with HostedServer() as stopping, connect(stopping.target) as server:
        run = a_run(server)
        run.step(grads(), log={"loss": 1.0})
        stream = server._link.stub.StreamSeries(service_pb2.StreamSeriesRequest(name=f"runs/{run.name}"))
        next(stream)
        stopping.drain()
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        assert isinstance(translate(caught.value, "here"), Draining)


def test_an_older_server_is_told_apart_before_anything_is_logged(
    hosted: HostedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SUPPORTS", ())
    with connect(hosted.target) as server:
        run = a_run(server)
        with pytest.raises(ServerTooOld, match="FEATURE_SERIES"):
            run.step(grads(), log={"loss": 1.0})
        with pytest.raises(ServerTooOld, match="FEATURE_SERIES"):
            run.log(loss=1.0)
        with pytest.raises(ServerTooOld, match="FEATURE_SERIES"):
            run.series("loss")
        assert run.step(grads()).step == 1


def test_what_cannot_be_logged_at_the_end_is_said(
    hosted: HostedServer, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    run = a_run(server)
    run.step(grads())
    with connect(hosted.target) as other:
        other.attach(run.name, takeover=True).step(grads())
    eventually(lambda: not hosted.run_of(run.name).attached_workers, "the other one has left")
    hosted.delete(f"runs/{run.name}")
    run.log(loss=1.0)
    run.close()
    assert f"runs/{run.name}: the last values of loss were not logged: " in caplog.text
