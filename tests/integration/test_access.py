"""Who may do what: every method by every role, and tenants that are not there for one another."""

from __future__ import annotations

import json
import queue
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gradwire.client import AMSGrad, RunNotFound, connect
from gradwire.server.access.identity import NEEDS, Identity, Role
from gradwire.server.config import ConfigError
from gradwire.v1 import run_pb2, service_pb2, train_pb2
from tests.contract.bare import BareClient, BareStream, Refusal, group, refused
from tests.faults.hosted import HostedServer, eventually
from tests.integration.access import ROLES, AccessFile, secret_of

METHODS = sorted(method.name for method in service_pb2.DESCRIPTOR.services_by_name["OptimizerService"].methods)


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradwire.server.rpc.calls.LOOK_SECONDS", 0.02)


@pytest.fixture
def access(tmp_path: Path) -> AccessFile:
    file = AccessFile(tmp_path / "access.toml")
    for role in ROLES:
        file.add(role, "lab", role)
    file.add("other-train", "other", "train")
    file.add("old", "default", "train")
    return file


@pytest.fixture
def hosted(access: AccessFile) -> Iterator[HostedServer]:
    with HostedServer(access=str(access.path)) as server:
        yield server


def client(hosted: HostedServer, name: str | None) -> BareClient:
    return BareClient(hosted.target, None if name is None else secret_of(name))


def create(bare: BareClient, name: str = "x", values: tuple[float, float] = (1.0, 2.0), **spec: Any) -> None:
    bare.create(name, [group(w=[2])], list(values), request_id=f"{name}-request", **spec)


def stepping(bare: BareClient, name: str) -> object:
    attach = train_pb2.Attach(run=name, worker_id="w")
    with BareStream(bare.stub, attach, bare.metadata) as stream:
        return stream.step(1, [1.0, 1.0])


def creating(bare: BareClient, name: str) -> object:
    spec = run_pb2.RunSpec(name=name, groups=[group(w=[2])])
    header = service_pb2.CreateRunHeader(spec=spec, request_id="r", replace=True)
    slice_ = run_pb2.Slice(data=struct.pack("<2f", 0, 0))
    requests = [service_pb2.CreateRunRequest(header=header), service_pb2.CreateRunRequest(slice=slice_)]
    return bare.call("CreateRun", iter(requests))


def named(method: str) -> Callable[[BareClient, str], object]:
    request = getattr(service_pb2, f"{method}Request")
    return lambda bare, name: bare.call(method, request(name=name))


def unnamed(method: str) -> Callable[[BareClient, str], object]:
    request = getattr(service_pb2, f"{method}Request")
    return lambda bare, name: bare.call(method, request())


def uploading(method: str, **fields: Any) -> Callable[[BareClient, str], object]:
    request = getattr(service_pb2, f"{method}Request")
    return lambda bare, name: bare.call(method, iter([request(header={"name": name, **fields})]))


def forking(bare: BareClient, name: str) -> object:
    request = service_pb2.ForkRunRequest(name=name, new_name="runs/forked", request_id="f", replace=True)
    return bare.call("ForkRun", request)


def rolling_back(bare: BareClient, name: str) -> object:
    return bare.call("RollBack", service_pb2.RollBackRequest(name=name, snapshot_id=1))


def watching(bare: BareClient, name: str) -> object:
    """Until the first answer has come: there is no end."""
    stream: Any = bare.stub.StreamSeries(service_pb2.StreamSeriesRequest(name=name), metadata=bare.metadata)
    try:
        return next(stream)
    except grpc.RpcError as error:
        raise Refusal(error) from None
    finally:
        stream.cancel()


def logging(bare: BareClient, name: str) -> object:
    return bare.call("LogScalars", service_pb2.LogScalarsRequest(name=name, worker_id="w", number=1, epoch=1))


