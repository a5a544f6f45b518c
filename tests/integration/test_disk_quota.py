"""What a tenant's runs take of the disk is reserved before it is written; nothing that the server owes is refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gradwire.server.durability import snapshotter
from gradwire.v1 import run_pb2, service_pb2
from tests.contract.bare import BareClient, group, refused
from tests.faults.hosted import HostedServer, eventually
from tests.integration.access import AccessFile, secret_of, two_tenants

ELEMENTS = 1000
STATE_BYTES = 4 * 4 * ELEMENTS
"""Of a run with AMSGrad."""
SNAPSHOT_BYTES = STATE_BYTES + 4096 + 8
RUN_BYTES = 4 * SNAPSHOT_BYTES + 1024
"""Three snapshots are kept, while a fourth is written; and the name of a tensor."""


@pytest.fixture
def access(tmp_path: Path) -> AccessFile:
    file = two_tenants(tmp_path)
    file.quotas["lab"] = f"disk = {2 * RUN_BYTES + SNAPSHOT_BYTES + STATE_BYTES // 2}"
    file.write()
    return file


@pytest.fixture
def serve(access: AccessFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], HostedServer]:
    monkeypatch.setattr("gradwire.server.rpc.calls.LOOK_SECONDS", 0.02)
    settings: dict[str, Any] = {"access": str(access.path), "data_dir": str(tmp_path / "data")}
    return lambda: HostedServer(**settings)


@pytest.fixture
def hosted(serve: Callable[[], HostedServer]) -> Iterator[HostedServer]:
    with serve() as server:
        yield server


@pytest.fixture
def lab(hosted: HostedServer) -> Iterator[BareClient]:
    with BareClient(hosted.target, secret_of("lab")) as client:
        yield client


def create(bare: BareClient, name: str, durability: str = "SNAPSHOT", **options: Any) -> None:
    bare.create(
        name,
        [group(w=[ELEMENTS])],
        [0.0] * ELEMENTS,
        request_id=name,
        durability=run_pb2.Durability.Value(f"DURABILITY_{durability}"),
        **options,
    )


def save(bare: BareClient, name: str) -> service_pb2.Snapshot:
    request = service_pb2.SaveSnapshotRequest(name=f"runs/{name}", label="kept")
    snapshot: service_pb2.Snapshot = bare.call("SaveSnapshot", request).snapshot
    return snapshot


def used(bare: BareClient) -> int:
    found = {quota.name: quota.used for quota in bare.call("WhoAmI", service_pb2.WhoAmIRequest()).quotas}
    return int(found["disk"])


def test_runs_and_snapshots_are_counted_and_refused(hosted: HostedServer, lab: BareClient) -> None:
    create(lab, "a")
    create(lab, "b")
    assert used(lab) == 2 * RUN_BYTES
    error = refused("QUOTA_EXCEEDED", lambda: create(lab, "c"))
    found = error.info.metadata
    assert (found["quota"], found["used"], found["needed_bytes"]) == ("disk", str(2 * RUN_BYTES), str(RUN_BYTES))
    fork = service_pb2.ForkRunRequest(name="runs/a", new_name="runs/c", request_id="f")
    refused("QUOTA_EXCEEDED", lambda: lab.call("ForkRun", fork))
    saved = save(lab, "a")
    assert used(lab) == 2 * RUN_BYTES + saved.size_bytes
    refused("QUOTA_EXCEEDED", lambda: save(lab, "b"))
    create(lab, "m", "MEMORY")
    create(lab, "b", replace=True)
    lab.call("DeleteRun", service_pb2.DeleteRunRequest(name="runs/a"))
    assert used(lab) == RUN_BYTES
    save(lab, "b")
    with BareClient(hosted.target, secret_of("other")) as other:
        for name in "abcdef":
            create(other, name)


def test_it_is_counted_after_a_restart(serve: Callable[[], HostedServer]) -> None:
    with serve() as hosted, BareClient(hosted.target, secret_of("lab")) as lab:
        create(lab, "a")
        saved = save(lab, "a")
    with serve() as hosted, BareClient(hosted.target, secret_of("lab")) as lab:
        assert used(lab) == RUN_BYTES + saved.size_bytes
        create(lab, "b")
        refused("QUOTA_EXCEEDED", lambda: create(lab, "c"))


def test_a_journal_is_counted_and_cut_rather_than_refused(lab: BareClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshotter, "LEAST_JOURNAL_BYTES", 4096)
    create(lab, "a", "JOURNAL")
    create(lab, "b")
    with lab.attach("a") as stream:
        stream.step(1, [1.0] * ELEMENTS)
        journaled = used(lab) - 2 * RUN_BYTES
        assert 4 * ELEMENTS < journaled < 5 * ELEMENTS
        for sequence in range(2, 12):
            stream.step(sequence, [1.0] * ELEMENTS)
        # Beyond the quota snapshots come before their time, and with the second of them what was journaled goes.
        eventually(lambda: listed(lab, "a")[0].step == 11, "the server saves the run")
        stream.step(12, [1.0] * ELEMENTS)
        eventually(lambda: listed(lab, "a")[0].step == 12, "the server saves the run again")
        assert 0 < used(lab) - 2 * RUN_BYTES < 5 * ELEMENTS
    assert lab.get("a").step == 12


def listed(bare: BareClient, name: str) -> list[service_pb2.Snapshot]:
    return list(bare.call("ListSnapshots", service_pb2.ListSnapshotsRequest(name=f"runs/{name}")).snapshots)


def test_a_quota_that_shrinks_keeps_nobody_from_going_on(serve: Callable[[], HostedServer], access: AccessFile) -> None:
    with serve() as hosted, BareClient(hosted.target, secret_of("lab")) as lab:
        create(lab, "a")
        snapshot = listed(lab, "a")[0].id
        access.quotas["lab"] = "disk = 1"
        access.write()
        eventually(lambda: "limit: 1\n" in str(lab.call("WhoAmI", service_pb2.WhoAmIRequest())), "the file is taken")
        with lab.attach("a") as stream:
            stream.step(1, [1.0] * ELEMENTS)
        lab.call("RollBack", service_pb2.RollBackRequest(name="runs/a", snapshot_id=snapshot))
        with lab.attach("a") as stream:
            stream.step(2, [1.0] * ELEMENTS)
    with serve() as hosted, BareClient(hosted.target, secret_of("lab")) as lab:
        assert lab.get("a").step == 1


def test_a_file_that_arrives_is_counted(hosted: HostedServer, lab: BareClient) -> None:
    def parts() -> Iterator[service_pb2.ImportRunRequest]:
        yield service_pb2.ImportRunRequest(header=service_pb2.ImportRunHeader(name="runs/i", request_id="i"))
        for _ in range(2 * RUN_BYTES // 4096 + 100):
            yield service_pb2.ImportRunRequest(data=b"x" * 4096)

    error = refused("QUOTA_EXCEEDED", lambda: lab.call("ImportRun", parts()))
    assert error.info.metadata["quota"] == "disk"
    assert not hosted.registry.disk_use.arriving_files["lab"]


def test_a_save_whose_caller_has_gone_is_counted_or_leaves_nothing(
    hosted: HostedServer, lab: BareClient, tmp_path: Path
) -> None:
    """What has been written is recorded, so that it goes with the run."""
    create(lab, "a")
    folder = tmp_path / "data/snapshots"
    for attempt in range(20):
        request = service_pb2.SaveSnapshotRequest(name="runs/a", label=f"{attempt}")
        call = lab.stub.SaveSnapshot.future(request, metadata=lab.metadata)
        time.sleep(0.001 * attempt)
        call.cancel()
    eventually(lambda: hosted.handlers() == 0, "the calls have ended")
    assert len(list(folder.iterdir())) == len(listed(lab, "a"))
    labelled = [snapshot for snapshot in listed(lab, "a") if snapshot.label]
    assert used(lab) == RUN_BYTES + sum(snapshot.size_bytes for snapshot in labelled)


def test_names_of_tensors_are_counted(lab: BareClient) -> None:
    many = [group(**{f"t{index}": [0] for index in range(200)})]
    error = refused("QUOTA_EXCEEDED", lambda: lab.create("a", many, [], durability=run_pb2.DURABILITY_SNAPSHOT))
    assert error.info.metadata["quota"] == "disk"


def test_runs_that_take_each_others_place_are_counted_together(hosted: HostedServer, lab: BareClient) -> None:
    hold = threading.Event()

    def parts(request_id: str) -> Iterator[service_pb2.CreateRunRequest]:
        spec = run_pb2.RunSpec(name="runs/a", groups=[group(w=[ELEMENTS])], durability=run_pb2.DURABILITY_SNAPSHOT)
        yield service_pb2.CreateRunRequest(
            header=service_pb2.CreateRunHeader(spec=spec, request_id=request_id, replace=True)
        )
        hold.wait(30)

    open_ones = [lab.stub.CreateRun.future(parts(f"{number}"), metadata=lab.metadata) for number in range(2)]
    try:
        eventually(lambda: used(lab) == 2 * RUN_BYTES, "both have begun")
        refused("QUOTA_EXCEEDED", lambda: create(lab, "a", replace=True))
    finally:
        hold.set()
        for call in open_ones:
            call.cancel()
    eventually(lambda: used(lab) == 0, "they have ended")


def test_a_file_comes_on_top_of_what_is_there(lab: BareClient) -> None:
    create(lab, "a")
    create(lab, "b")

    def parts() -> Iterator[service_pb2.ImportRunRequest]:
        yield service_pb2.ImportRunRequest(header=service_pb2.ImportRunHeader(name="runs/i", request_id="i"))
        yield service_pb2.ImportRunRequest(data=bytes(SNAPSHOT_BYTES + STATE_BYTES))

    refused("QUOTA_EXCEEDED", lambda: lab.call("ImportRun", parts()))
