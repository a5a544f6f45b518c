"""What Prometheus reads is what has happened."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from gradwire.client import AMSGrad, connect
from gradwire.server.rounds.rounds import rounds_of
from gradwire.server.web import answers
from gradwire.server.web.collector import Scrape
from gradwire.v1 import run_pb2, service_pb2, train_pb2
from tests.contract.bare import BareClient, Refusal, group
from tests.contract.shared_runs import ACCEPTED, DROPPED, REFUSED, STALE, Shared
from tests.contract.test_architecture import loaded_after
from tests.faults.hosted import HostedServer, eventually
from tests.integration.access import AccessFile, secret_of
from tests.integration.watching import Scraped, ask

SERVICE = "gradwire.v1.OptimizerService"
NAN = float("nan")


@pytest.fixture
def hosted() -> Iterator[HostedServer]:
    with HostedServer(http="127.0.0.1:0", metrics_per_run=True) as server:
        yield server


@pytest.fixture
def bare(hosted: HostedServer) -> Iterator[BareClient]:
    with BareClient(hosted.target) as client:
        yield client


def test_steps_blocks_and_their_phases(hosted: HostedServer) -> None:
    with connect(hosted.target) as server, server.create_run("x", {"w": np.zeros(3)}, AMSGrad()) as run:
        for _ in range(3):
            run.step({"w": np.ones(3)})
        run.step_many({"w": np.ones((10, 3))})
        found = Scraped(hosted)
        assert found("gradwire_streams") == 1
    assert found("gradwire_steps_total") == 13
    assert found("gradwire_blocks_total", result="applied") == 4
    for phase, count in {"receive": 4, "compute": 4, "journal": 0, "answer": 4}.items():
        assert found("gradwire_block_seconds_count", phase=phase) == count
        assert found("gradwire_block_seconds_bucket", phase=phase, le="+Inf") == count
    assert found("gradwire_oldest_block_seconds") == 0
    eventually(lambda: Scraped(hosted)("gradwire_streams") == 0, "the stream has ended")


def test_a_large_step_goes_the_long_way_and_counts_once(hosted: HostedServer) -> None:
    elements = 600_000
    with connect(hosted.target) as server:
        run = server.create_run("x", {"w": np.zeros(elements, np.float32)}, AMSGrad(), shared_memory=False)
        run.step({"w": np.ones(elements, np.float32)})
        found = Scraped(hosted)
        run.close()
    assert found("gradwire_blocks_total", result="applied") == found("gradwire_steps_total") == 1
    assert found("gradwire_block_seconds_count", phase="answer") == 1
    for direction in ("received", "sent"):
        sent = found("gradwire_bytes_total", direction=direction, encoding="float32", path="stream")
        assert sent == 4 * elements
    assert found("gradwire_bytes_total", direction="received", encoding="message", path="call") >= 4 * elements


def test_bytes_in_shared_memory_are_counted_as_such(hosted: HostedServer) -> None:
    elements = 600_000
    with connect(hosted.target) as server:
        run = server.create_run("x", {"w": np.zeros(elements, np.float32)}, AMSGrad())
        for _ in range(3):
            run.step({"w": np.ones(elements, np.float32)})
        found = Scraped(hosted)
        run.close()
    for direction in ("received", "sent"):
        paths = [
            found("gradwire_bytes_total", direction=direction, encoding="float32", path=path)
            for path in ("stream", "shared_memory")
        ]
        assert sum(paths) == 3 * 4 * elements
        assert paths[1] > 0


def test_encodings_have_names(hosted: HostedServer) -> None:
    with connect(hosted.target, shared_memory=False) as server:
        run = server.create_run("x", {"w": np.zeros(512, np.float32)}, AMSGrad(), gradient_encoding="int8")
        run.step({"w": np.ones(512)})
        found = Scraped(hosted)
        run.close()
    assert found("gradwire_bytes_total", direction="received", encoding="int8", path="stream") > 512
    assert found("gradwire_bytes_total", direction="sent", encoding="float32", path="stream") == 4 * 512


def test_blocks_that_are_refused_repeated_and_left(hosted: HostedServer, bare: BareClient) -> None:
    bare.create("x", [group(w=[2])], [0.0, 0.0], non_finite_policy=run_pb2.NON_FINITE_POLICY_REJECT)
    with bare.attach("x") as stream:
        stream.step(1, [1.0, 1.0])
        stream.step(1, [1.0, 1.0])
    with bare.attach("x") as stream, pytest.raises(Refusal):
        stream.step(2, [NAN, 1.0])
    with bare.attach("x") as stream:
        stream.send(train_pb2.Gradients(sequence=2, header=train_pb2.BlockHeader(steps=1)))
        eventually(lambda: Scraped(hosted)("gradwire_oldest_block_seconds") > 0, "a block is under way")
    eventually(lambda: Scraped(hosted)("gradwire_streams") == 0, "the streams have ended")
    found = Scraped(hosted)
    results = {result: found("gradwire_blocks_total", result=result) for result in ("applied", "repeated", "refused")}
    assert results == {"applied": 1, "repeated": 1, "refused": 1}
    assert found("gradwire_blocks_total", result="abandoned") == 1


def test_skipped_steps_are_no_steps(hosted: HostedServer) -> None:
    with connect(hosted.target) as server:
        run = server.create_run("x", {"w": [0.0]}, AMSGrad(), non_finite="skip")
        run.step_many({"w": np.array([[1.0], [NAN], [1.0]])})
        found = Scraped(hosted)
        run.close()
    assert (found("gradwire_steps_total"), found("gradwire_skipped_steps_total")) == (2, 1)


def test_calls_by_method_and_status(hosted: HostedServer, bare: BareClient) -> None:
    def handled(method: str, kind: str, code: str) -> float:
        labels = {"grpc_type": kind, "grpc_service": SERVICE, "grpc_method": method}
        found = Scraped(hosted)
        with contextlib.suppress(KeyError):
            return found("grpc_server_handled_total", grpc_code=code, **labels)
        return 0.0

    bare.create("x", [group(w=[1])], [0.0])
    bare.get("x")
    with pytest.raises(Refusal):
        bare.get("y")
    assert handled("CreateRun", "client_stream", "OK") == 1
    assert handled("GetRun", "unary", "OK") == 1
    assert handled("GetRun", "unary", "NOT_FOUND") == 1
    released = threading.Event()
    nothing: Any = iter(released.wait, True)
    stream = bare.stub.Train(nothing, metadata=bare.metadata)
    started = {"grpc_type": "bidi_stream", "grpc_service": SERVICE, "grpc_method": "Train"}
    eventually(lambda: Scraped(hosted)("grpc_server_started_total", **started) == 1, "the call has begun")
    assert handled("Train", "bidi_stream", "OK") == 0
    stream.cancel()
    released.set()
    times = "grpc_server_handling_seconds_count"
    eventually(lambda: Scraped(hosted)(times, **started) == 1, "the call has ended")
    found = Scraped(hosted)
    labels = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": "GetRun"}
    assert found(times, **labels) == 2


def test_whoever_is_denied_is_counted_by_reason(tmp_path: Path) -> None:
    access = AccessFile(tmp_path / "access.toml")
    access.add("watcher", role="observe")
    with HostedServer(http="127.0.0.1:0", access=str(access.path)) as hosted:
        with BareClient(hosted.target) as nobody, pytest.raises(Refusal):
            nobody.get("x")
        with BareClient(hosted.target, secret_of("watcher")) as watcher, pytest.raises(Refusal):
            watcher.get("x")
        assert ask(hosted).status == 401
        found = Scraped(hosted, secret_of("watcher"))
    assert found("gradwire_denied_total", reason="UNAUTHENTICATED") == 2
    assert found("gradwire_denied_total", reason="PERMISSION_DENIED") == 1
    assert found("gradwire_access_file_refused") == 0


def test_the_disk_and_what_goes_back(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"http": "127.0.0.1:0", "data_dir": str(tmp_path / "data")}
    with HostedServer(**settings) as hosted, connect(hosted.target) as server:
        run = server.create_run("x", {"w": [0.0]}, AMSGrad(), durability="JOURNAL")
        run.step({"w": [1.0]})
        saved = run.save_snapshot("first")
        run.step({"w": [1.0]})
        run.roll_back(saved)
        found = Scraped(hosted)
        run.close()
        assert found("gradwire_rolled_back_total", cause="asked") == 1
        assert found("gradwire_rolled_back_total", cause="recovery") == 0
        assert found("gradwire_block_seconds_count", phase="journal") == 2
        assert found("gradwire_journal_flush_seconds_count") >= 2
        assert found("gradwire_journal_flush_seconds_sum") > 0
        assert found("gradwire_snapshot_seconds_count") >= 1
        assert 0 < found("gradwire_disk_free_bytes") <= found("gradwire_disk_size_bytes")
    with HostedServer(**settings) as hosted:
        found = Scraped(hosted)
        assert (found("gradwire_runs"), found("gradwire_steps_total")) == (1, 0)  # what is replayed is no step of today


def test_series_of_a_run_go_with_it_and_are_there_only_where_they_are_wanted(hosted: HostedServer) -> None:
    with connect(hosted.target) as server:
        run = server.create_run("x", {"w": [0.0]}, AMSGrad())
        server.create_run("never", {"w": [0.0]}, AMSGrad()).close()
        run.step({"w": [1.0]})
        found = Scraped(hosted)
        run.close()
        server.delete_run("x")
    assert (found("gradwire_run_step", run="runs/x"), found("gradwire_run_workers", run="runs/x")) == (1, 1)
    assert found("gradwire_run_last_block_timestamp_seconds", run="runs/x") > 1.7e9
    assert found.labels("gradwire_run_last_block_timestamp_seconds", "run") == {"runs/x"}
    assert Scraped(hosted).labels("gradwire_run_step", "run") == {"runs/never"}
    with HostedServer(http="127.0.0.1:0") as silent, connect(silent.target) as server:
        server.create_run("x", {"w": [0.0]}, AMSGrad()).close()
        labels = {
            label for family in Scraped(silent).families.values() for one in family.samples for label in one.labels
        }
    assert "grpc_method" in labels
    assert not labels & {"run", "worker", "worker_id", "token", "tenant"}


def test_a_tenant_sees_series_of_its_own_runs_only(tmp_path: Path) -> None:
    access = AccessFile(tmp_path / "access.toml")
    for tenant in ("lab", "other"):
        access.add(f"{tenant}-train", tenant)
        access.add(f"{tenant}-observe", tenant, "observe")
    access.add("admin", "lab", "admin")
    access.add("some", "lab", "observe", 'runs = ["a*"]')
    with HostedServer(http="127.0.0.1:0", metrics_per_run=True, access=str(access.path)) as hosted:
        for tenant in ("lab", "other"):
            for name in ("a", "b"):
                with BareClient(hosted.target, secret_of(f"{tenant}-train")) as client:
                    client.create(name, [group(w=[1])], [0.0])

        def runs(name: str) -> set[str]:
            return Scraped(hosted, secret_of(name)).labels("gradwire_run_step", "run")

        assert runs("lab-observe") == runs("other-observe") == {"runs/a", "runs/b"}
        assert runs("some") == {"runs/a"}
        assert runs("admin") == {"runs/a", "runs/b", "tenants/other/runs/a", "tenants/other/runs/b"}
        text = ask(hosted, token=secret_of("lab-observe")).text
    assert "other" not in text.replace('kind="other"', "").replace(" other calls", "")


def test_rendering_never_stands_on_the_event_loop(hosted: HostedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand runs take a second to be written down."""
    threads: list[threading.Thread] = []
    collect = Scrape.collect

    def noting(scrape: Scrape) -> object:
        threads.append(threading.current_thread())
        return collect(scrape)

    monkeypatch.setattr(Scrape, "collect", noting)
    assert ask(hosted).status == 200
    (thread,) = threads
    assert thread is not hosted._thread