CALLS: dict[str, Callable[[BareClient, str], object]] = {
    **{name: unnamed(name) for name in ("WhoAmI", "GetServerStatus", "ListRuns")},
    **{
        name: named(name)
        for name in (
            "GetRun",
            "DeleteRun",
            "ReadParameters",
            "ReadState",
            "SaveSnapshot",
            "ListSnapshots",
            "DigestRun",
            "ListWorkers",
            "GetSeries",
            "ExportRun",
        )
    },
    "WriteParameters": uploading("WriteParameters", partial=True),
    "WriteState": uploading("WriteState"),
    "ImportRun": uploading("ImportRun", request_id="i"),
    "CreateRun": creating,
    "ForkRun": forking,
    "RollBack": rolling_back,
    "StreamSeries": watching,
    "LogScalars": logging,
    "Train": stepping,
}
"""A request for each method. Not all of them are good: what counts is whether somebody looks at them."""

ABOUT_A_RUN = sorted(set(METHODS) - {"WhoAmI", "GetServerStatus", "ListRuns", "CreateRun", "ImportRun"})
"""Those whose request names a run that is there."""


def outcome(call: Callable[[BareClient, str], object], bare: BareClient, name: str) -> tuple[str, str]:
    """The reason and the text of a refusal; empty where there was none."""
    try:
        call(bare, name)
    except Refusal as refusal:
        return refusal.reason or "not one of ours", str(refusal)
    return "", ""


def test_every_method_is_tried() -> None:
    assert sorted(CALLS) == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_every_method_by_every_role(hosted: HostedServer, method: str) -> None:
    with client(hosted, "train") as owner:
        create(owner)
    for role in ROLES:
        with client(hosted, role) as bare:
            reason, text = outcome(CALLS[method], bare, "runs/x")
        allowed = Role[role.upper()] >= NEEDS[method]
        assert (reason == "PERMISSION_DENIED") == (not allowed), (role, text)
        assert reason != "UNAUTHENTICATED", (role, text)
        if method == "DeleteRun" and allowed:
            with client(hosted, "train") as owner:
                create(owner)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("token", [None, "", "gw_nobody", "observe", "\x7f"], ids=ascii)
def test_every_method_by_strangers(hosted: HostedServer, method: str, token: str | None) -> None:
    """``observe`` is a token's id, and no secret."""
    with client(hosted, "train") as owner, BareClient(hosted.target, token) as stranger:
        create(owner)
        if token == "\x7f":
            return  # gRPC itself does not send it
        reason, text = outcome(CALLS[method], stranger, "runs/x")
        assert reason == "UNAUTHENTICATED", text
        assert owner.read("x")[1] == [1.0, 2.0]


@pytest.mark.parametrize("method", ABOUT_A_RUN)
def test_another_tenants_run_is_not_there(hosted: HostedServer, method: str) -> None:
    """The same answer, to the letter, as for a run that nobody has; by the plain name, and by the whole one."""
    with client(hosted, "train") as owner:
        create(owner, "secret")
        uid = owner.get("secret").uid
    for name in ("other-train", "old"):
        with client(hosted, name) as bare:
            for found, missing in (
                ("runs/secret", "runs/absent"),
                ("tenants/lab/runs/secret", "tenants/lab/runs/absent"),
                ("tenants/lab/runs/secret", "tenants/none/runs/secret"),
            ):
                seen = outcome(CALLS[method], bare, found)
                assert seen[0] == "RUN_NOT_FOUND", seen
                expected = outcome(CALLS[method], bare, missing)
                assert seen[1].replace(found, "") == expected[1].replace(missing, "")
    with client(hosted, "train") as owner:
        assert (owner.get("secret").uid, owner.get("secret").step, owner.read("secret")[1]) == (uid, 0, [1.0, 2.0])


def test_tenants_have_names_of_their_own(hosted: HostedServer) -> None:
    callers = ("train", "other-train", "old")
    for number, name in enumerate(callers):
        with client(hosted, name) as bare:
            create(bare, "x", (float(number), 0.0))
            create(bare, f"of-{name}")
    for number, name in enumerate(callers):
        with client(hosted, name) as bare:
            assert bare.read("x")[1] == [float(number), 0.0]
            page = bare.call("ListRuns", service_pb2.ListRunsRequest())
            assert [run.name for run in page.runs] == [f"runs/of-{name}", "runs/x"]


