"""What one tenant holds is bounded, and takes nothing from the others but what the server has."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from google.rpc import error_details_pb2

from gradwire.v1 import run_pb2, service_pb2
from tests.contract.bare import BareClient, Refusal, group, refused
from tests.faults.hosted import HostedServer, eventually
from tests.integration.access import AccessFile, secret_of, two_tenants

SMALL = 1000
"""Elements. With AMSGrad and its one tensor such a run takes 17,024 bytes."""


@pytest.fixture
def access(tmp_path: Path) -> AccessFile:
    return two_tenants(tmp_path)


@pytest.fixture
def hosted(access: AccessFile, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostedServer]:
    monkeypatch.setattr("gradwire.server.rpc.calls.LOOK_SECONDS", 0.02)
    access.quotas["lab"] = 'runs = 2\nmemory = "40KiB"\nstreams = 1\nparameters = 2000\ntensors = 3'
    access.write()
    with HostedServer(access=str(access.path)) as server:
        yield server


@pytest.fixture
def lab(hosted: HostedServer) -> Iterator[BareClient]:
    with BareClient(hosted.target, secret_of("lab")) as client:
        yield client


@pytest.fixture
def other(hosted: HostedServer) -> Iterator[BareClient]:
    with BareClient(hosted.target, secret_of("other")) as client:
        yield client


def create(bare: BareClient, name: str, elements: int = 1, replace: bool = False) -> None:
    bare.create(name, [group(w=[elements])], [0.0] * elements, request_id=f"{name}-{elements}", replace=replace)


def delete(bare: BareClient, name: str) -> None:
    bare.call("DeleteRun", service_pb2.DeleteRunRequest(name=f"runs/{name}"))


def test_runs(lab: BareClient, other: BareClient) -> None:
    for name in ("a", "b"):
        create(lab, name)
    error = refused("QUOTA_EXCEEDED", lambda: create(lab, "c"))
    assert dict(error.info.metadata) == {"applied": "false", "quota": "runs", "used": "2", "limit": "2"}
    fork = service_pb2.ForkRunRequest(name="runs/a", new_name="runs/c", request_id="f")
    refused("QUOTA_EXCEEDED", lambda: lab.call("ForkRun", fork))
    create(lab, "b", 2, replace=True)  # no run more
    for name in ("a", "b", "c"):
        create(other, name)
    delete(lab, "a")
    create(lab, "c")


def test_runs_that_are_made_at_once_are_counted_while_they_are_written(access: AccessFile, tmp_path: Path) -> None:
    access.quotas["lab"] = "runs = 3"
    access.write()
    settings: dict[str, Any] = {"access": str(access.path), "data_dir": str(tmp_path / "data")}
    with HostedServer(**settings) as hosted, BareClient(hosted.target, secret_of("lab")) as lab:

        def make(number: int) -> str:
            try:
                durability = run_pb2.DURABILITY_JOURNAL
                lab.create(f"z{number}", [group(w=[1])], [0.0], request_id=f"{number}", durability=durability)
            except Refusal as refusal:
                return refusal.reason
            return ""

        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(make, range(24)))
        assert sorted(found) == [""] * 3 + ["QUOTA_EXCEEDED"] * 21


def test_the_same_request_again_is_no_run_more(lab: BareClient) -> None:
    for _ in range(3):
        for name in ("a", "b"):
            create(lab, name)


def test_size_of_one_run(lab: BareClient, other: BareClient) -> None:
    error = refused("QUOTA_EXCEEDED", lambda: create(lab, "a", 2001))
    assert (error.info.metadata["quota"], error.info.metadata["used"]) == ("parameters", "2001")
    four = [group(a=[1], b=[1], c=[1], d=[1])]
    error = refused("QUOTA_EXCEEDED", lambda: lab.create("a", four, [0.0] * 4))
    assert error.info.metadata["quota"] == "tensors"
    create(other, "a", 2001)


def test_memory_is_counted_as_the_servers_is(hosted: HostedServer, lab: BareClient, other: BareClient) -> None:
    create(lab, "a", SMALL)
    create(lab, "b", SMALL)
    error = refused("QUOTA_EXCEEDED", lambda: create(lab, "b", 1999, replace=True))
    assert (error.info.metadata["quota"], error.info.metadata["limit"]) == ("memory", str(40 * 1024))
    assert error.info.metadata["used"] == str(2 * 17_024)
    assert lab.read("a")[1] == [0.0] * SMALL  # 4,000 bytes more for the copy, which is given back
    create(other, "a", 20_000)
    delete(lab, "b")
    create(lab, "b", SMALL)
    for name in ("a", "b"):
        delete(lab, name)
    delete(other, "a")
    assert hosted.used_bytes == 0


def test_a_snapshot_that_has_no_room_within_the_quota_is_taken_in_place(access: AccessFile, tmp_path: Path) -> None:
    access.quotas["lab"] = 'memory = "20KiB"'
    access.write()
    settings: dict[str, Any] = {"access": str(access.path), "data_dir": str(tmp_path / "data")}
    with HostedServer(**settings) as hosted, BareClient(hosted.target, secret_of("lab")) as lab:
        create(lab, "a", SMALL)
        refused("QUOTA_EXCEEDED", lambda: lab.read("a"))  # for want of the same room
        answer = lab.call("SaveSnapshot", service_pb2.SaveSnapshotRequest(name="runs/a", label="kept"))
        assert answer.snapshot.id == 2


def test_streams(lab: BareClient, other: BareClient) -> None:
    for name in ("a", "b"):
        create(lab, name)
        create(other, name)
    with lab.attach("a"):
        error = refused("QUOTA_EXCEEDED", lambda: lab.attach("b"))
        assert error.info.metadata["quota"] == "streams"
        with other.attach("a"), other.attach("b"):
            pass
    with lab.attach("b") as stream:
        stream.step(1, [1.0])


def test_who_comes_back_after_a_cut_connection_is_no_stream_more(hosted: HostedServer, lab: BareClient) -> None:
    """The server may think for half a minute that the old stream is still open."""
    create(lab, "a")
    with lab.attach("a") as old:
        old.step(1, [1.0])
        with BareClient(hosted.target, secret_of("lab")) as again, again.attach("a") as stream:
            stream.step(2, [1.0])


def test_use_is_told(lab: BareClient, other: BareClient) -> None:
    create(lab, "a", SMALL)
    with lab.attach("a"):
        found = {q.name: (q.used, q.limit) for q in lab.call("WhoAmI", service_pb2.WhoAmIRequest()).quotas}
    assert found["runs"] == (1, 2)
    assert found["streams"] == (1, 1)
    assert found["memory"][0] >= 17_024
    assert not other.call("WhoAmI", service_pb2.WhoAmIRequest()).quotas


def test_a_quota_that_shrinks_takes_nothing_away(hosted: HostedServer, access: AccessFile, lab: BareClient) -> None:
    for name in ("a", "b"):
        create(lab, name, SMALL)
    access.quotas["lab"] = "runs = 0\nmemory = 0"
    access.write()

    def limits() -> set[int]:
        return {quota.limit for quota in lab.call("WhoAmI", service_pb2.WhoAmIRequest()).quotas}

    eventually(lambda: limits() == {0}, "the file is taken")
    with lab.attach("a") as stream:
        stream.step(1, [1.0] * SMALL)
    refused("QUOTA_EXCEEDED", lambda: create(lab, "c"))
    access.quotas["lab"] = "runs = 0"
    access.write()
    eventually(lambda: "memory" not in str(lab.call("WhoAmI", service_pb2.WhoAmIRequest())), "the file is taken")
    create(lab, "b", 3, replace=True)


def test_runs_come_back_whatever_the_quotas_have_become(access: AccessFile, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"access": str(access.path), "data_dir": str(tmp_path / "data")}
    with HostedServer(**settings) as hosted, BareClient(hosted.target, secret_of("lab")) as lab:
        for name in ("a", "b"):
            lab.create(name, [group(w=[SMALL])], [1.0] * SMALL, durability=run_pb2.DURABILITY_SNAPSHOT)
    access.quotas["lab"] = "runs = 1\nmemory = 1\nparameters = 1"
    access.write()
    with HostedServer(**settings) as hosted, BareClient(hosted.target, secret_of("lab")) as lab:
        for name in ("a", "b"):
            assert lab.get(name).elements == SMALL
        refused("QUOTA_EXCEEDED", lambda: create(lab, "c"))


def test_the_way_back_is_never_refused(hosted: HostedServer, access: AccessFile, lab: BareClient) -> None:
    create(lab, "a", SMALL)
    access.quotas["lab"] = "memory = 100_000"
    access.write()
    eventually(lambda: "100000" in str(lab.call("WhoAmI", service_pb2.WhoAmIRequest())), "the file is taken")
    saved = lab.call("SaveSnapshot", service_pb2.SaveSnapshotRequest(name="runs/a")).snapshot.id
    access.quotas["lab"] = "memory = 1"
    access.write()
    eventually(lambda: "limit: 1\n" in str(lab.call("WhoAmI", service_pb2.WhoAmIRequest())), "the file is taken")
    lab.call("RollBack", service_pb2.RollBackRequest(name="runs/a", snapshot_id=saved))
    error = refused("QUOTA_EXCEEDED", lambda: lab.read("a"))
    assert not [detail for detail in error.status.details if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)]


def test_receipts_that_name_many_steps_are_counted(hosted: HostedServer, access: AccessFile, lab: BareClient) -> None:
    """They are remembered, of each worker that there ever was."""
    access.quotas["lab"] = "memory = 110_000"
    access.write()
    eventually(lambda: "110000" in str(lab.call("WhoAmI", service_pb2.WhoAmIRequest())), "the file is taken")
    lab.create("a", [group(w=[1])], [0.0], non_finite_policy=run_pb2.NON_FINITE_POLICY_SKIP)
    before = hosted.used_bytes
    for number in (1, 2):
        with lab.attach("a", worker_id=f"{number}") as stream:
            assert len(stream.step(1, [math.nan] * 200 + [1.0] * 1800, steps=2000)[1].skipped_steps) == 200
    eventually(lambda: hosted.used_bytes == before + 2 * 200 * 40, "both are remembered")
    with lab.attach("a", worker_id="1") as stream:
        stream.step(2, [1.0] * 2000, steps=2000)
    eventually(lambda: hosted.used_bytes == before + 200 * 40, "one of them is forgotten")
    with lab.attach("a", worker_id="3") as stream:
        refused("QUOTA_EXCEEDED", lambda: stream.step(1, [math.nan] * 2700, steps=2700))
