"""Runs with a time to live end when nobody has used them for so long, and never before."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradwire.client import AMSGrad, connect
from gradwire.server.durability.run_storage import storage_of
from gradwire.server.runs import expiry
from gradwire.server.store.base import Store
from gradwire.v1 import run_pb2, service_pb2
from tests.contract.bare import BareClient, group, refused, slices
from tests.faults.hosted import HostedServer, eventually

TTL_SECONDS = 5000.0


@pytest.fixture(params=["MEMORY", "JOURNAL"])
def durability(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], HostedServer]:
    monkeypatch.setattr(expiry, "LOOK_SECONDS", 0.01)
    return lambda: HostedServer(data_dir=str(tmp_path / "data"))


@pytest.fixture
def hosted(serve: Callable[[], HostedServer]) -> Iterator[HostedServer]:
    with serve() as server:
        yield server


@pytest.fixture
def bare(hosted: HostedServer) -> Iterator[BareClient]:
    with BareClient(hosted.target) as client:
        yield client


def create(bare: BareClient, name: str, durability: str, ttl_seconds: float = TTL_SECONDS) -> None:
    kept = run_pb2.Durability.Value(f"DURABILITY_{durability}")
    bare.create(name, [group(w=[1])], [0.0], request_id=name, durability=kept, ttl_seconds=ttl_seconds)


def lie_unused(hosted: HostedServer, name: str, seconds: float, *, in_use: bool = False) -> None:
    run = hosted.run_of(name)
    if not in_use:  # a call's end is a use, and may come after its answer
        eventually(lambda: hosted.call(lambda: not run.users), "the calls about it have ended")
    run.used_at -= seconds
    storage = storage_of(run)
    if storage is not None:  # of use that has been noted nothing is taken back otherwise
        storage.noted_use = -math.inf


def names(bare: BareClient) -> list[str]:
    return [run.name for run in bare.call("ListRuns", service_pb2.ListRunsRequest()).runs]


def gone(bare: BareClient, name: str) -> Callable[[], bool]:
    return lambda: f"runs/{name}" not in names(bare)


def test_what_nobody_uses_ends(hosted: HostedServer, bare: BareClient, durability: str) -> None:
    for name in ("a", "b", "c"):
        create(bare, name, durability, 0.0 if name == "b" else TTL_SECONDS)
    assert bare.get("a").spec.ttl_seconds == TTL_SECONDS
    for name in ("a", "b"):
        lie_unused(hosted, name, 2 * TTL_SECONDS)
    eventually(gone(bare, "a"), "the run ends")
    assert names(bare) == ["runs/b", "runs/c"]
    refused("RUN_NOT_FOUND", lambda: bare.get("a"))
    create(bare, "a", durability)  # its name is free, and what it held


def test_memory_is_given_back(hosted: HostedServer, bare: BareClient, durability: str) -> None:
    create(bare, "a", durability)
    lie_unused(hosted, "a", TTL_SECONDS)
    eventually(lambda: hosted.used_bytes == 0, "the run ends")


def test_who_is_attached_uses_it_all_the_time(hosted: HostedServer, bare: BareClient, durability: str) -> None:
    for name in ("a", "b"):
        create(bare, name, durability)
    with bare.attach("a") as stream:
        for name in ("a", "b"):
            lie_unused(hosted, name, 2 * TTL_SECONDS, in_use=name == "a")
        eventually(gone(bare, "b"), "the other run ends")
        stream.step(1, [1.0])
    assert names(bare) == ["runs/a"]
    assert time.monotonic() - hosted.run_of("a").used_at < TTL_SECONDS / 2
    lie_unused(hosted, "a", TTL_SECONDS)
    eventually(gone(bare, "a"), "the run ends")


def test_a_call_that_goes_on_uses_it(hosted: HostedServer, bare: BareClient, durability: str) -> None:
    for name in ("a", "b"):
        create(bare, name, durability)
    goes_on = threading.Event()

    def requests() -> Iterator[service_pb2.WriteParametersRequest]:
        yield service_pb2.WriteParametersRequest(header=service_pb2.WriteParametersHeader(name="runs/a"))
        assert goes_on.wait(30)
        yield service_pb2.WriteParametersRequest(slice=slices([2.0])[0])

    writing = bare.stub.WriteParameters.future(requests())
    run = hosted.run_of("a")
    eventually(lambda: run.users == 1, "the call has begun")
    for name in ("a", "b"):
        lie_unused(hosted, name, 2 * TTL_SECONDS, in_use=name == "a")
    eventually(gone(bare, "b"), "the other run ends")
    goes_on.set()
    assert writing.result().epoch > 0
    eventually(lambda: run.users == 0, "the call has ended")
    assert not run.expired
    assert bare.read("a")[1] == [2.0]


@pytest.mark.parametrize("method", ["GetRun", "ReadParameters", "DigestRun", "ListSnapshots"])
def test_calls_about_it_use_it(hosted: HostedServer, bare: BareClient, method: str) -> None:
    create(bare, "a", "MEMORY")
    run = hosted.run_of("a")
    run.used_at = before = time.monotonic() - TTL_SECONDS / 2
    bare.call(method, getattr(service_pb2, f"{method}Request")(name="runs/a"))
    assert run.used_at > before
    run.used_at = before
    names(bare)
    assert run.used_at == before


@pytest.mark.parametrize("ttl_seconds", [-1.0, float("nan"), float("inf")])
def test_what_is_no_time_is_refused(bare: BareClient, ttl_seconds: float) -> None:
    error = refused("INVALID_SPEC", lambda: create(bare, "a", "MEMORY", ttl_seconds))
    assert "ttl_seconds" in str(error)


def test_forks_and_files_have_it_too(hosted: HostedServer, tmp_path: Path) -> None:
    values = {"w": np.ones(3, np.float32)}
    with connect(hosted.target) as server:
        with server.create_run("a", values, AMSGrad(), ttl_seconds=TTL_SECONDS) as run:
            run.fork("b").close()
            run.export(tmp_path / "file")
        server.import_run("c", tmp_path / "file").close()
    for name in ("b", "c"):
        assert hosted.run_of(name).spec.ttl_seconds == TTL_SECONDS


def test_it_goes_on_over_a_restart(serve: Callable[[], HostedServer]) -> None:
    with serve() as hosted, BareClient(hosted.target) as bare:
        for name in ("old", "new"):
            create(bare, name, "JOURNAL", ttl_seconds=100_000.0)
        lie_unused(hosted, "old", 90_000.0)
    with serve() as hosted:
        now = time.monotonic()
        assert 89_000 < now - hosted.run_of("old").used_at < 90_100
        assert now - hosted.run_of("new").used_at < 100


def test_whoever_uses_it_has_an_hour_to_come_back(serve: Callable[[], HostedServer]) -> None:
    """A server that was away for long, or has a wrong clock, deletes nothing at its start."""
    with serve() as hosted, BareClient(hosted.target) as bare:
        create(bare, "a", "JOURNAL", ttl_seconds=100_000.0)
        create(bare, "short", "JOURNAL", ttl_seconds=100.0)
        for name, seconds in (("a", 99_990.0), ("short", 90.0)):
            lie_unused(hosted, name, seconds)
        time_at_the_end = time.time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: time_at_the_end() + 10**6)
        hosted = serve()
    with hosted:
        now = time.monotonic()
        assert 96_000 < now - hosted.run_of("a").used_at < 96_500
        assert now - hosted.run_of("short").used_at < 30


def test_a_store_that_fails_keeps_the_run(
    hosted: HostedServer, bare: BareClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from gradwire.wire.errors import StorageFailed

    create(bare, "a", "JOURNAL")
    tried = threading.Event()

    def fails(store: Store, uid: str) -> Future[Any]:
        tried.set()
        failed: Future[Any] = Future()
        failed.set_exception(StorageFailed("the disk has gone"))
        return failed

    with monkeypatch.context() as patch:
        assert hosted.registry.stored_runs is not None
        patch.setattr(type(hosted.registry.stored_runs.store), "delete", fails)
        lie_unused(hosted, "a", TTL_SECONDS)
        assert tried.wait(30)
        assert names(bare) == ["runs/a"]
    lie_unused(hosted, "a", TTL_SECONDS)
    eventually(gone(bare, "a"), "the run ends")
    caplog.clear()