def test_pages_go_through_ones_own_runs(hosted: HostedServer) -> None:
    with client(hosted, "train") as lab, client(hosted, "other-train") as other, client(hosted, "old") as old:
        for number in range(5):
            for bare in (lab, other, old):
                create(bare, f"run-{number}")
        for bare in (lab, other, old):
            names, token = [], ""
            while True:
                page = bare.call("ListRuns", service_pb2.ListRunsRequest(page_size=2, page_token=token))
                names += [run.name for run in page.runs]
                token = page.next_page_token
                if not token:
                    break
            assert names == [f"runs/run-{number}" for number in range(5)]


def test_one_run_is_listed_by_the_name_that_its_caller_knows(hosted: HostedServer) -> None:
    with client(hosted, "train") as lab, client(hosted, "other-train") as other, client(hosted, "admin") as admin:
        create(lab, "x")
        create(lab, "xy")
        create(other, "y")
        for bare, name, found in (
            (lab, "runs/x", ["runs/x"]),
            (lab, "runs/y", []),
            (other, "runs/x", []),
            (admin, "tenants/lab/runs/x", ["runs/x"]),  # its own tenant
            (admin, "tenants/other/runs/y", ["tenants/other/runs/y"]),
        ):
            page = bare.call("ListRuns", service_pb2.ListRunsRequest(name=name))
            assert ([run.name for run in page.runs], page.next_page_token) == (found, "")
        refused("RUN_NOT_FOUND", lambda: lab.call("ListRuns", service_pb2.ListRunsRequest(name="x")))


def test_no_tenant_stands_in_what_its_own_callers_get(hosted: HostedServer) -> None:
    with client(hosted, "train") as bare:
        create(bare)
        answers = [bare.get("x"), *bare.call("ExportRun", service_pb2.ExportRunRequest(name="runs/x"))]
        request = service_pb2.ForkRunRequest(name="runs/x", new_name="runs/y", request_id="f")
        answers.append(bare.call("ForkRun", request))
        text = "".join(map(str, answers))
        with BareStream(bare.stub, train_pb2.Attach(run="runs/x", worker_id="w"), bare.metadata):
            busy = refused("RUN_BUSY", lambda: bare.attach("x", "another"))
        twice = refused("RUN_ALREADY_EXISTS", lambda: bare.create("x", [group(w=[2])], [0.0, 0.0], request_id="2"))
        lost = refused("SNAPSHOT_NOT_FOUND", lambda: rolling_back(bare, "runs/x"))
        text += "".join(f"{refusal}{refusal.info}" for refusal in (busy, twice, lost))
    assert "tenants" not in text
    assert "runs/x" in text


@pytest.mark.parametrize("on_disk", [False, True])
def test_each_tenant_sees_snapshots_one_two_three(access: AccessFile, tmp_path: Path, on_disk: bool) -> None:
    """What others do shows in no id."""
    data_dir = str(tmp_path / "data") if on_disk else ""
    with HostedServer(access=str(access.path), data_dir=data_dir) as hosted, ExitStack() as opened:
        callers = [opened.enter_context(client(hosted, name)) for name in ("train", "other-train")]
        for bare in callers:
            create(bare)
        for label in ("a", "b", "c"):
            for bare in callers:
                bare.call("SaveSnapshot", service_pb2.SaveSnapshotRequest(name="runs/x", label=label))
        seen = [
            [each.id for each in bare.call("ListSnapshots", service_pb2.ListSnapshotsRequest(name="runs/x")).snapshots]
            for bare in callers
        ]
        first = 1 if on_disk else 0  # a run that is stored has a snapshot from its beginning on
        assert seen == [list(range(first + 3, 0, -1))] * 2