def test_what_is_written_at_a_time_is_little(hosted: HostedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_answer = ask(hosted).text
    monkeypatch.setattr(answers, "PIECE_BYTES", 1000)
    assert len(whole_answer) > 10_000
    assert ask(hosted).text.splitlines()[0] == whole_answer.splitlines()[0]


def test_openmetrics_is_spoken_to_whoever_asks_for_it(hosted: HostedServer) -> None:
    answer = ask(hosted, headers={"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"})
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")


def test_a_server_that_nobody_watches_loads_nothing_for_it() -> None:
    loaded = loaded_after("import gradwire.server.app, gradwire.server.cli.commands")
    assert "gradwire.server.app" in loaded
    assert not {name.partition(".")[0] for name in loaded} & {"aiohttp", "prometheus_client"}


def test_metrics_are_told_of_a_call_that_grpc_itself_refuses(hosted: HostedServer) -> None:
    """A method that there is not reaches nobody: it is no series, however it is called."""
    with grpc.insecure_channel(hosted.target) as channel, pytest.raises(grpc.RpcError):  # noqa: PT012
        call: Any = channel.unary_unary(f"/{SERVICE}/{'x' * 100}")
        call(b"", timeout=10)
    assert "xxx" not in ask(hosted).text


def test_rounds_past_their_deadline(hosted: HostedServer, bare: BareClient) -> None:
    shared = Shared(bare, quorum=2, deadline_seconds=1000.0)
    a, b = shared.attach("a"), shared.attach("b")
    assert Scraped(hosted)("gradwire_rounds_overdue") == 0
    a.send([1.0, 1.0])
    shared.until_waiting("a")
    assert Scraped(hosted)("gradwire_rounds_overdue") == 0
    rounds = rounds_of(hosted.run_of(shared.name))

    def age() -> None:
        assert rounds._open is not None
        rounds._open.opened -= 1001.0

    hosted.call(age)
    found = Scraped(hosted)
    assert found("gradwire_rounds_overdue") == 1
    assert found("gradwire_run_workers", run=f"runs/{shared.name}") == 2
    b.send([1.0, 1.0])
    a.answer(), b.answer()
    found = Scraped(hosted)
    assert found("gradwire_rounds_overdue") == 0
    assert found("gradwire_run_last_block_timestamp_seconds", run=f"runs/{shared.name}") > 0


def test_what_becomes_of_contributions_is_counted_and_only_accepted_ones_are_in_the_series(
    hosted: HostedServer, bare: BareClient
) -> None:
    def logging(loss: float) -> dict[str, Any]:
        return {"scalars": [train_pb2.Scalar(name="loss", values=[loss])]}

    rules: dict[str, Any] = {"stale": run_pb2.SharedRun.STALE_REJECT, "combine": run_pb2.SharedRun.COMBINE_SUM}
    shared = Shared(bare, quorum=1, **rules)
    a, b = shared.attach("a"), shared.attach("b")
    receipts = [
        a.step_alone([1.0, 1.0], **logging(1.0)),
        b.step_alone([1.0, 1.0], **logging(2.0)),
        b.step_alone([NAN, 1.0], **logging(3.0)),
        b.step_alone([3e38, 1.0], weight=4.0, **logging(4.0)),
    ]
    assert [receipt.contribution.kind for receipt in receipts] == [ACCEPTED, STALE, REFUSED, DROPPED]
    found = Scraped(hosted)
    assert [
        found("gradwire_contributions_total", outcome=each) for each in ("accepted", "stale", "refused", "dropped")
    ] == 4 * [1]
    assert [found("gradwire_rounds_total", result=each) for each in ("applied", "dropped")] == [1, 1]
    assert found("gradwire_steps_total") == 1
    (loss,) = bare.call("GetSeries", service_pb2.GetSeriesRequest(name=f"runs/{shared.name}", series=["loss"])).series
    assert list(loss.first) == [1.0]


def test_what_alerts_speak_of_is_counted_when_it_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"http": "127.0.0.1:0", "data_dir": str(tmp_path), "metrics_per_run": True}
    with HostedServer(**settings) as hosted, connect(hosted.target) as server:
        for name in ("goes-back", "is-damaged"):
            with server.create_run(name, {"w": np.zeros(3)}, AMSGrad(), durability="SNAPSHOT") as run:
                run.step({"w": np.ones(3)}, log={"loss": 1.0})
                run.save_snapshot()
                run.step({"w": np.ones(3)})
        damaged = hosted.run_of("is-damaged").uid
        hosted.call(lambda: time.sleep(0.5))
        found = Scraped(hosted)
        assert found("gradwire_event_loop_lag_seconds") >= 0.2  # what was due in that half second came late
        kinds = {kind: found("gradwire_memory_bytes", kind=kind) for kind in ("runs", "other")}
        assert found("gradwire_memory_limit_bytes") == hosted.registry.budget.limit_bytes
        assert kinds["runs"] == sum(
            found("gradwire_run_memory_bytes", run=f"runs/{name}") for name in ("goes-back", "is-damaged")
        )
        assert kinds["other"] >= 6 * 64 * 56, "three series of each run, in 64 buckets of seven numbers"
        assert found("gradwire_run_disk_bytes", run="runs/goes-back") > 0
        assert (found("gradwire_ready"), found("gradwire_damaged_runs")) == (1, 0)
        stored = hosted.registry.stored_runs
        assert stored is not None
        monkeypatch.setattr(stored.snapshotter, "save_last", lambda: asyncio.sleep(0))  # as if it were killed
    for snapshot in (tmp_path / "snapshots").glob(f"{damaged}*"):
        snapshot.write_bytes(b"")
    with HostedServer(**settings) as hosted:
        found = Scraped(hosted)
        assert (found("gradwire_runs"), found("gradwire_damaged_runs")) == (1, 1)
        assert found("gradwire_rolled_back_total", cause="recovery") == 1
        assert found("gradwire_run_step", run="runs/goes-back") == 1
        rows = {line.split()[0]: line for line in ask(hosted, "/").text.splitlines()}
        assert "the snapshot of step 1 is damaged" in rows["runs/is-damaged"]