def test_an_export_may_be_imported_by_another_tenant(hosted: HostedServer) -> None:
    with client(hosted, "train") as lab, client(hosted, "other-train") as other:
        create(lab)
        _, *parts = lab.call("ExportRun", service_pb2.ExportRunRequest(name="runs/x"))
        header = service_pb2.ImportRunHeader(name="runs/taken", request_id="i")
        first = service_pb2.ImportRunRequest(header=header)
        requests = [first, *(service_pb2.ImportRunRequest(data=part.data) for part in parts)]
        assert other.call("ImportRun", iter(requests)).run.spec.name == "runs/taken"
        assert other.read("taken")[1] == [1.0, 2.0]


def test_an_admin_reaches_all_tenants_by_whole_names(hosted: HostedServer) -> None:
    with client(hosted, "admin") as admin, client(hosted, "other-train") as other, client(hosted, "old") as old:
        create(other, "x", (3.0, 3.0))
        create(old, "x", (4.0, 4.0))
        refused("RUN_NOT_FOUND", lambda: admin.get("x"))
        names = ["tenants/default/runs/x", "tenants/other/runs/x"]
        page = admin.call("ListRuns", service_pb2.ListRunsRequest())
        assert [run.name for run in page.runs] == names
        for name, values in zip(names, ([4.0, 4.0], [3.0, 3.0]), strict=True):
            _, part = admin.call("ReadParameters", service_pb2.ReadParametersRequest(name=name))
            assert list(struct.unpack("<2f", part.slice.data)) == values
            assert admin.call("GetRun", service_pb2.GetRunRequest(name=name)).run.spec.name == name
        creating(admin, "tenants/other/runs/made")
        assert other.read("made")[1] == [0.0, 0.0]


@pytest.mark.parametrize("method", ["CreateRun", "ForkRun", "ImportRun"])
def test_an_admin_makes_no_tenant_by_a_slip(hosted: HostedServer, method: str) -> None:
    with client(hosted, "admin") as admin:
        create(admin)
        fork = service_pb2.ForkRunRequest(name="runs/x", new_name="tenants/lbas/runs/x", request_id="f")
        call = CALLS[method] if method != "ForkRun" else lambda bare, name: bare.call("ForkRun", fork)
        reason, text = outcome(call, admin, "tenants/lbas/runs/x")
        assert reason == "INVALID_SPEC"
        assert "expected a table [tenants.lbas]" in text


def test_a_token_for_some_runs_and_workers(hosted: HostedServer, access: AccessFile) -> None:
    secret = access.add("phone", "lab", "train", 'runs = ["phone-*"]', 'workers = ["phone-7"]')
    with client(hosted, "train") as owner, BareClient(hosted.target, secret) as phone:
        for name in ("phone-a", "desk"):
            create(owner, name)
        eventually(lambda: outcome(CALLS["GetRun"], phone, "runs/phone-a")[0] == "", "the file is taken")
        for method in ABOUT_A_RUN:
            if method != "Train":
                assert outcome(CALLS[method], phone, "runs/desk")[0] == "PERMISSION_DENIED", method
        page = phone.call("ListRuns", service_pb2.ListRunsRequest())
        assert [run.name for run in page.runs] == ["runs/phone-a"]
        refused("PERMISSION_DENIED", lambda: phone.attach("phone-a", "phone-8"))
        refused("PERMISSION_DENIED", lambda: phone.attach("desk", "phone-7"))
        with phone.attach("phone-a", "phone-7") as stream:
            stream.step(1, [1.0, 1.0])


def test_who_am_i(hosted: HostedServer, access: AccessFile) -> None:
    secret = access.add("phone", "lab", "read", "expires = 2100-01-01T00:00:00Z", 'runs = ["a"]', 'workers = ["b"]')
    with BareClient(hosted.target, secret) as phone:
        eventually(lambda: outcome(CALLS["WhoAmI"], phone, "")[0] == "", "the file is taken")
        found = phone.call("WhoAmI", service_pb2.WhoAmIRequest())
    assert (found.tenant, found.role, found.id) == ("lab", service_pb2.ROLE_READ, "phone")
    assert (found.expires_seconds, list(found.runs), list(found.workers)) == (4_102_444_800, ["a"], ["b"])


def test_who_am_i_where_nobody_is_asked() -> None:
    with HostedServer() as hosted, BareClient(hosted.target) as bare:
        found = bare.call("WhoAmI", service_pb2.WhoAmIRequest())
        assert (found.tenant, found.role, found.id) == ("default", service_pb2.ROLE_ADMIN, "")
        refused("INVALID_SPEC", lambda: creating(bare, "tenants/lab/runs/x"))


def test_the_status_of_a_server(hosted: HostedServer, access: AccessFile) -> None:
    with client(hosted, "admin") as admin, client(hosted, "train") as owner:
        create(owner)
        status = admin.call("GetServerStatus", service_pb2.GetServerStatusRequest())
        assert (status.runs, status.damaged_runs, status.recovered, status.access_error) == (1, 0, True, "")
        assert status.memory_limit_bytes > status.memory_bytes > 0
        assert status.uptime_seconds > 0
        assert status.server_instance == hosted.registry.server_instance
        access.path.unlink()
        access.path.mkdir()

        def error() -> str:
            return str(admin.call("GetServerStatus", service_pb2.GetServerStatusRequest()).access_error)

        eventually(lambda: "cannot be read" in error(), "the error is told")


# --- revoked ---------------------------------------------------------------------------------------------------------


def revoked_on(stream: BareStream) -> Refusal:
    def listen() -> None:
        while True:
            stream.receive()

    with pytest.raises(Refusal) as caught:
        listen()
    return caught.value


def test_a_waiting_stream_ends_when_its_token_is_revoked(hosted: HostedServer, access: AccessFile) -> None:
    with client(hosted, "contribute") as bare, client(hosted, "train") as owner:
        create(owner)
        with bare.attach("x") as stream:
            stream.step(1, [1.0, 1.0])
            access.remove("contribute")
            refusal = revoked_on(stream)
        assert (refusal.reason, refusal.code) == ("PERMISSION_REVOKED", grpc.StatusCode.UNAUTHENTICATED)
        assert refusal.applied == "false"
        refused("UNAUTHENTICATED", lambda: bare.attach("x"))
        assert owner.get("x").step == 1
        with owner.attach("x") as stream:
            stream.step(1, [1.0, 1.0])


def test_who_watches_series_is_told_nothing_more_when_its_token_is_revoked(
    hosted: HostedServer, access: AccessFile
) -> None:
    with client(hosted, "read") as bare, client(hosted, "train") as owner:
        create(owner)
        request = service_pb2.StreamSeriesRequest(name="runs/x", interval_seconds=60.0)
        stream: Any = bare.stub.StreamSeries(request, metadata=bare.metadata, timeout=30)
        next(stream)
        access.remove("read")
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)  # though nothing is due for a minute
    refusal = Refusal(caught.value)
    assert (refusal.reason, refusal.code) == ("PERMISSION_REVOKED", grpc.StatusCode.UNAUTHENTICATED)


def test_a_request_that_comes_after_its_token_was_revoked_is_refused(
    hosted: HostedServer, access: AccessFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call was let in before, and has waited since."""
    let_in: list[Identity] = []
    identify = hosted.server.servicer.identify

    def noting(context: Any) -> Identity:
        let_in.append(identify(context))
        return let_in[-1]

    with client(hosted, "train") as owner, client(hosted, "admin") as admin:
        create(owner)
        monkeypatch.setattr(hosted.server.servicer, "identify", noting)
        waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        with grpc.insecure_channel(hosted.target) as channel:
            method = channel.stream_unary("/gradwire.v1.OptimizerService/DeleteRun", lambda data: data, bytes)
            call = method.future(iter(waiting.get, None), metadata=owner.metadata, timeout=30)
            eventually(lambda: let_in, "the call is let in")
            access.remove("train")
            eventually(lambda: outcome(CALLS["WhoAmI"], owner, "")[0] == "UNAUTHENTICATED", "the token is revoked")
            waiting.put(service_pb2.DeleteRunRequest(name="runs/x").SerializeToString())
            waiting.put(None)
            with pytest.raises(grpc.RpcError) as caught:
                call.result()
        assert getattr(caught.value, "code", lambda: None)() is grpc.StatusCode.UNAUTHENTICATED
        listed = admin.call("ListRuns", service_pb2.ListRunsRequest())
        assert [run.name for run in listed.runs] == ["runs/x"]


@pytest.mark.parametrize("method", ["WriteParameters", "WriteState", "CreateRun", "ImportRun"])
def test_an_upload_that_is_held_open_ends_with_its_token(hosted: HostedServer, access: AccessFile, method: str) -> None:
    """Its header has come, and nothing else; what would follow is not taken any more."""
    headers: dict[str, Any] = {
        "WriteParameters": service_pb2.WriteParametersRequest(header={"name": "runs/x"}),  # type: ignore[arg-type]
        "WriteState": service_pb2.WriteStateRequest(header={"name": "runs/x"}),  # type: ignore[arg-type]
        "CreateRun": service_pb2.CreateRunRequest(
            header=service_pb2.CreateRunHeader(
                spec=run_pb2.RunSpec(name="runs/y", groups=[group(w=[2])]), request_id="y"
            )
        ),
        "ImportRun": service_pb2.ImportRunRequest(header={"name": "runs/y", "request_id": "y"}),  # type: ignore[arg-type]
    }
    if method == "WriteState":
        state = service_pb2.StateHeader(tensor_steps=[0], slots=["exp_avg", "exp_avg_sq", "max_exp_avg_sq"])
        headers[method].header.state.CopyFrom(state)
    with client(hosted, "train") as owner, client(hosted, "admin") as admin:
        create(owner)
        rest: queue.SimpleQueue[Any] = queue.SimpleQueue()
        rest.put(headers[method])
        call = getattr(owner.stub, method).future(iter(rest.get, None), metadata=owner.metadata, timeout=60)
        eventually(lambda: hosted.call(lambda: len(hosted.server.servicer._requests)) == 1, "the header has come")
        access.remove("train")
        with pytest.raises(grpc.RpcError) as caught:
            call.result()  # by itself
        rest.put(None)
        assert getattr(caught.value, "code", lambda: None)() is grpc.StatusCode.UNAUTHENTICATED
        runs = admin.call("ListRuns", service_pb2.ListRunsRequest()).runs
        assert [run.name for run in runs] == ["runs/x"]
        assert admin.read("x")[1] == [1.0, 2.0]
        eventually(lambda: hosted.used_bytes == hosted.run_of_inside("tenants/lab/runs/x").spec.memory_bytes, "freed")


def test_names_that_are_none_come_back_as_they_were_said(hosted: HostedServer) -> None:
    with client(hosted, "train") as owner:
        for name in ("x", "", "/", "physics/secret", " runs/x"):
            refusal = refused("RUN_NOT_FOUND", lambda name=name: CALLS["GetRun"](owner, name))  # type: ignore[misc]
            assert "tenants" not in f"{refusal}{refusal.info}"


def test_what_an_admin_exports_does_not_say_whose_it_was(hosted: HostedServer) -> None:
    with client(hosted, "admin") as admin, client(hosted, "other-train") as other:
        create(other)
        parts = admin.call("ExportRun", service_pb2.ExportRunRequest(name="tenants/other/runs/x"))
        assert b"runs/x" in parts[1].data
        assert b"tenants" not in parts[1].data


def test_strangers_list_no_health(hosted: HostedServer) -> None:
    with grpc.insecure_channel(hosted.target) as channel:
        listing = channel.unary_unary("/grpc.health.v1.Health/List", lambda data: data, lambda data: data)
        with pytest.raises(grpc.RpcError) as caught:
            listing(b"", timeout=30)
        assert getattr(caught.value, "code", lambda: None)() is grpc.StatusCode.UNIMPLEMENTED


def test_a_stream_that_another_token_opened_goes_on(hosted: HostedServer, access: AccessFile) -> None:
    with client(hosted, "train") as owner:
        create(owner)
        with owner.attach("x") as stream:
            access.remove("contribute")
            eventually(lambda: hosted.server.servicer.gate is not None, "there is a gate")
            stream.step(1, [1.0, 1.0])
            access.add("contribute", "lab", "contribute")
            stream.step(2, [1.0, 1.0])


def test_an_unfinished_block_is_dropped(hosted: HostedServer, access: AccessFile) -> None:
    with client(hosted, "train") as owner:
        create(owner)
        with owner.attach("x") as stream:
            half = train_pb2.Gradients(sequence=1, data=struct.pack("<f", 1), header=train_pb2.BlockHeader(), offset=0)
            stream.send(half)
            access.remove("train")
            refusal = revoked_on(stream)
        assert (refusal.reason, refusal.applied) == ("PERMISSION_REVOKED", "false")
    with client(hosted, "read") as reader:
        assert reader.get("x").step == 0


def test_a_token_that_expires_ends_its_streams(
    hosted: HostedServer, access: AccessFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    access.add("short", "lab", "train", "expires = 2100-01-01T00:00:00Z")
    with client(hosted, "short") as bare:
        eventually(lambda: outcome(CALLS["WhoAmI"], bare, "")[0] == "", "the file is taken")
        create(bare)
        with bare.attach("x") as stream:
            stream.step(1, [1.0, 1.0])
            monkeypatch.setattr("gradwire.server.access.gate.time.time", lambda: 5e9)
            refusal = revoked_on(stream)
    assert "expired" in str(refusal)


# --- at the edge -----------------------------------------------------------------------------------------------------


def test_strangers_may_ask_for_health_and_hold_nothing(hosted: HostedServer) -> None:
    with grpc.insecure_channel(hosted.target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert (
            health.Check(health_pb2.HealthCheckRequest(), timeout=30).status == health_pb2.HealthCheckResponse.SERVING
        )
        with pytest.raises(grpc.RpcError) as caught:
            list(health.Watch(health_pb2.HealthCheckRequest(), timeout=30))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_memory_is_not_shared_with_who_may_be_somebodys_proxy(hosted: HostedServer) -> None:
    with client(hosted, "train") as owner:
        owner.create("large", [group(w=[100_000])], [0.0] * 100_000)
        with owner.attach("large", shared_memory=True, lane=True) as stream:
            assert not stream.attached.HasField("region")
            assert not stream.attached.HasField("lane")


def test_several_authorizations_are_none(hosted: HostedServer) -> None:
    with client(hosted, "train") as bare:
        bare.metadata = (*bare.metadata, *bare.metadata)
        refused("UNAUTHENTICATED", lambda: bare.call("WhoAmI", service_pb2.WhoAmIRequest()))


def test_tenants_come_back_with_their_runs_and_are_served_to_nobody_else(access: AccessFile, tmp_path: Path) -> None:
    directory = str(tmp_path / "data")
    with HostedServer(access=str(access.path), data_dir=directory) as hosted, client(hosted, "train") as owner:
        create(owner, "x", durability=run_pb2.DURABILITY_JOURNAL)
        with owner.attach("x") as stream:
            stream.step(1, [1.0, 1.0])
        values = owner.read("x")[1]
    with pytest.raises(ConfigError, match="has runs of lab: without an access file"):
        HostedServer(data_dir=directory).close()
    with HostedServer(access=str(access.path), data_dir=directory) as hosted:
        with client(hosted, "train") as owner:
            assert (owner.read("x")[1], owner.get("x").step) == (values, 1)
        with client(hosted, "other-train") as other:
            refused("RUN_NOT_FOUND", lambda: other.get("x"))


def test_runs_of_before_there_were_tenants_are_those_of_default(access: AccessFile, tmp_path: Path) -> None:
    directory = str(tmp_path / "data")
    with HostedServer(data_dir=directory) as hosted, BareClient(hosted.target) as bare:
        create(bare, "x", durability=run_pb2.DURABILITY_SNAPSHOT)
    with HostedServer(access=str(access.path), data_dir=directory) as hosted, client(hosted, "old") as old:
        assert old.read("x")[1] == [1.0, 2.0]


def test_the_audit_log_tells_who_did_what_and_not_each_step(access: AccessFile, tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    with (
        HostedServer(access=str(access.path), audit_log=str(log)) as hosted,
        client(hosted, "train") as owner,
        client(hosted, None) as stranger,
    ):
        create(owner)
        with owner.attach("x") as stream:
            for sequence in (1, 2, 3):
                stream.step(sequence, [1.0, 1.0])
        refused("RUN_NOT_FOUND", lambda: owner.attach("nothing"))
        refused("UNAUTHENTICATED", lambda: stranger.get("x"))
    found = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["action"], line["id"], line["resource"], line["reason"]) for line in found] == [
        ("CreateRun", "train", "tenants/lab/runs/x", ""),
        ("Attach", "train", "tenants/lab/runs/x", ""),
        ("Detach", "train", "tenants/lab/runs/x", ""),
        ("Attach", "train", "tenants/lab/runs/nothing", "RUN_NOT_FOUND"),
        ("GetRun", "", "", "UNAUTHENTICATED"),
    ]
    assert all(line["peer"].startswith("ipv4:127.0.0.1:") for line in found)


@pytest.mark.parametrize("text", ["[", "[[tokens]]\n"])
def test_a_server_does_not_start_with_a_bad_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "access.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"the access file {path}"):
        HostedServer(access=str(path)).close()


def test_lines_that_the_disk_does_not_take_are_counted(access: AccessFile) -> None:
    with HostedServer(access=str(access.path), audit_log="/dev/full") as hosted, client(hosted, "admin") as admin:

        def lost() -> int:
            status: service_pb2.GetServerStatusResponse = admin.call(
                "GetServerStatus", service_pb2.GetServerStatusRequest()
            )
            return status.audit_lines_lost

        eventually(lambda: lost() > 1, "what is lost is told")


def test_no_secret_is_logged_or_kept(access: AccessFile, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in the log nor in anything that the server has written."""
    caplog.set_level("DEBUG")
    directory = tmp_path / "data"
    with HostedServer(access=str(access.path), data_dir=str(directory)) as hosted, client(hosted, "train") as owner:
        create(owner, "x", durability=run_pb2.DURABILITY_JOURNAL)
        with owner.attach("x") as stream:
            stream.step(1, [1.0, 1.0])
        owner.call("SaveSnapshot", service_pb2.SaveSnapshotRequest(name="runs/x"))
        texts = [str(outcome(CALLS[method], owner, "runs/absent")) for method in ABOUT_A_RUN]
    assert secret_of("train") not in caplog.text + json.dumps(texts)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 2
    assert not any(secret_of("train").encode() in data for data in written)


def test_an_admin_reaches_other_tenants_from_python(hosted: HostedServer) -> None:
    ones = {"w": np.ones(2, np.float32)}
    name = "tenants/other/runs/x"
    with (
        connect(hosted.target, token=secret_of("admin")) as admin,
        connect(hosted.target, token=secret_of("other-train")) as other,
    ):
        mine = admin.create_run(name, ones, AMSGrad(lr=0.1))
        assert mine.name == name
        mine.step(ones)
        mine.close()
        assert [run.name for run in admin.list_runs()] == [name]
        theirs = other.attach("x")
        assert theirs.step_count == 1
        theirs.step(ones)
        theirs.close()
        assert admin.attach(name).step_count == 2
        assert admin.status().runs == 1
        with pytest.raises(RunNotFound):
            other.attach("tenants/lab/runs/x")
        assert admin.delete_run(name) == 2
